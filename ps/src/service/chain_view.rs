//! The chain and the round's phase as request handlers see them. The driver writes the view, handlers read it.

use alice_round::Phase;

/// The newest known state of the chain and the round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainView {
    /// Best block; `None` until the chain was reached.
    pub best: Option<u32>,
    /// Whether no new block was seen for long, so that `best` may be out of date.
    pub stale: bool,
    /// Finalised block.
    pub finalized: u32,
    /// Phase of the round.
    pub phase: Phase,
    /// Reason why no round is open, or why the server cannot go on; `None` in normal operation.
    pub notice: Option<String>,
}

impl Default for ChainView {
    fn default() -> Self {
        Self {
            best: None,
            stale: false,
            finalized: 0,
            phase: Phase::Idle,
            notice: Some("waiting for the chain".into()),
        }
    }
}
