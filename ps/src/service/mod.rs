//! Claims and commits: the decisions that a miner's request asks for, with their limits. No HTTP here.
pub mod chain_view;
pub mod uploads;

use crate::{
    PsError, corpus::Corpus, db::Db, db::StoredStage, files::Files, run_context::Network, service::chain_view::View,
};
use alice_api::{
    ApiError, ClaimRequest, CommitRequest, ErrorCode, Hex32, Key, Lease, Receipt, ReceiptBody, Status, Task, sign,
};
use alice_round::Phase;
use alice_store::BlobStore;
use std::sync::Arc;
use tokio::sync::{Mutex, watch};

/// Locks over uploads; more than can be received at the same time on one machine.
const UPLOAD_LOCKS: usize = 64;

/// A refusal, as the miner reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal(pub ApiError);

impl Refusal {
    /// What went wrong, and what to do.
    pub fn new(error: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self(ApiError {
            error,
            message: message.into(),
            hint: hint.into(),
        })
    }

    /// A fault of the server: logged in full, told in short.
    pub fn internal(error: impl Into<PsError>) -> Self {
        let error = error.into();
        tracing::error!(%error, "request failed");
        Self::new(
            ErrorCode::Internal,
            "the server failed to handle the request",
            "try again later; the operator sees the reason in the log",
        )
    }
}

impl<E: Into<PsError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::internal(error)
    }
}

/// The server.
pub struct Service {
    /// Network and run.
    pub net: Network,
    /// The run's text.
    pub corpus: Corpus,
    /// State.
    pub db: Db,
    /// Data directory.
    pub files: Files,
    /// Public blobs.
    pub blobs: BlobStore,
    /// Training shards; only those in [`Corpus::shards`] may be served.
    pub shards: BlobStore,
    /// The server's key.
    pub key: Key,
    /// What the driver sees.
    pub view: watch::Receiver<View>,
    pub(crate) upload_locks: Vec<Arc<Mutex<()>>>,
}

impl Service {
    /// Puts a server together from its parts.
    pub fn new(
        net: Network,
        corpus: Corpus,
        db: Db,
        files: Files,
        shards: BlobStore,
        key: Key,
        view: watch::Receiver<View>,
    ) -> Result<Self, PsError> {
        let blobs = BlobStore::open(&files.blobs())?;
        let upload_locks = (0..UPLOAD_LOCKS).map(|_| Arc::default()).collect();
        Ok(Self {
            net,
            corpus,
            db,
            files,
            blobs,
            shards,
            key,
            view,
            upload_locks,
        })
    }

    /// Best block, or a refusal while the chain was not seen or what was seen is out of date.
    pub fn best(&self) -> Result<u32, Refusal> {
        let unavailable = |message: &str| Refusal::new(ErrorCode::Unavailable, message, "try again in a few seconds");
        let view = self.view.borrow();
        if view.stale {
            return Err(unavailable("the server has seen no new block for some time"));
        }
        view.best
            .ok_or_else(|| unavailable("the server has not reached the chain yet"))
    }

    /// Public status.
    pub async fn status(&self) -> Result<Status, PsError> {
        let view = self.view.borrow().clone();
        let step = self.db.model_step().await?;
        let round = self.db.newest_round().await?;
        let last = self.db.epochs(u32::MAX, 1).await?.pop();
        let block = view.best.unwrap_or(0);
        let submissions = match &round {
            Some(round) => self.db.count_submissions(round.epoch).await?,
            None => 0,
        };
        Ok(Status {
            protocol: alice_api::PROTOCOL_VERSION,
            ps_key: self.key.public(),
            genesis_hash: Hex32(self.net.genesis),
            run_hash: Hex32(self.net.run_hash),
            run: self.net.spec.name.clone(),
            block,
            epoch: self.net.epoch(block),
            phase: match view.phase {
                Phase::Idle => alice_api::Phase::Idle,
                Phase::Open => alice_api::Phase::Open,
                Phase::Sealed => alice_api::Phase::Sealed,
                Phase::Scoring => alice_api::Phase::Scoring,
                Phase::Settling => alice_api::Phase::Settling,
            },
            round_epoch: round.map(|r| r.epoch),
            deadline_block: round.map(|r| self.net.spec.deadline(r.epoch)),
            model_root: Hex32(step.map_or([0; 32], |s| s.root)),
            model_step: step.map_or(0, |s| s.step),
            held_out_loss: last.map(|s| s.loss_after),
            submissions,
            notice: view.notice,
        })
    }

    /// Leases a task. A key that holds an unanswered one gets the same again, so a lost answer costs nothing.
    pub async fn claim(&self, request: &ClaimRequest) -> Result<Lease, Refusal> {
        if !request.verify(&self.net.genesis, &self.net.run_hash) {
            return Err(bad_signature(
                "claim",
                "genesis hash, run hash, epoch, key and payout account",
            ));
        }
        let best = self.best()?;
        let _guard = self.db.write().await;
        let round = self.db.newest_round().await?.filter(|r| r.stage == StoredStage::Open);
        let no_round = |message: String| {
            Refusal::new(
                ErrorCode::NoRound,
                message,
                "ask /v1/status for the round and its deadline, and claim in the next one",
            )
        };
        let round = round.ok_or_else(|| no_round(format!("no round is open in block {best}")))?;
        let deadline = self.net.spec.deadline(round.epoch);
        if request.epoch != round.epoch {
            return Err(no_round(format!(
                "the open round is of epoch {}, the claim of epoch {}",
                round.epoch, request.epoch
            )));
        }
        if best >= deadline {
            return Err(no_round(format!(
                "the deadline of epoch {} was block {deadline}, the best block is {best}",
                round.epoch
            )));
        }
        let lease_block = best.saturating_add(self.net.spec.round.lease_blocks).min(deadline);
        let (slice, lease_block) = match self.db.open_lease(round.epoch, &request.miner, best).await? {
            Some(lease) if lease.task.payout == request.payout => return Ok(lease),
            // One task at a time for a key: with another payout account it is the same task for the same time, signed
            // again.
            Some(lease) => (lease.task.slice, lease.task.lease_block),
            None => (
                self.db
                    .next_slice(round.epoch, self.corpus.slices_max, best)
                    .await?
                    .ok_or_else(|| {
                        Refusal::new(
                            ErrorCode::NoTask,
                            format!(
                                "all {} tasks of epoch {} are taken",
                                self.corpus.slices_max, round.epoch
                            ),
                            "try again in a few blocks, when a lease may have expired, or in the next epoch",
                        )
                    })?,
                lease_block,
            ),
        };
        let net = &self.net;
        let task = Task {
            task_id: sign::task_id(&net.run_hash, round.epoch, slice),
            run_hash: Hex32(net.run_hash),
            epoch: round.epoch,
            base_root: Hex32(round.base_root),
            base_step: round.base_step,
            slice,
            fragment: net.spec.fragment_of(round.epoch, slice),
            epoch_seed: Hex32(alice_data::epoch_seed(&net.genesis, &net.run_hash, round.epoch)),
            steps: net.spec.inner.steps,
            batch_sequences: net.spec.inner.batch_sequences,
            miner: request.miner,
            payout: request.payout,
            lease_block,
            deadline_block: deadline,
        };
        let lease = Lease::new(&self.key, &net.genesis, task);
        self.db.store_lease(&lease).await?;
        tracing::info!(epoch = round.epoch, slice, miner = %request.miner, block = best, "task leased");
        Ok(lease)
    }

    /// Turns a complete upload into a submission. The same commit again gives the same receipt, whenever it comes.
    pub async fn commit(&self, id: &Hex32, request: &CommitRequest) -> Result<Receipt, Refusal> {
        if request.id != *id {
            return Err(Refusal::new(
                ErrorCode::BadRequest,
                "the commit names another upload than the path",
                "send it to its own path",
            ));
        }
        if !request.verify(&self.net.genesis) {
            return Err(bad_signature("commit", "genesis hash, upload and key"));
        }
        let _lock = self.upload_lock(id).await;
        let upload = self.db.upload(id).await?.ok_or_else(|| unknown_upload(id))?;
        if upload.miner != request.miner {
            return Err(not_yours(&upload.task_id));
        }
        if let Some(done) = self.db.submission(id).await? {
            return Ok(done.receipt);
        }
        // Hashed before the write lock is taken: nobody else waits for the disk.
        self.in_time(upload.epoch, &upload.id).await?;
        self.check_bytes(&upload).await?;

        let _guard = self.db.write().await;
        let block = self.in_time(upload.epoch, &upload.id).await?;
        let lease = self
            .live_lease(&upload.task_id, &upload.miner, block, &upload.id)
            .await?;
        let body = ReceiptBody {
            id: *id,
            task_id: upload.task_id,
            epoch: upload.epoch,
            miner: upload.miner,
            payout: lease.task.payout,
            blob: upload.blob,
            bytes: upload.bytes,
            block,
            sequence: self.db.count_submissions(upload.epoch).await?,
        };
        let receipt = Receipt::new(&self.key, &self.net.genesis, body);
        self.db.store_submission(&receipt).await?;
        metrics::counter!("alice_ps_submissions_total").increment(1);
        tracing::info!(epoch = upload.epoch, submission = %id, miner = %upload.miner, bytes = upload.bytes, block, "committed");
        Ok(receipt)
    }

    /// The best block, if commits of an epoch are still accepted in it. A late one is counted once.
    pub(crate) async fn in_time(&self, epoch: u32, subject: &Hex32) -> Result<u32, Refusal> {
        let best = self.best()?;
        let deadline = self.net.spec.deadline(epoch);
        let open = self
            .db
            .round(epoch)
            .await?
            .is_some_and(|r| r.stage == StoredStage::Open);
        if open && best < deadline {
            return Ok(best);
        }
        self.db.count_refusal(epoch, ErrorCode::Late, subject).await?;
        tracing::info!(epoch, %subject, block = best, deadline, "late");
        Err(Refusal::new(
            ErrorCode::Late,
            format!("commits to epoch {epoch} were accepted before block {deadline}; the best block is {best}"),
            "the update is lost for this epoch, the error feedback keeps it; claim a task early in the next epoch",
        ))
    }

    /// The task's lease, if this key holds it, it has not expired, and nobody answered it before.
    pub(crate) async fn live_lease(
        &self,
        task: &Hex32,
        miner: &Hex32,
        block: u32,
        subject: &Hex32,
    ) -> Result<Lease, Refusal> {
        let lease = self.db.lease(task).await?.ok_or_else(|| {
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
        if let Some(other) = self.db.submission_of(task).await?.filter(|other| other != subject) {
            self.db.count_refusal(epoch, ErrorCode::Duplicate, subject).await?;
            return Err(Refusal::new(
                ErrorCode::Duplicate,
                format!("task {task} was already answered by submission {other}"),
                "one update for each task; claim another task",
            ));
        }
        if block > lease.task.lease_block {
            self.db.count_refusal(epoch, ErrorCode::LeaseExpired, subject).await?;
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
}

/// The signature does not verify.
pub(crate) fn bad_signature(what: &str, over: &str) -> Refusal {
    Refusal::new(
        ErrorCode::BadSignature,
        format!("the signature of the {what} does not verify"),
        format!("sign {over} with the mining key's sr25519 (docs/spec/http-api.md)"),
    )
}

/// No such upload.
pub(crate) fn unknown_upload(id: &Hex32) -> Refusal {
    Refusal::new(
        ErrorCode::NotFound,
        format!("there is no upload {id}"),
        "declare it first (POST /v1/uploads)",
    )
}

fn not_yours(task: &Hex32) -> Refusal {
    Refusal::new(
        ErrorCode::NotYourTask,
        format!("task {task} is leased to another key"),
        "claim a task with this key",
    )
}
