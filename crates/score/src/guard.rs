//! The guard (protocol §6.4): the model takes a step only if a second split does not speak against it.

use crate::stats::paired;
use crate::{LossOracle, OracleError, baseline, losses};
use alice_update::{Sparse, aggregate};

/// α is halved at most this often before the step is skipped.
pub const HALVINGS_MAX: u32 = 3;

/// The step as taken.
#[derive(Clone, Debug, PartialEq)]
pub struct GuardResult {
    /// α of the step; zero if it was skipped.
    pub alpha_used: f32,
    /// How often α was halved ([`HALVINGS_MAX`] if the step was skipped).
    pub halvings: u32,
    /// Losses of θ(e) on the guard split, nats per token.
    pub before: Vec<f64>,
    /// Losses on the guard split after the step; after the last refused attempt where the step was skipped, so that the
    /// refusal can be checked.
    pub after: Vec<f64>,
    /// θ(e+1): equal to θ(e) if the step was skipped.
    pub theta_next: Vec<f32>,
}

/// θ(e+1) = θ(e) − α·D for the first α of α, α/2, α/4, α/8 that the guard split does not refuse: the mean fall of the
/// loss must not be below −z standard errors, and every loss must be finite. Otherwise θ(e+1) = θ(e).
///
/// `d` is the *decoded* published aggregate, so that everybody takes the same step.
pub fn guarded_step(
    oracle: &mut dyn LossOracle,
    theta: &[f32],
    d: &Sparse,
    alpha: f32,
    z: f64,
    guard_split: &[u32],
) -> Result<GuardResult, OracleError> {
    let before = baseline(oracle, theta, guard_split)?;
    if d.indices.is_empty() {
        let (after, theta_next) = (before.clone(), theta.to_vec());
        return Ok(GuardResult {
            alpha_used: 0.0,
            halvings: 0,
            before,
            after,
            theta_next,
        });
    }
    let mut alpha_used = alpha;
    let mut last_refused = Vec::new();
    for halvings in 0..=HALVINGS_MAX {
        let mut theta_next = theta.to_vec();
        aggregate::apply(&mut theta_next, d, alpha_used);
        let after = losses(oracle, &theta_next, guard_split)?;
        let fall = paired(&before, &after);
        // Written so that NaN refuses.
        if fall.mean.is_finite() && (fall.mean >= 0.0 || fall.mean >= -z * fall.standard_error) {
            return Ok(GuardResult {
                alpha_used,
                halvings,
                before,
                after,
                theta_next,
            });
        }
        alpha_used /= 2.0;
        last_refused = after;
    }
    Ok(GuardResult {
        alpha_used: 0.0,
        halvings: HALVINGS_MAX,
        before,
        after: last_refused,
        theta_next: theta.to_vec(),
    })
}
