//! A fast hash for small keys. [`FastMap`] is for keys of our own making; [`SeededMap`], which starts from a secret,
//! for words of texts: nobody can then prepare a text whose words all collide.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

/// Odd constant of the golden ratio (Fibonacci hashing, Knuth vol. 3 section 6.4).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Clone, Copy, Default)]
pub(crate) struct FastHasher(u64);

impl FastHasher {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(MULTIPLIER);
    }
}

impl Hasher for FastHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let mut last = [0u8; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        // The length goes in too: a key and the same key with zeros appended must differ.
        self.mix(u64::from_le_bytes(last) ^ ((rest.len() as u64) << 56));
    }

    fn write_u8(&mut self, v: u8) {
        self.mix(v.into());
    }

    fn write_u32(&mut self, v: u32) {
        self.mix(v.into());
    }

    fn write_u64(&mut self, v: u64) {
        self.mix(v);
    }

    fn write_usize(&mut self, v: usize) {
        self.mix(v as u64);
    }

    fn finish(&self) -> u64 {
        // The high bits are the mixed ones; hashbrown takes buckets from the low bits and tags from the high.
        self.0 ^ (self.0 >> 32)
    }
}

pub(crate) type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<FastHasher>>;
pub(crate) type FastSet<K> = HashSet<K, BuildHasherDefault<FastHasher>>;

#[derive(Clone)]
pub(crate) struct SeededState(u64);

impl Default for SeededState {
    fn default() -> Self {
        // The standard library's random keys, through its own hash.
        Self(RandomState::new().hash_one(0u8))
    }
}

impl BuildHasher for SeededState {
    type Hasher = FastHasher;

    fn build_hasher(&self) -> FastHasher {
        FastHasher(self.0)
    }
}

pub(crate) type SeededMap<K, V> = HashMap<K, V, SeededState>;
