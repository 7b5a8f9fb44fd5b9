//! Claims: which task a key gets, and until when.

use super::{Refusal, Service, refusal::bad_signature};
use crate::db::RoundRow;
use alice_api::{ClaimRequest, ErrorCode, Hex32, Lease, Task, sign};
use alice_round::Stage;

impl Service {
    /// Leases a task. A key that holds an unanswered one gets the same again, so a lost answer costs nothing.
    ///
    /// # Errors
    /// The signature does not verify, no round is open, or no task is left.
    pub async fn claim(&self, request: &ClaimRequest) -> Result<Lease, Refusal> {
        if !request.verify(&self.run().genesis, &self.run().run_hash) {
            return Err(bad_signature(
                "claim",
                "genesis hash, run hash, epoch, key and payout account",
            ));
        }
        let _guard = self.db().write().await;
        // Read under the lock: the round cannot be sealed between this and the stored lease.
        let best = self.best()?;
        let (round, deadline) = self.open_round(request.epoch, best).await?;
        let (slice, lease_block) = match self.db().open_lease(round.epoch, &request.miner, best).await? {
            Some(lease) if lease.task.payout == request.payout => return Ok(lease),
            // One task at a time for a key: with another payout account it is the same task for the same time, signed
            // again.
            Some(lease) => (lease.task.slice, lease.task.lease_block),
            None => {
                let lease_block = best.saturating_add(self.run().spec.round.lease_blocks).min(deadline);
                (self.free_slice(round.epoch, best).await?, lease_block)
            }
        };
        let task = self.task(request, &round, slice, lease_block);
        let lease = Lease::new(self.state.key(), &self.run().genesis, task);
        self.db().store_lease(&lease).await?;
        tracing::info!(epoch = round.epoch, slice, miner = %request.miner, block = best, "task leased");
        Ok(lease)
    }

    /// The open round and its deadline, if it is of the claim's epoch and the deadline has not passed.
    async fn open_round(&self, epoch: u32, best: u32) -> Result<(RoundRow, u32), Refusal> {
        let no_round = |message: String| {
            Refusal::new(
                ErrorCode::NoRound,
                message,
                "ask /v1/status for the round and its deadline, and claim in the next one",
            )
        };
        let newest = self.db().newest_round().await?;
        let round = newest
            .filter(|round| round.stage == Stage::Open)
            .ok_or_else(|| no_round(format!("no round is open in block {best}")))?;
        if epoch != round.epoch {
            return Err(no_round(format!(
                "the open round is of epoch {}, the claim of epoch {epoch}",
                round.epoch
            )));
        }
        let deadline = self.run().spec.deadline(epoch);
        if best >= deadline {
            return Err(no_round(format!(
                "the deadline of epoch {epoch} was block {deadline}, the best block is {best}"
            )));
        }
        Ok((round, deadline))
    }

    async fn free_slice(&self, epoch: u32, best: u32) -> Result<u32, Refusal> {
        let slices = self.state.corpus().slices_max;
        let slice = self.db().next_slice(epoch, slices, best).await?;
        slice.ok_or_else(|| {
            Refusal::new(
                ErrorCode::NoTask,
                format!("all {slices} tasks of epoch {epoch} are taken"),
                "try again in a few blocks, when a lease may have expired, or in the next epoch",
            )
        })
    }

    fn task(&self, request: &ClaimRequest, round: &RoundRow, slice: u32, lease_block: u32) -> Task {
        let run = self.run();
        Task {
            task_id: sign::task_id(&run.run_hash, round.epoch, slice),
            run_hash: Hex32(run.run_hash),
            epoch: round.epoch,
            base_root: Hex32(round.base_root),
            base_step: round.base_step,
            slice,
            fragment: run.spec.fragment_of(round.epoch, slice),
            epoch_seed: Hex32(alice_data::epoch_seed(&run.genesis, &run.run_hash, round.epoch)),
            steps: run.spec.inner.steps,
            batch_sequences: run.spec.inner.batch_sequences,
            miner: request.miner,
            payout: request.payout,
            lease_block,
            deadline_block: run.spec.deadline(round.epoch),
        }
    }
}
