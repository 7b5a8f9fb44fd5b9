//! Measuring a round: everything that needs the weights, the updates and the loss oracle.

use crate::stats::{Paired, lower_median, paired};
use crate::{LossOracle, OracleError, baseline, losses, with_perturbation};
use alice_spec::RunSpec;
use alice_update::{Entries, aggregate};

/// Largest factor f_i: a short update is stretched at most twofold, so that noise near zero is not blown up.
pub const FACTOR_MAX: f32 = 2.0;

/// A well-formed submission that waits for its decision.
#[derive(Clone, Debug)]
pub struct Candidate<U> {
    /// Submission.
    pub id: [u8; 32],
    /// Key of its miner.
    pub miner: [u8; 32],
    /// Whether the key has accepted work in earlier epochs.
    pub has_accepted_work: bool,
    /// Fragment of the model that its task trained; 0 if tasks train all of it.
    pub fragment: u32,
    /// Its update.
    pub update: U,
}

/// A candidate as [`decide`](crate::decide) sees it: whose it is and what was measured, without update and weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// Submission.
    pub id: [u8; 32],
    /// Key of its miner.
    pub miner: [u8; 32],
    /// Whether the key has accepted work in earlier epochs.
    pub has_accepted_work: bool,
    /// Fragment of the model that its task trained.
    pub fragment: u32,
    /// Euclidean norm of the update.
    pub norm: f32,
    /// The update's effect on the loss.
    pub evaluation: Evaluation,
}

/// An update's effect on the loss.
#[derive(Clone, Debug, PartialEq)]
pub enum Evaluation {
    /// Not evaluated, and the reason in a sentence: all zero, not finite, or not of this model.
    Degenerate(String),
    /// Evaluated at the probe step.
    Probed {
        /// f_i.
        factor: f32,
        /// s_i and its standard error, nats per token. Not finite if a loss was not.
        improvement: Paired,
    },
}

/// A measured round.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundMeasurements {
    /// Losses of θ on the scoring split, nats per token.
    pub losses_before: Vec<f64>,
    /// One measurement for each candidate, ascending by id.
    pub measurements: Vec<Measurement>,
}

/// Measures a round: one evaluation of θ and one of each candidate on the same sequences.
///
/// Arguments and errors are those of [`score_round`](crate::score_round).
pub fn measure_round<U: Entries>(
    oracle: &mut dyn LossOracle,
    spec: &RunSpec,
    theta: &mut [f32],
    scoring_split: &[u32],
    candidates: &[Candidate<U>],
    previous_median_norms: &[Option<f32>],
    progress: &mut dyn FnMut(usize),
) -> Result<RoundMeasurements, OracleError> {
    // Once for all candidates: pairing needs the same sequences, and θ does not change between them.
    let losses_before = baseline(oracle, theta, scoring_split)?;
    let mut order: Vec<(&Candidate<U>, Result<f32, String>)> = candidates
        .iter()
        .map(|candidate| (candidate, usable_norm(&candidate.update, theta.len())))
        .collect();
    // Results are in ascending order of id, in whatever order the submissions came in.
    order.sort_by_key(|(candidate, _)| candidate.id);
    let references = reference_norms(spec.task.fragments, &order, previous_median_norms);
    // The product is rounded to f32 once, so that the probe step is the same number for every update.
    let probe = (spec.score.probe * spec.outer.alpha) as f32;
    let mut measurements = Vec::with_capacity(order.len());
    for (done, (candidate, norm)) in order.into_iter().enumerate() {
        let (norm, evaluation) = match norm {
            Err(reason) => (candidate.update.norm() as f32, Evaluation::Degenerate(reason)),
            Ok(norm) => {
                // A fragment that the run does not have has factor 0: its update is measured as no change.
                let reference = references.get(candidate.fragment as usize).copied().unwrap_or(0.0);
                let factor = FACTOR_MAX.min(reference / norm);
                let losses_after = with_perturbation(theta, &candidate.update, |point| {
                    aggregate::apply(point, &candidate.update, probe * factor);
                    losses(oracle, point, scoring_split)
                })?;
                let fall = paired(&losses_before, &losses_after);
                let improvement = Paired {
                    mean: fall.mean / spec.score.probe,
                    standard_error: fall.standard_error / spec.score.probe,
                };
                (norm, Evaluation::Probed { factor, improvement })
            }
        };
        measurements.push(Measurement {
            id: candidate.id,
            miner: candidate.miner,
            has_accepted_work: candidate.has_accepted_work,
            fragment: candidate.fragment,
            norm,
            evaluation,
        });
        progress(done + 1);
    }
    Ok(RoundMeasurements {
        losses_before,
        measurements,
    })
}

/// ν_p of each fragment of the run.
fn reference_norms<U>(
    fragments: u32,
    candidates: &[(&Candidate<U>, Result<f32, String>)],
    previous_median_norms: &[Option<f32>],
) -> Vec<f32> {
    (0..fragments)
        .map(|fragment| {
            let norms: Vec<f64> = candidates
                .iter()
                .filter(|(candidate, _)| candidate.fragment == fragment)
                .filter_map(|(_, norm)| norm.as_ref().ok().map(|&norm| norm.into()))
                .collect();
            let previous = previous_median_norms.get(fragment as usize).copied().flatten();
            reference_norm(previous, &norms)
        })
        .collect()
}

/// ν_p, the norm that a fragment's updates are brought to: the median of the last round that accepted any, otherwise
/// the lower median of `norms`, those of the round's well-formed updates of the fragment. 0 if there is neither.
pub fn reference_norm(previous: Option<f32>, norms: &[f64]) -> f32 {
    match previous.filter(|norm| norm.is_finite() && *norm > 0.0) {
        Some(norm) => norm,
        None => lower_median(norms).unwrap_or(0.0) as f32,
    }
}

/// Norm of an update that can be evaluated, or why it cannot.
fn usable_norm(update: &impl Entries, total: usize) -> Result<f32, String> {
    let (mut is_inside, mut is_finite) = (true, true);
    for (index, value) in update.entries() {
        is_inside &= index < total as u64;
        is_finite &= value.is_finite();
    }
    if !is_inside {
        return Err("the update has entries that the model does not have".into());
    }
    if !is_finite {
        return Err("the update holds a value that is not finite".into());
    }
    let norm = update.norm() as f32;
    // Finite values may still overflow in the sum of squares, or vanish when the norm is rounded to f32.
    if norm == 0.0 {
        Err("the update is zero".into())
    } else if !norm.is_finite() {
        Err("the norm of the update is not finite".into())
    } else {
        Ok(norm)
    }
}
