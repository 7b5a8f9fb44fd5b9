//! From text to token shards: reads plain text, JSON lines and Parquet as a stream, leaves out what came before, divides
//! the documents into training text, validation reserve and public yardstick by their hash, encodes them, and writes
//! shards and manifests of `alice-data`. Format and rules: `docs/spec/corpus.md`.
//!
//! * [`SourceList`]: what to read, under which licence; from a `corpus.toml` or from flags.
//! * [`build`]: the whole way, in memory that does not grow with the text; see [`DEDUP_BYTES_PER_DOCUMENT_MAX`] for
//!   what it needs for each document. The same sources give the same files, whatever the number of threads and however
//!   often it was interrupted.
//! * [`TrainingDocuments`]: the documents that become training text, for a vocabulary.
#![forbid(unsafe_code)]

mod build;
mod checkpoint;
mod document;
mod error;
mod files;
mod inputs;
mod pipeline;
mod read;
mod seen;
mod source;
mod training;

#[cfg(test)]
mod tests;

pub use build::{BuildOptions, BuildReport, CHECKPOINT_BYTES, Progress, YARDSTICK_FILE, build};
pub use document::{DOCUMENT_BYTES_MAX, Part, digest, part_of};
pub use error::CorpusError;
pub use files::{build_folder, reserve_file};
pub use seen::DEDUP_BYTES_PER_DOCUMENT_MAX;
pub use source::{Format, GENERATIONS_MAX, Source, SourceList};
pub use training::TrainingDocuments;
