//! What a document is, its hash, and the part that it falls to.

use alice_data::SplitRule;
use alice_primitives::Hash;

/// Longest document by default, bytes: what encoding it takes of memory is about forty times as much at worst.
pub const DOCUMENT_BYTES_MAX: usize = 8 << 20;
/// White-space-free text is hashed in pieces of so many bytes.
const HASH_BYTES: usize = 1 << 14;

/// Which part of the corpus a document belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Training text.
    Training,
    /// The public yardstick.
    Yardstick,
    /// A generation of the reserve.
    Reserve(u32),
}

/// Why a document cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    Empty,
    TooLarge,
    WithNul,
    NotUtf8,
}

/// A text, or why there is none.
pub(crate) type Document = Result<String, Unusable>;

/// A document from the bytes that a source holds. A byte order mark at the start is dropped.
pub(crate) fn from_bytes(bytes: Vec<u8>, max: usize) -> Document {
    if bytes.len() > max {
        return Err(Unusable::TooLarge);
    }
    if bytes.contains(&0) {
        return Err(Unusable::WithNul);
    }
    let mut text = String::from_utf8(bytes).map_err(|_| Unusable::NotUtf8)?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    match text.trim().is_empty() {
        true => Err(Unusable::Empty),
        false => Ok(text),
    }
}

/// BLAKE3 of a text in which every run of white space (Unicode `White_Space`) is one space and the ends have none. Texts
/// that differ only there are the same document.
pub fn digest(text: &str) -> Hash {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = Vec::with_capacity(HASH_BYTES + 1);
    let mut first = true;
    for word in text.split_whitespace() {
        if !first {
            buffer.push(b' ');
        }
        first = false;
        if buffer.len() + word.len() > HASH_BYTES {
            hasher.update(&buffer);
            buffer.clear();
        }
        match word.len() > HASH_BYTES {
            true => drop(hasher.update(word.as_bytes())),
            false => buffer.extend_from_slice(word.as_bytes()),
        }
    }
    hasher.update(&buffer);
    *hasher.finalize().as_bytes()
}

/// The part that a document of this [`digest`] falls to. It depends on nothing else, so copies of a document, in any
/// source and any build with the same rule, fall to the same part.
pub fn part_of(rule: &SplitRule, digest: &Hash) -> Part {
    let number = |at: usize| {
        let bytes = digest.get(at..at + 8).and_then(|b| b.try_into().ok());
        u64::from_le_bytes(bytes.unwrap_or_default())
    };
    // The first half of the digest tells documents apart; the second half is used here.
    let place = number(16) % 1000;
    if place < u64::from(rule.reserve_permille) {
        let generation = number(24) % u64::from(rule.generations.max(1));
        return match generation < u64::from(rule.retired) {
            true => Part::Training,
            false => Part::Reserve(generation as u32),
        };
    }
    match place >= 1000 - u64::from(rule.yardstick_permille.min(1000)) {
        true => Part::Yardstick,
        false => Part::Training,
    }
}
