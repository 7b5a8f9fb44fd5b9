//! Scores a round: bytes to verdicts and the model's next state. Pure but for reading the uploads; the losses come from
//! a [`LossOracle`].

use crate::{
    db::Collected,
    round::transition::{Accepted, Base, Transition, TransitionError, transition},
    run_context::Network,
};
use alice_api::{Hex32, Outcome, VerdictBody};
use alice_primitives::Hash;
use alice_score::{Candidate, Decision, LossOracle, OracleError, elsewhere, score_round};
use alice_store::StoreError;
use alice_update::{Received, aggregate};
use std::collections::HashMap;

/// Longest `detail` of a verdict, bytes.
const DETAIL_BYTES_MAX: usize = 300;

/// Why a round could not be scored. Nobody but the server is at fault; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ScoringError {
    /// Losses could not be measured.
    #[error("the round could not be scored: {0}")]
    Oracle(#[from] OracleError),
    /// The model's step failed.
    #[error(transparent)]
    Transition(#[from] TransitionError),
    /// The weights cannot be mapped.
    #[error("the weights cannot be read for scoring: {0}")]
    Weights(#[from] StoreError),
    /// The device.
    #[error("the device for scoring cannot be used: {0}")]
    Device(String),
    /// The scoring thread is gone: trying again in this process is of no use.
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
    /// ν_p of the last round in which something of fragment p was accepted; shorter than the run's fragments where that
    /// never was.
    pub previous_median_norms: Vec<Option<f32>>,
}

/// A scored round.
#[derive(Debug)]
pub struct Scored {
    /// One for each submission, in ascending order of id.
    pub verdicts: Vec<VerdictBody>,
    /// ν_p after the round, carried over where nothing of fragment p was accepted; none where nothing ever was.
    pub median_norms: Vec<Option<f32>>,
    /// Losses on the scoring split before the step.
    pub before: Vec<f64>,
    /// Losses on the scoring split after the step.
    pub after: Vec<f64>,
    /// The step; none where nothing was accepted.
    pub transition: Option<Transition>,
}

/// Nano-nats, as they stand on the wire. What is not finite becomes the largest number that can be written.
pub fn nano(value: f64) -> i64 {
    if value.is_nan() {
        0
    } else {
        (value * 1e9).round() as i64
    }
}

/// Decides a round and the model's step. `theta` is θ(e); it is moved for measurements, and is θ(e) bit for bit afterwards.
pub fn score(net: &Network, job: &Job, theta: &mut [f32], oracle: &mut dyn LossOracle) -> Result<Scored, ScoringError> {
    let mut verdicts = Vec::with_capacity(job.submissions.len());
    let mut candidates = Vec::new();
    for submission in &job.submissions {
        match read_update(net, job, submission) {
            Ok(update) => candidates.push(Candidate {
                id: submission.receipt.body.id.0,
                miner: submission.receipt.body.miner.0,
                proven: submission.proven,
                fragment: net.spec.fragment_of(job.epoch, submission.slice),
                update,
            }),
            Err((outcome, detail)) => verdicts.push(refusal(job.epoch, submission.receipt.body.id, outcome, &detail)),
        }
    }
    let all = candidates.len();
    let mut progress = |done: usize| tracing::debug!(epoch = job.epoch, done, all, "scoring");
    let round = score_round(
        oracle,
        &net.spec,
        theta,
        &job.scoring_split,
        &candidates,
        &job.previous_median_norms,
        &mut progress,
    )?;
    verdicts.extend(round.decisions.iter().map(|d| verdict(job.epoch, d)));
    verdicts.sort_unstable_by_key(|v| v.id);

    let factors: HashMap<Hash, f32> = round
        .decisions
        .iter()
        .filter(|d| d.accepted)
        .map(|d| (d.id, d.factor))
        .collect();
    let accepted: Vec<Accepted<'_, Received>> = candidates
        .iter()
        .filter_map(|c| {
            Some(Accepted {
                id: c.id,
                fragment: c.fragment,
                update: &c.update,
                factor: *factors.get(&c.id)?,
            })
        })
        .collect();
    let before = round.losses_before;
    let (transition, after) = if accepted.is_empty() {
        (None, before.clone())
    } else {
        let base = Base {
            spec: &net.spec,
            layout: &net.layout,
            fragments: &net.fragments,
            root: job.base_root,
        };
        let made = transition(&base, theta, &accepted, &job.guard_split, oracle)?;
        let after = match made.guard.alpha_used {
            0.0 => before.clone(),
            alpha => elsewhere(theta, &made.d, |next| {
                aggregate::apply(next, &made.d, alpha);
                oracle.losses(next, &job.scoring_split)
            })?,
        };
        if after.iter().all(|loss| loss.is_finite()) {
            (Some(made), after)
        } else {
            // What the guard's text did not show the other did: no step is better than a broken model.
            (Some(made.skipped()), before.clone())
        }
    };
    let median_norms = (0..)
        .zip(&round.median_norms)
        .map(|(p, now)| now.or_else(|| job.previous_median_norms.get(p).copied().flatten()))
        .collect();
    Ok(Scored {
        verdicts,
        median_norms,
        before,
        after,
        transition,
    })
}

/// Reads and checks a submission, or says why not.
fn read_update(net: &Network, job: &Job, submission: &Collected) -> Result<Received, (Outcome, String)> {
    let body = &submission.receipt.body;
    let lost = |problem: String| {
        (
            Outcome::Voided,
            format!("the server lost the update ({problem}); no fault of yours"),
        )
    };
    let bytes = std::fs::read(&submission.file).map_err(|e| lost(e.to_string()))?;
    if blake3::hash(&bytes).as_bytes() != &body.blob.0 {
        return Err(lost("its bytes changed on the server's disk".into()));
    }
    let layout = net
        .task_layout(job.epoch, submission.slice)
        .ok_or_else(|| lost(format!("nothing is known of slice {}", submission.slice)))?;
    let update = Received::check(layout, &net.spec.update, bytes).map_err(|e| (Outcome::Malformed, e.to_string()))?;
    let header = update.header();
    if header.run_hash != net.run_hash {
        let detail = format!(
            "made for run {}, the round is of run {}",
            Hex32(header.run_hash),
            Hex32(net.run_hash)
        );
        return Err((Outcome::WrongRun, detail));
    }
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
        improvement_nano_nats: nano(decision.improvement),
        standard_error_nano_nats: nano(decision.standard_error).unsigned_abs(),
        factor_bits: decision.factor.to_bits(),
        norm_bits: decision.norm.to_bits(),
        score: decision.score,
    }
}

fn bounded(text: &str) -> String {
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
    fn nano_nats_should_round_and_saturate() {
        assert_eq!(nano(1.25e-9), 1);
        assert_eq!(nano(-0.004), -4_000_000);
        assert_eq!(nano(f64::INFINITY), i64::MAX);
        assert_eq!(nano(f64::NAN), 0);
    }

    #[test]
    fn details_should_be_cut_at_a_character() {
        let long = "é".repeat(DETAIL_BYTES_MAX);
        assert!(bounded(&long).len() <= DETAIL_BYTES_MAX);
        assert_eq!(bounded("short"), "short");
    }
}
