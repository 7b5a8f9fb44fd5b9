//! The miner: one command, no account; every unit of work gets a signed receipt, and every zero gets a reason.
//!
//! [`miner`] is the loop. It asks the parameter server for a task, synchronises the weights ([`task::weights`]) and the
//! text ([`task::corpus`]), trains ([`task::work`]), stores the encoded update before it is sent ([`task::journal`],
//! [`task::send`]), fetches the verdict ([`settlement::verdicts`]) and watches the pay until it is on the chain
//! ([`settlement::payout`]). All of it survives `kill -9`, and none of it ends for a full disk.
//! [`generate`] is for everybody: text from exported weights.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod cli;
pub mod commands;
pub mod error;
pub mod files;
pub mod generate;
pub mod key;
pub mod memory;
pub mod miner;
pub mod report;
pub mod settings;
pub mod settlement;
pub mod shutdown;
pub mod task;
#[cfg(test)]
mod testing;

pub use error::MinerError;
