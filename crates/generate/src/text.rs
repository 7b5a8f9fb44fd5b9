//! Text that grows byte by byte and is shown as characters.

/// Collects the bytes of tokens and gives out what is complete: a character may be spread over several tokens.
#[derive(Debug, Default)]
pub struct TextStream {
    pending: Vec<u8>,
}

impl TextStream {
    /// Text that is complete after these bytes. What can never become a character is U+FFFD, what could is kept.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut done = 0;
        while let Some(rest) = self.pending.get(done..).filter(|rest| !rest.is_empty()) {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    done += valid.len();
                }
                Err(error) => {
                    let valid = rest.get(..error.valid_up_to()).unwrap_or_default();
                    text.push_str(&String::from_utf8_lossy(valid));
                    done += valid.len();
                    match error.error_len() {
                        Some(bad) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            done += bad;
                        }
                        // The start of a character: the next token may complete it.
                        None => break,
                    }
                }
            }
        }
        self.pending.drain(..done);
        text
    }

    /// What is left at the end: U+FFFD for a character that was never completed.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_should_never_be_split() {
        let text = "né 🦙 日本\0\u{fffd}x";
        for size in 1..5 {
            let (mut stream, mut all) = (TextStream::default(), String::new());
            for part in text.as_bytes().chunks(size) {
                let shown = stream.push(part);
                assert!(text[all.len()..].starts_with(&shown), "{shown:?} after {all:?}");
                all += &shown;
            }
            assert_eq!(stream.finish(), "");
            assert_eq!(all, text);
        }
    }

    #[test]
    fn broken_bytes_should_read_as_in_the_standard_library() {
        for bytes in [
            &b"a\xff\xfeb"[..],
            b"\xe6\x97x",
            b"\xf0\x9f\xa6",
            b"\xc3\xc3\xa9",
            b"\xed\xa0\x80",
            b"\x80\xe6",
            b"\xf4\x90\x80\x80",
        ] {
            let (mut stream, mut all) = (TextStream::default(), String::new());
            for byte in bytes {
                all += &stream.push(&[*byte]);
            }
            all += &stream.finish();
            assert_eq!(all, String::from_utf8_lossy(bytes), "{bytes:x?}");
        }
    }

    #[test]
    fn what_could_become_a_character_should_be_kept() {
        let mut stream = TextStream::default();
        assert_eq!(stream.push(b"a\xf0\x9f"), "a");
        assert_eq!(stream.push(b"\xa6"), "");
        assert_eq!(stream.push(b"\x99!"), "🦙!");
    }
}
