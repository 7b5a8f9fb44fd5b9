//! Scripted miners.

use crate::problem::Numbers;
use alice_update::ErrorFeedback;
use std::fmt;

/// Behaviour of a miner. Each differs from an honest one in the stated point only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strategy {
    /// Trains the task as given.
    Honest,
    /// Misses every other round, by its own draw.
    Churning,
    /// Does an eighth of the steps.
    Lazy,
    /// Sends the update with the wrong sign.
    Negated,
    /// Does not train: noise of an honest update's size.
    Noise,
    /// Multiplies its update by 1,000.
    Inflated,
    /// Does not train: sends the last round's published aggregate again.
    Replay,
    /// Trains one task and sends the result under four keys, each with a task of its own.
    FourKeys,
    /// Trains on the model of an earlier round.
    Stale,
    /// Sends random bytes.
    Garbage,
    /// Sends after the deadline.
    Late,
}

impl Strategy {
    /// Every strategy.
    pub const ALL: [Self; 11] = [
        Self::Honest,
        Self::Churning,
        Self::Lazy,
        Self::Negated,
        Self::Noise,
        Self::Inflated,
        Self::Replay,
        Self::FourKeys,
        Self::Stale,
        Self::Garbage,
        Self::Late,
    ];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Honest => "honest",
            Self::Churning => "churning",
            Self::Lazy => "lazy",
            Self::Negated => "negated",
            Self::Noise => "noise",
            Self::Inflated => "inflated",
            Self::Replay => "replay",
            Self::FourKeys => "four-keys",
            Self::Stale => "stale",
            Self::Garbage => "garbage",
            Self::Late => "late",
        }
    }

    /// Number of mining keys.
    pub(crate) fn keys(self) -> u32 {
        if self == Self::FourKeys { 4 } else { 1 }
    }

    /// Tasks' worth of training in a round in which it takes part, over all its keys.
    pub(crate) fn work(self) -> f64 {
        match self {
            Self::Lazy => 0.125,
            Self::Noise | Self::Replay | Self::Garbage => 0.0,
            _ => 1.0,
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Strategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|strategy| strategy.name() == text)
            .ok_or_else(|| format!("there is no strategy '{text}'; choose one of {}", known()))
    }
}

/// A machine with its keys and its state between rounds.
#[derive(Clone, Debug)]
pub(crate) struct Miner {
    pub strategy: Strategy,
    /// Error feedback of each fragment.
    pub feedback: Vec<ErrorFeedback>,
    pub numbers: Numbers,
}

impl Miner {
    /// Whether it takes part in a round.
    pub fn takes_part(&mut self) -> bool {
        self.strategy != Strategy::Churning || self.numbers.unit() < 0.5
    }
}
