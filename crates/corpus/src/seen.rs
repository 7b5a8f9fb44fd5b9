//! The documents that came before, as the first half of their digests.

use alice_primitives::Hash;
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{BufReader, Read};

/// Bytes that are kept of a digest. Among 10^9 documents two different ones share 128 bits with a chance of 10^-21.
pub(crate) const SEEN_BYTES: usize = 16;
/// Memory for each different document at worst, bytes: a table of 17 bytes an entry that is between 7/16 and 7/8 full,
/// and while it grows the old one beside the new one.
pub const DEDUP_BYTES_PER_DOCUMENT_MAX: usize = 59;

/// A BLAKE3 digest is its own hash.
#[derive(Clone, Copy, Default)]
pub(crate) struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        let first = bytes.get(..8).and_then(|b| b.try_into().ok());
        self.0 = u64::from_le_bytes(first.unwrap_or_default());
    }

    // The length of an array's bytes says nothing.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A set of digests.
#[derive(Default)]
pub(crate) struct Seen(HashSet<[u8; SEEN_BYTES], BuildHasherDefault<FirstBytes>>);

impl Seen {
    /// From a log of so many [`Seen::key`]s, one after the other.
    pub(crate) fn read(log: &mut impl Read, digests: u64) -> std::io::Result<Self> {
        let mut seen = Self::default();
        seen.0.reserve(usize::try_from(digests).unwrap_or(0));
        let mut log = BufReader::with_capacity(1 << 16, log.take(digests.saturating_mul(SEEN_BYTES as u64)));
        let mut key = [0; SEEN_BYTES];
        for _ in 0..digests {
            log.read_exact(&mut key)?;
            seen.0.insert(key);
        }
        Ok(seen)
    }

    /// What is kept of a digest.
    pub(crate) fn key(digest: &Hash) -> [u8; SEEN_BYTES] {
        let first = digest.get(..SEEN_BYTES).and_then(|b| b.try_into().ok());
        first.unwrap_or_default()
    }

    /// Whether the document is new; it is not the next time.
    pub(crate) fn insert(&mut self, digest: &Hash) -> bool {
        self.0.insert(Self::key(digest))
    }
}
