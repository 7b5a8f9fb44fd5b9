//! Steps of the task in hand: fetch its inputs, plan, train, report, store, send.

use super::{Miner, POLL};
use crate::{
    MinerError,
    memory::fit::peak_and_plan,
    settlement::receipts::{Record, Refusal},
    settlement::verdicts,
    task::corpus::Corpus,
    task::journal::{Outgoing, lasts},
    task::moments::{self, SavedMoments},
    task::send::Sender,
    task::tokenizer,
    task::weights::Source,
    task::work::{self, Trained},
};
use alice_api::{ErrorCode, Lease, Status};
use alice_store::Master;
use alice_trainer::{MomentsFrom, Options, TaskResult};
use serde_json::json;
use std::sync::Arc;

/// Weights and text of a task.
struct Inputs {
    theta: Arc<Master>,
    sequences: Vec<Vec<u16>>,
}

/// Options of a task, with the memory that the plan expects.
struct PlannedTask {
    options: Options,
    bytes: u64,
}

impl Miner {
    /// Trains for a lease and stores the encoded update.
    pub(super) async fn train(&mut self, lease: &Lease, status: &Status) -> Result<(), MinerError> {
        let inputs = self.fetch_inputs(lease).await?;
        let planned = self.plan_task(lease)?;
        match self.run_task(lease, inputs, planned.options).await? {
            Trained::TooLate => self.note_too_late(lease, status).await,
            Trained::Done(result, saved) => {
                self.report_trained(lease, &result, &planned);
                self.store_update(lease, &result.d, saved).await
            }
        }
    }

    /// Brings tokenizer, weights and text of the task onto this machine.
    async fn fetch_inputs(&mut self, lease: &Lease) -> Result<Inputs, MinerError> {
        let run = self.run.as_mut().ok_or(MinerError::NoRun)?;
        let (client, shutdown, reporter) = (&self.settings.client, &self.shutdown, &mut self.reporter);
        let task = &lease.task;
        let corpus = match run.corpus.take() {
            Some(corpus) => corpus,
            None => {
                tokenizer::ensure(client, &run.spec, &run.dir, shutdown).await?;
                Corpus::open(client, &run.spec, &run.dir, shutdown).await?
            }
        };
        let corpus = run.corpus.insert(corpus);
        let source = Source {
            client,
            spec: &run.spec,
            genesis: run.genesis,
            shutdown,
        };
        let theta = match run.weights.sync_to(&task.base_root, &source, reporter).await {
            Err(error @ MinerError::Untrue { .. }) => {
                // This lease's model cannot be reached; the next claim may name another.
                run.journal.clear()?;
                return Err(error);
            }
            theta => theta?,
        };
        let indices = alice_data::task_sequences(&run.spec, corpus.sequences(), &task.epoch_seed.0, task.slice);
        let sequences = corpus.load(client, &indices, reporter, shutdown).await?;
        reporter.event(
            "training",
            &format!(
                "epoch {}: training slice {} on {} sequences",
                task.epoch,
                task.slice,
                sequences.len()
            ),
            json!({ "epoch": task.epoch, "slice": task.slice, "task_id": task.task_id }),
        );
        Ok(Inputs { theta, sequences })
    }

    /// Chooses the options that fit the task into the device's memory of now.
    fn plan_task(&mut self, lease: &Lease) -> Result<PlannedTask, MinerError> {
        let run = self.run.as_mut().ok_or(MinerError::NoRun)?;
        let fragment = lease.task.fragment;
        let plan = self.settings.fit.plan(&run.spec, Some(fragment), self.device);
        let Some(chosen) = plan.chosen() else {
            run.journal.clear()?;
            return Err(MinerError::DoesNotFit(plan.summary()));
        };
        // A micro-batch that once ran out of memory is not tried again, whatever the plan says.
        let known = self.micro_batches.get(&fragment).copied();
        Ok(PlannedTask {
            options: Options {
                micro_batch: chosen.options.micro_batch.into_iter().chain(known).min(),
                ..chosen.options
            },
            bytes: chosen.need.total(),
        })
    }

    /// Trains, and watches the pay of earlier work meanwhile.
    async fn run_task(&mut self, lease: &Lease, inputs: Inputs, options: Options) -> Result<Trained, MinerError> {
        let run = self.run.as_ref().ok_or(MinerError::NoRun)?;
        let fragment = lease.task.fragment;
        let job = work::Job {
            spec: run.spec.clone(),
            fragment,
            device: self.device,
            theta: inputs.theta,
            options,
            sequences: inputs.sequences,
            moments: (self.settings.keep_moments).then(|| moments::file(&run.dir, fragment)),
        };
        // As late as possible: downloads and mapped weights must not count as the task's memory.
        if let Some(memory) = &self.memory {
            memory.begin_task();
        }
        let genesis = run.genesis;
        let (mut watcher, reporter, shutdown) = self.watcher(genesis);
        let trained = work::train(job, lease, &mut watcher, reporter, shutdown).await?;
        if let Trained::Done(result, _) = &trained
            && options.micro_batch.is_some_and(|asked| result.micro_batch < asked)
        {
            self.micro_batches.insert(fragment, result.micro_batch);
        }
        Ok(trained)
    }

    /// Reports a finished training, with its memory next to the plan's.
    fn report_trained(&mut self, lease: &Lease, result: &TaskResult, planned: &PlannedTask) {
        self.standings.loss = Some(result.loss_last);
        self.standings.tokens_per_second = Some(result.tokens as f64 / result.seconds.max(1e-9));
        let ended = self
            .memory
            .as_mut()
            .and_then(|memory| memory.end_task(self.device, planned.bytes));
        // The monitor warns once per process; a log line an hour would be noise.
        let (peak, warning) = ended.map_or((None, None), |(peak, warning)| (Some(peak), warning));
        let memory = peak.map_or(String::new(), |peak| peak_and_plan(peak, planned.bytes));
        let epoch = lease.task.epoch;
        self.reporter.event(
            "trained",
            &format!(
                "epoch {epoch}: loss {:.3} → {:.3}, {} tokens in {:.1} s, micro-batch {}{memory}",
                result.loss_first, result.loss_last, result.tokens, result.seconds, result.micro_batch
            ),
            json!({
                "epoch": epoch, "loss_first": result.loss_first, "loss_last": result.loss_last,
                "tokens": result.tokens, "seconds": result.seconds, "micro_batch": result.micro_batch,
                "moments_steps": match result.moments { MomentsFrom::Carried { steps } => steps, _ => 0 },
                "memory_peak": peak, "memory_planned": planned.bytes,
            }),
        );
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
    }

    /// Stores the encoded update. On a full disk the moments are evicted first; then the update waits in memory for
    /// room, as long as its task lasts.
    async fn store_update(
        &mut self,
        lease: &Lease,
        d: &[f32],
        mut saved: Option<SavedMoments>,
    ) -> Result<(), MinerError> {
        let mut stored = self.try_store(lease, d);
        // An update is worth more than moments: this task's go first, then those of the task before.
        for older in [false, true] {
            let Some(error) = stored.as_ref().err().filter(|error| error.is_disk_trouble()) else {
                break;
            };
            let freed = match (older, &self.run) {
                (false, _) => saved.take().is_some(),
                (true, Some(run)) => moments::evict(&run.dir, lease.task.fragment),
                (true, None) => false,
            };
            if freed {
                tracing::warn!(%error, "the update could not be stored; the optimiser's moments are removed to make room");
                stored = self.try_store(lease, d);
            }
        }
        // Now somebody has to make room, and hours of work are worth the wait while they still count.
        while let Err(error) = stored {
            if !error.is_disk_trouble() {
                return Err(error);
            }
            let epoch = lease.task.epoch;
            self.reporter.waiting(&format!(
                "the update of epoch {epoch} cannot be stored: {error}; it is kept in memory and tried again while its task lasts"
            ));
            self.shutdown.sleep(POLL.pause(1)).await;
            if self.shutdown.requested() {
                return Err(MinerError::Stopped);
            }
            let status = self.settings.client.status().await;
            if status.is_ok_and(|now| !lasts(lease, now.block)) {
                let source = Box::new(error);
                return Err(MinerError::NotStored { epoch, source });
            }
            stored = self.try_store(lease, d);
        }
        // Only now: a task repeated after a crash must not start from moments that have seen its text.
        if let Some(saved) = saved {
            saved.keep();
        }
        Ok(())
    }

    fn try_store(&mut self, lease: &Lease, d: &[f32]) -> Result<(), MinerError> {
        let run = self.run.as_mut().ok_or(MinerError::NoRun)?;
        let miner = self.key.key.public();
        let (residuals, journal) = (&mut run.residuals, &mut run.journal);
        work::store(&run.spec, &miner, lease, d, residuals, journal, &mut self.reporter)
    }

    /// Records a task that was not done in time: work that was never sent gets its reason, too.
    async fn note_too_late(&mut self, lease: &Lease, status: &Status) -> Result<(), MinerError> {
        let task = &lease.task;
        let message = format!(
            "training was not done at the deadline (block {}); a task of this run is too large for this device, or it was started late",
            task.deadline_block
        );
        let record = Record {
            genesis_hash: status.genesis_hash,
            run_hash: task.run_hash,
            // There are no bytes to name it by.
            id: task.task_id,
            task_id: task.task_id,
            epoch: task.epoch,
            bytes: 0,
            receipt: None,
            verdict: None,
            refusal: Some(Refusal {
                code: ErrorCode::Late.code().into(),
                message,
            }),
            closed: None,
        };
        // Before the journal forgets the task: after a crash nothing else would know of it.
        self.put_record(record).await?;
        if let Some(run) = &mut self.run {
            run.journal.clear()?;
        }
        Ok(())
    }

    /// Sends the stored update, or asks for its receipt if the bytes are damaged, and stores the answer.
    pub(super) async fn send(&mut self, outgoing: &Outgoing, status: &Status) -> Result<(), MinerError> {
        let run = self.run.as_mut().ok_or(MinerError::NoRun)?;
        // Read and hashed again: bytes that rotted on disk must not be sent under their old name.
        let update = run.journal.update(outgoing)?;
        let sender = Sender {
            client: &self.settings.client,
            key: &self.key.key,
            genesis: run.genesis,
            ps_key: status.ps_key,
            shutdown: &self.shutdown,
        };
        let answer = match update {
            Some(update) => sender.send(outgoing, update, &mut self.reporter).await,
            None => {
                tracing::debug!(id = %outgoing.id, "the stored update is damaged; asking whether it was committed");
                match sender.ask(outgoing).await {
                    Ok(Some(record)) => Ok(record),
                    Ok(None) if lasts(&outgoing.lease, status.block) => {
                        tracing::warn!("the stored update is damaged and was not committed; its task is trained again");
                        // The moments have seen its text by now.
                        moments::evict(&run.dir, outgoing.lease.task.fragment);
                        return run.journal.leased(outgoing.lease.clone());
                    }
                    Ok(None) => Ok(sender.given_up(outgoing, "it was damaged on disk before it was committed".into())),
                    Err(error) => Err(error),
                }
            }
        };
        let last_epoch = outgoing.lease.task.epoch.saturating_add(verdicts::VERDICT_EPOCHS_MAX);
        let record = match answer {
            // A false answer is asked for again at every poll, until no verdict could follow any more.
            Err(MinerError::Untrue { what, problem }) if status.epoch > last_epoch => {
                sender.given_up(outgoing, format!("the server gave no {what} that holds: {problem}"))
            }
            answer => answer?,
        };
        self.put_record(record).await
    }

    /// Stores and reports the record of an update. Waits for room on a full disk, so that an answer need not be fetched
    /// again.
    async fn put_record(&mut self, record: Record) -> Result<(), MinerError> {
        while let Err(error) = self.receipts.put(record.clone()) {
            if !error.is_failed_write() {
                return Err(error);
            }
            self.reporter.waiting(&format!("{error}; trying again"));
            self.shutdown.sleep(POLL.pause(1)).await;
            if self.shutdown.requested() {
                return Err(MinerError::Stopped);
            }
        }
        self.worked.insert(record.epoch);
        verdicts::report(&record, &mut self.reporter);
        self.show_status(true);
        Ok(())
    }
}
