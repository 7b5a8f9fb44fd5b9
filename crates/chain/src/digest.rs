//! VRF output of a block, from the slot claim that BABE puts into its header.

use codec::{Decode, Input};
use subxt::config::substrate::{Digest, DigestItem};

/// Engine id of BABE's digest items.
const BABE: [u8; 4] = *b"BABE";

/// `sp_consensus_babe::digests::PreDigest`: SCALE enum whose variants start at 1.
#[derive(Decode)]
enum PreDigest {
    #[codec(index = 1)]
    Primary(VrfClaim),
    #[codec(index = 2)]
    SecondaryPlain { _authority_index: u32, _slot: u64 },
    #[codec(index = 3)]
    SecondaryVrf(VrfClaim),
}

#[derive(Decode)]
struct VrfClaim {
    _authority_index: u32,
    _slot: u64,
    output: [u8; 32],
    _proof: [u8; 64],
}

/// The 32-byte VRF pre-output of the block's author; the header's importer has verified its proof.
///
/// A block has exactly one BABE pre-runtime item, so a second one is refused instead of being ignored.
pub(crate) fn vrf_output(digest: &Digest) -> Result<[u8; 32], &'static str> {
    let mut found = None;
    for item in &digest.logs {
        if let DigestItem::PreRuntime(BABE, data) = item {
            if found.is_some() {
                return Err("two BABE slot claims");
            }
            found = Some(data);
        }
    }
    let data = &mut found.ok_or("no BABE slot claim")?.as_slice();
    let claim = PreDigest::decode(data).map_err(|_| "a BABE slot claim that cannot be read")?;
    // A claim with further bytes has a format that this decoder does not know, whatever its beginning.
    if !matches!(data.remaining_len(), Ok(Some(0))) {
        return Err("a BABE slot claim with bytes behind it");
    }
    match claim {
        PreDigest::Primary(claim) | PreDigest::SecondaryVrf(claim) => Ok(claim.output),
        // The runtime allows secondary slots with VRF only.
        PreDigest::SecondaryPlain { .. } => Err("a plain secondary slot"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use codec::Encode;
    use proptest::prelude::*;

    fn claim(variant: u8, vrf: bool) -> Vec<u8> {
        let mut bytes = (variant, 3u32, 99u64).encode();
        if vrf {
            bytes.extend([7u8; 32]);
            bytes.extend([8u8; 64]);
        }
        bytes
    }

    fn digest(items: Vec<DigestItem>) -> Digest {
        Digest { logs: items }
    }

    fn pre(data: Vec<u8>) -> DigestItem {
        DigestItem::PreRuntime(BABE, data)
    }

    #[test]
    fn vrf_output_should_come_from_primary_and_secondary_claims() {
        for variant in [1, 3] {
            let logs = vec![
                DigestItem::PreRuntime(*b"AURA", vec![1]),
                DigestItem::Consensus(BABE, vec![2]),
                pre(claim(variant, true)),
                DigestItem::Seal(BABE, vec![0; 64]),
            ];
            assert_eq!(vrf_output(&digest(logs)), Ok([7; 32]));
        }
    }

    #[test]
    fn vrf_output_should_name_what_is_there_instead() {
        let longer = [claim(1, true), vec![0]].concat();
        let cases = [
            (vec![], "no BABE slot claim"),
            (vec![pre(claim(2, false))], "a plain secondary slot"),
            (vec![pre(claim(0, true))], "a BABE slot claim that cannot be read"),
            (vec![pre(claim(1, false))], "a BABE slot claim that cannot be read"),
            (vec![pre(longer)], "a BABE slot claim with bytes behind it"),
            (vec![pre(claim(1, true)), pre(claim(1, true))], "two BABE slot claims"),
        ];
        for (logs, problem) in cases {
            assert_eq!(vrf_output(&digest(logs)), Err(problem));
        }
    }

    proptest! {
        #[test]
        fn vrf_output_should_survive_any_bytes(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            // The length is fixed by the variant, so only a claim of exactly that length can be read.
            let readable = vrf_output(&digest(vec![pre(data.clone())])).is_ok();
            prop_assert_eq!(readable, data.len() == 1 + 4 + 8 + 96 && matches!(data[0], 1 | 3));
        }
    }
}
