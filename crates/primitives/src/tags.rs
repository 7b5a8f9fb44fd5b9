//! Domain tags. Each has one purpose. A change of the bytes that are hashed or signed under a tag changes its version.

/// Signed by a parameter server: one epoch's commitment.
pub const ATTEST: &[u8] = b"alice/attest/v1";
/// Signed by a validator: refusal of an accepted commitment inside the dispute window.
pub const VETO: &[u8] = b"alice/veto/v1";
/// Hash of a commitment.
pub const COMMITMENT: &str = "alice/commitment/v1";
/// Hash of one payout page.
pub const PAGE_LEAF: &str = "alice/page-leaf/v1";
/// Hash of two children in the payout tree.
pub const PAGE_NODE: &str = "alice/page-node/v1";
/// Padding leaf of the payout tree.
pub const PAGE_EMPTY: &str = "alice/page-empty/v1";
/// Hash of a run specification.
pub const RUN: &str = "alice/run/v1";
/// Seed of the model's first state.
pub const INIT: &str = "alice/init/v1";
/// Seed of the random numbers of upcycling, which makes experts out of a dense model.
pub const UPCYCLE: &str = "alice/upcycle/v1";
/// Leaf of the model root: one tensor.
pub const MODEL_LEAF: &str = "alice/model-leaf/v1";
/// Inner node of the model root.
pub const MODEL_NODE: &str = "alice/model-node/v1";
/// Leaf of a corpus or reserve root: one shard.
pub const CORPUS_LEAF: &str = "alice/corpus-leaf/v1";
/// Inner node of a corpus or reserve root.
pub const CORPUS_NODE: &str = "alice/corpus-node/v1";
/// Seed of an epoch's permutation of the training sequences.
pub const EPOCH_SEED: &str = "alice/epoch-seed/v1";
/// Seed of one task's order of sequences.
pub const TASK_SEED: &str = "alice/task-seed/v1";
/// Identifier of a task.
pub const TASK_ID: &str = "alice/task-id/v1";
/// Identifier of a submission.
pub const SUBMISSION_ID: &str = "alice/submission-id/v1";
/// Seed of the draw of validation sequences.
pub const VALIDATION_SEED: &str = "alice/validation-seed/v1";
/// Seed of the stochastic rounding of the published delta.
pub const ROUNDING_SEED: &str = "alice/rounding-seed/v1";
/// Signed by a miner: request for a task.
pub const CLAIM: &[u8] = b"alice/claim/v1";
/// Signed by a miner: declaration of an upload.
pub const DECLARE: &[u8] = b"alice/declare/v1";
/// Signed by a miner: commit of an upload.
pub const COMMIT: &[u8] = b"alice/commit/v1";
/// Signed by the parameter server: lease of a task.
pub const LEASE: &[u8] = b"alice/lease/v1";
/// Signed by the parameter server: receipt of an upload that arrived in time.
pub const RECEIPT: &[u8] = b"alice/receipt/v1";
/// Signed by the parameter server: verdict on a submission.
pub const VERDICT: &[u8] = b"alice/verdict/v1";
