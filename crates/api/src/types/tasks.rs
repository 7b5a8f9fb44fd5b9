//! Claims, tasks and leases.

use crate::{Hex32, Hex64};
use codec::{Decode, Encode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
