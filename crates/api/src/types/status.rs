//! State of the server.

use crate::{Hex32, Phase};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Version of the protocol that this crate speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// [`PROTOCOL_VERSION`] of the server.
    pub protocol: u32,
    /// Public key by which the server signs leases, receipts, verdicts and attestations.
    pub ps_key: Hex32,
    /// Genesis hash of the chain it follows.
    pub genesis_hash: Hex32,
    /// Hash of the run specification.
    pub run_hash: Hex32,
    /// Name of the run.
    pub run: String,
    /// Best block the server has seen.
    pub block: u32,
    /// Epoch of that block.
    pub epoch: u32,
    /// Phase of its round.
    pub phase: Phase,
    /// Epoch of the open or last round; `None` before the first.
    pub round_epoch: Option<u32>,
    /// Commits to that round are accepted before this block.
    pub deadline_block: Option<u32>,
    /// Root of the model that the next or open round trains on.
    pub model_root: Hex32,
    /// Steps the model has taken (accepted rounds).
    pub model_step: u32,
    /// Held-out loss, nats per token, after the last scored round.
    pub held_out_loss: Option<f64>,
    /// Submissions of the open round so far.
    pub submissions: u32,
    /// Why no round is open, in a sentence (chain unreachable, reserve exhausted …); `None` if there is no such reason.
    pub notice: Option<String>,
}
