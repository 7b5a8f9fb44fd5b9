//! Errors of the operating system in words for people.

use std::io::{self, ErrorKind};

/// The reason in a few words, without the `(os error 2)` that Rust appends: the number helps nobody who reads a message
/// of a program.
///
/// ```
/// let error = std::fs::read("/nowhere/at/all").unwrap_err();
/// assert_eq!(alice_program::system::reason(&error), "there is no such file or folder");
/// ```
pub fn reason(error: &io::Error) -> String {
    let known = match error.kind() {
        ErrorKind::NotFound => "there is no such file or folder",
        ErrorKind::PermissionDenied => "permission denied; it may belong to another user",
        ErrorKind::StorageFull => "the disk is full",
        ErrorKind::QuotaExceeded => "your disk quota is used up",
        ErrorKind::ReadOnlyFilesystem => "the file system is read-only",
        ErrorKind::IsADirectory => "it is a folder, a file is expected",
        ErrorKind::NotADirectory => "a part of the path is a file, a folder is expected",
        ErrorKind::InvalidData => "it is not valid UTF-8 text",
        _ => "",
    };
    // An error that a library made has words of its own, whatever its kind.
    if !known.is_empty() && error.get_ref().is_none() {
        return known.to_owned();
    }
    let text = error.to_string();
    let shown = without_numbers(&text);
    // The system's own sentences begin with a capital; the text of a message does not.
    match shown == text {
        true => shown,
        false => shown.to_lowercase(),
    }
}

/// A message without the numbers of system errors in it, for errors of libraries that format an [`io::Error`] as it is.
///
/// ```
/// let text = "cannot read a.toml: Permission denied (os error 13); check its owner";
/// let shown = alice_program::system::without_numbers(text);
/// assert_eq!(shown, "cannot read a.toml: Permission denied; check its owner");
/// ```
pub fn without_numbers(message: &str) -> String {
    const START: &str = " (os error ";
    let mut parts = message.split(START);
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.bytes().all(|byte| byte.is_ascii_digit()) => shown += rest,
            // Something else that only looks alike.
            _ => {
                shown += START;
                shown += part;
            }
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_should_be_words_without_numbers() {
        // 28 is ENOSPC, 110 ETIMEDOUT: one with words of ours, one with the system's.
        for (number, expected) in [(28, "the disk is full"), (110, "connection timed out")] {
            let shown = reason(&io::Error::from_raw_os_error(number));
            assert_eq!(shown, expected);
        }
        assert_eq!(without_numbers("a (os error b) c"), "a (os error b) c");
        let own = io::Error::new(ErrorKind::NotFound, "no such blob");
        assert_eq!(reason(&own), "no such blob");
    }
}
