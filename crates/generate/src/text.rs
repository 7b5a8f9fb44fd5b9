//! Streaming of text: bytes of tokens in, whole characters out.

/// Collects the bytes of tokens and returns the characters that are complete: one may be spread over several tokens.
///
/// ```
/// let mut stream = alice_generate::TextStream::default();
/// assert_eq!(stream.push(&[b'a', 0xc3]), "a");
/// assert_eq!(stream.push(&[0xa9]), "é");
/// assert_eq!(stream.finish(), "");
/// ```
#[derive(Debug, Default)]
pub struct TextStream {
    pending: Vec<u8>,
}

impl TextStream {
    /// Characters that are complete after these bytes. Bytes that can never become a character give U+FFFD; an
    /// unfinished character is kept for the next call.
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
        // At most three bytes stay: the start of one character.
        self.pending.drain(..done);
        text
    }

    /// The remainder at the end: U+FFFD for a character that was never completed.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}
