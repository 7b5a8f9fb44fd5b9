//! Text as tokens: the byte [`tokenizer`], corpora in content-addressed shards ([`build`], [`Manifest`]), reading them
//! ([`TokenSource`]), and the deterministic draw of tasks and validation splits ([`sampling`]).
//!
//! Everything here is a pure function of its inputs: two machines that build the same texts get the same roots, and
//! whoever knows an epoch's seed knows every task's sequences.
#![forbid(unsafe_code)]

mod about;
mod corpus;
mod error;
mod manifest;
pub mod sampling;
mod shards;
mod source;
pub mod tokenizer;

pub use about::{About, CORPUS_FORMAT, LeftOut, PartName, SourceEntry, SplitRule};
pub use corpus::{BuiltCorpus, CORPUS_FILE, DOCUMENT_BYTES_MAX, RESERVE_EVERY, RESERVE_FILE, SHARD_TOKENS, build};
pub use error::DataError;
pub use manifest::{Manifest, ShardEntry};
pub use sampling::{draw_splits, epoch_seed, permutation, task_sequences, tasks_available, validation_seed};
pub use shards::ShardWriter;
pub use source::TokenSource;
