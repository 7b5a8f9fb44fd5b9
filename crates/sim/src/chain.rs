//! The chain as far as settlement is concerned. With one parameter server every commitment has a quorum at once.

use alice_primitives::emission;
use alice_round::ChainStatus;
use std::collections::BTreeMap;

/// Blocks between acceptance and payment, as in `dev`.
// About as long as finality takes there (docs/decisions/0006-finalised-settlement.md).
const DISPUTE_BLOCKS: u32 = 2;

/// Epochs and balances on the simulated chain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    accepted: BTreeMap<u32, u32>,
    settled: BTreeMap<u32, u32>,
    /// Balance of each account, planck.
    pub balances: BTreeMap<u32, u128>,
    /// Coins minted, planck.
    pub minted: u128,
}

impl Chain {
    /// Status of an epoch at a block.
    pub fn status(&self, epoch: u32, block: u32) -> ChainStatus {
        // Settled first: a settled epoch stays among the accepted ones.
        match (self.settled.get(&epoch), self.accepted.get(&epoch)) {
            (Some(block), _) => ChainStatus::Settled { block: *block },
            (None, Some(accepted)) if block >= accepted + DISPUTE_BLOCKS => ChainStatus::Final,
            (None, Some(_)) => ChainStatus::Accepted,
            (None, None) => ChainStatus::Open,
        }
    }

    /// Accepts an epoch's commitment. A second one changes nothing.
    pub fn attest(&mut self, epoch: u32, block: u32) {
        self.accepted.entry(epoch).or_insert(block);
    }

    /// Pays an epoch by the scores of its accounts. Paying it again changes nothing.
    pub fn pay(&mut self, epoch: u32, scores: &BTreeMap<u32, u64>, block: u32) {
        if self.settled.insert(epoch, block).is_some() {
            return;
        }
        let total: u128 = scores.values().map(|score| u128::from(*score)).sum();
        for (account, score) in scores {
            // Rounded down, as on the chain: the rest is never minted.
            let paid = emission::share(emission::budget(epoch), *score, total);
            *self.balances.entry(*account).or_default() += paid;
            self.minted += paid;
        }
    }
}
