//! What the command-line programs share, so that each thing has one form in all of them:
//!
//! - [`arguments`]: the command line, where an empty environment variable is an unset one;
//! - [`settings`]: one TOML file under flags and environment, with errors that name file, line and key;
//! - [`shutdown`]: SIGINT and SIGTERM as a value that work can wait for;
//! - [`output`]: lines for people and scripts, which may close the pipe early;
//! - [`exit`]: what a program's exit code means;
//! - [`manual`]: shell completions and man pages from the flags' own definitions;
//! - [`system`]: errors of the operating system in words for people;
//! - [`threads`]: OpenMP threads that sleep while they wait.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod arguments;
pub mod exit;
pub mod manual;
pub mod output;
pub mod settings;
pub mod shutdown;
pub mod system;
pub mod threads;

/// Release and commit, for `--version`: `0.1.0-1a2b3c4d5e6`.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "-", env!("ALICE_COMMIT"));
