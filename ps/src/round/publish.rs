//! Publishes a scored round: manifest, aggregate, snapshot, verdicts, payout pages, the model's step.
//!
//! The order makes every crash harmless:
//!
//! 1. **Files.** The model's step (with its undo journal), D, a snapshot if one is due, and the manifest. After a crash
//!    here the round is still unscored; the next scoring takes the step back and writes the same files again, because
//!    blobs are named by their hashes.
//! 2. **One transaction.** Verdicts, pages, summary, the step and the round's stage, all or nothing: from here on the
//!    round is scored.
//! 3. **Tidying**, which is repeated at every start: uploads become public blobs, old snapshots are removed.

use crate::{
    PsError,
    db::{Collected, EpochRow, Results, RoundRow},
    round::scoring::{Job, Scored},
    round::transition::Transition,
    state::ServerState,
};
use alice_api::{
    Delta, EpochManifest, EpochSummary, Hex32, Outcome, PayoutEntry, PayoutPage, SeedBlock, Snapshot, SubmissionRecord,
    Verdict, nano_nats,
};
use alice_primitives::{Hash, SettlementStatus, pages};
use alice_score::paired;
use alice_store::Master;
use std::collections::BTreeMap;

/// Version of the manifest's format, see docs/spec/manifest.md.
pub const MANIFEST_VERSION: u32 = 1;
/// Snapshots that are kept: the newest, and the one before it for those who are still downloading it.
const SNAPSHOTS_KEPT: usize = 2;

/// The base of a round's scoring, apart from its submissions.
#[derive(Clone, Debug)]
pub struct Draw {
    /// The round.
    pub round: RoundRow,
    /// Blocks of the seed.
    pub seed_blocks: Vec<SeedBlock>,
    /// Seed of the validation draw.
    pub validation_seed: Hash,
}

/// Stores and publishes a round's results. `theta` is θ(e), and θ(e+1) afterwards.
///
/// # Errors
/// The disk or the database fails.
pub async fn publish(
    state: &ServerState,
    draw: &Draw,
    job: &Job,
    scored: Scored,
    theta: Master,
) -> Result<EpochSummary, PsError> {
    let run = state.run();
    let epoch = job.epoch;
    let step = match &scored.transition {
        // α is zero if the guard skipped the step; then the model stays as it is.
        Some(t) if t.guard.alpha_used > 0.0 => Some(take_step(state, draw, epoch, t, theta).await?),
        _ => None,
    };
    let manifest = manifest(state, draw, job, &scored, step.as_ref().map(|s| &s.1)).await?;
    let bytes = serde_json::to_vec(&manifest).map_err(|e| PsError::Json {
        what: "the manifest".into(),
        problem: e.to_string(),
    })?;
    // The commitment holds this hash, so the very bytes that were hashed are kept and served.
    let manifest_hash = state.blobs().put(bytes).await?;

    let (payout_pages, contributions_root) = payout_pages(epoch, &manifest.entries);
    let total_score = manifest.entries.iter().map(|e| u128::from(e.score)).sum();
    let summary = summary(&manifest, manifest_hash, &job.submissions, &scored);
    let verdicts = scored
        .verdicts
        .iter()
        .map(|v| Verdict::new(state.key(), &run.genesis, v.clone()))
        .collect();
    let reserve_used = match run.spec.data.reserve_reuse {
        true => Vec::new(),
        false => job.scoring_split.iter().chain(&job.guard_split).copied().collect(),
    };
    let results = Results {
        row: EpochRow {
            summary: summary.clone(),
            median_norms: scored.median_norms.clone(),
            contributions_root,
            pages: payout_pages.len() as u32,
            entries: manifest.entries.len() as u32,
            total_score,
        },
        verdicts,
        pages: payout_pages,
        step,
        reserve_used,
    };
    state.db().store_results(&results).await?;
    tidy(state, epoch).await?;
    Ok(summary)
}

/// Moves the weights and writes D, and a snapshot if one is due: number of the step, its delta, the snapshot.
async fn take_step(
    state: &ServerState,
    draw: &Draw,
    epoch: u32,
    transition: &Transition,
    theta: Master,
) -> Result<(u32, Delta, Option<Snapshot>), PsError> {
    let (d, alpha) = (&transition.d, transition.guard.alpha_used);
    let blob = state.blobs().put(d.bytes().to_vec()).await?;
    // In place: this task has nothing else to do until the step is made.
    let theta = tokio::task::block_in_place(|| theta.step(d, alpha))?;
    let delta = delta(epoch, theta.root(), blob, d.bytes(), alpha);
    let number = draw.round.base_step + 1;
    let snapshot = match number % state.run().spec.outer.snapshot_every.max(1) {
        0 => Some(published(number, theta.publish(state.blobs()).await?)),
        _ => None,
    };
    Ok((number, delta, snapshot))
}

/// Follows a stored result, and is repeated at every start: submissions of a scored epoch become public blobs, other
/// uploads and old snapshots are removed.
///
/// # Errors
/// The disk or the database fails.
pub async fn tidy(state: &ServerState, epoch: u32) -> Result<(), PsError> {
    for upload in state.db().uploads(epoch).await? {
        let path = state.files().upload(&upload.id);
        if !path.exists() {
            continue;
        }
        if state.db().submission(&upload.id).await?.is_some() {
            state.blobs().put_file(&path).await?;
        }
        std::fs::remove_file(&path).map_err(|e| PsError::file("remove", &path, &e))?;
    }
    let snapshots = state.db().snapshots().await?;
    let (old, kept) = snapshots.split_at(snapshots.len().saturating_sub(SNAPSHOTS_KEPT));
    for snapshot in old {
        for chunk in snapshot
            .chunks
            .iter()
            .filter(|c| !kept.iter().any(|k| k.chunks.contains(c)))
        {
            state.blobs().remove(&chunk.0).await?;
        }
        // Forgotten last, so that after a crash the rest of its chunks is removed at the next start.
        state.db().forget_snapshot(snapshot.step).await?;
    }
    Ok(())
}

/// A stored snapshot as the API announces it.
pub fn published(step: u32, snapshot: alice_store::Snapshot) -> Snapshot {
    Snapshot {
        model_root: Hex32(snapshot.model_root),
        step,
        bytes: snapshot.bytes,
        chunk_bytes: snapshot.chunk_bytes,
        chunks: snapshot.chunks.into_iter().map(Hex32).collect(),
    }
}

fn delta(epoch: u32, root: Hash, blob: Hash, bytes: &[u8], alpha: f32) -> Delta {
    Delta {
        epoch,
        model_root: Hex32(root),
        blob: Hex32(blob),
        bytes: bytes.len() as u64,
        alpha_bits: alpha.to_bits(),
    }
}

async fn manifest(
    state: &ServerState,
    draw: &Draw,
    job: &Job,
    scored: &Scored,
    step: Option<&Delta>,
) -> Result<EpochManifest, PsError> {
    let (run, epoch) = (state.run(), job.epoch);
    let scoring = paired(&scored.before, &scored.after);
    let guard = scored.transition.as_ref().map(|t| &t.guard);
    let (guard_before, guard_after) = guard.map_or((&[][..], &[][..]), |g| (&g.before[..], &g.after[..]));
    let guard_paired = paired(guard_before, guard_after);
    let aggregate = match (&scored.transition, step) {
        (None, _) => None,
        (Some(_), Some(delta)) => Some(delta.clone()),
        (Some(t), None) => {
            // The guard skipped the step; D is published all the same, so that anybody can check the decision.
            let blob = state.blobs().put(t.d.bytes().to_vec()).await?;
            Some(delta(epoch, job.base_root, blob, t.d.bytes(), 0.0))
        }
    };
    let submissions = records(job, scored);
    let scores = submissions
        .iter()
        .map(|record| (record.receipt.payout.0, record.verdict.score));
    let entries: Vec<PayoutEntry> = pages::payout_entries(scores).into_iter().map(Into::into).collect();
    let total: u128 = entries.iter().map(|e| u128::from(e.score)).sum();
    Ok(EpochManifest {
        version: MANIFEST_VERSION,
        genesis_hash: Hex32(run.genesis),
        run_hash: Hex32(run.run_hash),
        epoch,
        base_root: Hex32(job.base_root),
        model_root: step.map_or(Hex32(job.base_root), |d| d.model_root),
        model_step: draw.round.base_step + u32::from(step.is_some()),
        epoch_seed: Hex32(alice_data::epoch_seed(&run.genesis, &run.run_hash, epoch)),
        seed_blocks: draw.seed_blocks.clone(),
        validation_seed: Hex32(draw.validation_seed),
        scoring_split: job.scoring_split.clone(),
        guard_split: job.guard_split.clone(),
        tasks: state.db().tasks(epoch).await?,
        submissions,
        refused: state.db().refusals(epoch).await?,
        median_norm_bits: scored
            .median_norms
            .iter()
            .map(|norm| norm.map_or(0, f32::to_bits))
            .collect(),
        guard_loss_before_nano_nats: nano_nats(mean(guard_before)),
        guard_loss_after_nano_nats: nano_nats(mean(guard_after)),
        guard_standard_error_nano_nats: nano_nats(finite(guard_paired.standard_error)).unsigned_abs(),
        loss_before_nano_nats: nano_nats(mean(&scored.before)),
        loss_after_nano_nats: nano_nats(mean(&scored.after)),
        loss_standard_error_nano_nats: nano_nats(finite(scoring.standard_error)).unsigned_abs(),
        halvings: guard.map_or(0, |g| g.halvings),
        alpha_bits: guard.map_or(0, |g| g.alpha_used.to_bits()),
        aggregate,
        entries,
        total_score: total.to_string(),
    })
}

/// Submissions with their verdicts in ascending order of id.
fn records(job: &Job, scored: &Scored) -> Vec<SubmissionRecord> {
    let verdicts: BTreeMap<Hex32, _> = scored.verdicts.iter().map(|v| (v.id, v)).collect();
    let record = |submission: &Collected| {
        let receipt = submission.receipt.body.clone();
        let verdict = (*verdicts.get(&receipt.id)?).clone();
        Some(SubmissionRecord { receipt, verdict })
    };
    job.submissions.iter().filter_map(record).collect()
}

/// Payout pages with their proofs, and the root over them.
fn payout_pages(epoch: u32, entries: &[PayoutEntry]) -> (Vec<PayoutPage>, Hash) {
    let all: Vec<pages::Entry> = entries.iter().map(|entry| (*entry).into()).collect();
    let cut: Vec<&[pages::Entry]> = pages::paginate(&all).collect();
    let leaves: Vec<Hash> = cut
        .iter()
        .enumerate()
        .map(|(i, page)| pages::leaf(epoch, i as u32, page))
        .collect();
    let root = pages::root(&leaves);
    let built = cut.iter().enumerate().map(|(i, page)| PayoutPage {
        epoch,
        index: i as u32,
        pages: leaves.len() as u32,
        contributions_root: Hex32(root),
        entries: page.iter().map(|entry| (*entry).into()).collect(),
        proof: pages::proof(&leaves, i as u32)
            .unwrap_or_default()
            .into_iter()
            .map(Hex32)
            .collect(),
    });
    (built.collect(), root)
}

fn summary(manifest: &EpochManifest, manifest_hash: Hash, submissions: &[Collected], scored: &Scored) -> EpochSummary {
    let mut refused = manifest.refused.clone();
    let late = refused.remove("late").unwrap_or(0);
    for verdict in scored.verdicts.iter().filter(|v| v.outcome != Outcome::Accepted) {
        *refused.entry(verdict.outcome.code().to_owned()).or_default() += 1;
    }
    let sizes = || submissions.iter().map(|s| s.receipt.body.bytes);
    let submitted = submissions.len() as u32;
    let accepted = scored
        .verdicts
        .iter()
        .filter(|v| v.outcome == Outcome::Accepted)
        .count() as u32;
    EpochSummary {
        epoch: manifest.epoch,
        model_root: manifest.model_root,
        manifest_hash: Hex32(manifest_hash),
        loss_before: mean(&scored.before),
        loss_after: mean(&scored.after),
        loss_standard_error: finite(paired(&scored.before, &scored.after).standard_error),
        submitted,
        accepted,
        late,
        refused,
        update_bytes_max: sizes().max().unwrap_or(0),
        update_bytes_mean: sizes().sum::<u64>() / u64::from(submitted.max(1)),
        alpha_used: f64::from(f32::from_bits(manifest.alpha_bits)),
        // An epoch that pays nobody is never attested.
        settlement: match manifest.entries.is_empty() {
            true => SettlementStatus::Forfeited,
            false => SettlementStatus::Open,
        },
        settled_block: None,
    }
}

/// The line that an operator reads at a glance.
pub fn status_line(s: &EpochSummary) -> String {
    format!(
        "epoch {}  loss {:.3} -> {:.3} (se {:.3})  submitted {} accepted {} late {} refused {}  update max {:.1} KB",
        s.epoch,
        s.loss_before,
        s.loss_after,
        s.loss_standard_error,
        s.submitted,
        s.accepted,
        s.late,
        s.refused.values().sum::<u32>(),
        s.update_bytes_max as f64 / 1024.0,
    )
}

fn mean(values: &[f64]) -> f64 {
    if values.is_empty() {
        0.0
    } else {
        values.iter().sum::<f64>() / values.len() as f64
    }
}

fn finite(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}
