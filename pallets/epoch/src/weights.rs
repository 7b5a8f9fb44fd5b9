//! Weights by hand, conservative: every storage item that a path can touch is counted as a database access of the
//! network's own cost, and computation is a few times what it takes on the slowest machine that it was tried on.

use frame_support::{
    traits::Get,
    weights::{RuntimeDbWeight, Weight},
};

/// Verification of an sr25519 signature, picoseconds.
const SIGNATURE: u64 = 100_000_000;
/// Hashing and decoding of a few hundred bytes, picoseconds.
const HASHING: u64 = 20_000_000;
/// Size in the proof of what is read, bytes.
const PROOF_SIZE: u64 = 8_192;

fn weight<D: Get<RuntimeDbWeight>>(time: u64, reads: u64, writes: u64) -> Weight {
    Weight::from_parts(time, PROOF_SIZE).saturating_add(D::get().reads_writes(reads, writes))
}

/// Attestations, servers, closed, latest, parameters; with acceptance: commitment, latest, closed, two removals.
pub fn attest<D: Get<RuntimeDbWeight>>() -> Weight {
    weight::<D>(HASHING, 6, 7)
}

/// All that the checks read, and the signature.
pub fn authorize_attest<D: Get<RuntimeDbWeight>>() -> Weight {
    weight::<D>(SIGNATURE + HASHING, 11, 0)
}

/// Vetoes and the validators' keys; with the reopening of the epoch.
pub fn veto<D: Get<RuntimeDbWeight>>() -> Weight {
    weight::<D>(HASHING, 4, 7)
}

/// All that the checks read, and the signature.
pub fn authorize_veto<D: Get<RuntimeDbWeight>>() -> Weight {
    weight::<D>(SIGNATURE + HASHING, 6, 0)
}
