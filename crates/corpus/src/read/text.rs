//! A file that is one document.

use super::Place;
use super::content::{Compression, Content, read_error};
use crate::CorpusError;
use crate::document::{Document, Unusable, from_bytes};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub(crate) struct TextFile {
    path: PathBuf,
    compression: Compression,
    document_bytes_max: usize,
    pub(super) place: Place,
}

impl TextFile {
    pub(super) fn open(path: &Path, compression: Compression, place: Place, document_bytes_max: usize) -> Self {
        Self {
            path: path.to_path_buf(),
            compression,
            document_bytes_max,
            place,
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Document>, CorpusError> {
        if self.place.documents > 0 {
            return Ok(None);
        }
        let failed = || CorpusError::io("read", &self.path);
        let file = File::open(&self.path).map_err(failed())?;
        let bytes = file.metadata().map_err(failed())?.len();
        self.place = Place { documents: 1, bytes };
        let max = self.document_bytes_max as u64;
        if self.compression == Compression::None && bytes > max {
            return Ok(Some(Err(Unusable::TooLarge)));
        }
        let mut content = Vec::new();
        // The limit holds also for a file that grows while it is read, and for one that expands beyond it.
        Content::of(file, &self.path, self.compression)?
            .take(max + 1)
            .read_to_end(&mut content)
            .map_err(read_error(&self.path, self.compression))?;
        Ok(Some(from_bytes(content, self.document_bytes_max)))
    }
}
