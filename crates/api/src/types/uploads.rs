//! Uploads of updates and their receipts.

use crate::{Hex32, Hex64};
use codec::{Decode, Encode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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

/// Contents of a receipt: these bytes arrived, in time.
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
    /// The signed contents.
    pub body: ReceiptBody,
    /// Server that signed.
    pub ps_key: Hex32,
    /// Signature over SCALE `(RECEIPT, genesis_hash, body)`.
    pub signature: Hex64,
}
