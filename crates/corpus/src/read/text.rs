//! A file that is one document.

use super::Place;
use crate::CorpusError;
use crate::document::{Document, Unusable, from_bytes};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub(crate) struct TextFile {
    path: PathBuf,
    max: usize,
    pub(super) place: Place,
}

impl TextFile {
    pub(super) fn open(path: &Path, at: Place, max: usize) -> Self {
        Self {
            path: path.to_path_buf(),
            max,
            place: at,
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
        if bytes > self.max as u64 {
            return Ok(Some(Err(Unusable::TooLarge)));
        }
        let mut content = Vec::new();
        // A file that grows while it is read does not get past the limit either.
        file.take(self.max as u64 + 1)
            .read_to_end(&mut content)
            .map_err(failed())?;
        Ok(Some(from_bytes(content, self.max)))
    }
}
