//! Damaged copies of a valid input, for parsers that read outside data.

use crate::Lcg;

/// Bytes that matter to a JSON parser, and two that no JSON text has. For [`damaged`].
pub const JSON: &[u8] = b"0129-{}[]\",:ae\0\xff";

/// Longest piece that is cut out or doubled, bytes.
const PIECE_MAX: usize = 40;

/// Calls `each` with `times` damaged copies of `good`, each with one to three edits: a bit flipped, a byte replaced, a
/// piece cut out, the end cut off, or a piece copied to another place. Replaced bytes are from `alphabet`, or any if it
/// is empty. Copies are never empty; a few equal the original. The same arguments give the same copies, so a failure
/// repeats.
///
/// ```
/// let mut refused = 0;
/// alice_testkit::damaged(b"[1,2]", alice_testkit::JSON, 1000, |bytes| {
///     refused += usize::from(!bytes.starts_with(b"["));
/// });
/// assert!(refused > 100);
/// ```
pub fn damaged(good: &[u8], alphabet: &[u8], times: usize, mut each: impl FnMut(&[u8])) {
    let mut random = Lcg::new(1);
    for _ in 0..times {
        let mut bytes = good.to_vec();
        for _ in 0..=random.below(3) {
            edit(&mut bytes, alphabet, &mut random);
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        each(&bytes);
    }
}

/// One edit of bytes that are not empty.
fn edit(bytes: &mut Vec<u8>, alphabet: &[u8], random: &mut Lcg) {
    let start = random.below(bytes.len());
    let end = start + random.below(bytes.len() - start).min(PIECE_MAX);
    match random.below(5) {
        0 => bytes[start] ^= 1 << random.below(8),
        1 if alphabet.is_empty() => bytes[start] = random.below(256) as u8,
        1 => bytes[start] = alphabet[random.below(alphabet.len())],
        2 => drop(bytes.drain(start..end)),
        3 => bytes.truncate(start.max(1)),
        _ => {
            let piece = bytes[start..end].to_vec();
            let target = random.below(bytes.len());
            bytes.splice(target..target, piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn copies_should_be_many_and_never_empty() {
        for alphabet in [JSON, &[]] {
            let (mut copies, mut lengths) = (BTreeSet::new(), BTreeSet::new());
            damaged(b"{\"a\":[1,2,3]}", alphabet, 2000, |bytes| {
                assert!(!bytes.is_empty());
                lengths.insert(bytes.len());
                copies.insert(bytes.to_vec());
            });
            assert!(
                copies.len() > 500 && lengths.len() > 10,
                "{} {}",
                copies.len(),
                lengths.len()
            );
        }
        damaged(&[7], &[], 100, |bytes| assert!(!bytes.is_empty()));
    }
}
