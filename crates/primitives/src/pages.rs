//! Payout pages and the Merkle tree over them (`docs/spec/merkle-pages.md`).
//!
//! A leaf is the hash of a whole page with its epoch and index; leaves and nodes have different domain tags, and the
//! proof's length is fixed by the number of pages, so that no node can be passed off as a leaf.

use crate::{Hash, tagged_hash, tags};
use alloc::{vec, vec::Vec};
use codec::{Decode, DecodeWithMemTracking, Encode, MaxEncodedLen};
use scale_info::TypeInfo;

/// Entries in a full page.
pub const PAGE_ENTRIES: usize = 256;
/// Depth of the largest tree: 65,536 pages, 16.8 million entries.
pub const MAX_DEPTH: usize = 16;

/// One account's score in an epoch. Entries are in ascending order of account, one for each account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, DecodeWithMemTracking, MaxEncodedLen, TypeInfo)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize))]
pub struct Entry {
    /// Payout account (public key bytes).
    pub account: Hash,
    /// Score in billionths.
    pub score: u64,
}

/// Hash of page `index` of `epoch`.
pub fn leaf(epoch: u32, index: u32, entries: &[Entry]) -> Hash {
    tagged_hash(tags::PAGE_LEAF, &[&(epoch, index).encode(), &entries.encode()])
}

fn node(left: &Hash, right: &Hash) -> Hash {
    tagged_hash(tags::PAGE_NODE, &[left, right])
}

fn empty() -> Hash {
    tagged_hash(tags::PAGE_EMPTY, &[])
}

/// Depth of the tree over `pages` leaves: the proof's exact length. Leaves are padded to a power of two.
pub const fn depth(pages: u32) -> usize {
    match pages {
        0 | 1 => 0,
        n => (u32::BITS - (n - 1).leading_zeros()) as usize,
    }
}

fn levels(leaves: &[Hash]) -> Vec<Vec<Hash>> {
    let width = 1usize << depth(leaves.len() as u32);
    let mut level = leaves.to_vec();
    level.resize(width, empty());
    let mut levels = vec![level];
    while let Some(last) = levels.last().filter(|l| l.len() > 1) {
        let next = last.chunks_exact(2).map(|pair| node(&pair[0], &pair[1])).collect();
        levels.push(next);
    }
    levels
}

/// Root over the pages' leaves; the padding leaf's hash where there is no page.
pub fn root(leaves: &[Hash]) -> Hash {
    levels(leaves).last().map_or_else(empty, |top| top[0])
}

/// Siblings from leaf `index` up to the root; `None` where there is no such leaf.
pub fn proof(leaves: &[Hash], index: u32) -> Option<Vec<Hash>> {
    let mut at = index as usize;
    if at >= leaves.len() {
        return None;
    }
    let levels = levels(leaves);
    let mut siblings = Vec::with_capacity(levels.len());
    for level in &levels[..levels.len() - 1] {
        siblings.push(level[at ^ 1]);
        at >>= 1;
    }
    Some(siblings)
}

/// Whether `leaf` is leaf `index` of the tree of `pages` leaves with this root.
pub fn verify(root: &Hash, pages: u32, index: u32, leaf: &Hash, proof: &[Hash]) -> bool {
    if index >= pages || proof.len() != depth(pages) || proof.len() > MAX_DEPTH {
        return false;
    }
    let mut at = index;
    let mut hash = *leaf;
    for sibling in proof {
        hash = if at & 1 == 0 {
            node(&hash, sibling)
        } else {
            node(sibling, &hash)
        };
        at >>= 1;
    }
    hash == *root
}

/// Splits entries into pages.
pub fn paginate(entries: &[Entry]) -> impl Iterator<Item = &[Entry]> {
    entries.chunks(PAGE_ENTRIES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leaves(n: u32) -> Vec<Hash> {
        (0..n)
            .map(|i| {
                leaf(
                    3,
                    i,
                    &[Entry {
                        account: [i as u8; 32],
                        score: u64::from(i),
                    }],
                )
            })
            .collect()
    }

    #[test]
    fn every_page_should_verify_under_the_root() {
        for n in 1..=17 {
            let leaves = leaves(n);
            let root = root(&leaves);
            for i in 0..n {
                let proof = proof(&leaves, i).unwrap();
                assert!(verify(&root, n, i, &leaves[i as usize], &proof));
                assert!(!verify(&root, n, i ^ 1, &leaves[i as usize], &proof) || n == 1);
                assert!(!verify(&root, n + 16, i, &leaves[i as usize], &proof));
            }
            assert!(proof(&leaves, n).is_none());
        }
    }

    #[test]
    fn an_inner_node_should_not_verify_as_a_leaf() {
        let leaves = leaves(4);
        let root = root(&leaves);
        let inner = node(&leaves[0], &leaves[1]);
        let sibling = node(&leaves[2], &leaves[3]);
        assert!(!verify(&root, 4, 0, &inner, &[sibling]));
        assert!(!verify(&root, 2, 0, &inner, &[leaves[1]]));
    }

    #[test]
    fn root_should_match_the_golden_file() {
        assert_eq!(
            hex::encode(root(&leaves(5))),
            include_str!("../golden/pages-root-5.hex").trim()
        );
    }

    proptest! {
        #[test]
        fn a_changed_entry_should_not_verify(n in 1u32..40, pick in any::<prop::sample::Index>(), flip in 0usize..40) {
            let index = pick.index(n as usize) as u32;
            let mut entries = vec![Entry { account: [index as u8; 32], score: u64::from(index) }];
            let leaves = leaves(n);
            let (root, proof) = (root(&leaves), proof(&leaves, index).unwrap());
            prop_assert!(verify(&root, n, index, &leaf(3, index, &entries), &proof));
            if flip < 32 { entries[0].account[flip] ^= 1 } else { entries[0].score ^= 1 << (flip - 32) }
            prop_assert!(!verify(&root, n, index, &leaf(3, index, &entries), &proof));
        }
    }
}
