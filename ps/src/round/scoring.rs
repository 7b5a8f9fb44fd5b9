//! Scores a round: from uploads to verdicts and the model's next step. Apart from reading the uploads this is a pure
//! function of its arguments; losses come from a [`LossOracle`].

use crate::{
    db::Collected,
    round::transition::{Base, Transition, TransitionError, transition},
    run_context::RunContext,
};
use alice_api::{Hex32, Outcome, VerdictBody, nano_nats};
use alice_primitives::Hash;
use alice_score::{Candidate, Decision, LossOracle, OracleError, confirm_step, score_round};
use alice_store::StoreError;
use alice_update::{EncodedUpdate, aggregate::AcceptedUpdate};
use std::collections::HashMap;

/// Longest `detail` of a verdict, bytes: a sentence with a few numbers. Every verdict is signed and kept.
const DETAIL_BYTES_MAX: usize = 300;

/// Why a round could not be scored. The fault is the server's, so it is tried again before the round is voided.
#[derive(Debug, thiserror::Error)]
pub enum ScoringError {
    /// Losses could not be measured.
    #[error("the round could not be scored: {0}")]
    Oracle(#[from] OracleError),
    /// An upload cannot be read although it may be there.
    #[error("the update of submission {id} cannot be read: {source}; check the disk that holds data_dir")]
    Upload {
        /// Submission.
        id: Hex32,
        /// Reason given by the operating system.
        source: std::io::Error,
    },
    /// The model's step failed.
    #[error(transparent)]
    Transition(#[from] TransitionError),
    /// The weights cannot be mapped.
    #[error("the weights cannot be read for scoring: {0}")]
    Weights(#[from] StoreError),
    /// The device cannot be used.
    #[error("the device for scoring cannot be used: {0}")]
    Device(String),
    /// The scoring thread is gone, and this process cannot start another.
    #[error("scoring cannot go on: {0}; restart alice-ps, and report it if it happens again")]
    Ended(String),
}

/// A round to be scored.
#[derive(Debug)]
pub struct Job {
    /// Epoch.
    pub epoch: u32,
    /// Root of θ(e).
    pub base_root: Hash,
    /// Submissions in ascending order of id.
    pub submissions: Vec<Collected>,
    /// Reserve sequences for the decisions.
    pub scoring_split: Vec<u32>,
    /// Reserve sequences for the guard.
    pub guard_split: Vec<u32>,
    /// Median norm ν_p of the last round in which an update of fragment p was accepted; `None`, or missing at the end,
    /// if that was never.
    pub previous_median_norms: Vec<Option<f32>>,
}

/// A scored round.
#[derive(Debug)]
pub struct Scored {
    /// One for each submission, in ascending order of id.
    pub verdicts: Vec<VerdictBody>,
    /// Median norm ν_p after the round, carried over if no update of fragment p was accepted; `None` if none ever was.
    pub median_norms: Vec<Option<f32>>,
    /// Losses on the scoring split before the step.
    pub before: Vec<f64>,
    /// Losses on the scoring split after the step.
    pub after: Vec<f64>,
    /// The step; `None` if nothing was accepted.
    pub transition: Option<Transition>,
}

/// Decides a round and the model's step. `theta` is θ(e); it is moved for measurements, and is θ(e) bit for bit
/// afterwards.
///
/// # Errors
/// Losses or uploads cannot be read, or the published step does not decode.
pub fn score(
    run: &RunContext,
    job: &Job,
    theta: &mut [f32],
    oracle: &mut dyn LossOracle,
) -> Result<Scored, ScoringError> {
    let mut verdicts = Vec::with_capacity(job.submissions.len());
    let mut candidates = Vec::new();
    for submission in &job.submissions {
        let id = submission.receipt.body.id;
        match read_update(run, job, submission)? {
            Ok(update) => candidates.push(Candidate {
                id: id.0,
                miner: submission.receipt.body.miner.0,
                has_accepted_work: submission.proven,
                fragment: run.spec.fragment_of(job.epoch, submission.slice),
                update,
            }),
            Err((outcome, detail)) => verdicts.push(refusal(job.epoch, id, outcome, &detail)),
        }
    }
    let all = candidates.len();
    let mut progress = |done: usize| tracing::debug!(epoch = job.epoch, done, all, "scoring");
    let round = score_round(
        oracle,
        &run.spec,
        theta,
        &job.scoring_split,
        &candidates,
        &job.previous_median_norms,
        &mut progress,
    )?;
    verdicts.extend(round.decisions.iter().map(|d| verdict(job.epoch, d)));
    // The manifest's order, whatever the order of decisions.
    verdicts.sort_unstable_by_key(|v| v.id);
    let accepted = accepted(&candidates, &round.decisions);
    let before = round.losses_before;
    let (transition, after) = take_step(run, job, theta, &accepted, &before, oracle)?;
    let previous = |fragment: usize| job.previous_median_norms.get(fragment).copied().flatten();
    let median_norms = (0..)
        .zip(&round.median_norms)
        .map(|(fragment, now)| now.or_else(|| previous(fragment)))
        .collect();
    Ok(Scored {
        verdicts,
        median_norms,
        before,
        after,
        transition,
    })
}

/// Accepted candidates with their factors.
fn accepted<'a>(
    candidates: &'a [Candidate<EncodedUpdate>],
    decisions: &[Decision],
) -> Vec<AcceptedUpdate<'a, EncodedUpdate>> {
    let accepted = decisions.iter().filter(|decision| decision.accepted);
    let factors: HashMap<Hash, f32> = accepted.map(|decision| (decision.id, decision.factor)).collect();
    let with_factor = |candidate: &'a Candidate<EncodedUpdate>| {
        Some(AcceptedUpdate {
            id: candidate.id,
            fragment: candidate.fragment,
            update: &candidate.update,
            factor: *factors.get(&candidate.id)?,
        })
    };
    candidates.iter().filter_map(with_factor).collect()
}

/// The model's step, and the losses on the scoring split after it; `None` and `before` if nothing was accepted.
fn take_step(
    run: &RunContext,
    job: &Job,
    theta: &mut [f32],
    accepted: &[AcceptedUpdate<'_, EncodedUpdate>],
    before: &[f64],
    oracle: &mut dyn LossOracle,
) -> Result<(Option<Transition>, Vec<f64>), ScoringError> {
    if accepted.is_empty() {
        return Ok((None, before.to_vec()));
    }
    let base = Base {
        spec: &run.spec,
        layout: &run.layout,
        fragments: &run.fragments,
        root: job.base_root,
    };
    let mut step = transition(&base, theta, accepted, &job.guard_split, oracle)?;
    let after = confirm_step(oracle, theta, &step.d, &mut step.guard, &job.scoring_split, before)?;
    Ok((Some(step), after))
}

/// A submission's update, or the outcome and the reason why it is none.
///
/// # Errors
/// The upload cannot be read at the moment. A verdict is final and must not rest on that: the reason (no descriptors,
/// no memory, a disk of the network) may be gone at the next try.
fn read_update(
    run: &RunContext,
    job: &Job,
    submission: &Collected,
) -> Result<Result<EncodedUpdate, (Outcome, String)>, ScoringError> {
    let body = &submission.receipt.body;
    match std::fs::read(&submission.file) {
        Ok(bytes) if blake3::hash(&bytes).as_bytes() == &body.blob.0 => Ok(check_update(run, job, submission, bytes)),
        Ok(_) => Ok(Err(lost("its bytes changed on the server's disk"))),
        // A receipt is given for a synced file, so this one was removed.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Err(lost("its file is gone"))),
        Err(source) => Err(ScoringError::Upload { id: body.id, source }),
    }
}

/// Outcome of a submission that the server cannot judge any more.
fn lost(problem: &str) -> (Outcome, String) {
    let detail = format!("the server lost the update ({problem}); no fault of yours");
    (Outcome::Voided, detail)
}

/// Whether bytes are an update for this run, model and epoch, in the layout of the submission's task.
fn check_update(
    run: &RunContext,
    job: &Job,
    submission: &Collected,
    bytes: Vec<u8>,
) -> Result<EncodedUpdate, (Outcome, String)> {
    let layout = run
        .task_layout(job.epoch, submission.slice)
        .ok_or_else(|| lost(&format!("the run has no layout for slice {}", submission.slice)))?;
    let update =
        EncodedUpdate::check(layout, &run.spec.update, bytes).map_err(|e| (Outcome::Malformed, e.to_string()))?;
    let header = update.header();
    if header.run_hash != run.run_hash {
        let detail = format!(
            "made for run {}, the round is of run {}",
            Hex32(header.run_hash),
            Hex32(run.run_hash)
        );
        return Err((Outcome::WrongRun, detail));
    }
    // Both: after an epoch without a step the root alone is that of the epoch before.
    if header.base_root != job.base_root || header.epoch != job.epoch {
        let detail = format!(
            "trained on model {} for epoch {}, the round is of model {} and epoch {}",
            Hex32(header.base_root),
            header.epoch,
            Hex32(job.base_root),
            job.epoch
        );
        return Err((Outcome::WrongBase, detail));
    }
    Ok(update)
}

/// A verdict without numbers.
pub fn refusal(epoch: u32, id: Hex32, outcome: Outcome, detail: &str) -> VerdictBody {
    VerdictBody {
        id,
        epoch,
        outcome,
        detail: bounded(detail),
        improvement_nano_nats: 0,
        standard_error_nano_nats: 0,
        factor_bits: 0,
        norm_bits: 0,
        score: 0,
    }
}

fn verdict(epoch: u32, decision: &Decision) -> VerdictBody {
    let outcome = match decision.outcome {
        alice_score::Outcome::Accepted => Outcome::Accepted,
        alice_score::Outcome::NoImprovement => Outcome::NoImprovement,
        alice_score::Outcome::Degenerate => Outcome::Degenerate,
    };
    VerdictBody {
        id: Hex32(decision.id),
        epoch,
        outcome,
        detail: bounded(&decision.detail),
        improvement_nano_nats: nano_nats(decision.improvement),
        standard_error_nano_nats: nano_nats(decision.standard_error).unsigned_abs(),
        factor_bits: decision.factor.to_bits(),
        norm_bits: decision.norm.to_bits(),
        score: decision.score,
    }
}

fn bounded(text: &str) -> String {
    // A cut inside a character would not be a string.
    let mut end = text.len().min(DETAIL_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_should_be_cut_at_a_character() {
        let long = "é".repeat(DETAIL_BYTES_MAX);
        assert!(bounded(&long).len() <= DETAIL_BYTES_MAX);
        assert_eq!(bounded("short"), "short");
    }
}
