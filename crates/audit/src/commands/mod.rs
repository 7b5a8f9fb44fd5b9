//! The commands: flags, and what each prints.

pub mod address;
pub mod audit;
pub mod balance;
pub mod export;
pub mod verify;

use crate::AuditError;
use serde::Serialize;

/// A value as JSON, for programs.
///
/// # Errors
/// The value has no form in JSON.
pub fn to_json(value: &impl Serialize) -> Result<String, AuditError> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Reports progress on standard error at each tenth.
pub fn percent(what: &'static str) -> impl FnMut(alice_export::Progress) {
    let mut reported = 0;
    move |progress: alice_export::Progress| {
        // In 128 bits: ten times a size in bytes may be more than a u64 holds.
        let tenths = u128::from(progress.done_bytes) * 10 / u128::from(progress.total_bytes.max(1));
        if tenths > reported {
            reported = tenths;
            eprintln!("{what} {} %", tenths * 10);
        }
    }
}
