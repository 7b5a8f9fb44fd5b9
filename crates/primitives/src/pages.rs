//! Payout pages and the Merkle tree over them (`docs/spec/merkle-pages.md`).
//!
//! A leaf is the hash of a whole page with its epoch and index. Leaves and nodes have different domain tags, and the
//! proof's length is fixed by the number of pages, so that no node can be passed off as a leaf.
//!
//! ```
//! use alice_primitives::pages::{self, Entry};
//!
//! // 300 accounts fill one page and start a second.
//! let entries: Vec<Entry> = (0..300u64)
//!     .map(|i| Entry { account: std::array::from_fn(|byte| (i >> (8 * (3 - byte.min(3)))) as u8), score: i + 1 })
//!     .collect();
//! let epoch = 7;
//! let leaves: Vec<_> = pages::paginate(&entries).zip(0..).map(|(page, i)| pages::leaf(epoch, i, page)).collect();
//! let root = pages::root(&leaves);
//!
//! // Anybody can prove page 1 against the root that the parameter servers signed.
//! let page: Vec<Entry> = entries[256..].to_vec();
//! let proof = pages::proof(&leaves, 1).unwrap();
//! assert!(pages::verify(&root, leaves.len() as u32, 1, &pages::leaf(epoch, 1, &page), &proof));
//! // The same page does not verify in another place.
//! assert!(!pages::verify(&root, leaves.len() as u32, 0, &pages::leaf(epoch, 0, &page), &proof));
//! ```

use crate::{Hash, tagged_hash, tags};
use alloc::{collections::BTreeMap, vec, vec::Vec};
use codec::{Decode, DecodeWithMemTracking, Encode, MaxEncodedLen};
use scale_info::TypeInfo;

/// Entries in a full page. A page is one transaction, of about 11 kB if it is full.
pub const PAGE_ENTRIES: usize = 256;
/// Depth of the largest tree: 65,536 pages, 16.8 million entries.
pub const MAX_DEPTH: usize = 16;

/// Score of one account in an epoch. Entries are in ascending order of account, one for each account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, DecodeWithMemTracking, MaxEncodedLen, TypeInfo)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize))]
pub struct Entry {
    /// Payout account (public key bytes).
    pub account: Hash,
    /// Score in billionths.
    pub score: u64,
}

/// Payout entries of an epoch from the scores of its submissions: one for each account, in ascending order, with the
/// sum of its scores. Scores of zero make no entry; a sum saturates.
///
/// ```
/// use alice_primitives::pages::payout_entries;
///
/// let entries = payout_entries([([2; 32], 5), ([1; 32], 7), ([2; 32], 1), ([3; 32], 0)]);
/// let pairs: Vec<_> = entries.iter().map(|entry| (entry.account[0], entry.score)).collect();
/// assert_eq!(pairs, [(1, 7), (2, 6)]);
/// ```
pub fn payout_entries(scores: impl IntoIterator<Item = (Hash, u64)>) -> Vec<Entry> {
    let mut sums = BTreeMap::<Hash, u64>::new();
    for (account, score) in scores.into_iter().filter(|(_, score)| *score > 0) {
        let sum = sums.entry(account).or_default();
        *sum = sum.saturating_add(score);
    }
    sums.into_iter()
        .map(|(account, score)| Entry { account, score })
        .collect()
}

/// Hash of page `index` of `epoch`.
pub fn leaf(epoch: u32, index: u32, entries: &[Entry]) -> Hash {
    // Epoch and index are hashed too: a page must not be paid in another epoch, or twice in one.
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
    // Padding has a tag of its own: no page can have this hash.
    level.resize(width, empty());
    let mut levels = vec![level];
    while let Some(last) = levels.last().filter(|l| l.len() > 1) {
        // The width is a power of two, so no node is left over.
        let (pairs, _) = last.as_chunks::<2>();
        let next = pairs.iter().map(|[left, right]| node(left, right)).collect();
        levels.push(next);
    }
    levels
}

/// Root over the pages' leaves; the hash of the padding leaf if there is no page.
pub fn root(leaves: &[Hash]) -> Hash {
    let levels = levels(leaves);
    let top = levels.last().and_then(|top| top.first());
    top.copied().unwrap_or_else(empty)
}

/// Merkle proof of leaf `index`: its siblings from the bottom up, the root left out. `None` if there is no such leaf.
pub fn proof(leaves: &[Hash], index: u32) -> Option<Vec<Hash>> {
    let mut position = index as usize;
    if position >= leaves.len() {
        return None;
    }
    let levels = levels(leaves);
    let (_root, levels) = levels.split_last()?;
    let mut siblings = Vec::with_capacity(levels.len());
    for level in levels {
        siblings.push(*level.get(position ^ 1)?);
        position >>= 1;
    }
    Some(siblings)
}

/// Whether `leaf` is leaf `index` of the tree of `pages` leaves with this root. The proof must have exactly
/// [`depth`]`(pages)` hashes.
pub fn verify(root: &Hash, pages: u32, index: u32, leaf: &Hash, proof: &[Hash]) -> bool {
    if index >= pages || proof.len() != depth(pages) || proof.len() > MAX_DEPTH {
        return false;
    }
    let mut position = index;
    let mut hash = *leaf;
    for sibling in proof {
        hash = if position & 1 == 0 {
            node(&hash, sibling)
        } else {
            node(sibling, &hash)
        };
        position >>= 1;
    }
    hash == *root
}

/// Splits entries into pages: all full but the last.
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
