//! Verdicts over submissions.

use crate::{Hex32, Hex64, Receipt};
use codec::{Decode, Encode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Outcome of a submission. The list is fixed; names are stable.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It helps: aggregated and paid.
    Accepted,
    /// The improvement is not above the gate.
    NoImprovement,
    /// Not an update: the decoder's reason is in the verdict's `detail`.
    Malformed,
    /// Trained on another model than the round's.
    WrongBase,
    /// Made for another run or layout.
    WrongRun,
    /// All zero, or a norm that is not finite.
    Degenerate,
    /// The round was voided by a fault of the server; nobody is blamed and nobody is paid.
    Voided,
}

impl Outcome {
    /// The stable code, as in JSON.
    pub fn code(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::NoImprovement => "no_improvement",
            Self::Malformed => "malformed",
            Self::WrongBase => "wrong_base",
            Self::WrongRun => "wrong_run",
            Self::Degenerate => "degenerate",
            Self::Voided => "voided",
        }
    }
}

/// Contents of a verdict. Losses and their differences in nano-nats per token.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize, ToSchema)]
pub struct VerdictBody {
    /// Submission.
    pub id: Hex32,
    /// Epoch.
    pub epoch: u32,
    /// Outcome.
    pub outcome: Outcome,
    /// The reason in one sentence, with the numbers behind it.
    pub detail: String,
    /// Improvement at the probe step divided by κ: s_i.
    pub improvement_nano_nats: i64,
    /// Its standard error.
    pub standard_error_nano_nats: u64,
    /// Factor f_i as the bits of an f32.
    pub factor_bits: u32,
    /// L2 norm of the update as the bits of an f32.
    pub norm_bits: u32,
    /// Score in billionths; pay is proportional to it.
    pub score: u64,
}

/// A verdict, signed by the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Verdict {
    /// The signed contents.
    pub body: VerdictBody,
    /// Server that signed.
    pub ps_key: Hex32,
    /// Signature over SCALE `(VERDICT, genesis_hash, body)`.
    pub signature: Hex64,
}

/// `GET /v1/submissions/{id}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SubmissionStatus {
    /// Its receipt.
    pub receipt: Receipt,
    /// Its verdict, once scored.
    pub verdict: Option<Verdict>,
}

/// `GET /v1/miners/{key}`: history of a mining key or a payout account, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MinerHistory {
    /// The key or account asked for.
    pub key: Hex32,
    /// Committed submissions.
    pub submitted: u32,
    /// Accepted ones.
    pub accepted: u32,
    /// The newest submissions with their verdicts, at most 100.
    pub submissions: Vec<SubmissionStatus>,
}
