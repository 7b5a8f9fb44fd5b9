//! The decisions of a round (protocol §5).

use crate::stats::{Paired, Pooled, lower_median, paired, pooled};
use crate::{LossOracle, OracleError, baseline, elsewhere, losses};
use alice_spec::RunSpec;
use alice_update::{Entries, aggregate};
use std::collections::{BTreeMap, BTreeSet};

/// Largest factor f_i: a short update is stretched at most twofold, so that noise near zero is not blown up.
pub const FACTOR_MAX: f32 = 2.0;
/// A score is at most this multiple of the round's median improvement.
pub const SCORE_CLIP: f64 = 1.5;
/// Score of an update with exactly the median improvement, in billionths.
pub const SCORE_UNIT: f64 = 1e9;

/// A well-formed submission that waits for its decision.
#[derive(Clone, Debug)]
pub struct Candidate<U> {
    /// Submission.
    pub id: [u8; 32],
    /// Key of its miner.
    pub miner: [u8; 32],
    /// Whether the key has accepted work in earlier epochs.
    pub proven: bool,
    /// Fragment of the model that its task trained; 0 where tasks train all of it.
    pub fragment: u32,
    /// Its update.
    pub update: U,
}

/// What came of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It helps: aggregated and paid.
    Accepted,
    /// The improvement is not above the gate.
    NoImprovement,
    /// All zero, or numbers that are not finite or not of this model; never evaluated.
    Degenerate,
}

/// A candidate's decision with the numbers behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Submission.
    pub id: [u8; 32],
    /// Whether the outcome is [`Outcome::Accepted`].
    pub accepted: bool,
    /// What came of it.
    pub outcome: Outcome,
    /// The reason in one sentence.
    pub detail: String,
    /// s_i: fall of the loss at the probe step divided by κ, nats per token. Zero where it was not measured.
    pub improvement: f64,
    /// Standard error of s_i, nats per token. Zero where it was not measured.
    pub standard_error: f64,
    /// f_i.
    pub factor: f32,
    /// Euclidean norm of the update.
    pub norm: f32,
    /// Score in billionths; zero unless accepted.
    pub score: u64,
}

/// A decided round.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundScore {
    /// One decision for each candidate, ascending by id.
    pub decisions: Vec<Decision>,
    /// ν_p for each fragment: lower median norm of its accepted updates; none where none was accepted.
    pub median_norms: Vec<Option<f32>>,
    /// Losses of θ on the scoring split.
    pub losses_before: Vec<f64>,
}

/// Scores a round: one evaluation of θ and one of each candidate on the same sequences.
///
/// `theta` is θ(e); it is moved to each probe and is θ(e) bit for bit afterwards, also after an error. `scoring_split` holds
/// indices into the reserve; `previous_median_norms` are, fragment by fragment, ν_p of the last round that accepted any
/// (none: the candidates' own median). `progress` is called with the number of decided candidates. An error means that the
/// server could not evaluate, and that nobody may be blamed: the round has to be repeated.
pub fn score_round<U: Entries>(
    oracle: &mut dyn LossOracle,
    spec: &RunSpec,
    theta: &mut [f32],
    scoring_split: &[u32],
    candidates: &[Candidate<U>],
    previous_median_norms: &[Option<f32>],
    progress: &mut dyn FnMut(usize),
) -> Result<RoundScore, OracleError> {
    let losses_before = baseline(oracle, theta, scoring_split)?;
    let mut order: Vec<(&Candidate<U>, Result<f32, String>)> = candidates
        .iter()
        .map(|candidate| (candidate, usable_norm(&candidate.update, theta.len())))
        .collect();
    order.sort_by_key(|(candidate, _)| candidate.id);
    let references: Vec<f32> = (0..spec.task.fragments)
        .map(|fragment| {
            let norms: Vec<f64> = order
                .iter()
                .filter(|(candidate, _)| candidate.fragment == fragment)
                .filter_map(|(_, norm)| norm.as_ref().ok().map(|&norm| norm.into()))
                .collect();
            let previous = previous_median_norms.get(fragment as usize).copied().flatten();
            reference_norm(previous, &norms)
        })
        .collect();
    let newcomers: BTreeSet<_> = order
        .iter()
        .filter(|(c, norm)| !c.proven && norm.is_ok())
        .map(|(candidate, _)| candidate.miner)
        .collect();
    let probe = (spec.score.probe * spec.outer.alpha) as f32;
    let mut measurements = Vec::with_capacity(order.len());
    let mut evidence: BTreeMap<[u8; 32], Vec<(u32, Paired)>> = BTreeMap::new();
    for (done, (candidate, norm)) in order.into_iter().enumerate() {
        let measured = match norm {
            Err(reason) => Err(reason),
            Ok(norm) => {
                let reference = references.get(candidate.fragment as usize).copied().unwrap_or(0.0);
                let factor = FACTOR_MAX.min(reference / norm);
                let losses_after = elsewhere(theta, &candidate.update, |point| {
                    aggregate::apply(point, &candidate.update, probe * factor);
                    losses(oracle, point, scoring_split)
                })?;
                let paired = paired(&losses_before, &losses_after);
                let measured = Paired {
                    mean: paired.mean / spec.score.probe,
                    standard_error: paired.standard_error / spec.score.probe,
                };
                if measured.is_usable() {
                    let of_key = evidence.entry(candidate.miner).or_default();
                    of_key.push((candidate.fragment, measured));
                }
                Ok((norm, factor, measured))
            }
        };
        measurements.push((candidate, measured));
        progress(done + 1);
    }
    let mut decisions = Vec::with_capacity(measurements.len());
    let mut classes = Vec::with_capacity(measurements.len());
    for (candidate, measured) in measurements {
        let of_key = evidence.get(&candidate.miner).map_or(&[][..], Vec::as_slice);
        let of_class: Vec<Paired> = of_key
            .iter()
            .filter(|(fragment, _)| *fragment == candidate.fragment)
            .map(|(_, measured)| *measured)
            .collect();
        classes.push(Class {
            fragment: candidate.fragment,
            miner: candidate.miner,
            mean: mean(&of_class),
        });
        decisions.push(match measured {
            Err(reason) => Decision::degenerate(candidate.id, candidate.update.norm() as f32, reason),
            Ok((norm, factor, measured)) => {
                let of_key: Vec<Paired> = of_key.iter().map(|(_, measured)| *measured).collect();
                let gate = Gate {
                    threshold: threshold(spec.score.z, candidate.proven, newcomers.len()),
                    pooled: pooled(&of_key),
                    submissions: of_key.len(),
                    z: spec.score.z,
                };
                Decision::measured(candidate.id, factor, norm, measured, &gate)
            }
        });
    }
    pay(&mut decisions, &classes);
    let median_norms = (0..spec.task.fragments)
        .map(|fragment| {
            let of_fragment = decisions.iter().zip(&classes).filter(|(_, c)| c.fragment == fragment);
            let norms: Vec<f64> = of_fragment
                .filter(|(decision, _)| decision.accepted)
                .map(|(decision, _)| decision.norm.into())
                .collect();
            lower_median(&norms).map(|norm| norm as f32)
        })
        .collect();
    Ok(RoundScore {
        decisions,
        median_norms,
        losses_before,
    })
}

/// ν_p that a fragment's updates are brought to: of the last round that accepted any, otherwise the lower median of the
/// norms at hand, in which every well-formed update counts.
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
    if norm == 0.0 {
        Err("the update is zero".into())
    } else if !norm.is_finite() {
        Err("the norm of the update is not finite".into())
    } else {
        Ok(norm)
    }
}

/// Standard errors that an improvement must reach. Keys are free, so the best of m newcomers without any merit reaches
/// about √(2 ln m) (the expected maximum of m standard normal draws); they must pass that as well.
fn threshold(z: f64, proven: bool, newcomers: usize) -> f64 {
    if proven {
        z
    } else {
        z.max((2.0 * libm::log(newcomers.max(1) as f64)).sqrt())
    }
}

/// Plain mean of a key's improvements. Pay goes by it, so that a key's updates together are paid the sum of what they
/// brought: by the mean that is weighted for the gate, updates without merit but with a large error would each be paid
/// like the good one they ride on (docs/decisions/0007).
fn mean(of_key: &[Paired]) -> f64 {
    of_key.iter().fold(0.0, |sum, m| sum + m.mean) / of_key.len().max(1) as f64
}

/// What a submission's pay goes by: what its key has done in its class.
struct Class {
    fragment: u32,
    miner: [u8; 32],
    /// Mean improvement of the key's updates of the fragment.
    mean: f64,
}

/// Scores of the accepted: the key's mean improvement in the fragment relative to the lower median over the keys with
/// accepted work there, clipped. So nobody earns less for the fragment that he was given (docs/decisions/0010). Each key
/// counts once in the median, so that nobody moves it by sending more.
fn pay(decisions: &mut [Decision], classes: &[Class]) {
    let mut of_keys: BTreeMap<u32, BTreeMap<[u8; 32], f64>> = BTreeMap::new();
    for (_, class) in decisions.iter().zip(classes).filter(|(decision, _)| decision.accepted) {
        of_keys
            .entry(class.fragment)
            .or_default()
            .insert(class.miner, class.mean);
    }
    let medians: BTreeMap<u32, f64> = of_keys
        .into_iter()
        .filter_map(|(fragment, means)| {
            let means: Vec<f64> = means.into_values().collect();
            Some((fragment, lower_median(&means).filter(|median| *median > 0.0)?))
        })
        .collect();
    for (decision, class) in decisions
        .iter_mut()
        .zip(classes)
        .filter(|(decision, _)| decision.accepted)
    {
        if let Some(median) = medians.get(&class.fragment) {
            decision.score = ((class.mean / median).clamp(0.0, SCORE_CLIP) * SCORE_UNIT).round() as u64;
        }
    }
}

/// What a key's submission must pass.
struct Gate {
    /// Standard errors that the key's evidence must reach.
    threshold: f64,
    /// The key's evidence.
    pooled: Pooled,
    /// Submissions that it comes from.
    submissions: usize,
    /// z of the run.
    z: f64,
}

impl Decision {
    fn degenerate(id: [u8; 32], norm: f32, detail: String) -> Self {
        let outcome = Outcome::Degenerate;
        let (improvement, standard_error, factor, score) = (0.0, 0.0, 0.0, 0);
        Self {
            id,
            accepted: false,
            outcome,
            detail,
            improvement,
            standard_error,
            factor,
            norm,
            score,
        }
    }

    fn measured(id: [u8; 32], factor: f32, norm: f32, measured: Paired, gate: &Gate) -> Self {
        let Paired {
            mean: improvement,
            standard_error,
        } = measured;
        let base = Self {
            id,
            accepted: false,
            outcome: Outcome::NoImprovement,
            detail: String::new(),
            improvement,
            standard_error,
            factor,
            norm,
            score: 0,
        };
        if !measured.is_usable() {
            let detail = "the loss is not finite after the update".into();
            return Self {
                detail,
                improvement: 0.0,
                standard_error: 0.0,
                ..base
            };
        }
        // The key's evidence decides; an update that does clear harm itself is refused whatever its key's others did.
        let harms = improvement < -gate.z * standard_error;
        let accepted = gate.pooled.mean > 0.0 && gate.pooled.z >= gate.threshold && !harms;
        let outcome = if accepted {
            Outcome::Accepted
        } else {
            Outcome::NoImprovement
        };
        let verb = if accepted { "lowers" } else { "does not clearly lower" };
        let evidence = match gate.submissions {
            0 | 1 => String::new(),
            n => format!("; the key's {n} updates together reach {:.2}", gate.pooled.z),
        };
        let detail = format!(
            "{verb} the loss: {improvement:.6} ± {standard_error:.6} nats per token, {:.2} standard errors are needed{evidence}",
            gate.threshold
        );
        Self {
            accepted,
            outcome,
            detail,
            ..base
        }
    }
}
