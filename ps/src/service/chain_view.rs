//! What the HTTP side knows of the chain and of the round's phase. The driver writes it, handlers read it.

use alice_round::Phase;

/// A glance at the chain and the round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Best block; none until the chain was seen.
    pub best: Option<u32>,
    /// Whether no new block has come for long: the best block may be out of date.
    pub stale: bool,
    /// Finalised block.
    pub finalized: u32,
    /// Phase of the round.
    pub phase: Phase,
    /// Why nothing is going on, where nothing is.
    pub notice: Option<String>,
}

impl Default for View {
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
