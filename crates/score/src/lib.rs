//! Proof of Gradient (protocol §5): which updates help the model, by how much, and what that is worth.
//!
//! The crate holds the statistics and the decisions; losses come from a [`LossOracle`], so it needs no torch and its
//! tests run on a quadratic. [`score_round`] decides a round, [`guarded_step`] takes the model's step only if it does
//! not hurt (§6.4).
//!
//! * **Common norm**: every update is brought to the median norm of the last accepted ones, so that magnitude pays
//!   nobody.
//! * **Probe**: an update is measured at κ of the step, about the weight that it has in the aggregate.
//! * **Gate**: paired differences over the same sequences, accepted from z standard errors on; keys without accepted
//!   work must beat the best of as many draws of noise.
#![forbid(unsafe_code)]

use alice_update::Entries;

mod guard;
mod round;
mod stats;

pub use guard::{GuardResult, HALVINGS_MAX, guarded_step};
pub use round::{
    Candidate, Decision, FACTOR_MAX, Outcome, RoundScore, SCORE_CLIP, SCORE_UNIT, reference_norm, score_round,
};
pub use stats::{Paired, lower_median, paired};

/// A loss could not be computed. Always a fault of the server, never a miner's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("losses could not be computed: {message}")]
pub struct OracleError {
    /// What went wrong and what to do about it.
    pub message: String,
}

/// Computes losses of the model at any point.
pub trait LossOracle {
    /// Mean loss of each sequence in nats per token, in the order of `sequences`.
    ///
    /// `theta` is the flat model vector; `sequences` are indices into the validation reserve. A loss that is not finite
    /// is an answer (the point is bad), not an error.
    fn losses(&mut self, theta: &[f32], sequences: &[u32]) -> Result<Vec<f64>, OracleError>;
}

/// Losses with the promised length.
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
    match losses.iter().position(|loss| !loss.is_finite()) {
        None => Ok(losses),
        Some(at) => Err(OracleError {
            message: format!(
                "the model's own loss is not finite on validation sequence {}",
                sequences[at]
            ),
        }),
    }
}

/// Calls `at` with weights that it may change where `touched` has entries, and puts those back afterwards bit by bit; adding back
/// what was subtracted would round. Only what is touched is kept aside, so weights may be larger than memory. Indices that the
/// weights do not have are left out.
pub fn elsewhere<R>(theta: &mut [f32], touched: &impl Entries, at: impl FnOnce(&mut [f32]) -> R) -> R {
    let place = |index: u64| usize::try_from(index).unwrap_or(usize::MAX);
    let mut kept = Vec::with_capacity(touched.count());
    kept.extend(
        touched
            .entries()
            .map(|(index, _)| theta.get(place(index)).copied().unwrap_or_default()),
    );
    let result = at(theta);
    for ((index, _), value) in touched.entries().zip(kept) {
        if let Some(slot) = theta.get_mut(place(index)) {
            *slot = value;
        }
    }
    result
}

#[cfg(test)]
mod tests;
