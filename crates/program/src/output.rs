//! Standard output for people and scripts.
//!
//! `println!` panics when the reader of a pipe has gone (`… | head -1`). Commands write through [`print()`] instead and
//! end quietly: whoever closed the pipe has what it wanted.

use std::io::{self, Write};

/// Writes text to standard output and flushes it. Ends the process with code 0 if the reader has closed the pipe.
///
/// # Errors
/// Every other failure to write, a full disk behind a redirection for example.
pub fn print(text: &str) -> io::Result<()> {
    quiet_if_closed(write_to(&mut io::stdout().lock(), text))
}

/// Writes text to standard output and flushes it. A reader that has closed the pipe is ignored, for commands whose work
/// matters without its output: what they found is in the exit code.
///
/// # Errors
/// Every other failure to write.
pub fn print_while_read(text: &str) -> io::Result<()> {
    match write_to(&mut io::stdout().lock(), text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Ends the process with code 0 if `result` is a write to a closed pipe; returns everything else as it is.
///
/// # Errors
/// The error of `result`, if it is another one.
pub fn quiet_if_closed<T>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other,
    }
}

fn write_to(out: &mut impl Write, text: &str) -> io::Result<()> {
    // Flushed here, where an error can still be reported: the buffer's own flush at the end of the process drops it.
    out.write_all(text.as_bytes())?;
    out.flush()
}
