//! Follows pay to the chain: fetches pages from the server, watches what the chain does with them, and pushes a page
//! that nobody else pushed.

use crate::{
    MinerError,
    report::{Reporter, alice},
    settlement::pages::{self, Pay, PayState, Pays},
    settlement::receipts::{Receipts, Standing},
    shutdown::Stop,
};
use alice_api::{Client, ClientError, ErrorCode, Hex32};
use alice_chain::{Chain, ChainError, EpochStatus};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Blocks that the server has, after an epoch is final, to push its pages before a miner does it. Pushing twice is
/// harmless, but a thousand miners need not do it.
pub const PUSH_DELAY_BLOCKS: u32 = 10;
/// A round may be attested this many epochs late (docs/spec/protocol.md#late-attestation); an epoch without a page
/// after that brings nothing.
const ATTEST_EPOCHS_MAX: u32 = 24;
/// Pause between two looks at the server and the chain for pay.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Longest time for one look: the miner's work waits for it.
const LOOK_TIME_MAX: Duration = Duration::from_secs(5);
/// Epochs that are looked at in one go.
const EPOCHS_PER_LOOK: usize = 8;

/// The chain, if the user gave one; connected when it is first needed and again after it was lost.
pub struct ChainLink {
    url: Option<String>,
    chain: Option<Chain>,
}

impl ChainLink {
    /// A link to the node at `url`.
    pub fn new(url: Option<String>) -> Self {
        Self { url, chain: None }
    }

    /// Whether the user gave a node.
    pub fn is_set(&self) -> bool {
        self.url.is_some()
    }

    /// The chain, if its block 0 has the hash `genesis`; none where the user gave no node.
    pub async fn get(&mut self, genesis: &Hex32) -> Result<Option<Chain>, MinerError> {
        let Some(url) = &self.url else { return Ok(None) };
        let chain = match &self.chain {
            Some(chain) => chain.clone(),
            None => Chain::connect(url).await.map_err(chain_error)?,
        };
        let found = Hex32(chain.genesis_hash());
        if found != *genesis {
            return Err(MinerError::Chain(format!(
                "the node at {url} serves the network {found}, mined is {genesis}; give a node of that network with --chain"
            )));
        }
        self.chain = Some(chain.clone());
        Ok(Some(chain))
    }
}

/// The chain's error as the miner's.
pub fn chain_error(error: ChainError) -> MinerError {
    MinerError::Chain(error.to_string())
}

/// What the follower remembers between two looks.
#[derive(Debug, Default)]
pub struct PayFollower {
    last_look: Option<Instant>,
    /// Best block when an epoch was first seen final.
    final_since: BTreeMap<(u32, Hex32), u32>,
    /// Where the next look begins, so that no epoch waits behind others for ever.
    turn: usize,
}

/// Follows the pay of this miner's accepted work.
pub struct PayDesk<'a> {
    /// Genesis hash of the network.
    pub genesis: Hex32,
    /// The chain's epoch as far as it is known.
    pub epoch: u32,
    /// Server.
    pub client: &'a Client,
    /// Chain, if there is one.
    pub link: &'a mut ChainLink,
    /// Work.
    pub receipts: &'a Receipts,
    /// Pay.
    pub pays: &'a mut Pays,
    /// Memory.
    pub follower: &'a mut PayFollower,
}

/// Whether an epoch's pay can be fetched.
enum Attested {
    NotYet,
    Yes,
    Never { why: String, on_chain: bool },
}

impl PayDesk<'_> {
    /// Fetches pages that are ready, notes what was paid, pushes what waits too long. Trouble with one epoch does not
    /// keep the others; the first is returned.
    pub async fn look(&mut self, reporter: &mut Reporter, stop: &Stop) -> Result<(), MinerError> {
        let wanted = wanted(self.receipts, self.pays, self.link.is_set());
        if wanted.is_empty() && self.pays.unpaid().is_empty()
            || self.follower.last_look.is_some_and(|at| at.elapsed() < LOOK_INTERVAL)
        {
            return Ok(());
        }
        self.follower.last_look = Some(Instant::now());
        let turn = self.follower.turn;
        self.follower.turn = turn.wrapping_add(EPOCHS_PER_LOOK);
        let mut first = None;
        let mut keep = |result: Result<(), MinerError>| match result {
            Err(MinerError::Stopped) => Err(MinerError::Stopped),
            Err(error) => {
                first.get_or_insert(error);
                Ok(())
            }
            Ok(()) => Ok(()),
        };
        let chain = match stop.or(self.link.get(&self.genesis)).await {
            Ok(chain) => chain,
            Err(error) => {
                keep(Err(error))?;
                None
            }
        };
        for (worked, account) in some_of(wanted.into_iter().collect(), turn) {
            keep(stop.or(self.fetch(chain.as_ref(), worked, account, reporter)).await)?;
        }
        // The server's word is not asked where the user has a chain to ask.
        if chain.is_some() || !self.link.is_set() {
            for pay in some_of(self.pays.unpaid(), turn) {
                keep(stop.or(self.follow(chain.as_ref(), pay, reporter)).await)?;
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// The same, with trouble said instead of returned.
    pub async fn look_and_say(&mut self, reporter: &mut Reporter, stop: &Stop) {
        // What is not done by then is done at a later look; every step of it may be left out in the middle.
        match tokio::time::timeout(LOOK_TIME_MAX, self.look(reporter, stop)).await {
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
        match &state {
            PayState::Kept if pay == before => return Ok(()),
            PayState::Kept => {}
            PayState::Paid { planck } => {
                let amount = planck.parse().unwrap_or(0);
                let text = format!("epoch {}: paid {}", pay.epoch, alice(amount));
                reporter.event(
                    "paid",
                    &text,
                    json!({ "epoch": pay.epoch, "account": pay.account, "planck": planck }),
                );
            }
            PayState::Nothing { why, .. } => nothing(reporter, pay.epoch, why),
        }
        if state != PayState::Kept {
            self.follower.final_since.remove(&(pay.epoch, pay.account));
        }
        self.pays.put(Pay { state, ..pay })
    }

    async fn on_chain(
        &mut self,
        chain: &Chain,
        pay: &mut Pay,
        reporter: &mut Reporter,
    ) -> Result<PayState, MinerError> {
        let status = match chain.epoch_status(pay.epoch).await {
            Err(ChainError::Forgotten { .. }) => {
                return Ok(PayState::Nothing {
                    why: FORGOTTEN.into(),
                    on_chain: true,
                });
            }
            answer => answer.map_err(chain_error)?,
        };
        if matches!(status, EpochStatus::Final { .. } | EpochStatus::Settled { .. }) {
            bring_up_to_date(chain, self.client, pay).await?;
        }
        match status {
            EpochStatus::Settled { .. } => {
                let amount = match chain.ledger(pay.epoch).await.map_err(chain_error)? {
                    Some(l) => alice_primitives::emission::share(l.budget, pay.score(), l.total_score),
                    // The chain forgets old ledgers; manifest and schedule say the same.
                    None => pay.amount(total_score(self.client, pay.epoch).await?),
                };
                Ok(PayState::Paid {
                    planck: amount.to_string(),
                })
            }
            EpochStatus::Forfeited => Ok(PayState::Nothing {
                why: FORFEITED.into(),
                on_chain: true,
            }),
            EpochStatus::Final { .. } => {
                let best = chain.best().await.map_err(chain_error)?.number;
                let since = *self
                    .follower
                    .final_since
                    .entry((pay.epoch, pay.account))
                    .or_insert(best);
                if best.saturating_sub(since) >= PUSH_DELAY_BLOCKS {
                    // If it does not come to anything, try again after the same delay.
                    self.follower.final_since.insert((pay.epoch, pay.account), best);
                    push(chain, pay).await?;
                    let text = format!(
                        "epoch {}: its pages are not all paid, so this miner pushed its own",
                        pay.epoch
                    );
                    reporter.event("pushed", &text, json!({ "epoch": pay.epoch }));
                }
                Ok(PayState::Kept)
            }
            EpochStatus::Open | EpochStatus::Accepted { .. } => Ok(PayState::Kept),
        }
    }

    /// Whether the epoch was attested: by the chain's word where there is a chain, else by the server's.
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
                Err(error) => Err(chain_error(error)),
            };
        }
        let settlement = match self.client.epoch(worked).await {
            Ok(summary) => summary.settlement,
            Err(e) if is_not_found(&e) => "open".into(),
            Err(e) => return Err(e.into()),
        };
        match settlement.as_str() {
            "forfeited" => never(FORFEITED.into(), false),
            "open" if self.is_late(worked) => never(
                format!("the server did not attest it within {ATTEST_EPOCHS_MAX} epochs"),
                false,
            ),
            "open" => Ok(Attested::NotYet),
            _ => Ok(Attested::Yes),
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
        reporter.event(
            "page",
            &text,
            json!({ "epoch": worked, "account": account, "score": paid, "earned": earned }),
        );
        self.pays.put(pay)
    }

    fn give_up(
        &mut self,
        epoch: u32,
        account: Hex32,
        why: String,
        on_chain: bool,
        reporter: &mut Reporter,
    ) -> Result<(), MinerError> {
        let state = PayState::Nothing { why, on_chain };
        let known = self.pays.get(epoch, &account).is_some_and(|pay| pay.state == state);
        if known {
            return Ok(());
        }
        if let PayState::Nothing { why, .. } = &state {
            nothing(reporter, epoch, why);
        }
        self.pays.put(Pay {
            epoch,
            account,
            page: None,
            state,
        })
    }
}

fn is_not_found(error: &ClientError) -> bool {
    error.code() == Some(ErrorCode::NotFound)
}

/// So many of a list as one look takes, beginning at another place each time.
fn some_of<T>(mut list: Vec<T>, turn: usize) -> impl Iterator<Item = T> {
    let start = if list.is_empty() { 0 } else { turn % list.len() };
    list.rotate_left(start);
    list.into_iter().take(EPOCHS_PER_LOOK)
}

/// A veto may have changed the epoch's scores after the page was fetched: then the accepted commitment has another
/// root, and the page is fetched again.
async fn bring_up_to_date(chain: &Chain, client: &Client, pay: &mut Pay) -> Result<(), MinerError> {
    let Some(commitment) = chain.commitment(pay.epoch).await.map_err(chain_error)? else {
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

const FORFEITED: &str = "the epoch was not attested in time, so its budget is never minted";
const FORGOTTEN: &str = "the chain no longer keeps the epoch; the account's balance tells whether it was paid";

/// Pushes a kept page to the chain.
pub async fn push(chain: &Chain, pay: &Pay) -> Result<(), MinerError> {
    let Some(page) = &pay.page else { return Ok(()) };
    let (entries, proof) = (pages::entries(page), pages::proof(page));
    chain
        .submit_payout(page.epoch, page.index, &entries, &proof)
        .await
        .map_err(chain_error)
}

/// What the server says about a kept page. The amount follows from the manifest and the schedule.
async fn by_server(client: &Client, pay: &mut Pay) -> Result<PayState, MinerError> {
    match client.epoch(pay.epoch).await {
        Ok(summary) if summary.settlement == "settled" => {
            let page = client.page_of(pay.epoch, &pay.account).await?;
            pages::check(&page, pay.epoch, &pay.account)
                .map_err(|problem| MinerError::untrue("payout page", problem))?;
            pay.page = Some(page);
            let amount = pay.amount(total_score(client, pay.epoch).await?);
            Ok(PayState::Paid {
                planck: amount.to_string(),
            })
        }
        Ok(summary) if summary.settlement == "forfeited" => Ok(PayState::Nothing {
            why: FORFEITED.into(),
            on_chain: false,
        }),
        Ok(_) => Ok(PayState::Kept),
        Err(e) if is_not_found(&e) => Ok(PayState::Kept),
        Err(e) => Err(e.into()),
    }
}

async fn total_score(client: &Client, epoch: u32) -> Result<u128, MinerError> {
    let text = client.manifest(epoch).await?.total_score;
    text.parse()
        .map_err(|_| MinerError::untrue("manifest", format!("its total score is '{text}'")))
}

/// Epochs and accounts with accepted work whose pay is not known yet. That nothing will come is final by the chain's
/// word only: where there is one, what the server said is looked up again.
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

fn nothing(reporter: &mut Reporter, epoch: u32, why: &str) {
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
        for look in 0..20 {
            let some: Vec<u32> = some_of(all.clone(), look * EPOCHS_PER_LOOK).collect();
            assert_eq!(some.len(), EPOCHS_PER_LOOK);
            seen.extend(some);
        }
        assert_eq!(seen.len(), all.len());
        assert_eq!(some_of(Vec::<u32>::new(), 3).count(), 0);
    }
}
