//! The training text of a list, document by document: what a run's vocabulary is learned from.

use crate::document::{Part, digest, part_of};
use crate::inputs::{self, Input};
use crate::read::{Place, Reader};
use crate::seen::Seen;
use crate::{CorpusError, SourceList};
use alice_data::SplitRule;
use std::collections::VecDeque;

/// The documents that [`crate::build`] makes training text of, in the order in which it reads them, each once. Text of the
/// reserve and of the yardstick is left out: a vocabulary is public, and what it has pieces for says what it was learned
/// from.
pub struct TrainingDocuments {
    inputs: VecDeque<Input>,
    rule: SplitRule,
    document_bytes_max: usize,
    seen: Seen,
    reader: Option<Reader>,
}

impl TrainingDocuments {
    /// Looks for the files of a list. Documents of more than `document_bytes_max` bytes are left out.
    pub fn open(list: &SourceList, document_bytes_max: usize) -> Result<Self, CorpusError> {
        list.check()?;
        Ok(Self {
            inputs: inputs::find(list)?.into(),
            rule: list.split,
            document_bytes_max,
            seen: Seen::default(),
            reader: None,
        })
    }

    fn next_document(&mut self) -> Result<Option<String>, CorpusError> {
        loop {
            let Some(reader) = &mut self.reader else {
                let Some(input) = self.inputs.pop_front() else {
                    return Ok(None);
                };
                self.reader = Some(Reader::open(&input, Place::default(), self.document_bytes_max)?);
                continue;
            };
            match reader.next()? {
                None => self.reader = None,
                // What cannot be used is counted when the corpus is built.
                Some(Err(_)) => {}
                Some(Ok(text)) => {
                    let digest = digest(&text);
                    if self.seen.insert(&digest) && part_of(&self.rule, &digest) == Part::Training {
                        return Ok(Some(text));
                    }
                }
            }
        }
    }
}

impl Iterator for TrainingDocuments {
    type Item = Result<String, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_document().transpose();
        if matches!(next, Some(Err(_))) {
            // An error is the last thing that is said.
            self.inputs.clear();
            self.reader = None;
        }
        next
    }
}
