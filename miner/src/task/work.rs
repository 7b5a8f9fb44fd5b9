//! One task: train, combine with the residual, encode, store. Sending comes after, from what is stored.

use crate::{
    MinerError,
    report::Reporter,
    settlement::payout::PayDesk,
    shutdown::Stop,
    task::journal::{Journal, Outgoing},
    task::moments::{self, Left},
    task::residual::Residuals,
};
use alice_api::{Hex32, Lease, sign::submission_id};
use alice_model::Device;
use alice_spec::RunSpec;
use alice_store::Master;
use alice_trainer::{Carry, Options, Progress, Task, TaskResult};
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

/// How often the server is asked for its block while a task runs.
const DEADLINE_POLL: Duration = Duration::from_secs(15);
/// How long it may take to answer.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);

/// What a task was stopped by.
pub enum Trained {
    /// It is done; with the moments that it has left.
    Done(Box<TaskResult>, Option<Left>),
    /// The deadline passed before it was done.
    TooLate,
}

/// What the trainer needs.
pub struct Job {
    /// Run.
    pub spec: Arc<RunSpec>,
    /// Device.
    pub device: Device,
    /// Weights to start from.
    pub theta: Arc<Master>,
    /// How to fit the device.
    pub options: Options,
    /// The task's text.
    pub sequences: Vec<Vec<u16>>,
    /// File of the fragment's moments; none: each task starts from nothing.
    pub moments: Option<PathBuf>,
}

/// Trains for a lease on a thread of its own, and follows earlier work's pay meanwhile. Ends early when the user wants to
/// stop or the deadline has passed.
pub async fn train(
    job: Job,
    lease: &Lease,
    desk: &mut PayDesk<'_>,
    reporter: &mut Reporter,
    stop: &Stop,
) -> Result<Trained, MinerError> {
    let end = Arc::new(AtomicBool::new(false));
    let (sender, mut progress) = watch::channel(None::<Progress>);
    let fragment = lease.task.fragment;
    let task = tokio::task::spawn_blocking({
        let end = end.clone();
        move || {
            let mut on_progress = |p: Progress| {
                let _ = sender.send(Some(p));
                if end.load(Ordering::Relaxed) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            let task = Task {
                spec: &job.spec,
                fragment,
                theta: job.theta.theta(),
                sequences: &job.sequences,
            };
            let mut train = |carry: Carry<'_>| {
                alice_trainer::train_carrying(&task, job.device, job.options, carry, &mut on_progress)
            };
            match &job.moments {
                Some(path) => moments::carrying(path, &end, train),
                None => train(Carry::default()).map(|result| (result, None)),
            }
        }
    });
    tokio::pin!(task);
    let bar = reporter.bar("training", u64::from(lease.task.steps), false);
    let mut poll = tokio::time::interval(DEADLINE_POLL);
    let (mut too_late, mut stop_seen) = (false, false);
    let result = loop {
        tokio::select! {
            result = &mut task => break result,
            Ok(()) = progress.changed() => {
                if let Some(p) = progress.borrow().as_ref() {
                    bar.set_position(u64::from(p.step));
                    bar.set_message(format!("loss {:.3}", p.loss));
                }
            }
            // The thread looks at `end` between two steps; it is always waited for, so that the device is let go.
            () = stop.wanted(), if !stop_seen => {
                stop_seen = true;
                end.store(true, Ordering::Relaxed);
            }
            _ = poll.tick(), if !too_late => {
                let ask = tokio::time::timeout(STATUS_TIMEOUT, desk.client.status()).await;
                if let Ok(Ok(status)) = ask {
                    desk.epoch = status.epoch;
                    if status.block >= lease.task.deadline_block {
                        too_late = true;
                        end.store(true, Ordering::Relaxed);
                    }
                }
                desk.look_and_say(reporter, stop).await;
            }
        }
    };
    reporter.bar_done();
    match result {
        Ok(Ok((result, left))) => Ok(Trained::Done(Box::new(result), left)),
        Ok(Err(_)) if stop.requested() => Err(MinerError::Stopped),
        Ok(Err(_)) if too_late => Ok(Trained::TooLate),
        Ok(Err(error)) => Err(MinerError::Train(error.to_string())),
        Err(join) => Err(MinerError::Train(format!("the training thread died: {join}"))),
    }
}

/// Encodes what a task brought together with its fragment's residual and stores everything that sending needs. `d` has a
/// value for each parameter of the fragment.
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
    let id = submission_id(&task.task_id, miner, &blob);
    let decay = spec.update.feedback_decay as f32;
    let ledger = residuals.prepare(task.fragment, id.0, d, (&encoded.sent, decay))?;
    let outgoing = Outgoing {
        id,
        lease: lease.clone(),
        blob,
        bytes: encoded.bytes.len() as u64,
    };
    journal.ready(outgoing, &encoded.bytes, &ledger)?;
    reporter.event(
        "encoded",
        &format!("update of {} bytes is encoded and stored", encoded.bytes.len()),
        json!({ "id": id, "epoch": task.epoch, "bytes": encoded.bytes.len(), "norm": encoded.sent.norm() }),
    );
    Ok(())
}
