//! Weights by hand, conservative: an entry is a read and a write of an account, a page is the ledger, the commitment
//! and the counters of issuance.

use frame_support::{
    traits::Get,
    weights::{RuntimeDbWeight, Weight},
};

/// Division, checks and events of one entry, picoseconds.
const ENTRY: u64 = 10_000_000;
/// Hashing of one entry, picoseconds.
const ENTRY_HASHING: u64 = 500_000;
/// Execution of a page without entries, picoseconds.
const PAGE: u64 = 60_000_000;
/// Size in the proof of an account, bytes.
const ENTRY_PROOF: u64 = 2_603;
/// Size in the proof of the ledger and the commitment, bytes.
const PAGE_PROOF: u64 = 16_384;

/// Payment of a page with `entries` entries.
pub fn payout_page<D: Get<RuntimeDbWeight>>(entries: u32) -> Weight {
    let entries = u64::from(entries);
    Weight::from_parts(PAGE + entries * ENTRY, PAGE_PROOF + entries * ENTRY_PROOF)
        .saturating_add(D::get().reads_writes(8 + entries, 5 + entries))
}

/// Verification of a page with `entries` entries.
pub fn authorize_payout_page<D: Get<RuntimeDbWeight>>(entries: u32) -> Weight {
    let entries = u64::from(entries);
    Weight::from_parts(PAGE + entries * ENTRY_HASHING, PAGE_PROOF).saturating_add(D::get().reads(6))
}
