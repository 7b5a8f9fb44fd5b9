//! The loop: wait for a round, claim, train, send, fetch the verdict, keep the payout page. It never ends for anything
//! that the network, a server or a full disk does; it reports the reason and waits.

mod network;
mod training;

use crate::{
    MinerError, files,
    key::MiningKey,
    memory::fit::MemoryMonitor,
    report::{Reporter, Standings},
    settings::Settings,
    settlement::lazy_chain::LazyChain,
    settlement::pages::Pays,
    settlement::payout::{SettlementWatcher, WatchState},
    settlement::receipts::{Receipts, Standing},
    settlement::verdicts,
    shutdown::{Shutdown, unless_requested},
    task::journal::{State, Step, next_step},
    task::pinned_network::PinnedNetwork,
    task::run::{Asked, Run},
};
use alice_api::{ClaimRequest, ErrorCode, Hex32, Phase, Status, client::Retry};
use alice_model::Device;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Poll interval while there is nothing to do.
const POLL: Retry = Retry {
    attempts: 1,
    first: Duration::from_secs(4),
    max: Duration::from_secs(4),
};
/// Back-off after errors that waiting may help against.
const BACK_OFF: Retry = Retry {
    attempts: u32::MAX,
    first: Duration::from_secs(1),
    max: Duration::from_secs(30),
};
/// Failed trainings in a row before the miner gives up: a broken device must not pass for a quiet network.
const TRAIN_FAILURES_MAX: u32 = 3;
/// With `--epochs`, maximum number of epochs after the last work for which the miner waits for its payout page.
const LEAVE_EPOCHS: u32 = 3;

/// Next action after a poll of the server.
enum Next {
    /// Poll again at once.
    Now,
    /// Wait, for this reason.
    Wait(String),
    /// All work that was asked for is done.
    Leave,
}

/// A running miner.
pub struct Miner {
    settings: Settings,
    key: MiningKey,
    device: Device,
    reporter: Reporter,
    shutdown: Shutdown,
    receipts: Receipts,
    pays: Pays,
    chain: LazyChain,
    watch_state: WatchState,
    run: Option<Run>,
    /// The network of the data directory; `None` before the first contact.
    network: Option<PinnedNetwork>,
    standings: Standings,
    /// Epochs that this process has worked in.
    worked: BTreeSet<u32>,
    /// For each fragment with which the device ran out of memory, the micro-batch that fitted then.
    micro_batches: BTreeMap<u32, u32>,
    /// `None` if the device's memory cannot be measured.
    memory: Option<MemoryMonitor>,
}

impl Miner {
    /// Opens the files of the data directory, whose lock the caller holds.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn new(
        mut settings: Settings,
        key: MiningKey,
        device: Device,
        reporter: Reporter,
        shutdown: Shutdown,
    ) -> Result<Self, MinerError> {
        settings.fit.measure(device);
        for dir in ["", "receipts", "pages"] {
            files::remove_partial(&settings.data_dir.join(dir));
        }
        let receipts = Receipts::open(&settings.data_dir)?;
        let pays = Pays::open(&settings.data_dir)?;
        let network = PinnedNetwork::load(&settings.data_dir)?;
        Ok(Self {
            // Nothing connects here: a node that is away must not delay the first task.
            chain: LazyChain::new(settings.chain.clone()),
            settings,
            key,
            device,
            reporter,
            shutdown,
            receipts,
            pays,
            watch_state: WatchState::default(),
            run: None,
            network,
            standings: Standings::default(),
            worked: BTreeSet::new(),
            micro_batches: BTreeMap::new(),
            memory: MemoryMonitor::start(device),
        })
    }

    /// Mines until the work that was asked for is done or the shutdown is requested.
    ///
    /// # Errors
    /// Only what the user must change: settings, permissions, the data directory of another network, a broken device.
    pub async fn run(&mut self) -> Result<(), MinerError> {
        let (mut failures, mut train_failures) = (0, 0);
        while !self.shutdown.requested() {
            match self.poll().await {
                Ok(Next::Leave) => break,
                Ok(Next::Now) => failures = 0,
                Ok(Next::Wait(why)) => {
                    failures = 0;
                    self.reporter.waiting(&why);
                    self.show_status(false);
                    self.watch_settlement().await;
                    self.shutdown.sleep(POLL.pause(1)).await;
                }
                Err(MinerError::Stopped) => break,
                Err(error) if error.is_temporary() => {
                    failures += 1;
                    train_failures += u32::from(error.is_training_failure());
                    if train_failures >= TRAIN_FAILURES_MAX {
                        return Err(error);
                    }
                    self.reporter.waiting(&format!("{error}; trying again"));
                    // Also while the server is away: the pages are kept so that pay does not depend on it.
                    self.watch_settlement().await;
                    self.shutdown.sleep(BACK_OFF.pause(failures)).await;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let is_trained = |run: &Run| matches!(run.journal.state(), State::Ready { .. });
            if self.run.as_ref().is_some_and(is_trained) {
                // An update that was encoded shows that the device works.
                train_failures = 0;
            }
        }
        self.show_status(true);
        let text = match self.shutdown.requested() {
            true => "stopped; the next start continues unfinished work",
            false => "done",
        };
        self.reporter
            .event("stopped", text, json!({ "epochs_worked": self.worked }));
        Ok(())
    }

    async fn poll(&mut self) -> Result<Next, MinerError> {
        let status = unless_requested(&self.shutdown, self.settings.client.status()).await?;
        // Before the checks: the status line shows the epoch even if the server is refused.
        self.standings.epoch = status.epoch;
        self.check_network(&status).await?;
        self.open_run(&status).await?;
        if let Some(next) = self.finish_work_in_hand(&status).await? {
            return Ok(next);
        }
        // Work in hand comes first, because its deadline runs; verdicts can wait for it.
        self.fetch_verdicts(&status).await?;
        if let Some(next) = self.limit_reached(&status) {
            return Ok(next);
        }
        self.claim(&status).await
    }

    /// Takes the steps that the journal misses; `None` if no work is in hand.
    async fn finish_work_in_hand(&mut self, status: &Status) -> Result<Option<Next>, MinerError> {
        loop {
            let Some(run) = &mut self.run else { return Ok(None) };
            // Facts are read again after every step, so a step that was interrupted is simply seen as missing.
            let facts = run.recovered(&self.receipts, status.block)?;
            match next_step(run.journal.state(), facts) {
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
                    tracing::debug!(why, "the task in hand is over");
                }
            }
        }
    }

    async fn fetch_verdicts(&mut self, status: &Status) -> Result<(), MinerError> {
        let fetched = verdicts::fetch_verdicts(
            status,
            &self.settings.client,
            &mut self.receipts,
            &mut self.reporter,
            &self.shutdown,
        )
        .await;
        // Verdicts that came before an error count.
        if let Some(run) = &mut self.run {
            run.settle_residuals(&self.receipts)?;
        }
        match fetched {
            Ok(0) => {}
            Ok(_) => self.show_status(true),
            // A false answer is reported, and is no reason to stop working.
            Err(error @ MinerError::Untrue { .. }) => self.reporter.waiting(&error.to_string()),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The watcher of this miner's pay, with the parts of the miner that it does not borrow.
    fn watcher(&mut self, genesis: Hex32) -> (SettlementWatcher<'_>, &mut Reporter, &Shutdown) {
        let watcher = SettlementWatcher {
            genesis,
            epoch: self.standings.epoch,
            client: &self.settings.client,
            chain: &mut self.chain,
            receipts: &self.receipts,
            pays: &mut self.pays,
            state: &mut self.watch_state,
        };
        (watcher, &mut self.reporter, &self.shutdown)
    }

    /// Watches pay while there is nothing else to do, so that a slow node never delays an update.
    async fn watch_settlement(&mut self) {
        let Some(network) = self.network else { return };
        let (mut watcher, reporter, shutdown) = self.watcher(network.genesis_hash);
        watcher.poll_and_report(reporter, shutdown).await;
    }

    /// With `--epochs`: the next action once the work is done; `None` while there is work to claim.
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
        // A page that is on disk can be pushed later by hand, so the miner may leave without waiting for the pay
        // itself.
        let page_missing = mine().filter(|r| r.standing() == Standing::Accepted).any(|r| {
            let account = r.receipt.as_ref().map(|receipt| receipt.body.payout);
            account.is_some_and(|a| self.pays.get(r.epoch, &a).is_none())
        });
        if page_missing && status.epoch <= last.saturating_add(LEAVE_EPOCHS) {
            return Some(Next::Wait("the work is scored; waiting for its payout page".into()));
        }
        Some(Next::Leave)
    }

    /// Claims a task of the open round.
    async fn claim(&mut self, status: &Status) -> Result<Next, MinerError> {
        let Some(run) = &mut self.run else { return Ok(Next::Now) };
        let wait = |why: String| Ok(Next::Wait(why));
        let (Phase::Open, Some(epoch)) = (status.phase, status.round_epoch) else {
            return wait(no_open_round(status));
        };
        // Counted from the disk, so that a restart does not claim more than the user allowed.
        if self.receipts.in_epoch(epoch) >= self.settings.tasks_per_epoch {
            return wait(format!("the work for epoch {epoch} is in; waiting for the next"));
        }
        let (miner, payout) = (self.key.key.public(), self.settings.payout);
        let request = ClaimRequest::new(&self.key.key, &run.genesis.0, &run.hash.0, epoch, payout);
        // The server's refusal is looked at below, so only the shutdown is an error here.
        let claim = async { Ok::<_, MinerError>(self.settings.client.claim(&request).await) };
        let lease = match unless_requested(&self.shutdown, claim).await? {
            Ok(lease) => lease,
            Err(e) if matches!(e.code(), Some(ErrorCode::NoRound | ErrorCode::NoTask)) => return wait(e.to_string()),
            Err(e) => return Err(e.into()),
        };
        // Checked before it is stored: the journal holds only leases that lead to paid work.
        run.check_lease(&lease, &status.ps_key, &Asked { epoch, miner, payout })?;
        // A server that restarted may lease a task again that this key has answered.
        if self.receipts.has_task(&lease.task.task_id) {
            return wait(format!("the server has no further task in epoch {epoch}"));
        }
        let text = format!(
            "epoch {epoch}: task {} is ours until block {}",
            lease.task.slice, lease.task.deadline_block
        );
        let fields = json!({ "epoch": epoch, "slice": lease.task.slice, "deadline_block": lease.task.deadline_block });
        run.journal.leased(lease)?;
        self.reporter.event("claimed", &text, fields);
        Ok(Next::Now)
    }

    fn show_status(&mut self, now: bool) {
        self.standings.counts = self.receipts.counts();
        self.standings.score = self.receipts.last_score();
        self.standings.paid = self.pays.paid();
        match now {
            true => self.reporter.status(&self.standings),
            false => self.reporter.status_at_intervals(&self.standings),
        }
    }
}

/// Reason for waiting while no round is open, with the server's notice.
fn no_open_round(status: &Status) -> String {
    let reason = match status.phase {
        Phase::Open | Phase::Idle => "no round is open",
        Phase::Sealed => "the round is over and waits for the seed of its validation",
        Phase::Scoring => "the round is being scored",
        Phase::Settling => "the round is scored; the next opens with the next epoch",
    };
    let notice = status.notice.as_ref().map(|n| format!(" ({n})")).unwrap_or_default();
    format!("{reason}{notice}")
}
