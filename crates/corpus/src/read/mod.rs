//! Documents out of files, one at a time.

mod jsonl;
mod parquet;
mod text;

use crate::{CorpusError, Format, document::Document, inputs::Input};
use serde::{Deserialize, Serialize};

/// How far a file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Documents that came out of it, unusable ones included.
    pub(crate) documents: u64,
    /// Bytes of it that are behind; of Parquet an estimate.
    pub(crate) bytes: u64,
}

/// An open file.
pub(crate) enum Reader {
    Text(text::TextFile),
    Jsonl(jsonl::JsonLines),
    Parquet(Box<parquet::ParquetColumn>),
}

impl Reader {
    /// Opens a file at a place that an earlier reader of it had. `max` is the longest document, bytes.
    pub(crate) fn open(input: &Input, at: Place, max: usize) -> Result<Self, CorpusError> {
        Ok(match input.format {
            Format::Text => Self::Text(text::TextFile::open(&input.path, at, max)),
            Format::Jsonl => Self::Jsonl(jsonl::JsonLines::open(&input.path, &input.column, at, max)?),
            Format::Parquet => {
                let column = parquet::ParquetColumn::open(&input.path, &input.column, at, max)?;
                Self::Parquet(Box::new(column))
            }
        })
    }

    /// The next document; none at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Document>, CorpusError> {
        match self {
            Self::Text(file) => file.next(),
            Self::Jsonl(file) => file.next(),
            Self::Parquet(file) => file.next(),
        }
    }

    /// The place after the last document.
    pub(crate) fn place(&self) -> Place {
        match self {
            Self::Text(file) => file.place,
            Self::Jsonl(file) => file.place,
            Self::Parquet(file) => file.place,
        }
    }
}
