//! The miner: one command, no account; every unit of work gets a signed receipt, and every zero gets a reason.
//!
//! [`miner`] is the loop. It asks the parameter server for a task, brings the weights ([`weights`]) and the text
//! ([`corpus`]) up to date, trains ([`work`]), stores the encoded update before it sends it ([`journal`], [`send`]),
//! hears the verdict ([`verdicts`]) and follows the pay to the chain ([`payout`]). All of it survives `kill -9`.
//! [`generate`] is for everybody: text from exported weights.
#![forbid(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod corpus;
pub mod device;
pub mod error;
pub mod files;
pub mod fit;
pub mod generate;
pub mod journal;
pub mod key;
pub mod miner;
pub mod moments;
pub mod pages;
pub mod payout;
pub mod plan;
pub mod receipts;
pub mod report;
pub mod residual;
pub mod run;
pub mod send;
pub mod settings;
pub mod stop;
pub mod tokenizer;
pub mod verdicts;
pub mod weights;
pub mod work;

pub use error::MinerError;
