//! The guard (protocol §6.4): the model takes a step only if a second split does not speak against it.

use crate::stats::paired;
use crate::{LossOracle, OracleError, baseline, elsewhere, losses};
use alice_update::{Entries, aggregate};

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
}

/// Whether to take the step θ(e+1) = θ(e) − α·D, and with which of α, α/2, α/4, α/8: the first that the guard split does
/// not refuse. The mean fall of the loss must not be below −z standard errors, and every loss must be finite.
///
/// `d` is the *decoded* published aggregate, so that everybody takes the same step. `theta` is θ(e); it is moved for the
/// measurement, and is θ(e) bit for bit afterwards, also after an error: the step itself is [`aggregate::apply`] with
/// [`GuardResult::alpha_used`].
pub fn guarded_step(
    oracle: &mut dyn LossOracle,
    theta: &mut [f32],
    d: &impl Entries,
    alpha: f32,
    z: f64,
    guard_split: &[u32],
) -> Result<GuardResult, OracleError> {
    let before = baseline(oracle, theta, guard_split)?;
    if d.entries().next().is_none() {
        return Ok(GuardResult {
            alpha_used: 0.0,
            halvings: 0,
            after: before.clone(),
            before,
        });
    }
    let mut alpha_used = alpha;
    let mut last_refused = Vec::new();
    for halvings in 0..=HALVINGS_MAX {
        let after = elsewhere(theta, d, |point| {
            aggregate::apply(point, d, alpha_used);
            losses(oracle, point, guard_split)
        })?;
        let fall = paired(&before, &after);
        // Written so that NaN refuses.
        if fall.mean.is_finite() && (fall.mean >= 0.0 || fall.mean >= -z * fall.standard_error) {
            return Ok(GuardResult {
                alpha_used,
                halvings,
                before,
                after,
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
    })
}
