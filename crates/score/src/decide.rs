//! Deciding a round: gate and pay, a pure function of the measurements.

use crate::measure::{Evaluation, Measurement};
use crate::stats::{Paired, Pooled, lower_median, pooled};
use alice_spec::RunSpec;
use std::collections::{BTreeMap, BTreeSet};

/// A score is at most this multiple of the round's median improvement: a single lucky measurement cannot take more than
/// that from the others.
pub const SCORE_CLIP: f64 = 1.5;
/// Score of an update with exactly the median improvement, in billionths.
pub const SCORE_UNIT: f64 = 1e9;

/// Outcome of a candidate.
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
    /// Outcome.
    pub outcome: Outcome,
    /// The reason in one sentence.
    pub detail: String,
    /// s_i: fall of the loss at the probe step divided by κ, nats per token. Zero if it was not measured.
    pub improvement: f64,
    /// Standard error of s_i, nats per token. Zero if it was not measured.
    pub standard_error: f64,
    /// f_i.
    pub factor: f32,
    /// Euclidean norm of the update.
    pub norm: f32,
    /// Score in billionths; zero unless accepted.
    pub score: u64,
}

/// The decisions of a round.
#[derive(Clone, Debug, PartialEq)]
pub struct Decisions {
    /// One decision for each measurement, ascending by id.
    pub decisions: Vec<Decision>,
    /// ν_p of each fragment: lower median norm of its accepted updates. `None` if none was accepted.
    pub median_norms: Vec<Option<f32>>,
}

/// Decides a round from its measurements: which updates are accepted (docs/spec/scoring.md#acceptance-gate) and what
/// they are worth (docs/spec/scoring.md#score). Pure: no weights, no oracle, no clock.
///
/// `measurements` may be in any order: they are put into ascending order of id first, because sums go by it.
pub fn decide(spec: &RunSpec, measurements: &[Measurement]) -> Decisions {
    let mut order: Vec<&Measurement> = measurements.iter().collect();
    // Ids are unique, so the order of the sums does not depend on the order of measuring.
    order.sort_by_key(|measurement| measurement.id);
    let evidence = Evidence::new(&order);
    let mut decisions = Vec::with_capacity(order.len());
    let mut shares = Vec::with_capacity(order.len());
    for measurement in order {
        shares.push(Share {
            fragment: measurement.fragment,
            miner: measurement.miner,
            mean: mean(&evidence.of_fragment(measurement.miner, measurement.fragment)),
        });
        decisions.push(match &measurement.evaluation {
            Evaluation::Degenerate(reason) => Decision::degenerate(measurement, reason.clone()),
            Evaluation::Probed { factor, improvement } => {
                let of_key = evidence.of_key(measurement.miner);
                let gate = Gate {
                    threshold: threshold(spec.score.z, measurement.has_accepted_work, evidence.newcomers),
                    pooled: pooled(&of_key),
                    submissions: of_key.len(),
                    z: spec.score.z,
                };
                Decision::probed(measurement, *factor, *improvement, &gate)
            }
        });
    }
    assign_scores(&mut decisions, &shares);
    let median_norms = (0..spec.task.fragments)
        .map(|fragment| {
            let of_fragment = decisions.iter().zip(&shares).filter(|(_, s)| s.fragment == fragment);
            let norms: Vec<f64> = of_fragment
                .filter(|(decision, _)| decision.accepted)
                .map(|(decision, _)| decision.norm.into())
                .collect();
            lower_median(&norms).map(|norm| norm as f32)
        })
        .collect();
    Decisions {
        decisions,
        median_norms,
    }
}

/// Usable measurements by key.
struct Evidence {
    /// (fragment, s_i and its standard error), ascending by id.
    by_key: BTreeMap<[u8; 32], Vec<(u32, Paired)>>,
    /// Keys without accepted work that sent an update which could be evaluated.
    newcomers: usize,
}

impl Evidence {
    fn new(measurements: &[&Measurement]) -> Self {
        let mut by_key: BTreeMap<[u8; 32], Vec<(u32, Paired)>> = BTreeMap::new();
        let mut newcomers = BTreeSet::new();
        for measurement in measurements {
            let Evaluation::Probed { improvement, .. } = measurement.evaluation else {
                continue;
            };
            // Counted even if the loss was not finite: the key did try.
            if !measurement.has_accepted_work {
                newcomers.insert(measurement.miner);
            }
            if improvement.is_usable() {
                let of_key = by_key.entry(measurement.miner).or_default();
                of_key.push((measurement.fragment, improvement));
            }
        }
        Self {
            by_key,
            newcomers: newcomers.len(),
        }
    }

    fn of_key(&self, miner: [u8; 32]) -> Vec<Paired> {
        let of_key = self.by_key.get(&miner).map_or(&[][..], Vec::as_slice);
        of_key.iter().map(|(_, improvement)| *improvement).collect()
    }

    fn of_fragment(&self, miner: [u8; 32], fragment: u32) -> Vec<Paired> {
        let of_key = self.by_key.get(&miner).map_or(&[][..], Vec::as_slice);
        let of_fragment = of_key.iter().filter(|(number, _)| *number == fragment);
        of_fragment.map(|(_, improvement)| *improvement).collect()
    }
}

/// Standard errors that a key's evidence must reach. Keys are free, so the best of m newcomers without any merit
/// reaches about √(2 ln m), the expected maximum of m standard normal draws; newcomers must pass that as well.
fn threshold(z: f64, has_accepted_work: bool, newcomers: usize) -> f64 {
    if has_accepted_work {
        z
    } else {
        z.max((2.0 * libm::log(newcomers.max(1) as f64)).sqrt())
    }
}

/// Plain mean of a key's improvements. Pay goes by it, so that a key's updates together are paid the sum of what they
/// brought: by the mean that is weighted for the gate, updates without merit but with a large error would each be paid
/// like the good one they ride on (docs/decisions/0007).
fn mean(improvements: &[Paired]) -> f64 {
    improvements.iter().fold(0.0, |sum, m| sum + m.mean) / improvements.len().max(1) as f64
}

/// A submission's share in the pay of its fragment.
struct Share {
    fragment: u32,
    miner: [u8; 32],
    /// Mean improvement of the key's updates of the fragment.
    mean: f64,
}

/// Scores of the accepted: the key's mean improvement in the fragment relative to the lower median over the keys with
/// accepted work there, clipped. So nobody earns less for a harder fragment (docs/decisions/0010). Each key counts once
/// in the median, so that nobody moves it by sending more.
fn assign_scores(decisions: &mut [Decision], shares: &[Share]) {
    let mut key_means: BTreeMap<u32, BTreeMap<[u8; 32], f64>> = BTreeMap::new();
    for (_, share) in decisions.iter().zip(shares).filter(|(decision, _)| decision.accepted) {
        key_means
            .entry(share.fragment)
            .or_default()
            .insert(share.miner, share.mean);
    }
    let medians: BTreeMap<u32, f64> = key_means
        .into_iter()
        .filter_map(|(fragment, means)| {
            let means: Vec<f64> = means.into_values().collect();
            // A median that is not positive would turn the ratio around: nobody is paid for the fragment then.
            Some((fragment, lower_median(&means).filter(|median| *median > 0.0)?))
        })
        .collect();
    let decided = decisions.iter_mut().zip(shares);
    for (decision, share) in decided.filter(|(decision, _)| decision.accepted) {
        // Without a positive median the score stays zero.
        if let Some(median) = medians.get(&share.fragment) {
            decision.score = ((share.mean / median).clamp(0.0, SCORE_CLIP) * SCORE_UNIT).round() as u64;
        }
    }
}

/// Conditions that a submission must meet.
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
    fn degenerate(measurement: &Measurement, detail: String) -> Self {
        Self {
            id: measurement.id,
            accepted: false,
            outcome: Outcome::Degenerate,
            detail,
            improvement: 0.0,
            standard_error: 0.0,
            factor: 0.0,
            norm: measurement.norm,
            score: 0,
        }
    }

    fn probed(measurement: &Measurement, factor: f32, improvement: Paired, gate: &Gate) -> Self {
        let Paired { mean, standard_error } = improvement;
        let refused = Self {
            id: measurement.id,
            accepted: false,
            outcome: Outcome::NoImprovement,
            detail: String::new(),
            improvement: mean,
            standard_error,
            factor,
            norm: measurement.norm,
            score: 0,
        };
        // Refused, and the verdict has no numbers: there is nothing to compare.
        if !improvement.is_usable() {
            return Self {
                detail: "the loss is not finite after the update".into(),
                improvement: 0.0,
                standard_error: 0.0,
                ..refused
            };
        }
        // The key's evidence decides; an update that does clear harm itself is refused whatever its key's others did.
        let harms = mean < -gate.z * standard_error;
        let accepted = gate.pooled.mean > 0.0 && gate.pooled.z >= gate.threshold && !harms;
        let outcome = if accepted {
            Outcome::Accepted
        } else {
            Outcome::NoImprovement
        };
        Self {
            accepted,
            outcome,
            detail: detail(improvement, accepted, gate),
            ..refused
        }
    }
}

/// The decision in one sentence. Part of the signed verdict: its words are a format.
fn detail(improvement: Paired, accepted: bool, gate: &Gate) -> String {
    let verb = if accepted { "lowers" } else { "does not clearly lower" };
    let evidence = match gate.submissions {
        0 | 1 => String::new(),
        n => format!("; the key's {n} updates together reach {:.2}", gate.pooled.z),
    };
    format!(
        "{verb} the loss: {:.6} ± {:.6} nats per token, {:.2} standard errors are needed{evidence}",
        improvement.mean, improvement.standard_error, gate.threshold
    )
}
