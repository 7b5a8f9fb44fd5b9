//! The parameter server's state machine (docs/spec/protocol.md#phases): when a round opens, is sealed, scored and
//! settled.
//!
//! Pure: block numbers and the chain's answers come in as [`Event`]s, what is to be done goes out as [`Effect`]s, and
//! [`step`] is the only place where a round changes its stage. The server, its tests and tools share it.
//!
//! **States.** A round goes `Open → Sealed → Scoring → Scored`. Scored rounds are settled (attestation, dispute window,
//! payout) in parallel with the next round, strictly in epoch order, because each commitment names its predecessor.
//! A sealed round whose seed cannot be read until nobody can be paid for it any more is voided instead of scored.
//!
//! **Recovery.** Effects that need the chain are emitted again with later heads until the chain shows that they took
//! place. So losing one costs nothing, a restart needs no memory of what was in flight ([`State::restore`]), and every
//! effect must be idempotent.
//!
//! **Architecture invariant:** no clock, no chain, no I/O. The same events give the same effects.
//!
//! ```
//! use alice_round::{Effect, Event, Phase, Rules, State, step};
//!
//! let rules = Rules {
//!     epoch_blocks: 30,
//!     deadline_block: 18,
//!     seed_blocks: 2,
//!     open_margin_blocks: 8,
//!     late_window_epochs: 24,
//! };
//! let head = |best: u32| Event::Head { best, finalized: best.saturating_sub(2), may_open: true };
//!
//! // Epoch 2 begins at block 60; commits are accepted before block 78.
//! let (state, effects) = step(State::default(), head(60), &rules);
//! assert_eq!(effects, [Effect::Open { epoch: 2, deadline: 78 }]);
//! let (state, effects) = step(state, head(78), &rules);
//! assert_eq!(effects, [Effect::Seal { epoch: 2 }]);
//!
//! // The blocks of the seed are 79 and 80; it is fetched when they are final.
//! let (state, effects) = step(state, head(82), &rules);
//! assert_eq!(effects, [Effect::FetchSeed { epoch: 2, first: 79, last: 80 }]);
//! let (state, effects) = step(state, Event::SeedReady { epoch: 2 }, &rules);
//! assert_eq!(effects, [Effect::Score { epoch: 2 }]);
//! assert_eq!(state.phase(), Phase::Scoring);
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod settle;

pub use settle::{Settlement, SettlementStage};

use alice_spec::RunSpec;
use serde::{Deserialize, Serialize};
use settle::follow;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Constants of a run and its chain, in blocks and epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Blocks in an epoch.
    pub epoch_blocks: u32,
    /// Commits are accepted before this block of the epoch.
    pub deadline_block: u32,
    /// Number of finalised blocks after the deadline whose VRF outputs make the validation seed.
    pub seed_blocks: u32,
    /// Minimum number of blocks before the deadline for a round to open: less would leave miners no time to train.
    pub open_margin_blocks: u32,
    /// Epochs after its own in which a round may still be attested.
    pub late_window_epochs: u32,
}

impl Rules {
    /// From a run specification and the chain's late window.
    pub fn new(spec: &RunSpec, late_window_epochs: u32) -> Self {
        let r = &spec.round;
        Self {
            epoch_blocks: r.epoch_blocks.max(1),
            deadline_block: r.deadline_block,
            seed_blocks: r.seed_blocks,
            open_margin_blocks: r.open_margin_blocks,
            late_window_epochs,
        }
    }

    /// Epoch of a block.
    pub fn epoch(&self, block: u32) -> u32 {
        block / self.epoch_blocks.max(1)
    }

    /// First block of an epoch.
    pub fn epoch_start(&self, epoch: u32) -> u32 {
        epoch.saturating_mul(self.epoch_blocks)
    }

    /// Block before which commits to an epoch are accepted.
    pub fn deadline(&self, epoch: u32) -> u32 {
        self.epoch_start(epoch).saturating_add(self.deadline_block)
    }

    /// Block from which an epoch cannot be attested any more.
    pub fn attestable_until(&self, epoch: u32) -> u32 {
        self.epoch_start(epoch.saturating_add(1).saturating_add(self.late_window_epochs))
    }

    /// Last block of an epoch's validation seed; the first is the one after the deadline.
    pub fn seed_last(&self, epoch: u32) -> u32 {
        self.deadline(epoch).saturating_add(self.seed_blocks)
    }
}

/// Stage of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Tasks are handed out and commits accepted.
    Open,
    /// After the deadline, waiting for the seed.
    Sealed,
    /// Losses are being measured.
    Scoring,
    /// Decided.
    Scored,
}

/// Phase of the server, as the public status shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// No round is open; the next opens with the next epoch.
    Idle,
    /// Tasks are handed out and commits accepted.
    Open,
    /// After the deadline, waiting for the seed of the validation draw.
    Sealed,
    /// Losses are being measured.
    Scoring,
    /// Scored; waiting for the epoch's end and the chain.
    Settling,
}

/// The machine's state: the newest round, and the scored rounds that the chain has not settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Newest round: its epoch and stage.
    pub round: Option<(u32, Stage)>,
    /// Rounds to be attested and paid, by epoch.
    pub settlements: BTreeMap<u32, Settlement>,
    /// Highest best block seen. A reorganisation never takes a deadline back.
    pub best: u32,
}

impl State {
    /// State after a restart, from what the store holds: the newest round, and the epochs to be settled. Scoring that
    /// was interrupted starts again from the sealed round.
    pub fn restore(round: Option<(u32, Stage)>, unsettled: impl IntoIterator<Item = u32>) -> Self {
        let round = round.map(|(epoch, stage)| (epoch, if stage == Stage::Scoring { Stage::Sealed } else { stage }));
        let settlements = unsettled
            .into_iter()
            .map(|epoch| (epoch, Settlement::default()))
            .collect();
        Self {
            round,
            settlements,
            best: 0,
        }
    }

    /// Phase for the public status.
    pub fn phase(&self) -> Phase {
        match self.round {
            Some((_, Stage::Open)) => Phase::Open,
            Some((_, Stage::Sealed)) => Phase::Sealed,
            Some((_, Stage::Scoring)) => Phase::Scoring,
            Some((_, Stage::Scored)) | None if self.settlements.is_empty() => Phase::Idle,
            Some((_, Stage::Scored)) | None => Phase::Settling,
        }
    }
}

/// An epoch's settlement on the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainStatus {
    /// No quorum yet, or reopened by a veto.
    Open,
    /// Accepted; the dispute window runs.
    Accepted,
    /// The window is over; pages may be paid.
    Final,
    /// All pages are paid.
    Settled {
        /// Block of the last payment.
        block: u32,
    },
    /// Closed without an accepted commitment; its budget is never minted.
    Forfeited,
}

/// Input of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The chain grew, or was polled again.
    Head {
        /// Best block.
        best: u32,
        /// Finalised block.
        finalized: u32,
        /// Whether a new round may open: false if the validation reserve is exhausted or the server is stopping.
        may_open: bool,
    },
    /// The seed of the validation draw of an epoch is stored.
    SeedReady {
        /// Epoch.
        epoch: u32,
    },
    /// The seed of the validation draw of an epoch could not be read from the chain, although it answers.
    SeedUnavailable {
        /// Epoch.
        epoch: u32,
    },
    /// The decisions of an epoch are stored.
    Scored {
        /// Epoch.
        epoch: u32,
        /// Whether somebody is to be paid, so that a commitment is signed.
        attest: bool,
    },
    /// The chain's answer about an epoch.
    Chain {
        /// Epoch.
        epoch: u32,
        /// The answer.
        status: ChainStatus,
    },
    /// The commitment that was signed for an epoch will never be accepted (another set, parent or round than it names).
    Unattestable {
        /// Epoch.
        epoch: u32,
    },
}

/// Output of the machine, to be carried out by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Store a new round and hand out tasks.
    Open {
        /// Epoch.
        epoch: u32,
        /// Block before which commits are accepted.
        deadline: u32,
    },
    /// Store that no commit is accepted any more.
    Seal {
        /// Epoch.
        epoch: u32,
    },
    /// Read the VRF outputs of finalised blocks `first..=last`, store the seed, answer [`Event::SeedReady`], or
    /// [`Event::SeedUnavailable`] if the chain answers and does not have them.
    FetchSeed {
        /// Epoch.
        epoch: u32,
        /// First block after the deadline.
        first: u32,
        /// Last block.
        last: u32,
    },
    /// Measure, decide, step the model, publish; answer [`Event::Scored`].
    Score {
        /// Epoch.
        epoch: u32,
    },
    /// End a round that can never be scored: store a verdict for every submission that blames nobody.
    Void {
        /// Epoch.
        epoch: u32,
    },
    /// Ask the chain about an epoch; answer [`Event::Chain`].
    Follow {
        /// Epoch.
        epoch: u32,
    },
    /// Send the stored commitment; sign and store one first if there is none for the chain's round.
    Attest {
        /// Epoch.
        epoch: u32,
    },
    /// Send the payout pages that are not paid yet.
    Pay {
        /// Epoch.
        epoch: u32,
    },
    /// Store a settlement's status on the chain; the last one is settled or forfeited.
    Record {
        /// Epoch.
        epoch: u32,
        /// The chain's answer.
        status: ChainStatus,
    },
}

/// The one transition function. Events that do not fit the state (a late answer about an old round) change nothing.
pub fn step(mut state: State, event: Event, rules: &Rules) -> (State, Vec<Effect>) {
    let mut effects = Vec::new();
    match event {
        Event::Head {
            best,
            finalized,
            may_open,
        } => {
            state.best = state.best.max(best);
            head(&mut state, finalized, may_open, rules, &mut effects);
        }
        Event::SeedReady { epoch } => {
            if state.round == Some((epoch, Stage::Sealed)) {
                state.round = Some((epoch, Stage::Scoring));
                effects.push(Effect::Score { epoch });
            }
        }
        Event::SeedUnavailable { epoch } => {
            // The blocks may be gone for good (a pruned node). Once nobody can be paid for the epoch any more, waiting
            // for them helps no miner and keeps every later round from opening.
            if state.round == Some((epoch, Stage::Sealed)) && state.best >= rules.attestable_until(epoch) {
                state.round = Some((epoch, Stage::Scored));
                effects.push(Effect::Void { epoch });
            }
        }
        Event::Scored { epoch, attest } => {
            if state.round == Some((epoch, Stage::Scoring)) {
                state.round = Some((epoch, Stage::Scored));
                if attest {
                    state.settlements.insert(epoch, Settlement::default());
                }
            }
        }
        Event::Chain { epoch, status } => settle::answer(&mut state, epoch, status, rules, &mut effects),
        Event::Unattestable { epoch } => {
            if let Some(settlement) = state.settlements.get_mut(&epoch) {
                settlement.lost = true;
            }
        }
    }
    (state, effects)
}

fn head(state: &mut State, finalized: u32, may_open: bool, rules: &Rules, effects: &mut Vec<Effect>) {
    let best = state.best;
    // Before the seed and before a new round: one head may pass the deadline, the seed's blocks and the epoch's end.
    if let Some((epoch, Stage::Open)) = state.round
        && best >= rules.deadline(epoch)
    {
        state.round = Some((epoch, Stage::Sealed));
        effects.push(Effect::Seal { epoch });
    }
    if let Some((epoch, Stage::Sealed)) = state.round
        && finalized >= rules.seed_last(epoch)
    {
        // Repeated with every head until the seed is stored: fetching may fail.
        let (first, last) = (rules.deadline(epoch).saturating_add(1), rules.seed_last(epoch));
        effects.push(Effect::FetchSeed { epoch, first, last });
    }
    let current = rules.epoch(best);
    let free = match state.round {
        None => true,
        Some((epoch, Stage::Scored)) => epoch < current,
        // The next round trains on this one's result.
        Some(_) => false,
    };
    let deadline = rules.deadline(current);
    if free && may_open && best.saturating_add(rules.open_margin_blocks) <= deadline {
        state.round = Some((current, Stage::Open));
        effects.push(Effect::Open {
            epoch: current,
            deadline,
        });
    }
    follow(state, rules, effects);
}

#[cfg(test)]
mod tests;
