//! Helpers for the tests of several crates: small run specifications ([`fixtures`]), random numbers and text from a
//! seed ([`Lcg`], [`text`]), damaged inputs ([`damaged`]), processes with a deadline ([`Process`]) and folders that
//! delete themselves ([`temp_dir`]).
//!
//! **Architecture invariant:** a development dependency only. Nothing that ships depends on it, and it depends on
//! neither torch nor the node, so that every crate may use it. Helpers panic with the reason: in a test that is the
//! report.
//!
//! Unit tests of `alice-spec` and `alice-primitives` cannot use [`fixtures`]: cargo compiles those crates twice then,
//! and the types of the two copies differ. Their tests under `tests/` can.
#![forbid(unsafe_code)]

mod damage;
pub mod fixtures;
mod process;
mod random;
pub mod text;

pub use damage::{JSON, damaged};
pub use process::{Process, free_port, until};
pub use random::Lcg;

/// A folder in the system's temporary folder, deleted when dropped.
///
/// # Panics
/// If the folder cannot be made.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("the temporary folder is writable")
}
