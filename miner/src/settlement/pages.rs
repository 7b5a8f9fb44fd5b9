//! Payout pages with their proofs, kept so that pay does not depend on the server's disk: anyone who has a page can
//! push it to the chain.
//!
//! **Format.** `pages/<epoch, ten digits>-<account>.json` holds a [`Pay`]: the page as the server sent it
//! (`docs/spec/merkle-pages.md`), and the state of the pay. One account has one file an epoch, however many submissions
//! it was paid for.
//!
//! **States** ([`PayState`]). Kept becomes Paid when the chain, or without a chain the server, reports the epoch
//! settled. Nothing is final if the chain reports it; the server's report is asked again once there is a chain to ask.
//!
//! **Durable when.** [`Pays::put`] returns after the file is synced, and memory changes after the disk. A page is on
//! disk before anything relies on it, so the miner can push it even if the server is gone by then.

use crate::{MinerError, files};
use alice_api::{Hex32, PayoutPage};
use alice_primitives::{emission, pages};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// State of an epoch's pay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum PayState {
    /// The page is kept; it is not paid yet.
    Kept,
    /// Paid.
    Paid {
        /// Amount in planck, decimal.
        planck: String,
    },
    /// No pay will arrive.
    Nothing {
        /// Why.
        why: String,
        /// Whether the chain reported it; the server's report alone is not final.
        #[serde(default)]
        on_chain: bool,
    },
}

/// One account's pay of one epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pay {
    /// Epoch.
    pub epoch: u32,
    /// Account that is paid.
    pub account: Hex32,
    /// The page; `None` if the epoch was lost before there was one.
    pub page: Option<PayoutPage>,
    /// State of the pay.
    #[serde(flatten)]
    pub state: PayState,
}

impl Pay {
    /// Score of the account, billionths.
    pub fn score(&self) -> u64 {
        let entries = self.page.iter().flat_map(|p| &p.entries);
        entries
            .filter(|e| e.account == self.account)
            .map(|e| e.score)
            // Saturating, because the page is the server's word until the chain has checked it.
            .fold(0, u64::saturating_add)
    }

    /// The account's share of the epoch's scheduled budget, planck.
    pub fn amount(&self, total_score: u128) -> u128 {
        emission::share(emission::budget(self.epoch), self.score(), total_score)
    }

    /// Amount that was paid, planck; 0 before that.
    pub fn paid(&self) -> u128 {
        match &self.state {
            PayState::Paid { planck } => planck.parse().unwrap_or(0),
            _ => 0,
        }
    }
}

/// Entries of a page, in the chain's types.
pub fn entries(page: &PayoutPage) -> Vec<pages::Entry> {
    page.entries
        .iter()
        .map(|e| pages::Entry {
            account: e.account.0,
            score: e.score,
        })
        .collect()
}

/// Merkle proof of a page, in the chain's types.
pub fn proof(page: &PayoutPage) -> Vec<[u8; 32]> {
    page.proof.iter().map(|h| h.0).collect()
}

/// Checks that a page is the one of the epoch, pays the account, and belongs to the root that it names.
///
/// # Errors
/// The first contradiction, in words.
pub fn check(page: &PayoutPage, epoch: u32, account: &Hex32) -> Result<(), String> {
    if page.epoch != epoch {
        return Err(format!("it is of epoch {}, asked for was {epoch}", page.epoch));
    }
    // Before hashing: the chain would refuse the page, whatever its proof.
    if page.entries.len() > pages::PAGE_ENTRIES {
        return Err(format!(
            "it has {} entries, at most {} fit",
            page.entries.len(),
            pages::PAGE_ENTRIES
        ));
    }
    if !page.entries.iter().any(|e| e.account == *account) {
        return Err("it does not have the payout account".into());
    }
    // The leaf has epoch and index in it, so a page cannot pass for another one.
    let leaf = pages::leaf(page.epoch, page.index, &entries(page));
    if !pages::verify(&page.contributions_root.0, page.pages, page.index, &leaf, &proof(page)) {
        return Err("its proof does not lead to its root".into());
    }
    Ok(())
}

/// The pays of a data directory, in memory and on disk.
#[derive(Debug)]
pub struct Pays {
    dir: PathBuf,
    pays: BTreeMap<(u32, Hex32), Pay>,
}

impl Pays {
    /// Reads the pays below a data directory.
    ///
    /// # Errors
    /// A file cannot be read; damaged ones are logged and left out.
    pub fn open(data_dir: &Path) -> Result<Self, MinerError> {
        let dir = data_dir.join("pages");
        let pays = files::read_all::<Pay>(&dir)?
            .into_iter()
            .map(|p| ((p.epoch, p.account), p))
            .collect();
        Ok(Self { dir, pays })
    }

    /// Stores a pay, on disk first.
    ///
    /// # Errors
    /// [`MinerError::Write`]; the old file is unchanged then.
    pub fn put(&mut self, pay: Pay) -> Result<(), MinerError> {
        files::make_dir(&self.dir)?;
        files::write_json(&self.dir.join(format!("{:010}-{}.json", pay.epoch, pay.account)), &pay)?;
        self.pays.insert((pay.epoch, pay.account), pay);
        Ok(())
    }

    /// An account's pay in an epoch.
    pub fn get(&self, epoch: u32, account: &Hex32) -> Option<&Pay> {
        self.pays.get(&(epoch, *account))
    }

    /// All pays of an epoch: one for each payout address that this directory mined for.
    pub fn of_epoch(&self, epoch: u32) -> impl Iterator<Item = &Pay> {
        self.pays
            .range((epoch, Hex32([0; 32]))..=(epoch, Hex32([0xff; 32])))
            .map(|(_, pay)| pay)
    }

    /// Pays whose page is kept and not paid, oldest first.
    pub fn unpaid(&self) -> Vec<Pay> {
        self.pays
            .values()
            .filter(|p| p.state == PayState::Kept)
            .cloned()
            .collect()
    }

    /// Sum of all amounts that were paid, planck.
    pub fn paid(&self) -> u128 {
        self.pays.values().map(Pay::paid).fold(0, u128::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alice_api::PayoutEntry;

    fn page(epoch: u32) -> PayoutPage {
        let all: Vec<_> = (0..600u32)
            .map(|i| pages::Entry {
                account: [(i % 200) as u8; 32],
                score: u64::from(i),
            })
            .collect();
        let leaves: Vec<_> = pages::paginate(&all)
            .enumerate()
            .map(|(i, p)| pages::leaf(epoch, i as u32, p))
            .collect();
        let mine = pages::paginate(&all).nth(1).unwrap();
        PayoutPage {
            epoch,
            index: 1,
            pages: leaves.len() as u32,
            contributions_root: Hex32(pages::root(&leaves)),
            entries: mine
                .iter()
                .map(|e| PayoutEntry {
                    account: Hex32(e.account),
                    score: e.score,
                })
                .collect(),
            proof: pages::proof(&leaves, 1).unwrap().into_iter().map(Hex32).collect(),
        }
    }

    #[test]
    fn only_the_right_page_should_pass() {
        let good = page(3);
        let account = good.entries[0].account;
        assert_eq!(check(&good, 3, &account), Ok(()));
        assert!(check(&good, 4, &account).unwrap_err().contains("epoch 3"));
        assert!(check(&good, 3, &Hex32([250; 32])).unwrap_err().contains("account"));
        let mut forged = good.clone();
        forged.entries[0].score += 1;
        assert!(check(&forged, 3, &account).unwrap_err().contains("proof"));
        let mut long = good.clone();
        long.entries = vec![good.entries[0]; 257];
        assert!(check(&long, 3, &account).unwrap_err().contains("257"));
    }

    #[test]
    fn pays_should_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut pays = Pays::open(dir.path()).unwrap();
        let account = Hex32([1; 32]);
        let kept = Pay {
            epoch: 5,
            account,
            page: Some(page(5)),
            state: PayState::Kept,
        };
        pays.put(kept).unwrap();
        pays.put(Pay {
            epoch: 6,
            account,
            page: None,
            state: PayState::Nothing {
                why: "forfeited".into(),
                on_chain: true,
            },
        })
        .unwrap();
        assert_eq!(
            Pays::open(dir.path())
                .unwrap()
                .unpaid()
                .iter()
                .map(|p| p.epoch)
                .collect::<Vec<_>>(),
            vec![5]
        );
        let mut pay = pays.get(5, &account).unwrap().clone();
        pay.state = PayState::Paid {
            planck: "12500000000000".into(),
        };
        pays.put(pay).unwrap();
        let again = Pays::open(dir.path()).unwrap();
        assert!(again.unpaid().is_empty());
        assert_eq!((again.of_epoch(5).count(), again.of_epoch(7).count()), (1, 0));
        assert_eq!(again.paid(), 12_500_000_000_000);
    }

    #[test]
    fn an_account_alone_in_an_epoch_should_get_its_budget() {
        let entry = PayoutEntry {
            account: Hex32([1; 32]),
            score: 7,
        };
        let page = PayoutPage {
            entries: vec![entry],
            ..page(0)
        };
        let pay = Pay {
            epoch: 0,
            account: entry.account,
            page: Some(page),
            state: PayState::Kept,
        };
        assert_eq!(pay.amount(7), emission::budget(0));
        assert_eq!(pay.amount(14), emission::budget(0) / 2);
        assert_eq!(pay.amount(0), 0);
    }
}
