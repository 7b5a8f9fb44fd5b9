//! Epochs: manifests, payout pages, summaries.

use crate::{Delta, Hex32, ReceiptBody, Task, VerdictBody};
use alice_primitives::{SettlementStatus, pages};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// `GET /v1/epochs/{e}/manifest`: all inputs and results of the epoch's decisions. Its bytes are hashed into the
/// commitment.
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
    pub refused: BTreeMap<String, u32>,
    /// Median norm ν_p after this round as the bits of an f32, one for each fragment of the run; zero where nothing of
    /// the fragment was ever accepted.
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
    /// α_used as the bits of an f32; zero if the step was skipped.
    pub alpha_bits: u32,
    /// The published aggregate D; `None` if nothing was accepted.
    pub aggregate: Option<Delta>,
    /// Payout entries in ascending order of account.
    pub entries: Vec<PayoutEntry>,
    /// Sum of the scores, decimal: many readers of JSON round numbers above 2^53.
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

/// A submission with its decision, as recorded in the manifest.
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

/// `GET /v1/epochs/{e}/pages/{i}` and `GET /v1/epochs/{e}/pages?account=`: with it a miner is paid without the
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
    pub refused: BTreeMap<String, u32>,
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
