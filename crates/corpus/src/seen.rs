//! The set of documents read so far, as the first half of their digests.

use alice_primitives::Hash;
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{BufReader, Read};

/// Bytes kept of a digest. Among 10^9 documents two different ones share 128 bits with a chance of 10^-21.
pub(crate) const SEEN_BYTES: usize = 16;
/// Memory for each different document at worst, bytes: a table of 17 bytes an entry that is between 7/16 and 7/8 full,
/// and while it grows both the old and the new table.
pub const DEDUP_BYTES_PER_DOCUMENT_MAX: usize = 59;

/// A BLAKE3 digest is its own hash.
#[derive(Clone, Copy, Default)]
pub(crate) struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        // Uniformly distributed already, so hashing it again would only take time.
        let first = bytes.get(..8).and_then(|b| b.try_into().ok());
        self.0 = u64::from_le_bytes(first.unwrap_or_default());
    }

    // The length of an array is always the same.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A set of digests.
#[derive(Default)]
pub(crate) struct Seen(HashSet<[u8; SEEN_BYTES], BuildHasherDefault<FirstBytes>>);

impl Seen {
    /// Reads a log of `digests` [`Seen::key`]s, one after the other.
    pub(crate) fn read(log: &mut impl Read, digests: u64) -> std::io::Result<Self> {
        let mut seen = Self::default();
        // At once: growing a table of many millions step by step would move it over and over.
        seen.0.reserve(usize::try_from(digests).unwrap_or(0));
        let mut log = BufReader::with_capacity(1 << 16, log.take(digests.saturating_mul(SEEN_BYTES as u64)));
        let mut key = [0; SEEN_BYTES];
        for _ in 0..digests {
            log.read_exact(&mut key)?;
            seen.0.insert(key);
        }
        Ok(seen)
    }

    /// The part of a digest that is kept.
    pub(crate) fn key(digest: &Hash) -> [u8; SEEN_BYTES] {
        let first = digest.get(..SEEN_BYTES).and_then(|b| b.try_into().ok());
        first.unwrap_or_default()
    }

    /// Inserts a document; returns whether it is new.
    pub(crate) fn insert(&mut self, digest: &Hash) -> bool {
        self.0.insert(Self::key(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_should_give_the_same_set() {
        let digests: Vec<Hash> = (0..1000u32)
            .map(|i| *blake3::hash(&i.to_le_bytes()).as_bytes())
            .collect();
        let (mut seen, mut log) = (Seen::default(), Vec::new());
        for digest in &digests {
            assert!(seen.insert(digest));
            assert!(!seen.insert(digest));
            log.extend(Seen::key(digest));
        }
        let mut half = Seen::read(&mut log.as_slice(), 500).unwrap();
        for (i, digest) in digests.iter().enumerate() {
            assert_eq!(half.insert(digest), i >= 500);
        }
        assert!(Seen::read(&mut log.as_slice(), 1001).is_err());
    }

    #[test]
    fn memory_should_be_as_promised() {
        // The table's growth is where it is worst: 7/8 full before, 7/16 after, both there while entries move.
        let mut seen = Seen::default();
        for i in 0..200_000u64 {
            let before = seen.0.capacity();
            seen.insert(blake3::hash(&i.to_le_bytes()).as_bytes());
            let after = seen.0.capacity();
            if before > 1000 && after != before {
                let slots = (before + after) * 8 / 7;
                let bytes = slots * (SEEN_BYTES + 1);
                assert!(
                    bytes <= DEDUP_BYTES_PER_DOCUMENT_MAX * (before + 1),
                    "{bytes} at {before}"
                );
            }
        }
    }
}
