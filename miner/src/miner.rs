//! The loop: wait for a round, claim, train, send, hear the verdict, keep the payout page; for ever. Nothing that the
//! network or a server does ends it; it says what it waits for.

use crate::{
    MinerError,
    key::MiningKey,
    memory::fit::{self, MemoryBesidePlan},
    report::{Reporter, Standings},
    settings::Settings,
    settlement::pages::Pays,
    settlement::payout::{ChainLink, PayDesk, PayFollower},
    settlement::receipts::{Receipts, Record, Refusal, Standing},
    settlement::verdicts,
    shutdown::Stop,
    task::journal::{Outgoing, Step, lasts, next_step},
    task::moments,
    task::pinned_network::{Asked, Network, Run},
    task::send::Sender,
    task::tokenizer,
    task::weights::Source,
    task::work::{self, Trained},
};
use alice_api::{ClaimRequest, ErrorCode, Lease, PROTOCOL_VERSION, Phase, Status, client::Retry};
use alice_model::Device;
use alice_trainer::{MomentsFrom, Options};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Between two looks at the server while there is nothing to do.
const POLL: Retry = Retry {
    attempts: 1,
    first: Duration::from_secs(4),
    max: Duration::from_secs(4),
};
/// After errors that waiting may help against.
const BACK_OFF: Retry = Retry {
    attempts: u32::MAX,
    first: Duration::from_secs(1),
    max: Duration::from_secs(30),
};
/// Failed trainings one after the other before the miner gives up: a broken device must not pass for a quiet network.
const TRAIN_FAILURES_MAX: u32 = 3;
/// With `--epochs`, pay is waited for this many epochs after the last work.
const LEAVE_EPOCHS: u32 = 3;

/// What to do after a look at the server.
enum Next {
    /// Look again at once.
    Now,
    /// Wait, for this reason.
    Wait(String),
    /// All that was asked for is done.
    Leave,
}

/// A running miner.
pub struct Miner {
    settings: Settings,
    key: MiningKey,
    device: Device,
    reporter: Reporter,
    stop: Stop,
    receipts: Receipts,
    pays: Pays,
    link: ChainLink,
    follower: PayFollower,
    run: Option<Run>,
    /// The network, once it is known.
    network: Option<Network>,
    standings: Standings,
    /// Epochs that this process has worked in.
    worked: BTreeSet<u32>,
    /// For each fragment with which the device ran out of memory, the micro-batch that fitted then.
    micro_batches: BTreeMap<u32, u32>,
    /// Memory of the device; none where there is no way to tell.
    memory: Option<MemoryBesidePlan>,
}

impl Miner {
    /// Opens the data directory's files.
    pub fn new(
        mut settings: Settings,
        key: MiningKey,
        device: Device,
        reporter: Reporter,
        stop: Stop,
    ) -> Result<Self, MinerError> {
        settings.fit.measure(device);
        let receipts = Receipts::open(&settings.data_dir)?;
        let pays = Pays::open(&settings.data_dir)?;
        let link = ChainLink::new(settings.chain.clone());
        let follower = PayFollower::default();
        let network = Network::load(&settings.data_dir)?;
        Ok(Self {
            settings,
            key,
            device,
            reporter,
            stop,
            receipts,
            pays,
            link,
            follower,
            run: None,
            network,
            standings: Standings::default(),
            worked: BTreeSet::new(),
            micro_batches: BTreeMap::new(),
            memory: MemoryBesidePlan::start(device),
        })
    }

    /// Mines until the work asked for is done or the user stops it.
    pub async fn run(&mut self) -> Result<(), MinerError> {
        let (mut failures, mut train_failures) = (0, 0);
        while !self.stop.requested() {
            match self.look().await {
                Ok(next) => {
                    failures = 0;
                    match next {
                        Next::Leave => break,
                        Next::Now => {}
                        Next::Wait(why) => {
                            self.reporter.waiting(&why);
                            self.show(false);
                            self.follow_pay().await;
                            self.stop.sleep(POLL.pause(1)).await;
                        }
                    }
                }
                Err(MinerError::Stopped) => break,
                Err(error) if error.is_temporary() => {
                    failures += 1;
                    if matches!(error, MinerError::Train(_) | MinerError::Encode(_)) {
                        train_failures += 1;
                        if train_failures >= TRAIN_FAILURES_MAX {
                            return Err(error);
                        }
                    }
                    self.reporter.waiting(&format!("{error}; trying again"));
                    // Also while the server is away: the pages are kept so that pay does not depend on it.
                    self.follow_pay().await;
                    self.stop.sleep(BACK_OFF.pause(failures)).await;
                    continue;
                }
                Err(error) => return Err(error),
            }
            if self
                .run
                .as_ref()
                .is_some_and(|r| matches!(r.journal.state(), crate::task::journal::State::Ready { .. }))
            {
                train_failures = 0;
            }
        }
        self.show(true);
        let text = match self.stop.requested() {
            true => "stopped; unfinished work goes on with the next start",
            false => "done",
        };
        self.reporter
            .event("stopped", text, json!({ "epochs_worked": self.worked }));
        Ok(())
    }

    async fn look(&mut self) -> Result<Next, MinerError> {
        let status = self.stop.or(self.settings.client.status()).await?;
        self.standings.epoch = status.epoch;
        self.check_network(&status).await?;
        self.open_run(&status).await?;
        if let Some(next) = self.finish_work_in_hand(&status).await? {
            return Ok(next);
        }
        self.hear_verdicts(&status).await?;
        if let Some(next) = self.limit_reached(&status) {
            return Ok(next);
        }
        self.claim(&status).await
    }

    async fn check_network(&mut self, status: &Status) -> Result<(), MinerError> {
        if status.protocol != PROTOCOL_VERSION {
            return Err(MinerError::Protocol {
                server: status.protocol,
                miner: PROTOCOL_VERSION,
            });
        }
        let dir = self.settings.data_dir.clone();
        let seen = Network {
            genesis_hash: status.genesis_hash,
            run_hash: status.run_hash,
            ps_key: Some(status.ps_key),
        };
        if self.network == Some(seen) && self.settings.run.is_none_or(|run| run == seen.run_hash) {
            return Ok(());
        }
        let known = self.network.unwrap_or(Network { ps_key: None, ..seen });
        known.check_genesis(&seen, &dir)?;
        self.confirm_run(&known, &seen).await?;
        self.confirm_server(&known, &seen).await?;
        seen.store(&dir)?;
        self.network = Some(seen);
        Ok(())
    }

    /// Another run than before counts if the user says so, or the chain: its governance decides, not a server alone.
    async fn confirm_run(&mut self, known: &Network, seen: &Network) -> Result<(), MinerError> {
        let (expected, found) = (self.settings.run.unwrap_or(known.run_hash), seen.run_hash);
        if found == expected {
            return Ok(());
        }
        let error = MinerError::OtherRun { expected, found };
        let chain = match self.settings.run {
            Some(_) => None,
            None => self.stop.or(self.link.get(&seen.genesis_hash)).await?,
        };
        let Some(chain) = chain else { return Err(error) };
        let parameters = self
            .stop
            .or(async { chain.parameters().await.map_err(crate::settlement::payout::chain_error) });
        if parameters.await?.run_hash != found.0 {
            return Err(error);
        }
        self.reporter.event(
            "run",
            &format!("the network has moved on to run {found}"),
            json!({ "run_hash": found }),
        );
        Ok(())
    }

    /// Receipts and verdicts are worth what the key under them is worth: the chain knows the servers' keys; without a
    /// chain the first one seen is kept.
    async fn confirm_server(&mut self, known: &Network, seen: &Network) -> Result<(), MinerError> {
        let Some(found) = seen.ps_key.filter(|_| known.ps_key != seen.ps_key) else {
            return Ok(());
        };
        match (self.settings.ps_key, known.ps_key) {
            (Some(wanted), _) if wanted == found => return Ok(()),
            (Some(expected), _) => return Err(MinerError::OtherServer { expected, found }),
            (None, _) => {}
        }
        match (self.stop.or(self.link.get(&seen.genesis_hash)).await?, known.ps_key) {
            (Some(chain), _) => {
                let servers = self.stop.or(async {
                    chain
                        .parameter_servers()
                        .await
                        .map_err(crate::settlement::payout::chain_error)
                });
                match servers.await?.keys.contains(&found.0) {
                    true => Ok(()),
                    false => Err(MinerError::untrue(
                        "key",
                        format!("the chain does not know the server {found}"),
                    )),
                }
            }
            (None, None) => Ok(()),
            (None, Some(expected)) => Err(MinerError::OtherServer { expected, found }),
        }
    }

    async fn open_run(&mut self, status: &Status) -> Result<(), MinerError> {
        if self.run.as_ref().is_some_and(|r| r.hash == status.run_hash) {
            return Ok(());
        }
        let dir = Run::dir(&self.settings.data_dir, &status.run_hash);
        let text = match Run::stored_spec(&dir, &status.run_hash)? {
            Some(_) => None,
            None => Some(self.stop.or(self.settings.client.run()).await?),
        };
        let run = Run::open(
            &self.settings.data_dir,
            text.as_deref(),
            status.run_hash,
            status.genesis_hash,
            self.settings.residual,
        )?;
        let parameters = run.spec.parameters();
        self.reporter.event(
            "run",
            &format!(
                "run {} ({parameters} parameters, {} tokens a task), server {}",
                run.spec.name,
                run.spec.cost().task_tokens,
                self.settings.client.url()
            ),
            json!({ "run": run.spec.name, "run_hash": run.hash, "parameters": parameters, "genesis_hash": run.genesis }),
        );
        let plan = self.settings.fit.plan(&run.spec, None, self.device);
        if plan.chosen().is_none() {
            return Err(MinerError::DoesNotFit(plan.summary()));
        }
        self.reporter
            .event("plan", &format!("plan: {}", plan.summary()), plan.json());
        self.run = Some(run);
        Ok(())
    }

    /// Takes the steps that are missing for what the journal has. None where nothing is in hand.
    async fn finish_work_in_hand(&mut self, status: &Status) -> Result<Option<Next>, MinerError> {
        loop {
            let Some(run) = &mut self.run else { return Ok(None) };
            let around = run.surroundings(&self.receipts, status.block)?;
            match next_step(run.journal.state(), around) {
                Step::Claim => return Ok(None),
                Step::Train(lease) => {
                    self.train(&lease, status).await?;
                    return Ok(Some(Next::Now));
                }
                Step::Send(outgoing) => self.send(&outgoing, status).await?,
                Step::AdoptResidual(outgoing) => run.residuals.adopt(outgoing.lease.task.fragment)?,
                Step::RestoreResidual(outgoing) => {
                    run.residuals.restore(outgoing.lease.task.fragment, outgoing.id.0)?;
                }
                Step::Clear(why) => {
                    run.journal.clear()?;
                    tracing::debug!(why, "work in hand is put away");
                }
            }
        }
    }

    async fn train(&mut self, lease: &Lease, status: &Status) -> Result<(), MinerError> {
        let Some(run) = &mut self.run else { return Ok(()) };
        let (client, stop, reporter) = (&self.settings.client, &self.stop, &mut self.reporter);
        let task = &lease.task;
        if run.corpus.is_none() {
            tokenizer::ensure(client, &run.spec, &run.dir, stop).await?;
            run.corpus = Some(crate::task::corpus::Corpus::open(client, &run.spec, &run.dir, stop).await?);
        }
        let source = Source {
            client,
            spec: &run.spec,
            genesis: run.genesis,
            stop,
        };
        let theta = match run.weights.bring_to(&task.base_root, &source, reporter).await {
            Ok(theta) => theta,
            Err(error) => {
                if matches!(error, MinerError::Untrue { .. }) {
                    // The lease leads nowhere; the next claim may.
                    run.journal.clear()?;
                }
                return Err(error);
            }
        };
        let Some(corpus) = &run.corpus else { return Ok(()) };
        let all = corpus.sequences();
        let indices = alice_data::task_sequences(&run.spec, all, &task.epoch_seed.0, task.slice);
        let sequences = corpus.load(client, &indices, reporter, stop).await?;
        let text = format!(
            "epoch {}: training slice {} on {} sequences",
            task.epoch,
            task.slice,
            sequences.len()
        );
        reporter.event(
            "training",
            &text,
            json!({ "epoch": task.epoch, "slice": task.slice, "task_id": task.task_id }),
        );
        let plan = self.settings.fit.plan(&run.spec, Some(task.fragment), self.device);
        let Some(plan) = plan.chosen() else {
            run.journal.clear()?;
            return Err(MinerError::DoesNotFit(plan.summary()));
        };
        // What turned out not to fit is not tried again.
        let known = self.micro_batches.get(&task.fragment).copied();
        let micro_batch = plan.options.micro_batch.into_iter().chain(known).min();
        let job = work::Job {
            spec: run.spec.clone(),
            device: self.device,
            theta,
            options: Options {
                micro_batch,
                ..plan.options
            },
            sequences,
            moments: (self.settings.keep_moments).then(|| moments::file(&run.dir, task.fragment)),
        };
        if let Some(memory) = &self.memory {
            memory.task_begins();
        }
        let mut desk = PayDesk {
            genesis: run.genesis,
            epoch: self.standings.epoch,
            client,
            link: &mut self.link,
            receipts: &self.receipts,
            pays: &mut self.pays,
            follower: &mut self.follower,
        };
        let (result, mut left) = match work::train(job, lease, &mut desk, reporter, stop).await? {
            Trained::Done(result, left) => (result, left),
            Trained::TooLate => {
                run.journal.clear()?;
                self.worked.insert(task.epoch);
                return self.note_too_late(lease, status);
            }
        };
        if micro_batch.is_some_and(|asked| result.micro_batch < asked) {
            self.micro_batches.insert(task.fragment, result.micro_batch);
        }
        self.standings.loss = Some(result.loss_last);
        self.standings.tokens_per_second = Some(result.tokens as f64 / result.seconds.max(1e-9));
        let planned = plan.need.total();
        let ended = self
            .memory
            .as_mut()
            .and_then(|memory| memory.task_ended(self.device, planned));
        let (peak, warning) = ended.map_or((None, None), |(peak, warning)| (Some(peak), warning));
        let memory = peak.map_or(String::new(), |peak| fit::beside_plan(peak, planned));
        reporter.event(
            "trained",
            &format!(
                "epoch {}: loss {:.3} → {:.3}, {} tokens in {:.1} s, micro-batch {}{memory}",
                task.epoch, result.loss_first, result.loss_last, result.tokens, result.seconds, result.micro_batch
            ),
            json!({
                "epoch": task.epoch, "loss_first": result.loss_first, "loss_last": result.loss_last,
                "tokens": result.tokens, "seconds": result.seconds, "micro_batch": result.micro_batch,
                "moments_steps": match result.moments { MomentsFrom::Carried { steps } => steps, _ => 0 },
                "memory_peak": peak, "memory_planned": planned,
            }),
        );
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        let miner = self.key.key.public();
        let mut store = |reporter: &mut Reporter| {
            work::store(
                &run.spec,
                &miner,
                lease,
                &result.d,
                &mut run.residuals,
                &mut run.journal,
                reporter,
            )
        };
        // A full disk, perhaps: the update is worth more than the moments, first this task's, then those of the one before.
        let mut stored = store(reporter);
        for older in [false, true] {
            let Err(error @ (MinerError::File { .. } | MinerError::Residual(_))) = &stored else {
                break;
            };
            let freed = match older {
                false => left.take().is_some(),
                true => moments::give_way(&run.dir, task.fragment),
            };
            if freed {
                tracing::warn!(%error, "the update could not be stored; the optimiser's moments give way to it");
                stored = store(reporter);
            }
        }
        // Now somebody has to make room, and hours of work are worth waiting for as long as they count.
        while let Err(error @ (MinerError::File { .. } | MinerError::Residual(_))) = &stored {
            let why = format!(
                "the update of epoch {} cannot be stored: {error}; it is kept in memory and tried again while its task lasts",
                task.epoch
            );
            reporter.waiting(&why);
            stop.sleep(POLL.pause(1)).await;
            let over = client.status().await.is_ok_and(|now| !lasts(lease, now.block));
            if stop.requested() || over {
                break;
            }
            stored = store(reporter);
        }
        if let (Ok(()), Some(left)) = (&stored, left) {
            left.keep();
        }
        stored
    }

    /// Even work that was never sent gets its reason.
    fn note_too_late(&mut self, lease: &Lease, status: &Status) -> Result<(), MinerError> {
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
        verdicts::announce(&record, &mut self.reporter);
        self.receipts.put(record)?;
        self.show(true);
        Ok(())
    }

    async fn send(&mut self, outgoing: &Outgoing, status: &Status) -> Result<(), MinerError> {
        let Some(run) = &mut self.run else { return Ok(()) };
        let update = run.journal.update(outgoing)?;
        let sender = Sender {
            client: &self.settings.client,
            key: &self.key.key,
            genesis: run.genesis,
            ps_key: status.ps_key,
            stop: &self.stop,
        };
        let answer = match update {
            Some(update) => sender.send(outgoing, update, &mut self.reporter).await,
            None => {
                tracing::debug!(id = %outgoing.id, "the stored update is damaged: has it been committed?");
                match sender.ask(outgoing).await {
                    Ok(Some(record)) => Ok(record),
                    Ok(None) if lasts(&outgoing.lease, status.block) => {
                        tracing::warn!("the stored update is damaged and was not committed; its task is trained again");
                        // The moments have seen its text by now.
                        moments::give_way(&run.dir, outgoing.lease.task.fragment);
                        return run.journal.leased(outgoing.lease.clone());
                    }
                    Ok(None) => Ok(sender.given_up(outgoing, "it was damaged on disk before it was committed".into())),
                    Err(error) => Err(error),
                }
            }
        };
        let record = match answer {
            // Sent again at every look, until nothing can come of it any more.
            Err(MinerError::Untrue { what, problem })
                if status.epoch > outgoing.lease.task.epoch.saturating_add(verdicts::VERDICT_EPOCHS_MAX) =>
            {
                sender.given_up(outgoing, format!("the server gave no {what} that holds: {problem}"))
            }
            sent => sent?,
        };
        self.worked.insert(record.epoch);
        verdicts::announce(&record, &mut self.reporter);
        // From here on the journal knows what became of the update.
        self.receipts.put(record)?;
        self.show(true);
        Ok(())
    }

    async fn hear_verdicts(&mut self, status: &Status) -> Result<(), MinerError> {
        let heard = verdicts::hear(
            status,
            &self.settings.client,
            &mut self.receipts,
            &mut self.reporter,
            &self.stop,
        )
        .await;
        // What was heard before an error counts.
        if let Some(run) = &mut self.run {
            run.settle_residuals(&self.receipts)?;
        }
        match heard {
            Ok(0) => {}
            Ok(_) => self.show(true),
            // Said, and no reason to stop working.
            Err(error @ MinerError::Untrue { .. }) => self.reporter.waiting(&error.to_string()),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Pay is followed while there is nothing else to do, so that a slow node never holds up an update; trouble with it
    /// is said, and work goes on.
    async fn follow_pay(&mut self) {
        let Some(network) = self.network else { return };
        let mut desk = PayDesk {
            genesis: network.genesis_hash,
            epoch: self.standings.epoch,
            client: &self.settings.client,
            link: &mut self.link,
            receipts: &self.receipts,
            pays: &mut self.pays,
            follower: &mut self.follower,
        };
        desk.look_and_say(&mut self.reporter, &self.stop).await;
    }

    fn limit_reached(&self, status: &Status) -> Option<Next> {
        let limit = self.settings.epochs?;
        if (self.worked.len() as u32) < limit {
            return None;
        }
        let mine = || self.receipts.iter().filter(|r| self.worked.contains(&r.epoch));
        let last = self.worked.last().copied().unwrap_or(0);
        if mine().any(|r| r.standing() == Standing::Pending) {
            return Some(Next::Wait("the work is in; waiting for its verdict".into()));
        }
        let page_missing = mine().filter(|r| r.standing() == Standing::Accepted).any(|r| {
            let account = r.receipt.as_ref().map(|receipt| receipt.body.payout);
            account.is_some_and(|a| self.pays.get(r.epoch, &a).is_none())
        });
        if page_missing && status.epoch <= last.saturating_add(LEAVE_EPOCHS) {
            return Some(Next::Wait("the work is scored; waiting for its payout page".into()));
        }
        Some(Next::Leave)
    }

    async fn claim(&mut self, status: &Status) -> Result<Next, MinerError> {
        let Some(run) = &mut self.run else { return Ok(Next::Now) };
        let notice = status.notice.as_ref().map(|n| format!(" ({n})")).unwrap_or_default();
        let wait = |why: String| Ok(Next::Wait(why));
        let (Phase::Open, Some(epoch)) = (status.phase, status.round_epoch) else {
            return wait(match status.phase {
                Phase::Open | Phase::Idle => format!("no round is open{notice}"),
                Phase::Sealed => format!("the round is over and waits for the seed of its validation{notice}"),
                Phase::Scoring => format!("the round is being scored{notice}"),
                Phase::Settling => format!("the round is scored; the next opens with the next epoch{notice}"),
            });
        };
        if self.receipts.in_epoch(epoch) >= self.settings.tasks_per_epoch {
            return wait(format!("the work for epoch {epoch} is in; waiting for the next"));
        }
        let (miner, payout) = (self.key.key.public(), self.settings.payout);
        let request = ClaimRequest::new(&self.key.key, &run.genesis.0, &run.hash.0, epoch, payout);
        let claimed = self
            .stop
            .or(async { Ok::<_, MinerError>(self.settings.client.claim(&request).await) })
            .await?;
        let lease = match claimed {
            Ok(lease) => lease,
            Err(e) if matches!(e.code(), Some(ErrorCode::NoRound | ErrorCode::NoTask)) => return wait(e.to_string()),
            Err(e) => return Err(e.into()),
        };
        run.check_lease(&lease, &status.ps_key, &Asked { epoch, miner, payout })?;
        if self.receipts.has_task(&lease.task.task_id) {
            return wait(format!("the server has no further task in epoch {epoch}"));
        }
        let text = format!(
            "epoch {epoch}: task {} is ours until block {}",
            lease.task.slice, lease.task.deadline_block
        );
        let fields = json!({ "epoch": epoch, "slice": lease.task.slice, "deadline_block": lease.task.deadline_block });
        self.reporter.event("claimed", &text, fields);
        run.journal.leased(lease)?;
        Ok(Next::Now)
    }

    fn show(&mut self, now: bool) {
        self.standings.counts = self.receipts.counts();
        self.standings.score = self.receipts.last_score();
        self.standings.paid = self.pays.paid();
        match now {
            true => self.reporter.status(&self.standings),
            false => self.reporter.status_at_intervals(&self.standings),
        }
    }
}
