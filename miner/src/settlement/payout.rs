//! Watches pay until it arrives: fetches payout pages from the server, follows them on the chain, and pushes a page
//! that nobody else pushed.
//!
//! **States of an epoch's pay.** Accepted work is *wanted* until the epoch is attested. Then its page is fetched and
//! *kept*. A kept page ends as *paid*, or as *nothing* with the reason. With a chain, the chain alone decides the last
//! step; without one the server's report does, and it is asked again as soon as there is a chain.
//!
//! **Recovery.** All state that matters is on disk ([`Pays`]). A [`WatchState`] that is lost with the process costs a
//! repeated request, or a page pushed a second time, which the chain ignores.
//!
//! **Limits.** A poll takes at most [`POLL_TIME_MAX`] and [`EPOCHS_PER_POLL`] epochs, because the miner's own work
//! waits for it; every step of a poll may be dropped in the middle.

use crate::{
    MinerError,
    report::{Reporter, alice},
    settlement::lazy_chain::LazyChain,
    settlement::pages::{self, Pay, PayState, Pays},
    settlement::receipts::{Receipts, Standing},
    shutdown::{Shutdown, unless_requested},
};
use alice_api::{Client, ClientError, ErrorCode, Hex32};
use alice_chain::{Chain, ChainError, EpochStatus};
use alice_primitives::SettlementStatus;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Blocks that the server has, after an epoch is final, to push its pages before a miner does. Pushing twice is
/// harmless, but a thousand miners need not do it.
pub const PUSH_DELAY_BLOCKS: u32 = 10;
/// A round may be attested this number of epochs late (docs/spec/protocol.md#late-attestation); an epoch without a page
/// after that brings no pay.
const ATTEST_EPOCHS_MAX: u32 = 24;
/// Pause between two polls of server and chain.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum time of one poll.
const POLL_TIME_MAX: Duration = Duration::from_secs(5);
/// Maximum number of epochs in one poll, of each kind.
const EPOCHS_PER_POLL: usize = 8;
const FORFEITED: &str = "the epoch was not attested in time, so its budget is never minted";
const FORGOTTEN: &str = "the chain no longer keeps the epoch; the account's balance shows whether it was paid";

/// State of the watcher between two polls.
#[derive(Debug, Default)]
pub struct WatchState {
    last_poll: Option<Instant>,
    /// Best block when an epoch was first seen final, or was last pushed.
    final_since: BTreeMap<(u32, Hex32), u32>,
    /// Position in the list of epochs at which the next poll begins, so that no epoch waits behind others for ever.
    cursor: usize,
}

/// Watches the pay of this miner's accepted work.
pub struct SettlementWatcher<'a> {
    /// Genesis hash of the network.
    pub genesis: Hex32,
    /// The chain's epoch, as far as it is known.
    pub epoch: u32,
    /// Server.
    pub client: &'a Client,
    /// Chain, if there is one.
    pub chain: &'a mut LazyChain,
    /// Submissions of this miner.
    pub receipts: &'a Receipts,
    /// Pay of this miner.
    pub pays: &'a mut Pays,
    /// State between two polls.
    pub state: &'a mut WatchState,
}

/// Whether an epoch's pay can be fetched.
enum Attested {
    NotYet,
    Yes,
    Never { why: String, on_chain: bool },
}

/// Keeps the first error of several tasks, so that a failing one does not block the others.
#[derive(Default)]
struct FirstError(Option<MinerError>);

impl FirstError {
    /// Notes a result; only a shutdown ends the caller at once.
    fn note(&mut self, result: Result<(), MinerError>) -> Result<(), MinerError> {
        match result {
            Err(MinerError::Stopped) => Err(MinerError::Stopped),
            Err(error) => {
                self.0.get_or_insert(error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

impl SettlementWatcher<'_> {
    /// Fetches pages that are ready, notes pages that were paid, and pushes those that wait too long.
    ///
    /// # Errors
    /// A failing epoch does not block the others; the first error is returned.
    pub async fn poll(&mut self, reporter: &mut Reporter, shutdown: &Shutdown) -> Result<(), MinerError> {
        let wanted = wanted(self.receipts, self.pays, self.chain.is_set());
        if wanted.is_empty() && self.pays.unpaid().is_empty()
            || self.state.last_poll.is_some_and(|at| at.elapsed() < POLL_INTERVAL)
        {
            return Ok(());
        }
        self.state.last_poll = Some(Instant::now());
        // Moved even if this poll fails: an epoch that always fails must not hold the front for ever.
        let cursor = self.state.cursor;
        self.state.cursor = cursor.wrapping_add(EPOCHS_PER_POLL);
        let mut first = FirstError::default();
        let chain = match unless_requested(shutdown, self.chain.get(&self.genesis)).await {
            Ok(chain) => chain,
            Err(error) => {
                first.note(Err(error))?;
                None
            }
        };
        for (worked, account) in from_cursor(wanted.into_iter().collect(), cursor) {
            let fetched = unless_requested(shutdown, self.fetch(chain.as_ref(), worked, account, reporter));
            first.note(fetched.await)?;
        }
        // With a chain that is away, the server is not asked instead: the chain alone decides.
        if chain.is_some() || !self.chain.is_set() {
            for pay in from_cursor(self.pays.unpaid(), cursor) {
                let followed = unless_requested(shutdown, self.follow(chain.as_ref(), pay, reporter));
                first.note(followed.await)?;
            }
        }
        first.0.map_or(Ok(()), Err)
    }

    /// Polls, and reports errors instead of returning them: trouble with pay never stops the work.
    pub async fn poll_and_report(&mut self, reporter: &mut Reporter, shutdown: &Shutdown) {
        // A later poll does the rest; every step of a poll may be dropped in the middle.
        match tokio::time::timeout(POLL_TIME_MAX, self.poll(reporter, shutdown)).await {
            Ok(Ok(()) | Err(MinerError::Stopped)) => {}
            Err(_) => reporter.waiting("pay is followed later: the server or the node is slow now"),
            Ok(Err(error)) => reporter.waiting(&format!("pay cannot be followed now: {error}")),
        }
    }

    async fn follow(&mut self, chain: Option<&Chain>, mut pay: Pay, reporter: &mut Reporter) -> Result<(), MinerError> {
        let before = pay.clone();
        let state = match chain {
            Some(chain) => self.on_chain(chain, &mut pay, reporter).await?,
            None => by_server(self.client, &mut pay).await?,
        };
        if state == PayState::Kept && pay == before {
            return Ok(());
        }
        let (epoch, account) = (pay.epoch, pay.account);
        // Stored before it is reported: on a full disk the next poll comes here again, and must not report it twice.
        self.pays.put(Pay {
            state: state.clone(),
            ..pay
        })?;
        match &state {
            PayState::Kept => return Ok(()),
            PayState::Paid { planck } => {
                let amount = planck.parse().unwrap_or(0);
                let text = format!("epoch {epoch}: paid {}", alice(amount));
                let fields = json!({ "epoch": epoch, "account": account, "planck": planck });
                reporter.event("paid", &text, fields);
            }
            PayState::Nothing { why, .. } => report_no_pay(reporter, epoch, why),
        }
        self.state.final_since.remove(&(epoch, account));
        Ok(())
    }

    /// State of a kept page by the chain. Pushes it if it waits too long.
    async fn on_chain(
        &mut self,
        chain: &Chain,
        pay: &mut Pay,
        reporter: &mut Reporter,
    ) -> Result<PayState, MinerError> {
        let nothing = |why: &str| PayState::Nothing {
            why: why.into(),
            on_chain: true,
        };
        let status = match chain.epoch_status(pay.epoch).await {
            Err(ChainError::Forgotten { .. }) => return Ok(nothing(FORGOTTEN)),
            status => status?,
        };
        match status {
            EpochStatus::Open | EpochStatus::Accepted { .. } => Ok(PayState::Kept),
            EpochStatus::Forfeited => Ok(nothing(FORFEITED)),
            EpochStatus::Final { .. } => {
                fetch_if_root_changed(chain, self.client, pay).await?;
                self.push_if_overdue(chain, pay, reporter).await?;
                Ok(PayState::Kept)
            }
            EpochStatus::Settled { .. } => {
                fetch_if_root_changed(chain, self.client, pay).await?;
                let amount = match chain.ledger(pay.epoch).await? {
                    Some(l) => alice_primitives::emission::share(l.budget, pay.score(), l.total_score),
                    // The chain forgets old ledgers; manifest and schedule give the same amount.
                    None => pay.amount(total_score(self.client, pay.epoch).await?),
                };
                Ok(PayState::Paid {
                    planck: amount.to_string(),
                })
            }
        }
    }

    async fn push_if_overdue(&mut self, chain: &Chain, pay: &Pay, reporter: &mut Reporter) -> Result<(), MinerError> {
        let best = chain.best().await?.number;
        let since = self.state.final_since.entry((pay.epoch, pay.account)).or_insert(best);
        if best.saturating_sub(*since) < PUSH_DELAY_BLOCKS {
            return Ok(());
        }
        // A push that has no effect is tried again after the same delay.
        *since = best;
        push(chain, pay).await?;
        let text = format!(
            "epoch {}: its pages are not all paid, so this miner pushed its own",
            pay.epoch
        );
        reporter.event("pushed", &text, json!({ "epoch": pay.epoch }));
        Ok(())
    }

    /// Whether the epoch was attested: by the chain if there is one, else by the server.
    async fn attested(&self, chain: Option<&Chain>, worked: u32) -> Result<Attested, MinerError> {
        let never = |why: String, on_chain| Ok(Attested::Never { why, on_chain });
        if let Some(chain) = chain {
            return match chain.epoch_status(worked).await {
                Ok(EpochStatus::Open) => Ok(Attested::NotYet),
                Ok(EpochStatus::Accepted { .. } | EpochStatus::Final { .. } | EpochStatus::Settled { .. }) => {
                    Ok(Attested::Yes)
                }
                Ok(EpochStatus::Forfeited) => never(FORFEITED.into(), true),
                Err(ChainError::Forgotten { .. }) => never(FORGOTTEN.into(), true),
                Err(error) => Err(error.into()),
            };
        }
        let settlement = match self.client.epoch(worked).await {
            Ok(summary) => summary.settlement,
            Err(e) if is_not_found(&e) => SettlementStatus::Open,
            Err(e) => return Err(e.into()),
        };
        match settlement {
            SettlementStatus::Forfeited => never(FORFEITED.into(), false),
            SettlementStatus::Open if self.is_late(worked) => never(
                format!("the server did not attest it within {ATTEST_EPOCHS_MAX} epochs"),
                false,
            ),
            SettlementStatus::Open => Ok(Attested::NotYet),
            SettlementStatus::Attested
            | SettlementStatus::Accepted
            | SettlementStatus::Final
            | SettlementStatus::Settled
            | SettlementStatus::Forgotten => Ok(Attested::Yes),
        }
    }

    fn is_late(&self, worked: u32) -> bool {
        self.epoch > worked.saturating_add(ATTEST_EPOCHS_MAX)
    }

    /// Fetches the payout page of an epoch, once it is attested.
    async fn fetch(
        &mut self,
        chain: Option<&Chain>,
        worked: u32,
        account: Hex32,
        reporter: &mut Reporter,
    ) -> Result<(), MinerError> {
        let page = match self.attested(chain, worked).await? {
            Attested::NotYet => return Ok(()),
            Attested::Never { why, on_chain } => return self.give_up(worked, account, why, on_chain, reporter),
            Attested::Yes => self.client.page_of(worked, &account).await,
        };
        let page = match page {
            Ok(page) => page,
            Err(e) if is_not_found(&e) && self.is_late(worked) => {
                let why = "the server has no payout page with the address; keep the receipts and ask the operator";
                return self.give_up(worked, account, why.into(), false, reporter);
            }
            Err(e) if is_not_found(&e) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        // Checked here, because a page with a wrong proof would be worthless on the day it is needed.
        pages::check(&page, worked, &account).map_err(|problem| MinerError::untrue("payout page", problem))?;
        let pay = Pay {
            epoch: worked,
            account,
            page: Some(page),
            state: PayState::Kept,
        };
        let (paid, earned) = (pay.score(), earned(self.receipts, worked, &account));
        let text = match paid < earned {
            true => format!(
                "epoch {worked}: the payout page has score {paid}, the verdicts {earned}: keep the receipts and ask the operator"
            ),
            false => format!("epoch {worked}: the payout page with its proof is kept"),
        };
        self.pays.put(pay)?;
        let fields = json!({ "epoch": worked, "account": account, "score": paid, "earned": earned });
        reporter.event("page", &text, fields);
        Ok(())
    }

    fn give_up(
        &mut self,
        epoch: u32,
        account: Hex32,
        why: String,
        on_chain: bool,
        reporter: &mut Reporter,
    ) -> Result<(), MinerError> {
        let state = PayState::Nothing {
            why: why.clone(),
            on_chain,
        };
        let is_known = self.pays.get(epoch, &account).is_some_and(|pay| pay.state == state);
        // Already on disk and reported.
        if is_known {
            return Ok(());
        }
        self.pays.put(Pay {
            epoch,
            account,
            page: None,
            state,
        })?;
        report_no_pay(reporter, epoch, &why);
        Ok(())
    }
}

fn is_not_found(error: &ClientError) -> bool {
    error.code() == Some(ErrorCode::NotFound)
}

/// At most [`EPOCHS_PER_POLL`] of a list, beginning at the cursor.
fn from_cursor<T>(mut list: Vec<T>, cursor: usize) -> impl Iterator<Item = T> {
    let start = if list.is_empty() { 0 } else { cursor % list.len() };
    list.rotate_left(start);
    list.into_iter().take(EPOCHS_PER_POLL)
}

/// Fetches a page again if the chain accepted another root than the page's: a veto may have changed the epoch's scores
/// after the page was fetched.
async fn fetch_if_root_changed(chain: &Chain, client: &Client, pay: &mut Pay) -> Result<(), MinerError> {
    let Some(commitment) = chain.commitment(pay.epoch).await? else {
        return Ok(());
    };
    let root = Hex32(commitment.contributions_root);
    if pay.page.as_ref().is_some_and(|page| page.contributions_root == root) {
        return Ok(());
    }
    let page = client.page_of(pay.epoch, &pay.account).await?;
    pages::check(&page, pay.epoch, &pay.account).map_err(|problem| MinerError::untrue("payout page", problem))?;
    if page.contributions_root != root {
        return Err(MinerError::untrue(
            "payout page",
            "the chain has accepted another root for its epoch",
        ));
    }
    pay.page = Some(page);
    Ok(())
}

/// Pushes a kept page to the chain.
///
/// # Errors
/// The chain refuses it or is away.
pub async fn push(chain: &Chain, pay: &Pay) -> Result<(), MinerError> {
    let Some(page) = &pay.page else { return Ok(()) };
    let (entries, proof) = (pages::entries(page), pages::proof(page));
    Ok(chain.submit_payout(page.epoch, page.index, &entries, &proof).await?)
}

/// State of a kept page by the server. The amount follows from the manifest and the schedule.
async fn by_server(client: &Client, pay: &mut Pay) -> Result<PayState, MinerError> {
    let status = match client.epoch(pay.epoch).await {
        Ok(summary) => summary.settlement,
        Err(e) if is_not_found(&e) => return Ok(PayState::Kept),
        Err(e) => return Err(e.into()),
    };
    match status {
        SettlementStatus::Settled => {
            // Fetched again: a veto may have changed the scores since the page was stored.
            let page = client.page_of(pay.epoch, &pay.account).await?;
            pages::check(&page, pay.epoch, &pay.account)
                .map_err(|problem| MinerError::untrue("payout page", problem))?;
            pay.page = Some(page);
            let amount = pay.amount(total_score(client, pay.epoch).await?);
            Ok(PayState::Paid {
                planck: amount.to_string(),
            })
        }
        SettlementStatus::Forfeited => Ok(PayState::Nothing {
            why: FORFEITED.into(),
            on_chain: false,
        }),
        _ => Ok(PayState::Kept),
    }
}

async fn total_score(client: &Client, epoch: u32) -> Result<u128, MinerError> {
    let text = client.manifest(epoch).await?.total_score;
    text.parse()
        .map_err(|_| MinerError::untrue("manifest", format!("its total score is '{text}'")))
}

/// Epochs and accounts with accepted work whose pay is not known yet. "No pay" is final only if the chain reported it:
/// with a chain, the server's report is checked again.
fn wanted(receipts: &Receipts, pays: &Pays, has_chain: bool) -> BTreeSet<(u32, Hex32)> {
    let accepted = receipts.iter().filter(|r| r.standing() == Standing::Accepted);
    let all = accepted.filter_map(|r| Some((r.epoch, r.receipt.as_ref()?.body.payout)));
    all.filter(
        |(epoch, account)| match pays.get(*epoch, account).map(|pay| &pay.state) {
            None => true,
            Some(PayState::Nothing { on_chain, .. }) => has_chain && !on_chain,
            Some(PayState::Kept | PayState::Paid { .. }) => false,
        },
    )
    .collect()
}

/// Sum of the scores of this miner's accepted work, billionths.
fn earned(receipts: &Receipts, epoch: u32, account: &Hex32) -> u64 {
    let mine = receipts.iter().filter(|r| r.epoch == epoch);
    let mine = mine.filter(|r| {
        r.receipt
            .as_ref()
            .is_some_and(|receipt| receipt.body.payout == *account)
    });
    mine.filter_map(|r| r.verdict.as_ref())
        .map(|v| v.body.score)
        .fold(0, u64::saturating_add)
}

fn report_no_pay(reporter: &mut Reporter, epoch: u32, why: &str) {
    reporter.event(
        "no_pay",
        &format!("epoch {epoch}: no pay: {why}"),
        json!({ "epoch": epoch, "reason": why }),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settlement::receipts::tests::{record, verdict};
    use alice_api::Outcome;

    #[test]
    fn pay_should_be_wanted_for_accepted_work_only_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut receipts = Receipts::open(dir.path()).unwrap();
        let mut pays = Pays::open(dir.path()).unwrap();
        for (epoch, id, outcome) in [
            (1, 1, Outcome::Accepted),
            (1, 2, Outcome::Accepted),
            (2, 3, Outcome::NoImprovement),
        ] {
            let mut record = record(epoch, id);
            record.verdict = Some(verdict(&record, outcome));
            receipts.put(record).unwrap();
        }
        let account = Hex32([4; 32]);
        assert_eq!(wanted(&receipts, &pays, false), BTreeSet::from([(1, account)]));
        assert_eq!(earned(&receipts, 1, &account), 2_040_000_000);
        assert_eq!(earned(&receipts, 2, &account), 0);
        for (on_chain, asked_again) in [(false, 1), (true, 0)] {
            pays.put(Pay {
                epoch: 1,
                account,
                page: None,
                state: PayState::Nothing {
                    why: "x".into(),
                    on_chain,
                },
            })
            .unwrap();
            assert_eq!(wanted(&receipts, &pays, false).len(), 0);
            assert_eq!(wanted(&receipts, &pays, true).len(), asked_again);
        }
    }

    #[test]
    fn every_epoch_should_get_its_turn() {
        let all: Vec<u32> = (0..20).collect();
        let mut seen = BTreeSet::new();
        for poll in 0..20 {
            let some: Vec<u32> = from_cursor(all.clone(), poll * EPOCHS_PER_POLL).collect();
            assert_eq!(some.len(), EPOCHS_PER_POLL);
            seen.extend(some);
        }
        assert_eq!(seen.len(), all.len());
        assert_eq!(from_cursor(Vec::<u32>::new(), 3).count(), 0);
    }
}
