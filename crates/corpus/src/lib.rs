//! Corpus builder: reads plain text, JSON lines and Parquet as a stream, drops duplicates, divides the documents into
//! training text, validation reserve and yardstick (public evaluation set) by their hash, encodes them, and writes
//! shards and manifests of `alice-data`. Format and rules: `docs/spec/corpus.md`.
//!
//! * [`SourceList`]: the sources and their licences, from a `corpus.toml` or from flags.
//! * [`build`]: from sources to a complete corpus, in memory that does not grow with the text except for
//!   [`DEDUP_BYTES_PER_DOCUMENT_MAX`]. The same sources give the same files, whatever the number of threads and however
//!   often the build was interrupted.
//! * [`build_development`]: the corpus of development runs, which is divided by position.
//! * [`TrainingDocuments`]: the documents that become training text, for a vocabulary.
//!
//! Nothing is left out silently: documents and files that are in no part are counted by reason, and files are named
//! ([`BuildReport`]).
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod build;
mod checkpoint;
mod development;
mod document;
mod error;
mod files;
mod inputs;
mod malformed;
mod pipeline;
mod read;
mod seen;
mod source;
mod training;

#[cfg(test)]
mod tests;

pub use build::{BuildOptions, BuildReport, CHECKPOINT_BYTES, MALFORMED_PERMILLE_MAX, Progress, YARDSTICK_FILE, build};
pub use development::{DEVELOPMENT_DOCUMENT_BYTES_MAX, DevelopmentCorpus, RESERVE_EVERY, build_development};
pub use document::{DOCUMENT_BYTES_MAX, Part, digest, part_of};
pub use error::CorpusError;
pub use files::{build_folder, reserve_file};
pub use inputs::{UNREAD_NAMED_MAX, UnreadFile};
pub use seen::DEDUP_BYTES_PER_DOCUMENT_MAX;
pub use source::{Format, GENERATIONS_MAX, Source, SourceList};
pub use training::TrainingDocuments;
