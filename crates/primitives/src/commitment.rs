//! The commitment to an epoch's outcome, and the bytes that are signed over it.

use crate::{Hash, tagged_hash, tags};
use alloc::vec::Vec;
use codec::{Decode, DecodeWithMemTracking, Encode, MaxEncodedLen};
use scale_info::TypeInfo;

/// Outcome of one epoch, as the parameter servers sign it (docs/spec/protocol.md#settlement). Commitments form a chain
/// by `parent`. The SCALE encoding has 192 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, DecodeWithMemTracking, MaxEncodedLen, TypeInfo)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize))]
pub struct Commitment {
    /// Epoch number, counted in blocks from genesis.
    pub epoch: u32,
    /// Number of the set of parameter servers.
    pub set_id: u32,
    /// Hash of the run specification.
    pub run_hash: Hash,
    /// Root of the Merkle tree of payout pages.
    pub contributions_root: Hash,
    /// Number of payout pages.
    pub pages: u32,
    /// Number of payout entries over all pages.
    pub entries: u32,
    /// Sum of all scores, billionths.
    pub total_score: u128,
    /// BLAKE3 of the epoch manifest's bytes.
    pub manifest_hash: Hash,
    /// Root of the model after the epoch.
    pub model_root: Hash,
    /// Hash of the previous accepted commitment; zero for the first.
    pub parent: Hash,
}

impl Commitment {
    /// Identifier of the commitment, which the next one names as its `parent`.
    pub fn hash(&self) -> Hash {
        // All fields have fixed lengths, so that the encoding of no other commitment is equal.
        tagged_hash(tags::COMMITMENT, &[&self.encode()])
    }

    /// The bytes a parameter server signs: SCALE of `(tag, genesis_hash, round, commitment)`.
    pub fn attest_payload(&self, genesis_hash: &Hash, round: u32) -> Vec<u8> {
        // Genesis hash and round: a signature is of no use on another network, or after a veto.
        (tags::ATTEST, genesis_hash, round, self).encode()
    }
}

/// The bytes a validator signs to veto an accepted commitment: SCALE of `(tag, genesis_hash, round, epoch, hash)`.
pub fn veto_payload(genesis_hash: &Hash, round: u32, epoch: u32, commitment: &Hash) -> Vec<u8> {
    (tags::VETO, genesis_hash, round, epoch, commitment).encode()
}

/// Number of parameter servers, of `n`, that must sign the same commitment: `n − ⌊(n−1)/3⌋`.
///
/// With `n = 3f + 1` any two quorums share an honest server as long as at most `f` are dishonest.
pub const fn quorum(n: u32) -> u32 {
    n - n.saturating_sub(1) / 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::commitment as sample;

    #[test]
    fn quorum_should_follow_the_formula() {
        let expected = [
            (1, 1),
            (2, 2),
            (3, 3),
            (4, 3),
            (5, 4),
            (6, 5),
            (7, 5),
            (10, 7),
            (31, 21),
        ];
        for (n, q) in expected {
            assert_eq!(quorum(n), q, "n = {n}");
        }
    }

    #[test]
    fn layout_should_be_fixed() {
        // Golden: a change of the layout or of the tag must be a new version of the tag.
        let encoded = sample().encode();
        assert_eq!(encoded.len(), 4 + 4 + 32 + 32 + 4 + 4 + 16 + 32 + 32 + 32);
        assert_eq!(Commitment::max_encoded_len(), encoded.len());
        assert_eq!(
            hex::encode(sample().hash()),
            include_str!("../golden/commitment-hash.hex").trim()
        );
        assert_eq!(&sample().attest_payload(&[9; 32], 0)[..16], b"\x3calice/attest/v1");
    }

    #[test]
    fn payload_should_bind_genesis_and_round() {
        let c = sample();
        assert_ne!(c.attest_payload(&[0; 32], 0), c.attest_payload(&[1; 32], 0));
        assert_ne!(c.attest_payload(&[0; 32], 0), c.attest_payload(&[0; 32], 1));
    }
}
