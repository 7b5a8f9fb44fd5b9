//! The rules of signing, hashing and minting, shared by the chain's pallets, the parameter server, the miner and the
//! auditor. `no_std`, no FRAME, no I/O, so that the runtime and every tool run the same code.
//!
//! * [`Commitment`]: an epoch's outcome as parameter servers sign it (`docs/spec/attestation.md`).
//! * [`SettlementStatus`]: how far the payment of an epoch has come.
//! * [`pages`]: the Merkle tree over payout pages (`docs/spec/merkle-pages.md`).
//! * [`emission`]: the schedule of ALICE (`docs/spec/emission.md`).
//! * [`tags`]: the domain tags of every hash and signature.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

extern crate alloc;

pub mod commitment;
pub mod emission;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod history;
pub mod pages;
pub mod settlement;
pub mod tags;

pub use commitment::{Commitment, quorum};
pub use settlement::SettlementStatus;

/// A 32-byte BLAKE3 digest, account id or public key.
pub type Hash = [u8; 32];

/// SS58 prefix of every Alice network: addresses start with `a2`.
pub const SS58_PREFIX: u16 = 300;
/// Ticker of the coin.
pub const TOKEN_SYMBOL: &str = "ALICE";
/// Decimals of the coin: one ALICE is 10^12 planck.
pub const TOKEN_DECIMALS: u8 = 12;
/// Maximum number of parameter servers; 31 = 3 · 10 + 1 tolerates ten dishonest ones.
pub const PARAMETER_SERVERS_MAX: u32 = 31;

/// Message in the state of block 0: exactly these bytes, line breaks included, without one at the end.
pub const GENESIS_MESSAGE: &str = include_str!("../../../chain-spec/genesis-message.txt").trim_ascii_end();

/// BLAKE3 in key-derivation mode over the concatenation of `parts`. The domain tag is the context, so that no two uses
/// of the hash can collide; callers must make the parts self-delimiting (fixed lengths or SCALE).
pub fn tagged_hash(tag: &str, parts: &[&[u8]]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key(tag);
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn genesis_message_should_be_the_published_text() {
        assert!(GENESIS_MESSAGE.starts_with("OpenAI officially reaches deal with the Pentagon\nto deploy"));
        assert!(GENESIS_MESSAGE.ends_with("Alice — Trained by the people, from scratch."));
        assert_eq!(GENESIS_MESSAGE.lines().count(), 8);
    }

    #[test]
    fn tagged_hash_should_differ_between_domains() {
        assert_ne!(tagged_hash("a", &[b"x"]), tagged_hash("b", &[b"x"]));
        assert_eq!(tagged_hash("a", &[b"xy"]), tagged_hash("a", &[b"x", b"y"]));
    }
}
