//! One epoch, from a sealed round to stored results.
//!
//! Nothing of a scoring in progress is stored. Whatever interrupts it, the round is still `sealed` afterwards, and is
//! scored again from the same submissions, seed and weights, with the same result.

use crate::{
    PsError,
    round::{
        publish::{Draw, publish, status_line, tidy},
        scoring::{Job, refusal},
        scoring_thread::Scorer,
    },
    state::ServerState,
};
use alice_api::{Outcome, Verdict};
use alice_primitives::{Hash, SettlementStatus};
use alice_store::Master;
use std::{collections::BTreeSet, sync::Arc};
use tokio::time::Instant;

/// Scores and publishes an epoch whose seed is stored; returns whether it is to be attested. An epoch with results is
/// left as it is.
///
/// # Errors
/// Losses or uploads cannot be read ([`PsError::Scoring`]: it may work later), or the disk or the database fails.
pub async fn score_epoch(state: Arc<ServerState>, scorer: Scorer, epoch: u32) -> Result<bool, PsError> {
    let started = Instant::now();
    let db = state.db();
    if let Some(done) = db.epoch(epoch).await? {
        return Ok(done.entries > 0);
    }
    let submissions = db.collected(epoch, |id| state.files().upload(id)).await?;
    if submissions.is_empty() {
        db.close_round(epoch, &[]).await?;
        tidy(&state, epoch).await?;
        tracing::info!(epoch, "nothing was submitted; the epoch is not attested");
        return Ok(false);
    }
    let missing = |what: &str| PsError::NotStored {
        epoch,
        what: what.to_owned(),
    };
    let round = db.round(epoch).await?.ok_or_else(|| missing("its round"))?;
    let seed_blocks = db.seed(epoch).await?.ok_or_else(|| missing("its seed"))?;
    let outputs: Vec<[u8; 32]> = seed_blocks.iter().map(|b| b.vrf_output.0).collect();
    let validation_seed = alice_data::validation_seed(&outputs);
    let (scoring_split, guard_split) = draw(&state, epoch, &validation_seed).await?;
    let theta = open_theta(state.clone(), round.base_root).await?;
    let job = Arc::new(Job {
        epoch,
        base_root: round.base_root,
        submissions,
        scoring_split,
        guard_split,
        previous_median_norms: db.median_norms().await?,
    });
    tracing::info!(epoch, submissions = job.submissions.len(), "scoring");
    let (scored, theta) = scorer.score(state.clone(), job.clone(), theta).await?;
    let draw = Draw {
        round,
        seed_blocks,
        validation_seed,
    };
    let summary = publish(&state, &draw, &job, scored, theta).await?;
    metrics::counter!("alice_ps_accepted_total").increment(u64::from(summary.accepted));
    metrics::gauge!("alice_ps_held_out_loss").set(summary.loss_after);
    metrics::gauge!("alice_ps_scoring_seconds").set(started.elapsed().as_secs_f64());
    tracing::info!("{}", status_line(&summary));
    Ok(summary.settlement == SettlementStatus::Open)
}

/// Ends a round that cannot be scored: nobody is blamed, nobody is paid, and every submission's verdict gives the
/// reason.
///
/// # Errors
/// The disk or the database fails.
pub async fn void(state: &ServerState, epoch: u32, reason: &str) -> Result<(), PsError> {
    let submissions = state.db().collected(epoch, |id| state.files().upload(id)).await?;
    let detail = format!("the server could not score the round ({reason}); no fault of yours");
    let verdicts: Vec<Verdict> = submissions
        .iter()
        .map(|s| refusal(epoch, s.receipt.body.id, Outcome::Voided, &detail))
        .map(|body| Verdict::new(state.key(), &state.run().genesis, body))
        .collect();
    state.db().close_round(epoch, &verdicts).await?;
    tidy(state, epoch).await
}

/// The scoring split and the guard split. In a run that allows each reserve sequence once, the draw is over the
/// sequences that are left, in ascending order.
async fn draw(state: &ServerState, epoch: u32, seed: &[u8; 32]) -> Result<(Vec<u32>, Vec<u32>), PsError> {
    let (spec, all) = (&state.run().spec, state.corpus().reserve_sequences);
    if spec.data.reserve_reuse {
        return Ok(alice_data::draw_splits(spec, seed, all));
    }
    // Without this epoch's own: results that were stored before a crash must not change the draw.
    let used: BTreeSet<u32> = state.db().reserve_used(epoch).await?;
    let unused: Vec<u32> = (0..u32::try_from(all).unwrap_or(u32::MAX))
        .filter(|sequence| !used.contains(sequence))
        .collect();
    let (scoring, guard) = alice_data::draw_splits(spec, seed, unused.len() as u64);
    let sequences = |split: Vec<u32>| {
        split
            .into_iter()
            .filter_map(|position| unused.get(position as usize).copied())
            .collect()
    };
    Ok((sequences(scoring), sequences(guard)))
}

/// The weights that a round started from. A step whose results were not stored is taken back.
async fn open_theta(state: Arc<ServerState>, root: Hash) -> Result<Master, PsError> {
    let opened = tokio::task::spawn_blocking(move || {
        let path = state.files().theta();
        let mut reported = 0;
        Master::open_at(&path, &state.run().tensors, &root, &mut |done, all| {
            // Hashing a model of 7 billion parameters takes minutes, so every tenth is logged.
            let tenths = (u128::from(done) * 10 / u128::from(all.max(1))) as u64;
            if tenths > reported {
                reported = tenths;
                tracing::info!(
                    percent = tenths * 10,
                    "hashing the weights, which were not closed cleanly"
                );
            }
        })
    });
    match opened.await {
        Ok(theta) => Ok(theta?),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
