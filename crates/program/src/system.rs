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
    match text.rfind(" (os error ") {
        Some(end) => text.get(..end).unwrap_or(&text).to_lowercase(),
        None => text,
    }
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
        let own = io::Error::new(ErrorKind::NotFound, "no such blob");
        assert_eq!(reason(&own), "no such blob");
    }
}
