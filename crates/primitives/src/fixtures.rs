//! Sample values for tests.

use crate::Commitment;

/// A well-formed commitment of epoch 7 in which every hash is different. Tests change the fields that they are about:
/// `Commitment { epoch: 0, ..fixtures::commitment() }`.
pub const fn commitment() -> Commitment {
    Commitment {
        epoch: 7,
        set_id: 1,
        run_hash: [1; 32],
        contributions_root: [2; 32],
        pages: 1,
        entries: 3,
        total_score: 3_000_000_000,
        manifest_hash: [3; 32],
        model_root: [4; 32],
        parent: [5; 32],
    }
}
