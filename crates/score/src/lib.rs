//! Proof of Gradient (docs/spec/scoring.md): which updates help the model, by how much, and what that is worth.
//!
//! The crate holds the statistics and the decisions. Losses come from a [`LossOracle`], so it needs no torch and its
//! tests run on a quadratic whose truth is known.
//!
//! * [`measure_round`] asks the oracle: one evaluation of θ and one of each update. It alone sees weights and updates.
//! * [`decide`] is a pure function of the measurements: gate, pay, reference norms. [`score_round`] is both.
//! * [`guarded_step`] is the step guard, a backtracking line search on another split: the model takes its step only if
//!   it does not hurt. [`confirm_step`] skips it after all if the scoring split shows a loss that is not finite.
//!
//! Four ideas, in the order in which an update meets them:
//!
//! * **Common norm**: every update is brought to the median norm of the last accepted ones, so magnitude pays nobody.
//! * **Probe**: an update is measured at the fraction κ of the step, about the weight that it has in the aggregate.
//! * **Gate**: paired differences over the same sequences; a key's evidence must reach z standard errors, and for keys
//!   without accepted work the best of as many draws of noise.
//! * **Pay**: relative to the median of the fragment, clipped.
//!
//! ```
//! use alice_score::{Candidate, LossOracle, OracleError, Outcome, score_round};
//! use alice_spec::RunSpec;
//! use alice_update::Sparse;
//!
//! /// The loss of sequence j is (θ₀ − 1)² and a spread of its own.
//! struct Parabola;
//!
//! impl LossOracle for Parabola {
//!     fn losses(&mut self, theta: &[f32], sequences: &[u32]) -> Result<Vec<f64>, OracleError> {
//!         let loss = |j: &u32| f64::from(theta[0] - 1.0).powi(2) * (1.0 + 0.01 * f64::from(*j));
//!         Ok(sequences.iter().map(loss).collect())
//!     }
//! }
//!
//! let spec = RunSpec::parse(alice_spec::preset("dev").unwrap())?;
//! // An update is θ_start − θ_end: a negative entry raises the weight.
//! let candidate = |id: u8, value: f32| Candidate {
//!     id: [id; 32],
//!     miner: [id; 32],
//!     has_accepted_work: true,
//!     fragment: 0,
//!     update: Sparse { indices: vec![0], values: vec![value] },
//! };
//! let candidates = [candidate(1, -0.5), candidate(2, 0.5)];
//! let mut theta = [0.0];
//! let round = score_round(&mut Parabola, &spec, &mut theta, &[0, 1, 2, 3], &candidates, &[None], &mut |_| ())?;
//! assert_eq!(round.decisions[0].outcome, Outcome::Accepted);
//! assert_eq!(round.decisions[0].score, 1_000_000_000);
//! assert_eq!(round.decisions[1].outcome, Outcome::NoImprovement);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

use alice_update::Entries;

mod decide;
mod guard;
mod measure;
mod round;
mod stats;

pub use decide::{Decision, Decisions, Outcome, SCORE_CLIP, SCORE_UNIT, decide};
pub use guard::{GuardResult, HALVINGS_MAX, confirm_step, guarded_step};
pub use measure::{Candidate, Evaluation, FACTOR_MAX, Measurement, RoundMeasurements, measure_round, reference_norm};
pub use round::{RoundScore, score_round};
pub use stats::{Paired, lower_median, paired};

/// A loss could not be computed. Always a fault of the server, never a miner's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("losses could not be computed: {message}")]
pub struct OracleError {
    /// The problem, and what to do about it.
    pub message: String,
}

/// Computes losses of the model at any point.
pub trait LossOracle {
    /// Mean loss of each sequence in nats per token, in the order of `sequences`.
    ///
    /// `theta` is the flat model vector; `sequences` are indices into the validation reserve, the held-out text. A loss
    /// that is not finite is an answer (the point is bad), not an error.
    fn losses(&mut self, theta: &[f32], sequences: &[u32]) -> Result<Vec<f64>, OracleError>;
}

/// Losses, of which there is one for each sequence.
fn losses(oracle: &mut dyn LossOracle, theta: &[f32], sequences: &[u32]) -> Result<Vec<f64>, OracleError> {
    let losses = oracle.losses(theta, sequences)?;
    if losses.len() == sequences.len() {
        Ok(losses)
    } else {
        let message = format!("{} losses came back for {} sequences", losses.len(), sequences.len());
        Err(OracleError { message })
    }
}

/// Losses of the model itself, which must be finite: without them nothing can be compared.
fn baseline(oracle: &mut dyn LossOracle, theta: &[f32], sequences: &[u32]) -> Result<Vec<f64>, OracleError> {
    if sequences.is_empty() {
        return Err(OracleError {
            message: "the validation split is empty".into(),
        });
    }
    let losses = losses(oracle, theta, sequences)?;
    match losses.iter().zip(sequences).find(|(loss, _)| !loss.is_finite()) {
        None => Ok(losses),
        Some((_, sequence)) => Err(OracleError {
            message: format!("the model's own loss is not finite on validation sequence {sequence}"),
        }),
    }
}

/// Calls `measure` with weights that it may change at the coordinates of `perturbation`, and puts those back afterwards
/// bit by bit: adding back what was subtracted would round. Only the weights at these coordinates are copied, so
/// `theta` may be larger than memory. Coordinates that `theta` does not have are left out.
pub fn with_perturbation<R>(
    theta: &mut [f32],
    perturbation: &impl Entries,
    measure: impl FnOnce(&mut [f32]) -> R,
) -> R {
    let position = |index: u64| usize::try_from(index).unwrap_or(usize::MAX);
    let mut saved = Vec::with_capacity(perturbation.count());
    saved.extend(
        perturbation
            .entries()
            .map(|(index, _)| theta.get(position(index)).copied().unwrap_or_default()),
    );
    let result = measure(theta);
    for ((index, _), value) in perturbation.entries().zip(saved) {
        if let Some(weight) = theta.get_mut(position(index)) {
            *weight = value;
        }
    }
    result
}

#[cfg(test)]
mod tests;
