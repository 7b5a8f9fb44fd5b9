//! Bytes as tokens: nothing to train, nothing to download, every text possible. Ids follow the order of SentencePiece
//! models with byte fallback: 0 unknown, 1 begin, 2 end, then byte `b` as `b + 3`.

/// Unknown; never produced.
pub const UNKNOWN: u16 = 0;
/// Begin of a text; never produced by [`encode`].
pub const BEGIN: u16 = 1;
/// End of a document.
pub const END: u16 = 2;
/// Id of byte 0.
pub const BYTE_FIRST: u16 = 3;
/// Number of ids.
pub const VOCAB: u32 = 259;

/// Tokens of a text, without begin and end.
pub fn encode(text: &str) -> Vec<u16> {
    text.bytes().map(|b| u16::from(b) + BYTE_FIRST).collect()
}

/// Text of tokens. Special and unknown ids are left out; bytes that are no UTF-8 (a cut character) become U+FFFD.
pub fn decode(tokens: &[u16]) -> String {
    let bytes: Vec<u8> = tokens
        .iter()
        .filter_map(|t| u8::try_from(t.checked_sub(BYTE_FIRST)?).ok())
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_should_be_fixed() {
        assert_eq!(encode("A\n"), [68, 13]);
        assert_eq!(encode("é"), [0xc3 + 3, 0xa9 + 3]);
        assert_eq!(decode(&[BEGIN, 68, END, UNKNOWN, 999]), "A");
        assert_eq!(decode(&[0xc3 + 3]), "\u{fffd}");
    }

    proptest! {
        #[test]
        fn every_text_should_come_back(text in any::<String>()) {
            let tokens = encode(&text);
            prop_assert!(tokens.iter().all(|t| u32::from(*t) < VOCAB && *t >= BYTE_FIRST));
            prop_assert_eq!(decode(&tokens), text);
        }

        #[test]
        fn any_tokens_should_decode(tokens in proptest::collection::vec(any::<u16>(), 0..200)) {
            decode(&tokens);
        }
    }
}
