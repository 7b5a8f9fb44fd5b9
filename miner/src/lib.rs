//! The miner: one command, no account; every unit of work gets a signed receipt, and every zero gets a reason.
//!
//! [`miner`] is the loop. It asks the parameter server for a task, brings the weights ([`task::weights`]) and the text
//! ([`task::corpus`]) up to date, trains ([`task::work`]), stores the encoded update before it sends it ([`task::journal`], [`task::send`]),
//! hears the verdict ([`settlement::verdicts`]) and follows the pay to the chain ([`settlement::payout`]). All of it survives `kill -9`.
//! [`generate`] is for everybody: text from exported weights.
#![forbid(unsafe_code)]

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

pub use error::MinerError;
