//! Follows the chain and does what `alice-round` asks for.
//!
//! # Loop
//!
//! The driver is one task. It polls the heads of the chain, and every new head becomes an [`Event::Head`]; the pure
//! machine `alice_round::step` answers with effects, which are executed in order before the next poll. Some effects
//! give another event, which is handled at once. Scoring takes minutes to hours and is the exception: it runs in a task
//! of its own, and its end comes back over a channel.
//!
//! ```text
//! heads of the chain ─ Head ─► step ─► Open, Seal, Record, Void ─► database
//!                               ▲  ├─► FetchSeed, Follow ─► chain ─ SeedReady / SeedUnavailable / Chain ─┐
//!                               │  ├─► Attest, Pay ─► chain (shown by a later Follow)                    │
//!                               │  └─► Score ─► scoring task ─ Scored ─┐                                 │
//!                               └──────────────────────────────────────┴─────────────────────────────────┘
//! ```
//!
//! # What is durable when
//!
//! An effect is on disk, synced, before the next one is executed: a round is stored before a task of it can be claimed,
//! sealed before its seed is read, the seed is stored before anything is scored, results in one transaction before they
//! are attested, and a signature before it is sent. The machine's own state is not stored; [`Driver::restore`] makes it
//! from the newest round and the unsettled epochs, and scoring that was interrupted starts again from the sealed round.
//! So a `kill -9` at any instant costs repeated work, never a decision.
//!
//! # Faults
//!
//! | fault | answer |
//! |---|---|
//! | the chain's node does not answer | polled more slowly; claims and commits stop when the newest block is too old |
//! | the node refuses or does not have something | the machine asks again with a later head |
//! | the seed cannot be had until nobody can be paid for the epoch | the machine voids the round |
//! | the database is busy | the effect is repeated until it is done: effects of the store are asked for once only |
//! | scoring fails (device memory, an unreadable upload) | again after a pause, voided when it is too late |
//! | the disk, the database, the scoring thread | the process ends, and restarts from what it stored |

use crate::{
    PsError,
    db::DbError,
    round::{
        epoch::{score_epoch, void},
        publish::tidy,
        scoring::ScoringError,
        scoring_thread::Scorer,
        settle,
    },
    service::chain_view::ChainView,
    state::ServerState,
};
use alice_api::{Hex32, SeedBlock};
use alice_chain::{Chain, ChainError, EpochStatus};
use alice_round::{ChainStatus, Effect, Event, Rules, Stage, State, step};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

/// Poll interval of the chain's heads: a small part of a slot, so that a deadline is seen soon after its block.
const POLL: Duration = Duration::from_millis(500);
/// Longest pause between polls of a node that does not answer.
const BACK_OFF_MAX: Duration = Duration::from_secs(10);
/// Slots without a new block, and the shortest time, after which the server's view of the chain is out of date. Then it
/// takes nothing, because the deadline may have passed unseen.
const STALE_SLOTS: u64 = 10;
const STALE_MIN: Duration = Duration::from_secs(15);
/// Pause before scoring that failed is tried again.
const SCORING_RETRY: Duration = Duration::from_secs(30);
/// Blocks between two checks whether the chain still pays for this run.
const PARAMETERS_EVERY_BLOCKS: u32 = 10;
/// Pause before an effect that found the database busy is repeated.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// Epoch whose scoring ended, and whether it is to be attested.
type ScoringEnd = (u32, Result<bool, PsError>);

/// The driver's task.
pub struct Driver {
    state: Arc<ServerState>,
    scorer: Scorer,
    view: watch::Sender<ChainView>,
    machine: State,
    rules: Rules,
    scored: mpsc::Sender<ScoringEnd>,
    scoring_ends: mpsc::Receiver<ScoringEnd>,
    rescore: Option<(Instant, u32)>,
    /// Why something cannot be done although the chain answers.
    problem: Option<String>,
    /// Reason why no round opens: the reserve is used up.
    exhausted: Option<String>,
    /// Reason why no round opens: the chain pays for another run.
    other_run: Option<String>,
    /// Best block at the last check of the chain's parameters.
    parameters_seen: u32,
    /// Time without a new block after which the view is out of date.
    stale_after: Duration,
}

impl Driver {
    /// Restores the round from the store.
    pub async fn restore(
        state: Arc<ServerState>,
        scorer: Scorer,
        view: watch::Sender<ChainView>,
    ) -> Result<Self, PsError> {
        let newest = state.db().newest_round().await?;
        let round = newest.map(|round| (round.epoch, round.stage));
        if let Some((epoch, Stage::Scored)) = round {
            tidy(&state, epoch).await?;
        }
        let unsettled = state.db().unsettled().await?;
        if let Some((epoch, stage)) = round {
            tracing::info!(epoch, ?stage, unsettled = unsettled.len(), "restored");
        }
        // The late window is the chain's; it is read before the first event.
        let rules = Rules::new(&state.run().spec, 0);
        let machine = State::restore(round, unsettled);
        let (scored, scoring_ends) = mpsc::channel(1);
        let driver = Self {
            state,
            scorer,
            view,
            machine,
            rules,
            scored,
            scoring_ends,
            rescore: None,
            problem: None,
            exhausted: None,
            other_run: None,
            parameters_seen: 0,
            stale_after: STALE_MIN,
        };
        driver.view.send_modify(|v| v.phase = driver.machine.phase());
        Ok(driver)
    }

    /// Follows the chain until an error that waiting does not cure; returns only then.
    ///
    /// # Errors
    /// The chain is another one than the data directory's, or the disk, the database or the scoring thread fails.
    pub async fn run(mut self, chain_url: &str) -> Result<(), PsError> {
        let chain = self.connect(chain_url).await?;
        self.check_chain(&chain).await?;
        self.check_reserve().await?;
        let (mut last, mut failures, mut next) = (None, 0u32, Instant::now());
        let mut last_new = Instant::now();
        loop {
            tokio::select! {
                done = self.scoring_ends.recv() => {
                    // The sender is in `self`, so the channel never closes.
                    if let Some((epoch, result)) = done {
                        self.scoring_ended(&chain, epoch, result).await?;
                    }
                    continue;
                }
                () = sleep_until(next) => {}
            }
            if let Some((when, epoch)) = self.rescore
                && Instant::now() >= when
            {
                self.rescore = None;
                self.start_scoring(epoch);
            }
            match heads(&chain).await {
                Ok(head) => {
                    if failures > 0 {
                        tracing::info!("the chain answers again");
                        // Whatever failed is asked for again with this block, and reported again if it still fails.
                        self.problem = None;
                    }
                    failures = 0;
                    if last != Some(head) {
                        last = Some(head);
                        last_new = Instant::now();
                        self.new_head(&chain, head).await?;
                    }
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if failures == 1 {
                        tracing::warn!(%error, "the chain does not answer; waiting");
                    }
                    metrics::gauge!("alice_ps_chain_up").set(0.0);
                    self.view.send_modify(|v| v.notice = Some(error.to_string()));
                }
            }
            let stale = last_new.elapsed() > self.stale_after;
            self.view
                .send_if_modified(|v| std::mem::replace(&mut v.stale, stale) != stale);
            next = Instant::now() + back_off(failures);
        }
    }

    async fn connect(&self, url: &str) -> Result<Chain, PsError> {
        let mut failures = 0u32;
        loop {
            match Chain::connect(url).await {
                Ok(chain) => return Ok(chain),
                Err(error) if error.is_transient() => {
                    failures = failures.saturating_add(1);
                    tracing::warn!(%error, "cannot reach the chain; trying again");
                    self.view.send_modify(|v| v.notice = Some(error.to_string()));
                    sleep(back_off(failures)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether chain and data directory belong together.
    async fn check_chain(&mut self, chain: &Chain) -> Result<(), PsError> {
        let mut failures = 0u32;
        let parameters = loop {
            match chain.parameters().await {
                Ok(parameters) => break parameters,
                Err(error) if error.is_transient() => {
                    failures = failures.saturating_add(1);
                    self.view.send_modify(|v| v.notice = Some(error.to_string()));
                    sleep(back_off(failures)).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        // If the chain has moved on to another run the server stays: miners still fetch verdicts and pages here.
        crate::commands::init::check_network(
            &self.state.run().spec,
            &self.state.run().genesis,
            &chain.genesis_hash(),
            &parameters,
        )?;
        self.check_run(chain).await;
        self.stale_after = STALE_MIN.max(Duration::from_millis(parameters.slot_ms.saturating_mul(STALE_SLOTS)));
        self.rules = Rules::new(&self.state.run().spec, parameters.late_window_epochs);
        tracing::info!(genesis = %Hex32(chain.genesis_hash()), url = chain.url(), "following the chain");
        Ok(())
    }

    async fn new_head(&mut self, chain: &Chain, (best, finalized): (u32, u32)) -> Result<(), PsError> {
        metrics::gauge!("alice_ps_chain_up").set(1.0);
        metrics::gauge!("alice_ps_best_block").set(f64::from(best));
        metrics::gauge!("alice_ps_finalized_block").set(f64::from(finalized));
        metrics::gauge!("alice_ps_epoch").set(f64::from(self.rules.epoch(best)));
        if best >= self.parameters_seen.saturating_add(PARAMETERS_EVERY_BLOCKS) {
            self.parameters_seen = best;
            self.check_run(chain).await;
        }
        // Handlers see the block before the round is sealed and after it is opened: never a commit beyond the deadline.
        self.view.send_modify(|v| {
            v.best = Some(v.best.unwrap_or(0).max(best));
            v.finalized = finalized;
        });
        let may_open = self.exhausted.is_none() && self.other_run.is_none();
        self.handle(
            chain,
            Event::Head {
                best,
                finalized,
                may_open,
            },
        )
        .await
    }

    /// One event and all that follows from it.
    async fn handle(&mut self, chain: &Chain, event: Event) -> Result<(), PsError> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let (machine, effects) = step(std::mem::take(&mut self.machine), event, &self.rules);
            self.machine = machine;
            for effect in effects {
                match self.execute_patiently(chain, effect).await {
                    Ok(Some(event)) => events.push_back(event),
                    Ok(None) => {}
                    Err(PsError::Chain(error)) => {
                        // Asked for again with a later block.
                        tracing::warn!(?effect, %error, "not done; trying again with a later block");
                        self.problem = Some(error.to_string());
                        if matches!(error, ChainError::Unreachable { .. }) {
                            // The other effects would wait for the same node while the heads are not polled.
                            break;
                        }
                    }
                    Err(error @ PsError::Mismatch { .. }) => {
                        tracing::warn!(?effect, %error, "cannot settle");
                        self.problem = Some(error.to_string());
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        let closed = self.other_run.clone().or_else(|| self.exhausted.clone());
        let notice = self.problem.clone().or(closed);
        let phase = self.machine.phase();
        self.view.send_if_modified(|v| {
            let changed = v.phase != phase || v.notice != notice;
            (v.phase, v.notice) = (phase, notice.clone());
            changed
        });
        Ok(())
    }

    /// Executes an effect. A busy database is waited out: `Open`, `Seal`, `Record` and `Void` are not asked for again,
    /// and repeating an effect changes nothing.
    async fn execute_patiently(&mut self, chain: &Chain, effect: Effect) -> Result<Option<Event>, PsError> {
        loop {
            match self.execute(chain, effect).await {
                Err(PsError::Db(DbError::Busy)) => {
                    tracing::warn!(?effect, "the database is busy; trying again");
                    sleep(BUSY_RETRY).await;
                }
                done => return done,
            }
        }
    }

    async fn execute(&mut self, chain: &Chain, effect: Effect) -> Result<Option<Event>, PsError> {
        let (state, db) = (&self.state, self.state.db());
        match effect {
            Effect::Open { epoch, deadline } => {
                db.open_round(epoch, self.machine.best).await?;
                tracing::info!(epoch, block = self.machine.best, deadline, "round opened");
            }
            Effect::Seal { epoch } => {
                db.seal_round(epoch).await?;
                let submissions = db.count_submissions(epoch).await?;
                tracing::info!(epoch, block = self.machine.best, submissions, "round sealed");
            }
            Effect::FetchSeed { epoch, first, last } => {
                return self.fetch_seed(chain, epoch, first, last).await.map(Some);
            }
            Effect::Score { epoch } => self.start_scoring(epoch),
            Effect::Follow { epoch } => {
                let status = follow(chain, epoch).await?;
                return Ok(Some(Event::Chain { epoch, status }));
            }
            Effect::Void { epoch } => {
                let reason = self.problem.take();
                let reason = reason
                    .as_deref()
                    .unwrap_or("the seed of its validation could not be read");
                tracing::error!(epoch, reason, "the round could not be scored in time; it is voided");
                void(state, epoch, reason).await?;
            }
            Effect::Attest { epoch } => match settle::attest(state, chain, epoch).await {
                Ok(()) => self.problem = None,
                // A signature is never replaced, so this epoch is lost. Later ones are settled without it.
                Err(PsError::Chain(error @ ChainError::Rejected { retry: false, .. })) => {
                    tracing::error!(epoch, %error, "the signed commitment cannot be accepted any more");
                    self.problem = Some(error.to_string());
                    return Ok(Some(Event::Unattestable { epoch }));
                }
                Err(error) => return Err(error),
            },
            Effect::Pay { epoch } => {
                settle::pay(state, chain, epoch).await?;
                self.problem = None;
            }
            Effect::Record { epoch, status } => settle::record(state, epoch, status).await?,
        }
        Ok(None)
    }

    /// Reads and stores the seed of the validation draw. A seed that is stored is never drawn again.
    async fn fetch_seed(&mut self, chain: &Chain, epoch: u32, first: u32, last: u32) -> Result<Event, PsError> {
        let db = self.state.db();
        if db.seed(epoch).await?.is_none() {
            let mut blocks = Vec::new();
            for number in first..=last {
                match chain.vrf_output(number).await {
                    Ok(source) => blocks.push(SeedBlock {
                        number: source.number,
                        hash: Hex32(source.hash),
                        vrf_output: Hex32(source.vrf_output),
                    }),
                    // Nothing is known about the seed then.
                    Err(error @ ChainError::Unreachable { .. }) => return Err(error.into()),
                    Err(error) => {
                        tracing::warn!(epoch, number, %error, "the seed cannot be read; trying again with a later block");
                        self.problem = Some(error.to_string());
                        return Ok(Event::SeedUnavailable { epoch });
                    }
                }
            }
            db.store_seed(epoch, &blocks).await?;
            tracing::info!(epoch, first, last, "validation seed drawn");
        }
        self.problem = None;
        Ok(Event::SeedReady { epoch })
    }

    fn start_scoring(&self, epoch: u32) {
        let (state, scorer, done) = (self.state.clone(), self.scorer.clone(), self.scored.clone());
        tokio::spawn(async move {
            let scoring = tokio::spawn(score_epoch(state, scorer, epoch));
            let result = scoring
                .await
                .unwrap_or_else(|panic| Err(PsError::Scoring(ScoringError::Ended(format!("scoring died ({panic})")))));
            // The driver is gone only if the server is stopping.
            let _ = done.send((epoch, result)).await;
        });
    }

    async fn scoring_ended(&mut self, chain: &Chain, epoch: u32, result: Result<bool, PsError>) -> Result<(), PsError> {
        match result {
            Ok(attest) => {
                self.problem = None;
                self.check_reserve().await?;
                self.handle(chain, Event::Scored { epoch, attest }).await
            }
            Err(PsError::Scoring(error)) if self.machine.best >= self.rules.attestable_until(epoch) => {
                tracing::error!(epoch, %error, "the round could not be scored in time; it is voided");
                void(&self.state, epoch, &error.to_string()).await?;
                self.handle(chain, Event::Scored { epoch, attest: false }).await
            }
            // The thread cannot be restarted in this process.
            Err(error @ PsError::Scoring(ScoringError::Ended(_))) => Err(error),
            // It may work later (memory of the device, descriptors, a busy database): miners must not pay for it.
            Err(error @ (PsError::Scoring(_) | PsError::Db(DbError::Busy))) => {
                tracing::error!(epoch, %error, retry_seconds = SCORING_RETRY.as_secs(), "scoring failed");
                self.problem = Some(error.to_string());
                self.view.send_modify(|v| v.notice = Some(error.to_string()));
                self.rescore = Some((Instant::now() + SCORING_RETRY, epoch));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// A run whose reserve is used up opens no round and says so.
    async fn check_reserve(&mut self) -> Result<(), PsError> {
        let spec = &self.state.run().spec;
        if spec.data.reserve_reuse {
            return Ok(());
        }
        let used = match self.state.db().reserve_used(u32::MAX).await {
            Ok(used) => used.len() as u64,
            // Checked again after the next round, whose draw comes to the same end if the reserve is too small.
            Err(DbError::Busy) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let unused = self.state.corpus().reserve_sequences.saturating_sub(used);
        let need = u64::from(spec.score.sequences) + u64::from(spec.score.guard_sequences);
        if unused < need {
            self.exhausted = Some(format!(
                "the validation reserve is exhausted: {unused} sequences are left, a round draws {need}"
            ));
        }
        Ok(())
    }

    /// Governance may have moved the chain on to another run.
    async fn check_run(&mut self, chain: &Chain) {
        let Ok(parameters) = chain.parameters().await else {
            return;
        };
        let ours = self.state.run().run_hash;
        let other = parameters.run_hash != [0; 32] && parameters.run_hash != ours;
        let text = format!(
            "the chain pays for run {}, this server serves {}; no round opens",
            Hex32(parameters.run_hash),
            Hex32(ours)
        );
        if other && self.other_run.is_none() {
            tracing::warn!("{text}");
        }
        self.other_run = other.then_some(text);
    }
}

/// The chain's answer about an epoch, by its finalised state: the end of a settlement must not be reverted by a fork.
async fn follow(chain: &Chain, epoch: u32) -> Result<ChainStatus, ChainError> {
    match chain.finalized_epoch_status(epoch).await {
        Ok(EpochStatus::Open) => Ok(ChainStatus::Open),
        Ok(EpochStatus::Accepted { .. }) => Ok(ChainStatus::Accepted),
        Ok(EpochStatus::Final { .. }) => Ok(ChainStatus::Final),
        Ok(EpochStatus::Settled { block }) => Ok(ChainStatus::Settled { block }),
        Ok(EpochStatus::Forfeited) => Ok(ChainStatus::Forfeited),
        // The server was down for longer than the chain's history: nothing can be attested or paid any more.
        Err(ChainError::Forgotten { .. }) => Ok(ChainStatus::Forfeited),
        Err(error) => Err(error),
    }
}

/// Best and finalised block.
async fn heads(chain: &Chain) -> Result<(u32, u32), ChainError> {
    let best = chain.best().await?;
    let finalized = chain.finalized().await?;
    Ok((best.number, finalized.number))
}

/// Pause before the next poll after `failures` that failed in a row.
fn back_off(failures: u32) -> Duration {
    POLL.saturating_mul(1 << failures.min(8)).min(BACK_OFF_MAX).max(POLL)
}
