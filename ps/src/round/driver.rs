//! Follows the chain and does what `alice-round` asks for.
//!
//! A fault of the chain's node is waited out; a fault of the disk or the database ends the server, which restarts from
//! what it stored.

use crate::{
    PsError,
    db::StoredStage,
    round::publish::{Draw, publish, status_line, tidy},
    round::scoring::{Job, ScoringError, refusal},
    round::scoring_thread::Scorer,
    round::settle,
    service::Service,
    service::chain_view::View,
};
use alice_api::{Hex32, Outcome, SeedBlock, Verdict};
use alice_chain::{Chain, ChainError, EpochStatus};
use alice_primitives::Hash;
use alice_round::{ChainStatus, Effect, Event, Rules, Stage, State, step};
use alice_store::Master;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

/// Time between two looks at the chain.
const POLL: Duration = Duration::from_millis(500);
/// Longest pause after failed looks.
const BACK_OFF_MAX: Duration = Duration::from_secs(10);
/// Slots without a new block, and time at least, after which the server's view of the chain is out of date: then it takes
/// nothing, because the deadline may have passed where it cannot see it.
const STALE_SLOTS: u64 = 10;
const STALE_MIN: Duration = Duration::from_secs(15);
/// Pause before scoring that failed is tried again.
const SCORING_RETRY: Duration = Duration::from_secs(30);
/// Between questions whether the chain still pays for this run.
const PARAMETERS_EVERY_BLOCKS: u32 = 10;

/// Epoch whose scoring ended, and whether it is to be attested.
type ScoringEnd = (u32, Result<bool, PsError>);

/// The driver's task.
pub struct Driver {
    service: Arc<Service>,
    scorer: Scorer,
    view: watch::Sender<View>,
    state: State,
    rules: Rules,
    scored: mpsc::Sender<ScoringEnd>,
    scoring_ends: mpsc::Receiver<ScoringEnd>,
    rescore: Option<(Instant, u32)>,
    /// What stands in the way although the chain answers.
    problem: Option<String>,
    /// Why no round opens: the reserve is used up.
    exhausted: Option<String>,
    /// Why no round opens: the chain pays for another run.
    other_run: Option<String>,
    parameters_seen: u32,
    /// Longest time without a new block before the server takes its view for out of date.
    stale_after: Duration,
}

impl Driver {
    /// Restores the round from the store.
    pub async fn restore(service: Arc<Service>, scorer: Scorer, view: watch::Sender<View>) -> Result<Self, PsError> {
        let newest = service.db.newest_round().await?;
        let round = newest.map(|r| {
            let stage = match r.stage {
                StoredStage::Open => Stage::Open,
                StoredStage::Sealed => Stage::Sealed,
                StoredStage::Scored => Stage::Scored,
            };
            (r.epoch, stage)
        });
        if let Some((epoch, Stage::Scored)) = round {
            tidy(&service, epoch).await?;
        }
        let unsettled = service.db.unsettled().await?;
        if let Some((epoch, stage)) = round {
            tracing::info!(epoch, ?stage, unsettled = unsettled.len(), "restored");
        }
        let rules = Rules::new(&service.net.spec, 0);
        let state = State::restore(round, unsettled);
        let (scored, scoring_ends) = mpsc::channel(1);
        let driver = Self {
            service,
            scorer,
            view,
            state,
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
        driver.view.send_modify(|v| v.phase = driver.state.phase());
        Ok(driver)
    }

    /// Follows the chain until an error that waiting does not cure.
    pub async fn run(mut self, chain_url: &str) -> Result<(), PsError> {
        let chain = self.connect(chain_url).await?;
        self.check(&chain).await?;
        self.look_at_reserve().await?;
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
            if let Some((at, epoch)) = self.rescore
                && Instant::now() >= at
            {
                self.rescore = None;
                self.start_scoring(epoch);
            }
            match heads(&chain).await {
                Ok(head) => {
                    if failures > 0 {
                        tracing::info!("the chain answers again");
                        // What could not be done is asked for again with this block, and said again if it still cannot.
                        self.problem = None;
                    }
                    failures = 0;
                    if last != Some(head) {
                        last = Some(head);
                        last_new = Instant::now();
                        self.head(&chain, head).await?;
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
    async fn check(&mut self, chain: &Chain) -> Result<(), PsError> {
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
        // A chain that has moved on to another run is no reason to leave: miners still fetch verdicts and pages here.
        crate::commands::init::check_network(
            &self.service.net.spec,
            &self.service.net.genesis,
            &chain.genesis_hash(),
            &parameters,
        )?;
        self.look_at_run(chain).await;
        self.stale_after = STALE_MIN.max(Duration::from_millis(parameters.slot_ms.saturating_mul(STALE_SLOTS)));
        self.rules = Rules::new(&self.service.net.spec, parameters.late_window_epochs);
        tracing::info!(genesis = %Hex32(chain.genesis_hash()), url = chain.url(), "following the chain");
        Ok(())
    }

    async fn head(&mut self, chain: &Chain, (best, finalized): (u32, u32)) -> Result<(), PsError> {
        metrics::gauge!("alice_ps_chain_up").set(1.0);
        metrics::gauge!("alice_ps_best_block").set(f64::from(best));
        metrics::gauge!("alice_ps_finalized_block").set(f64::from(finalized));
        metrics::gauge!("alice_ps_epoch").set(f64::from(self.rules.epoch(best)));
        if best >= self.parameters_seen.saturating_add(PARAMETERS_EVERY_BLOCKS) {
            self.parameters_seen = best;
            self.look_at_run(chain).await;
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
            let (state, effects) = step(std::mem::take(&mut self.state), event, &self.rules);
            self.state = state;
            for effect in effects {
                match self.execute(chain, effect).await {
                    Ok(Some(event)) => events.push_back(event),
                    Ok(None) => {}
                    Err(PsError::Chain(error)) => {
                        // Asked for again with a later block.
                        tracing::warn!(?effect, %error, "not done; trying again with a later block");
                        self.problem = Some(error.to_string());
                        if matches!(error, ChainError::Unreachable { .. }) {
                            // The others would wait for the same node, and the head meanwhile stands still.
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
        let shut = self.other_run.clone().or_else(|| self.exhausted.clone());
        let notice = self.problem.clone().or(shut);
        let phase = self.state.phase();
        self.view.send_if_modified(|v| {
            let changed = v.phase != phase || v.notice != notice;
            (v.phase, v.notice) = (phase, notice.clone());
            changed
        });
        Ok(())
    }

    async fn execute(&mut self, chain: &Chain, effect: Effect) -> Result<Option<Event>, PsError> {
        let service = &self.service;
        match effect {
            Effect::Open { epoch, deadline } => {
                service.db.open_round(epoch, self.state.best).await?;
                tracing::info!(epoch, block = self.state.best, deadline, "round opened");
            }
            Effect::Seal { epoch } => {
                service.db.seal_round(epoch).await?;
                let submissions = service.db.count_submissions(epoch).await?;
                tracing::info!(epoch, block = self.state.best, submissions, "round sealed");
            }
            Effect::FetchSeed { epoch, first, last } => {
                if service.db.seed(epoch).await?.is_none() {
                    let mut blocks = Vec::new();
                    for number in first..=last {
                        let source = chain.vrf_output(number).await?;
                        let (hash, vrf_output) = (Hex32(source.hash), Hex32(source.vrf_output));
                        blocks.push(SeedBlock {
                            number: source.number,
                            hash,
                            vrf_output,
                        });
                    }
                    service.db.store_seed(epoch, &blocks).await?;
                    tracing::info!(epoch, first, last, "validation seed drawn");
                }
                self.problem = None;
                return Ok(Some(Event::SeedReady { epoch }));
            }
            Effect::Score { epoch } => self.start_scoring(epoch),
            Effect::Follow { epoch } => {
                // By the finalised state: what ends a settlement must not be taken back by a fork.
                let status = match chain.finalized_epoch_status(epoch).await {
                    Ok(EpochStatus::Open) => ChainStatus::Open,
                    Ok(EpochStatus::Accepted { .. }) => ChainStatus::Accepted,
                    Ok(EpochStatus::Final { .. }) => ChainStatus::Final,
                    Ok(EpochStatus::Settled { block }) => ChainStatus::Settled { block },
                    Ok(EpochStatus::Forfeited) => ChainStatus::Forfeited,
                    // We were away for longer than the chain keeps anything: nothing can be attested or paid any more.
                    Err(ChainError::Forgotten { .. }) => ChainStatus::Forfeited,
                    Err(error) => return Err(error.into()),
                };
                return Ok(Some(Event::Chain { epoch, status }));
            }
            Effect::Attest { epoch } => match settle::attest(service, chain, epoch).await {
                Ok(()) => self.problem = None,
                // What was signed once is never replaced, so this epoch is lost. Later ones go on without it.
                Err(PsError::Chain(error @ ChainError::Rejected { retry: false, .. })) => {
                    tracing::error!(epoch, %error, "the signed commitment cannot be accepted any more");
                    self.problem = Some(error.to_string());
                    return Ok(Some(Event::Unattestable { epoch }));
                }
                Err(error) => return Err(error),
            },
            Effect::Pay { epoch } => {
                settle::pay(service, chain, epoch).await?;
                self.problem = None;
            }
            Effect::Record { epoch, status } => settle::record(service, epoch, status).await?,
        }
        Ok(None)
    }

    fn start_scoring(&self, epoch: u32) {
        let (service, scorer, done) = (self.service.clone(), self.scorer.clone(), self.scored.clone());
        tokio::spawn(async move {
            let scoring = tokio::spawn(score_epoch(service, scorer, epoch));
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
                self.look_at_reserve().await?;
                self.handle(chain, Event::Scored { epoch, attest }).await
            }
            Err(PsError::Scoring(error)) if self.state.best >= self.rules.attestable_until(epoch) => {
                tracing::error!(epoch, %error, "the round could not be scored in time; it is voided");
                void(&self.service, epoch, &error.to_string()).await?;
                self.handle(chain, Event::Scored { epoch, attest: false }).await
            }
            // Only a new process has a scoring thread again.
            Err(error @ PsError::Scoring(ScoringError::Ended(_))) => Err(error),
            // Measuring may work again (memory of the device, say): miners must not pay for it.
            Err(PsError::Scoring(error)) => {
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
    async fn look_at_reserve(&mut self) -> Result<(), PsError> {
        let spec = &self.service.net.spec;
        if spec.data.reserve_reuse {
            return Ok(());
        }
        let used = self.service.db.reserve_used(u32::MAX).await?.len() as u64;
        let left = self.service.corpus.reserve_sequences.saturating_sub(used);
        let need = u64::from(spec.score.sequences) + u64::from(spec.score.guard_sequences);
        if left < need {
            self.exhausted = Some(format!(
                "the validation reserve is exhausted: {left} sequences are left, a round draws {need}"
            ));
        }
        Ok(())
    }

    /// Governance may have moved the chain on to another run.
    async fn look_at_run(&mut self, chain: &Chain) {
        let Ok(parameters) = chain.parameters().await else {
            return;
        };
        let ours = self.service.net.run_hash;
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

async fn heads(chain: &Chain) -> Result<(u32, u32), ChainError> {
    let best = chain.best().await?;
    let finalized = chain.finalized().await?;
    Ok((best.number, finalized.number))
}

fn back_off(failures: u32) -> Duration {
    POLL.saturating_mul(1 << failures.min(8)).min(BACK_OFF_MAX).max(POLL)
}

/// Ends a round that could not be scored: nobody is blamed, nobody is paid, and every submission is told why.
pub async fn void(service: &Service, epoch: u32, why: &str) -> Result<(), PsError> {
    let submissions = service.db.collected(epoch, |id| service.files.upload(id)).await?;
    let detail = format!("the server could not score the round ({why}); no fault of yours");
    let verdicts: Vec<Verdict> = submissions
        .iter()
        .map(|s| refusal(epoch, s.receipt.body.id, Outcome::Voided, &detail))
        .map(|body| Verdict::new(&service.key, &service.net.genesis, body))
        .collect();
    service.db.close_round(epoch, &verdicts).await?;
    tidy(service, epoch).await
}

/// Scores and publishes an epoch whose seed is stored; says whether it is to be attested.
pub async fn score_epoch(service: Arc<Service>, scorer: Scorer, epoch: u32) -> Result<bool, PsError> {
    let missing = |what: &str| PsError::Setting(format!("epoch {epoch} cannot be scored: {what} is not stored"));
    let started = Instant::now();
    if let Some(done) = service.db.epoch(epoch).await? {
        return Ok(done.entries > 0);
    }
    let submissions = service.db.collected(epoch, |id| service.files.upload(id)).await?;
    if submissions.is_empty() {
        service.db.close_round(epoch, &[]).await?;
        tidy(&service, epoch).await?;
        tracing::info!(epoch, "nothing was submitted; the epoch is not attested");
        return Ok(false);
    }
    let round = service.db.round(epoch).await?.ok_or_else(|| missing("its round"))?;
    let seed_blocks = service.db.seed(epoch).await?.ok_or_else(|| missing("its seed"))?;
    let outputs: Vec<[u8; 32]> = seed_blocks.iter().map(|b| b.vrf_output.0).collect();
    let validation_seed = alice_data::validation_seed(&outputs);
    let (scoring_split, guard_split) = draw(&service, epoch, &validation_seed).await?;
    let theta = open_theta(service.clone(), round.base_root).await?;
    let job = Arc::new(Job {
        epoch,
        base_root: round.base_root,
        submissions,
        scoring_split,
        guard_split,
        previous_median_norms: service.db.median_norms().await?,
    });
    tracing::info!(epoch, submissions = job.submissions.len(), "scoring");
    let (scored, theta) = scorer.score(service.clone(), job.clone(), theta).await?;
    let draw = Draw {
        round,
        seed_blocks,
        validation_seed,
    };
    let summary = publish(&service, &draw, &job, scored, theta).await?;
    metrics::counter!("alice_ps_accepted_total").increment(u64::from(summary.accepted));
    metrics::gauge!("alice_ps_held_out_loss").set(summary.loss_after);
    metrics::gauge!("alice_ps_scoring_seconds").set(started.elapsed().as_secs_f64());
    tracing::info!("{}", status_line(&summary));
    Ok(summary.settlement == "open")
}

/// The two splits. Where the run allows each reserve sequence once, the draw is over those that are left, ascending.
async fn draw(service: &Service, epoch: u32, seed: &[u8; 32]) -> Result<(Vec<u32>, Vec<u32>), PsError> {
    let spec = &service.net.spec;
    let all = service.corpus.reserve_sequences;
    if spec.data.reserve_reuse {
        return Ok(alice_data::draw_splits(spec, seed, all));
    }
    let used = service.db.reserve_used(epoch).await?;
    let left: Vec<u32> = (0..u32::try_from(all).unwrap_or(u32::MAX))
        .filter(|s| !used.contains(s))
        .collect();
    let (scoring, guard) = alice_data::draw_splits(spec, seed, left.len() as u64);
    let pick = |split: Vec<u32>| {
        split
            .into_iter()
            .filter_map(|i| left.get(i as usize).copied())
            .collect()
    };
    Ok((pick(scoring), pick(guard)))
}

/// The weights that a round started from. Where a step was made and its results were not stored, it is taken back.
async fn open_theta(service: Arc<Service>, root: Hash) -> Result<Master, PsError> {
    let opened = tokio::task::spawn_blocking(move || {
        let path = service.files.theta();
        let mut told = 0;
        Master::open_at(&path, &service.net.tensors, &root, &mut |done, all| {
            // A line for every tenth: hashing a 7B model takes a while.
            let tenths = (u128::from(done) * 10 / u128::from(all.max(1))) as u64;
            if tenths > told {
                told = tenths;
                tracing::info!(
                    percent = tenths * 10,
                    "hashing the weights, which were not left in order"
                );
            }
        })
    });
    match opened.await {
        Ok(theta) => Ok(theta?),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
