//! The step guard (docs/spec/scoring.md#step-guard): a backtracking line search on a second split, which shares no
//! sequence with the scoring split.
//!
//! It refuses only what is *significantly* worse, so noise does not stop training; but a run can never silently train
//! backwards. [`guarded_step`] finds the step size, [`confirm_step`] looks at the scoring split once more.

use crate::stats::paired;
use crate::{LossOracle, OracleError, baseline, losses, with_perturbation};
use alice_update::{Entries, aggregate};

/// α is halved at most this often before the step is skipped: an eighth of a step that still hurts points the wrong
/// way.
pub const HALVINGS_MAX: u32 = 3;

/// Decision of the step guard.
#[derive(Clone, Debug, PartialEq)]
pub struct GuardResult {
    /// α of the step; zero if it was skipped.
    pub alpha_used: f32,
    /// How often α was halved ([`HALVINGS_MAX`] if the step was skipped).
    pub halvings: u32,
    /// Losses of θ(e) on the guard split, nats per token.
    pub before: Vec<f64>,
    /// Losses on the guard split after the step; of the last refused attempt if the step was skipped, so that the
    /// refusal can be checked.
    pub after: Vec<f64>,
}

/// Step size of θ(e+1) = θ(e) − α·D: the first of α, α/2, α/4, α/8 that the guard split does not refuse, or zero. A
/// step is refused if the mean fall of the loss is below −z standard errors, or if a loss is not finite.
///
/// `d` is the *decoded* published aggregate, so that everybody takes the same step. `theta` is θ(e); it is moved for
/// the measurement, and is θ(e) bit for bit afterwards, also after an error. The step itself is [`aggregate::apply`]
/// with [`GuardResult::alpha_used`].
///
/// # Errors
/// If the server could not evaluate.
pub fn guarded_step(
    oracle: &mut dyn LossOracle,
    theta: &mut [f32],
    d: &impl Entries,
    alpha: f32,
    z: f64,
    guard_split: &[u32],
) -> Result<GuardResult, OracleError> {
    let before = baseline(oracle, theta, guard_split)?;
    // Without entries every step is the same point.
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
        let after = with_perturbation(theta, d, |point| {
            aggregate::apply(point, d, alpha_used);
            losses(oracle, point, guard_split)
        })?;
        let fall = paired(&before, &after);
        // Every comparison with NaN is false, so a NaN anywhere refuses.
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

/// Losses on the scoring split after the step that the guard chose. If one is not finite, the step is skipped after all
/// (`guard.alpha_used` becomes zero): what the guard split did not show the other one did, and no step is better than a
/// broken model.
///
/// `losses_before` are the losses of θ(e) on the scoring split; they are the result if there is no step. `theta` is
/// θ(e) bit for bit afterwards, also after an error.
///
/// # Errors
/// If the server could not evaluate.
pub fn confirm_step(
    oracle: &mut dyn LossOracle,
    theta: &mut [f32],
    d: &impl Entries,
    guard: &mut GuardResult,
    scoring_split: &[u32],
    losses_before: &[f64],
) -> Result<Vec<f64>, OracleError> {
    if guard.alpha_used == 0.0 {
        return Ok(losses_before.to_vec());
    }
    let after = with_perturbation(theta, d, |point| {
        aggregate::apply(point, d, guard.alpha_used);
        losses(oracle, point, scoring_split)
    })?;
    if after.iter().all(|loss| loss.is_finite()) {
        Ok(after)
    } else {
        guard.alpha_used = 0.0;
        Ok(losses_before.to_vec())
    }
}
