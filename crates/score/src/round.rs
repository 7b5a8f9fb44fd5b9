//! A round scored in one call.

use crate::decide::{Decision, decide};
use crate::measure::{Candidate, measure_round};
use crate::{LossOracle, OracleError};
use alice_spec::RunSpec;
use alice_update::Entries;

/// A decided round.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundScore {
    /// One decision for each candidate, ascending by id.
    pub decisions: Vec<Decision>,
    /// ν_p of each fragment: lower median norm of its accepted updates. `None` if none was accepted.
    pub median_norms: Vec<Option<f32>>,
    /// Losses of θ on the scoring split, nats per token.
    pub losses_before: Vec<f64>,
}

/// Scores a round: [`measure_round`], then [`decide`].
///
/// `theta` is θ(e); it is moved to each probe and is θ(e) bit for bit afterwards, also after an error. `scoring_split`
/// holds indices into the validation reserve. `previous_median_norms` are, by fragment, ν_p of the last round that
/// accepted any update of it; `None` takes the median of the candidates themselves. `progress` is called with the
/// number of measured candidates.
///
/// # Errors
/// If the server could not evaluate. No miner may be blamed for it: the round has to be repeated.
pub fn score_round<U: Entries>(
    oracle: &mut dyn LossOracle,
    spec: &RunSpec,
    theta: &mut [f32],
    scoring_split: &[u32],
    candidates: &[Candidate<U>],
    previous_median_norms: &[Option<f32>],
    progress: &mut dyn FnMut(usize),
) -> Result<RoundScore, OracleError> {
    let measured = measure_round(
        oracle,
        spec,
        theta,
        scoring_split,
        candidates,
        previous_median_norms,
        progress,
    )?;
    let decided = decide(spec, &measured.measurements);
    Ok(RoundScore {
        decisions: decided.decisions,
        median_norms: decided.median_norms,
        losses_before: measured.losses_before,
    })
}
