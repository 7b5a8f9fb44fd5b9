//! Documents: the bytes that make one, its hash, and the part that it falls to.

use alice_data::SplitRule;
use alice_primitives::Hash;

/// Maximum document by default, bytes. Encoding one needs about forty times its size in memory at worst.
pub const DOCUMENT_BYTES_MAX: usize = 8 << 20;
/// Words are collected up to this size before they are hashed, bytes: BLAKE3 is fast on long inputs only.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    Empty,
    TooLarge,
    WithNul,
    NotUtf8,
    /// A line that is not a JSON object with the text: where it is and what is wrong.
    Malformed(String),
}

/// A text, or why there is none.
pub(crate) type Document = Result<String, Unusable>;

/// A document from the bytes that a source holds. A byte order mark at the start is dropped.
pub(crate) fn from_bytes(bytes: Vec<u8>, bytes_max: usize) -> Document {
    if bytes.len() > bytes_max {
        return Err(Unusable::TooLarge);
    }
    // Before UTF-8 is checked: a NUL is what gives away UTF-16 and binary files that happen to be UTF-8.
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

/// BLAKE3 of a text in which every run of white space (Unicode `White_Space`) is one space and the ends have none.
/// Texts that differ only there are the same document.
pub fn digest(text: &str) -> Hash {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = Vec::with_capacity(HASH_BYTES + 1);
    let mut first = true;
    // Word by word: no second copy of the text is made.
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
    let number = |offset: usize| {
        let bytes = digest.get(offset..offset + 8).and_then(|b| b.try_into().ok());
        u64::from_le_bytes(bytes.unwrap_or_default())
    };
    // The first half of the digest tells documents apart; the second half is used here.
    let thousandth = number(16) % 1000;
    if thousandth < u64::from(rule.reserve_permille) {
        let generation = number(24) % u64::from(rule.generations.max(1));
        // A document keeps its generation when an earlier one is retired, so nothing else moves.
        return match generation < u64::from(rule.retired) {
            true => Part::Training,
            false => Part::Reserve(generation as u32),
        };
    }
    match thousandth >= 1000 - u64::from(rule.yardstick_permille.min(1000)) {
        true => Part::Yardstick,
        false => Part::Training,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn digest_should_match_the_golden_value() {
        // Golden: the part that a document falls to follows from it, in every build.
        assert_eq!(digest("a b"), *blake3::hash(b"a b").as_bytes());
        assert_eq!(digest("  a\r\n\u{a0}\t b \n"), digest("a b"));
        assert_ne!(digest("ab"), digest("a b"));
        assert_ne!(digest("A b"), digest("a b"));
        let long = format!("{} {}", "x".repeat(HASH_BYTES * 2 + 1), "y ".repeat(HASH_BYTES));
        assert_eq!(digest(&long), *blake3::hash(long.trim_end().as_bytes()).as_bytes());
    }

    #[test]
    fn what_is_no_text_should_be_told_apart() {
        let cases: [(&[u8], Document); 8] = [
            (b"", Err(Unusable::Empty)),
            (b" \n\t", Err(Unusable::Empty)),
            (b"\xef\xbb\xbf", Err(Unusable::Empty)),
            (b"a\0b", Err(Unusable::WithNul)),
            (b"a\xff", Err(Unusable::NotUtf8)),
            // UTF-16: both, and the NULs are what says so.
            (b"\xff\xfea\0", Err(Unusable::WithNul)),
            (b"123456789", Err(Unusable::TooLarge)),
            (b"\xef\xbb\xbfa b\r\n", Ok("a b\r\n".into())),
        ];
        for (bytes, expected) in cases {
            assert_eq!(from_bytes(bytes.to_vec(), 8), expected, "{bytes:?}");
        }
    }

    #[test]
    fn parts_should_have_their_shares() {
        let rule = SplitRule {
            reserve_permille: 100,
            yardstick_permille: 50,
            generations: 2,
            retired: 0,
        };
        let mut counts = HashMap::<Part, usize>::new();
        let retired = SplitRule { retired: 1, ..rule };
        let wider = SplitRule { generations: 1, ..rule };
        for i in 0..20_000 {
            let digest = digest(&format!("document {i}"));
            let part = part_of(&rule, &digest);
            *counts.entry(part).or_default() += 1;
            let expected = match part {
                Part::Reserve(0) => Part::Training,
                other => other,
            };
            assert_eq!(
                part_of(&retired, &digest),
                expected,
                "retiring moves one generation only"
            );
            if let Part::Reserve(_) = part {
                assert_eq!(part_of(&wider, &digest), Part::Reserve(0));
            }
        }
        // Within five standard deviations of the binomial.
        for (part, expected) in [
            (Part::Training, 17_000.0),
            (Part::Yardstick, 1000.0),
            (Part::Reserve(0), 1000.0),
            (Part::Reserve(1), 1000.0),
        ] {
            let found = counts[&part] as f64;
            let deviation = (expected * (1.0 - expected / 20_000.0f64)).sqrt();
            assert!((found - expected).abs() < 5.0 * deviation, "{part:?}: {found}");
        }
    }

    proptest! {
        #[test]
        fn white_space_should_not_matter(words in proptest::collection::vec("[a-zé]{1,9}", 0..40), gap in "[ \n\t\u{3000}]{1,3}") {
            let one = digest(&words.join(" "));
            prop_assert_eq!(digest(&format!("{gap}{}{gap}", words.join(&gap))), one);
        }
    }
}
