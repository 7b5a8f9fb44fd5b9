//! Made-up text that follows from a seed.

use crate::Lcg;

/// Words of [`document`]: common ones, so that a small model learns something in a few steps.
pub const WORDS: [&str; 12] = [
    "the", "people", "train", "a", "model", "together", "and", "nobody", "owns", "it", "light", "river",
];

/// At least `bytes` bytes of words from a list, a space after most and a line break after about one in sixteen.
pub fn prose(random: &mut Lcg, words: &[&str], bytes: usize) -> String {
    let mut text = String::new();
    append_prose(&mut text, random, words, bytes);
    text
}

/// [`WORDS`] under a title line; at least `bytes` bytes.
pub fn document(number: u64, random: &mut Lcg, bytes: usize) -> String {
    let mut text = format!("document {number}\n");
    append_prose(&mut text, random, &WORDS, bytes);
    text
}

fn append_prose(text: &mut String, random: &mut Lcg, words: &[&str], bytes: usize) {
    while text.len() < bytes {
        let bits = random.bits();
        text.push_str(words[(bits >> 33) as usize % words.len()]);
        text.push(if bits >> 60 == 0 { '\n' } else { ' ' });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_should_have_lines_of_known_words() {
        let text = document(3, &mut Lcg::new(7), 4000);
        assert!((4000..4020).contains(&text.len()));
        assert!((20..200).contains(&text.lines().count()), "{}", text.lines().count());
        let body = text.strip_prefix("document 3\n").unwrap();
        assert!(body.split_whitespace().all(|word| WORDS.contains(&word)));
        assert_eq!(text, document(3, &mut Lcg::new(7), 4000));
    }
}
