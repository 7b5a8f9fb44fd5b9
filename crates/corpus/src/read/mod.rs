//! Documents out of files, one at a time.

mod content;
mod jsonl;
mod parquet;
mod text;

pub(crate) use content::Compression;

use crate::{CorpusError, Format, document::Document, inputs::Input};
use serde::{Deserialize, Serialize};

/// Position in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Documents (of JSON lines: lines) before it, unusable ones included.
    pub(crate) documents: u64,
    /// Bytes of the file before it; an estimate for Parquet, and rounded up to a buffer for compressed files.
    pub(crate) bytes: u64,
}

/// An open file.
pub(crate) enum Reader {
    Text(text::TextFile),
    Jsonl(Box<jsonl::JsonLines>),
    Parquet(Box<parquet::ParquetColumn>),
}

impl Reader {
    /// Opens a file at a place that an earlier reader of it had.
    pub(crate) fn open(input: &Input, place: Place, document_bytes_max: usize) -> Result<Self, CorpusError> {
        let (path, column) = (&input.path, &input.column);
        Ok(match input.format {
            Format::Text => Self::Text(text::TextFile::open(path, input.compression, place, document_bytes_max)),
            Format::Jsonl => {
                let lines = jsonl::JsonLines::open(path, input.compression, column, place, document_bytes_max)?;
                Self::Jsonl(Box::new(lines))
            }
            Format::Parquet => {
                let column = parquet::ParquetColumn::open(path, column, place, document_bytes_max)?;
                Self::Parquet(Box::new(column))
            }
        })
    }

    /// The next document; `None` at the end.
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
