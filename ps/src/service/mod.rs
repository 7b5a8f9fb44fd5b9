//! Decisions on miners' requests: claims, uploads, commits, with their limits. No HTTP here.
//!
//! Every decision holds the database's write lock from reading the state it rests on to storing its result, and reads
//! the best block under that lock: once a round is sealed, no commit to it can be stored.

pub mod chain_view;
mod claims;
mod commits;
mod refusal;
mod status;
mod uploads;

pub use refusal::Refusal;
pub use uploads::PART_BYTES_MAX;

use crate::{db::Db, run_context::RunContext, state::ServerState};
use alice_api::{ErrorCode, Hex32, Lease};
use alice_round::Stage;
use chain_view::ChainView;
use refusal::{not_yours, unavailable};
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

/// Locks that uploads share by their identifier: more than one machine can receive at the same time.
const UPLOAD_LOCKS: usize = 64;

/// Decides the miners' requests.
pub struct Service {
    state: Arc<ServerState>,
    view: watch::Receiver<ChainView>,
    upload_locks: [Arc<Mutex<()>>; UPLOAD_LOCKS],
}

impl Service {
    /// Decides by `state`, at the blocks that `view` shows.
    pub fn new(state: Arc<ServerState>, view: watch::Receiver<ChainView>) -> Self {
        Self {
            state,
            view,
            upload_locks: std::array::from_fn(|_| Arc::default()),
        }
    }

    /// The state that decisions rest on.
    pub fn state(&self) -> &Arc<ServerState> {
        &self.state
    }

    fn run(&self) -> &RunContext {
        self.state.run()
    }

    fn db(&self) -> &Db {
        self.state.decision_db()
    }

    /// Best block. Refuses while the chain was not reached, or the newest block is too old: the deadline may have
    /// passed unseen.
    fn best(&self) -> Result<u32, Refusal> {
        let view = self.view.borrow();
        if view.stale {
            return Err(unavailable("the server has seen no new block for some time"));
        }
        view.best
            .ok_or_else(|| unavailable("the server has not reached the chain yet"))
    }

    /// The best block, if commits to an epoch are still accepted in it. A late request is counted once for each
    /// subject.
    async fn in_time(&self, epoch: u32, subject: &Hex32) -> Result<u32, Refusal> {
        let best = self.best()?;
        let deadline = self.run().spec.deadline(epoch);
        let round = self.db().round(epoch).await?;
        let open = round.is_some_and(|round| round.stage == Stage::Open);
        if open && best < deadline {
            return Ok(best);
        }
        self.db().count_refusal(epoch, ErrorCode::Late, subject).await?;
        tracing::info!(epoch, %subject, block = best, deadline, "late");
        Err(Refusal::new(
            ErrorCode::Late,
            format!("commits to epoch {epoch} were accepted before block {deadline}; the best block is {best}"),
            "the update is lost for this epoch, the error feedback keeps it; claim a task early in the next epoch",
        ))
    }

    /// The lease of a task, if `miner` holds it, it has not expired at `block`, and no other upload than `subject`
    /// answered the task.
    async fn live_lease(&self, task: &Hex32, miner: &Hex32, block: u32, subject: &Hex32) -> Result<Lease, Refusal> {
        let lease = self.db().lease(task).await?.ok_or_else(|| {
            Refusal::new(
                ErrorCode::UnknownTask,
                format!("there is no task {task}"),
                "claim a task first (POST /v1/tasks)",
            )
        })?;
        if lease.task.miner != *miner {
            return Err(not_yours(task));
        }
        let epoch = lease.task.epoch;
        if let Some(other) = self.db().submission_of(task).await?.filter(|other| other != subject) {
            self.db().count_refusal(epoch, ErrorCode::Duplicate, subject).await?;
            return Err(Refusal::new(
                ErrorCode::Duplicate,
                format!("task {task} was already answered by submission {other}"),
                "one update for each task; claim another task",
            ));
        }
        if block > lease.task.lease_block {
            self.db().count_refusal(epoch, ErrorCode::LeaseExpired, subject).await?;
            return Err(Refusal::new(
                ErrorCode::LeaseExpired,
                format!(
                    "the lease of task {task} ended with block {}; the best block is {block}",
                    lease.task.lease_block
                ),
                "claim a new task; if this happens often, the device is too slow for this run",
            ));
        }
        Ok(lease)
    }

    /// Held while an upload is written, hashed or committed.
    async fn upload_lock(&self, id: &Hex32) -> OwnedMutexGuard<()> {
        // Identifiers are hashes, so their first byte spreads them evenly.
        let [first, ..] = id.0;
        let [locks @ .., last] = &self.upload_locks;
        let lock = locks.get(usize::from(first) % UPLOAD_LOCKS).unwrap_or(last);
        lock.clone().lock_owned().await
    }
}
