//! What goes over HTTP, as JSON (`docs/spec/http-api.md`). Signed parts are signed over SCALE, see [`crate::sign`].

pub use alice_round::Phase;

use crate::{Hex32, Hex64};
use alice_primitives::{SettlementStatus, pages};
use codec::{Decode, Encode};
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
    /// What the server is doing.
    pub phase: Phase,
    /// Epoch of the open or last round; none before the first.
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
    /// Why nothing is going on, where nothing is (chain unreachable, reserve exhausted …).
    pub notice: Option<String>,
}

/// `GET /v1/model`: how to get the current model. All blobs are at `/v1/blobs/{hash}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelManifest {
    /// Root of the current model.
    pub model_root: Hex32,
    /// Steps the model has taken.
    pub model_step: u32,
    /// Last published snapshot, at `snapshot.step ≤ model_step`.
    pub snapshot: Snapshot,
    /// Deltas from the snapshot to the current model, in order of application.
    pub deltas: Vec<Delta>,
    /// Steps that led to the snapshot, for those who have the weights before one of them: fewer bytes than the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earlier: Option<Earlier>,
}

/// Steps that end in a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Earlier {
    /// Root of the model that the first delta is for.
    pub model_root: Hex32,
    /// Deltas in order of application; the last one leads to the snapshot.
    pub deltas: Vec<Delta>,
}

/// The canonical f32 weights (little endian, tensors in canonical order, nothing between them), cut into chunks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Root of the model.
    pub model_root: Hex32,
    /// Steps the model had taken.
    pub step: u32,
    /// Total size, bytes.
    pub bytes: u64,
    /// Bytes in each chunk but the last.
    pub chunk_bytes: u32,
    /// BLAKE3 of each chunk.
    pub chunks: Vec<Hex32>,
}

/// One step of the model: `θ ← θ − alpha · decode(D)` (docs/spec/protocol.md#model-step).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Delta {
    /// Epoch whose round made it.
    pub epoch: u32,
    /// Root of the model after it.
    pub model_root: Hex32,
    /// BLAKE3 of the encoded D.
    pub blob: Hex32,
    /// Size of the encoded D, bytes.
    pub bytes: u64,
    /// α_used as the bits of an f32.
    pub alpha_bits: u32,
}

/// `GET /v1/corpus`: the training shards; `GET /v1/yardstick`: those of the public yardstick. A shard is a blob of u16
/// little-endian token ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CorpusManifest {
    /// Root over the shards; for the training text it equals the run specification's `data.corpus_root`.
    pub root: Hex32,
    /// Shards in order.
    pub shards: Vec<Shard>,
    /// Where the text comes from, as whoever built the corpus says; no root covers it. Empty where nothing was said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<TextSource>,
}

/// A source of text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TextSource {
    /// Its name.
    pub name: String,
    /// SPDX expression of its licence.
    pub license: String,
    /// Where it can be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Documents of it in the shards.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
}

/// One shard of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Shard {
    /// BLAKE3 of the shard's bytes.
    pub blob: Hex32,
    /// Tokens in it (two bytes each).
    pub tokens: u64,
}

/// `POST /v1/tasks`: asks for a task. Signed by the mining key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClaimRequest {
    /// Mining key.
    pub miner: Hex32,
    /// Account that is paid.
    pub payout: Hex32,
    /// Epoch of the round to join.
    pub epoch: u32,
    /// Signature over SCALE `(CLAIM, genesis_hash, run_hash, epoch, miner, payout)`.
    pub signature: Hex64,
}

/// A task under a lease. Signed by the server.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// `H(TASK_ID, run_hash, epoch, slice)`.
    pub task_id: Hex32,
    /// Run.
    pub run_hash: Hex32,
    /// Epoch.
    pub epoch: u32,
    /// Model to train on.
    pub base_root: Hex32,
    /// Steps that model has taken.
    pub base_step: u32,
    /// Number of the slice of the epoch's permutation.
    pub slice: u32,
    /// Fragment of the model that is trained: (epoch + slice) mod the run's fragments.
    pub fragment: u32,
    /// Seed of the epoch's permutation of the training sequences.
    pub epoch_seed: Hex32,
    /// Local steps H.
    pub steps: u32,
    /// Sequences in a step's batch.
    pub batch_sequences: u32,
    /// Mining key that holds the lease.
    pub miner: Hex32,
    /// Account that is paid.
    pub payout: Hex32,
    /// The lease ends with this block.
    pub lease_block: u32,
    /// Commits are accepted before this block.
    pub deadline_block: u32,
}

/// Answer to a claim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    /// The task.
    pub task: Task,
    /// Signature of the server over SCALE `(LEASE, genesis_hash, task)`.
    pub signature: Hex64,
}

/// `POST /v1/uploads`: declares an upload before a byte of it is sent. Signed by the mining key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeclareRequest {
    /// Task it answers.
    pub task_id: Hex32,
    /// Mining key that holds the lease.
    pub miner: Hex32,
    /// BLAKE3 of the update.
    pub blob: Hex32,
    /// Size of the update, bytes.
    pub bytes: u64,
    /// Signature over SCALE `(DECLARE, genesis_hash, task_id, miner, blob, bytes)`.
    pub signature: Hex64,
}

/// State of an upload: answer to a declaration, to `GET /v1/uploads/{id}` and to each part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UploadState {
    /// Identifier: `H(SUBMISSION_ID, task_id, miner, blob)`, also the submission's.
    pub id: Hex32,
    /// Bytes the server has on disk; the next part starts here (`PATCH /v1/uploads/{id}?offset=`).
    pub offset: u64,
    /// Declared size.
    pub bytes: u64,
    /// Largest part in one request.
    pub part_bytes_max: u64,
    /// Whether it has been committed.
    pub committed: bool,
}

/// `POST /v1/uploads/{id}/commit`. Signed by the mining key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CommitRequest {
    /// Submission.
    pub id: Hex32,
    /// Mining key.
    pub miner: Hex32,
    /// Signature over SCALE `(COMMIT, genesis_hash, id, miner)`.
    pub signature: Hex64,
}

/// What a receipt says: these bytes arrived, in time.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize, ToSchema)]
pub struct ReceiptBody {
    /// Submission.
    pub id: Hex32,
    /// Task.
    pub task_id: Hex32,
    /// Epoch.
    pub epoch: u32,
    /// Mining key.
    pub miner: Hex32,
    /// Account that is paid.
    pub payout: Hex32,
    /// BLAKE3 of the update.
    pub blob: Hex32,
    /// Size of the update, bytes.
    pub bytes: u64,
    /// Best block when it was committed.
    pub block: u32,
    /// Place in the order of commits of the epoch.
    pub sequence: u32,
}

/// A receipt, signed by the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Receipt {
    /// What is signed.
    pub body: ReceiptBody,
    /// Server that signed.
    pub ps_key: Hex32,
    /// Signature over SCALE `(RECEIPT, genesis_hash, body)`.
    pub signature: Hex64,
}

/// What came of a submission. The list is fixed; names are stable.
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
    /// The stable code as it stands in JSON.
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

/// What a verdict says. Losses and their differences in nano-nats per token.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize, ToSchema)]
pub struct VerdictBody {
    /// Submission.
    pub id: Hex32,
    /// Epoch.
    pub epoch: u32,
    /// What came of it.
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
    /// Score in billionths, what pay is proportional to.
    pub score: u64,
}

/// A verdict, signed by the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Verdict {
    /// What is signed.
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

/// `GET /v1/epochs/{e}/manifest`: everything the epoch's decisions rest on. Its bytes are hashed into the commitment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EpochManifest {
    /// Version of this format.
    pub version: u32,
    /// Genesis hash of the chain.
    pub genesis_hash: Hex32,
    /// Run.
    pub run_hash: Hex32,
    /// Epoch.
    pub epoch: u32,
    /// Model before.
    pub base_root: Hex32,
    /// Model after.
    pub model_root: Hex32,
    /// Steps the model has taken after this epoch.
    pub model_step: u32,
    /// Seed of the epoch's permutation.
    pub epoch_seed: Hex32,
    /// Blocks (number, VRF output) that the validation seed is the hash of.
    pub seed_blocks: Vec<SeedBlock>,
    /// Seed of the validation draw.
    pub validation_seed: Hex32,
    /// Reserve sequences of the scoring split.
    pub scoring_split: Vec<u32>,
    /// Reserve sequences of the guard split.
    pub guard_split: Vec<u32>,
    /// Tasks handed out.
    pub tasks: Vec<Task>,
    /// All committed submissions in ascending order of id.
    pub submissions: Vec<SubmissionRecord>,
    /// Commits refused as late, and those refused before they became submissions, by code.
    pub refused: std::collections::BTreeMap<String, u32>,
    /// Median norm ν_p after this round as the bits of an f32, one for each fragment of the run; zero where nothing of the
    /// fragment was ever accepted.
    pub median_norm_bits: Vec<u32>,
    /// Loss on the guard split before the step, nano-nats per token.
    pub guard_loss_before_nano_nats: i64,
    /// Loss on the guard split after the step, nano-nats per token.
    pub guard_loss_after_nano_nats: i64,
    /// Standard error of their paired difference, nano-nats per token.
    pub guard_standard_error_nano_nats: u64,
    /// Loss on the scoring split before the step, nano-nats per token.
    pub loss_before_nano_nats: i64,
    /// Loss on the scoring split after the step.
    pub loss_after_nano_nats: i64,
    /// Standard error of their paired difference.
    pub loss_standard_error_nano_nats: u64,
    /// Times the guard halved α.
    pub halvings: u32,
    /// α_used as the bits of an f32; zero where the step was skipped.
    pub alpha_bits: u32,
    /// The published aggregate D; none where nothing was accepted.
    pub aggregate: Option<Delta>,
    /// Payout entries in ascending order of account.
    pub entries: Vec<PayoutEntry>,
    /// Sum of the scores, decimal.
    pub total_score: String,
}

/// A finalised block that went into the validation seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SeedBlock {
    /// Number.
    pub number: u32,
    /// Hash.
    pub hash: Hex32,
    /// VRF output of its author's slot claim.
    pub vrf_output: Hex32,
}

/// A submission with its decision, as it stands in the manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SubmissionRecord {
    /// Its receipt's contents.
    pub receipt: ReceiptBody,
    /// Its verdict's contents.
    pub verdict: VerdictBody,
}

/// One account's score in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PayoutEntry {
    /// Payout account.
    pub account: Hex32,
    /// Score in billionths.
    pub score: u64,
}

impl From<PayoutEntry> for pages::Entry {
    fn from(entry: PayoutEntry) -> Self {
        Self {
            account: entry.account.0,
            score: entry.score,
        }
    }
}

impl From<pages::Entry> for PayoutEntry {
    fn from(entry: pages::Entry) -> Self {
        Self {
            account: Hex32(entry.account),
            score: entry.score,
        }
    }
}

/// `GET /v1/epochs/{e}/pages/{i}` and `GET /v1/epochs/{e}/pages?account=`: what a miner keeps to be paid without the
/// server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PayoutPage {
    /// Epoch.
    pub epoch: u32,
    /// Index of the page.
    pub index: u32,
    /// Number of pages of the epoch.
    pub pages: u32,
    /// Root that the commitment holds.
    pub contributions_root: Hex32,
    /// Entries.
    pub entries: Vec<PayoutEntry>,
    /// Siblings from the page up to the root.
    pub proof: Vec<Hex32>,
}

/// `GET /v1/epochs/{e}`: short summary of an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EpochSummary {
    /// Epoch.
    pub epoch: u32,
    /// Model after.
    pub model_root: Hex32,
    /// BLAKE3 of the manifest.
    pub manifest_hash: Hex32,
    /// Held-out loss before the step, nats per token.
    pub loss_before: f64,
    /// Held-out loss after the step.
    pub loss_after: f64,
    /// Standard error of the paired difference.
    pub loss_standard_error: f64,
    /// Committed submissions.
    pub submitted: u32,
    /// Accepted ones.
    pub accepted: u32,
    /// Commits that came after the deadline.
    pub late: u32,
    /// Everything else that was refused, by code.
    pub refused: std::collections::BTreeMap<String, u32>,
    /// Largest update, bytes.
    pub update_bytes_max: u64,
    /// Mean size of an update, bytes.
    pub update_bytes_mean: u64,
    /// α_used.
    pub alpha_used: f64,
    /// Settlement on the chain, as far as the server knows it.
    #[schema(value_type = String)]
    pub settlement: SettlementStatus,
    /// Block in which it was settled.
    pub settled_block: Option<u32>,
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

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// What went wrong.
    pub error: ErrorCode,
    /// In a sentence: what, where.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// Stable codes of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: not the JSON, path or query that was expected.
    BadRequest,
    /// 413: body or declared size over the limit.
    TooLarge,
    /// 401: the signature does not verify.
    BadSignature,
    /// 409: no round is open, or the claim names another epoch.
    NoRound,
    /// 429: no task is left in this round, or too many requests.
    NoTask,
    /// 404: no such task.
    UnknownTask,
    /// 404: no such upload, submission, blob, epoch, page or miner.
    NotFound,
    /// 410: the lease has expired.
    LeaseExpired,
    /// 403: the task is leased to another key.
    NotYourTask,
    /// 409: another update was already committed for the task.
    Duplicate,
    /// 409: a part does not start at the offset that the server has.
    WrongOffset,
    /// 409: commit before all bytes are there.
    Incomplete,
    /// 422: the bytes do not have the declared hash.
    HashMismatch,
    /// 410: after the deadline block.
    Late,
    /// 503: the server cannot do it now (chain unreachable, starting); try again.
    Unavailable,
    /// 500: a fault of the server.
    Internal,
}

impl ErrorCode {
    /// HTTP status that goes with the code.
    pub fn http_status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::BadSignature => 401,
            Self::NotYourTask => 403,
            Self::UnknownTask | Self::NotFound => 404,
            Self::NoRound | Self::Duplicate | Self::WrongOffset | Self::Incomplete => 409,
            Self::LeaseExpired | Self::Late => 410,
            Self::TooLarge => 413,
            Self::HashMismatch => 422,
            Self::NoTask => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }

    /// The stable code as it stands in JSON.
    pub fn code(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::TooLarge => "too_large",
            Self::BadSignature => "bad_signature",
            Self::NoRound => "no_round",
            Self::NoTask => "no_task",
            Self::UnknownTask => "unknown_task",
            Self::NotFound => "not_found",
            Self::LeaseExpired => "lease_expired",
            Self::NotYourTask => "not_your_task",
            Self::Duplicate => "duplicate",
            Self::WrongOffset => "wrong_offset",
            Self::Incomplete => "incomplete",
            Self::HashMismatch => "hash_mismatch",
            Self::Late => "late",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}
