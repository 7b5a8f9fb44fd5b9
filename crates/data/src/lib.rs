//! Tokenised text: shards of tokens named by their hash ([`ShardWriter`], [`Manifest`]), reading them
//! ([`TokenSource`]), and the deterministic draw of tasks and validation splits ([`sampling`]). `alice-corpus` makes
//! shards from text.
//!
//! Everything here is a pure function of its inputs: two machines that write the same tokens get the same roots, and
//! whoever knows an epoch's seed knows every task's sequences.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod about;
mod error;
mod manifest;
pub mod sampling;
mod source;
mod token_shards;

pub use about::{About, CORPUS_FORMAT, LeftOut, PartName, SourceEntry, SplitRule};
pub use error::DataError;
pub use manifest::{CORPUS_FILE, Manifest, RESERVE_FILE, ShardEntry};
pub use sampling::{draw_splits, epoch_seed, permutation, task_sequences, tasks_available, validation_seed};
pub use source::TokenSource;
pub use token_shards::{SHARD_TOKENS, ShardWriter};
