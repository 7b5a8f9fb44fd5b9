//! The current model: snapshot and deltas.

use crate::Hex32;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
    /// Steps that led to the snapshot, for those who have the weights before one of them: fewer bytes than the
    /// snapshot.
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
