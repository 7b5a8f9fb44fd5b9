//! Merkle tree of RFC 6962's shape, in which an unpaired node is promoted: for roots over shards and over tensors.
//! Leaves and nodes are hashed under different domain tags; every leaf holds its index or a unique name.

use alice_primitives::{Hash, tagged_hash};

/// Root over leaf hashes; the hash of nothing under the node's tag where there is no leaf.
pub fn root(node_tag: &str, leaves: &[Hash]) -> Hash {
    let mut level = leaves.to_vec();
    // Domain tags keep a node from passing as a leaf, so the depth need not be known.
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => tagged_hash(node_tag, &[left, right]),
                // `chunks(2)` yields one or two.
                other => other.first().copied().unwrap_or_default(),
            })
            .collect();
    }
    level.first().copied().unwrap_or_else(|| tagged_hash(node_tag, &[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_should_follow_the_tree() {
        let n = |l: &Hash, r: &Hash| tagged_hash("t", &[l, r]);
        let (a, b, c) = ([1; 32], [2; 32], [3; 32]);
        assert_eq!(root("t", &[a]), a);
        assert_eq!(root("t", &[a, b]), n(&a, &b));
        assert_eq!(root("t", &[a, b, c]), n(&n(&a, &b), &c));
        assert_eq!(root("t", &[]), tagged_hash("t", &[]));
        assert_ne!(root("t", &[a, b]), root("t", &[b, a]));
    }
}
