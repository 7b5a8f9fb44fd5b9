//! Training a task and storing its encoded update. [Sending](super::send) comes after, from the stored bytes.

use crate::{
    MinerError,
    report::Reporter,
    settlement::payout::SettlementWatcher,
    shutdown::Shutdown,
    task::journal::{Journal, Outgoing},
    task::moments::{self, SavedMoments},
    task::residual::Residuals,
};
use alice_api::{Hex32, Lease, sign::submission_id};
use alice_model::Device;
use alice_spec::RunSpec;
use alice_store::Master;
use alice_trainer::{Carry, Options, Progress, Task, TaskResult, TrainError};
use alice_update::{Entries, Header};
use serde_json::json;
use std::{
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

/// Interval at which the server is asked for its block while a task runs.
const DEADLINE_POLL: Duration = Duration::from_secs(15);
/// Maximum time for the server's reply: shutdown and progress wait for it.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);

/// End of a training.
pub enum Trained {
    /// The task is done; with the moments for the next one, if they could be written.
    Done(Box<TaskResult>, Option<SavedMoments>),
    /// The deadline passed before it was done.
    TooLate,
}

/// Inputs of the trainer.
pub struct Job {
    /// Run.
    pub spec: Arc<RunSpec>,
    /// Fragment whose parameters learn.
    pub fragment: u32,
    /// Device.
    pub device: Device,
    /// Weights to start from.
    pub theta: Arc<Master>,
    /// Options that fit the device.
    pub options: Options,
    /// The task's text.
    pub sequences: Vec<Vec<u16>>,
    /// File of the fragment's moments; `None` if each task starts from zero moments.
    pub moments: Option<PathBuf>,
}

impl Job {
    /// Trains, on the caller's thread, until it is done or `must_end` is set.
    fn run(
        &self,
        must_end: &AtomicBool,
        progress: &watch::Sender<Option<Progress>>,
    ) -> Result<(TaskResult, Option<SavedMoments>), TrainError> {
        let mut on_progress = |p: Progress| {
            let _ = progress.send(Some(p));
            match must_end.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let task = Task {
            spec: &self.spec,
            fragment: self.fragment,
            theta: self.theta.theta(),
            sequences: &self.sequences,
        };
        let mut train =
            |carry: Carry<'_>| alice_trainer::train_carrying(&task, self.device, self.options, carry, &mut on_progress);
        match &self.moments {
            Some(path) => moments::train_with_moments(path, must_end, train),
            None => train(Carry::default()).map(|result| (result, None)),
        }
    }
}

/// Trains for a lease on a thread of its own, and watches the pay of earlier work meanwhile. Ends early if the shutdown
/// is requested or the deadline has passed.
///
/// # Errors
/// [`MinerError::Stopped`] for the shutdown; others if training fails.
pub async fn train(
    job: Job,
    lease: &Lease,
    watcher: &mut SettlementWatcher<'_>,
    reporter: &mut Reporter,
    shutdown: &Shutdown,
) -> Result<Trained, MinerError> {
    let must_end = Arc::new(AtomicBool::new(false));
    // A watch channel keeps the newest step only, so a slow terminal never delays training.
    let (sender, mut progress) = watch::channel(None::<Progress>);
    let task = tokio::task::spawn_blocking({
        let must_end = must_end.clone();
        move || job.run(&must_end, &sender)
    });
    tokio::pin!(task);
    let bar = reporter.bar("training", u64::from(lease.task.steps), false);
    let mut poll = tokio::time::interval(DEADLINE_POLL);
    let (mut too_late, mut shutdown_seen) = (false, false);
    // The thread checks `must_end` between two steps, and is always waited for, so that the device is free at the end.
    let result = loop {
        tokio::select! {
            result = &mut task => break result,
            Ok(()) = progress.changed() => {
                if let Some(p) = progress.borrow().as_ref() {
                    bar.set_position(u64::from(p.step));
                    bar.set_message(format!("loss {:.3}", p.loss));
                }
            }
            // Once seen it would be ready for ever and starve the other branches.
            () = shutdown.wait(), if !shutdown_seen => {
                shutdown_seen = true;
                must_end.store(true, Ordering::Relaxed);
            }
            _ = poll.tick(), if !too_late => {
                too_late = has_deadline_passed(lease, watcher).await;
                if too_late {
                    must_end.store(true, Ordering::Relaxed);
                }
                watcher.poll_and_report(reporter, shutdown).await;
            }
        }
    };
    reporter.bar_done();
    match result {
        Ok(Ok((result, saved))) => Ok(Trained::Done(Box::new(result), saved)),
        // The trainer reports both as cancelled; the flags tell which it was.
        Ok(Err(_)) if shutdown.requested() => Err(MinerError::Stopped),
        Ok(Err(_)) if too_late => Ok(Trained::TooLate),
        Ok(Err(error)) => Err(MinerError::Train(error)),
        Err(panic) => Err(MinerError::TrainThread(panic)),
    }
}

/// Whether the server reports a block at or after the lease's deadline. A server that is away reports nothing: the
/// update may still arrive in time.
async fn has_deadline_passed(lease: &Lease, watcher: &mut SettlementWatcher<'_>) -> bool {
    let status = tokio::time::timeout(STATUS_TIMEOUT, watcher.client.status()).await;
    let Ok(Ok(status)) = status else { return false };
    watcher.epoch = status.epoch;
    status.block >= lease.task.deadline_block
}

/// Encodes a task's result with its fragment's residual and stores everything that sending needs. `d` has one value for
/// each parameter of the fragment.
///
/// # Errors
/// The update cannot be encoded or stored; journal and valid residual are unchanged then, and the call can be repeated.
pub fn store(
    spec: &RunSpec,
    miner: &Hex32,
    lease: &Lease,
    d: &[f32],
    residuals: &mut Residuals,
    journal: &mut Journal,
    reporter: &mut Reporter,
) -> Result<(), MinerError> {
    let task = &lease.task;
    let header = Header {
        run_hash: task.run_hash.0,
        epoch: task.epoch,
        base_root: task.base_root.0,
    };
    let encoded = residuals.encode(task.fragment, spec, &header, d)?;
    let blob = Hex32(*blake3::hash(&encoded.bytes).as_bytes());
    // Made of the bytes: an update that is encoded again after a crash has the same name.
    let id = submission_id(&task.task_id, miner, &blob);
    let decay = spec.update.feedback_decay as f32;
    let ledger = residuals.prepare(task.fragment, id.0, d, (&encoded.sent, decay))?;
    let outgoing = Outgoing {
        id,
        lease: lease.clone(),
        blob,
        bytes: encoded.bytes.len() as u64,
    };
    // Last, after the residual is synced: the journal must not name files that a power failure could lose.
    journal.ready(outgoing, &encoded.bytes, &ledger)?;
    reporter.event(
        "encoded",
        &format!("update of {} bytes is encoded and stored", encoded.bytes.len()),
        json!({ "id": id, "epoch": task.epoch, "bytes": encoded.bytes.len(), "norm": encoded.sent.norm() }),
    );
    Ok(())
}
