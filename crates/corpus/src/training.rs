//! The training text of a list, document by document: the text that a run's vocabulary is learned from.

use crate::document::{Part, Unusable, digest, part_of};
use crate::inputs::{self, Input};
use crate::read::{Place, Reader};
use crate::seen::Seen;
use crate::{CorpusError, SourceList, UnreadFile, malformed};
use alice_data::SplitRule;
use std::collections::VecDeque;

/// The documents that [`crate::build`] makes training text of, in the order in which it reads them, each once. Text of
/// the reserve and of the yardstick is left out: a vocabulary is public, and its pieces show what it was learned from.
pub struct TrainingDocuments {
    inputs: VecDeque<Input>,
    rule: SplitRule,
    document_bytes_max: usize,
    malformed_permille_max: u32,
    seen: Seen,
    reader: Option<Reader>,
    /// Malformed lines of each source.
    tallies: Vec<Tally>,
    unread: Vec<UnreadFile>,
    unread_files: u64,
}

/// Lines of a source so far.
#[derive(Default)]
struct Tally {
    name: String,
    documents: u64,
    malformed: u64,
    first: Option<String>,
}

impl Tally {
    fn check(&self, check: malformed::Check, permille_max: u32) -> Result<(), CorpusError> {
        let found = malformed::Found {
            malformed: self.malformed,
            documents: self.documents,
            first: self.first.as_deref(),
        };
        check(&self.name, &found, permille_max)
    }
}

impl TrainingDocuments {
    /// Finds the files of a list. The limits are those of [`BuildOptions`](crate::BuildOptions): the same ones give the
    /// text that the build takes.
    ///
    /// # Errors
    /// Of the list and its paths. Errors of files are items; the first is the last item.
    pub fn open(
        list: &SourceList,
        document_bytes_max: usize,
        malformed_permille_max: u32,
    ) -> Result<Self, CorpusError> {
        list.check()?;
        let tally = |source: &crate::Source| Tally {
            name: source.name.clone(),
            ..Tally::default()
        };
        let inputs = inputs::find(list)?;
        Ok(Self {
            inputs: inputs.files.into(),
            rule: list.split,
            document_bytes_max,
            malformed_permille_max,
            seen: Seen::default(),
            reader: None,
            tallies: list.source.iter().map(tally).collect(),
            unread_files: inputs.unread_counts.iter().sum(),
            unread: inputs.unread,
        })
    }

    /// The files that are not read, the first [`UNREAD_NAMED_MAX`](crate::UNREAD_NAMED_MAX) of them, and their number.
    pub fn unread(&self) -> (&[UnreadFile], u64) {
        (&self.unread, self.unread_files)
    }

    fn next_document(&mut self) -> Result<Option<String>, CorpusError> {
        while let Some(input) = self.inputs.front() {
            let source = input.source;
            let reader = match &mut self.reader {
                Some(reader) => reader,
                None => self
                    .reader
                    .insert(Reader::open(input, Place::default(), self.document_bytes_max)?),
            };
            let Some(document) = reader.next()? else {
                self.reader = None;
                self.inputs.pop_front();
                let more_of_it = self.inputs.front().is_some_and(|next| next.source == source);
                if let (false, Some(tally)) = (more_of_it, self.tallies.get(source)) {
                    tally.check(malformed::check_source, self.malformed_permille_max)?;
                }
                continue;
            };
            let Some(tally) = self.tallies.get_mut(source) else {
                continue;
            };
            tally.documents += 1;
            match document {
                Ok(text) => {
                    let digest = digest(&text);
                    if self.seen.insert(&digest) && part_of(&self.rule, &digest) == Part::Training {
                        return Ok(Some(text));
                    }
                }
                Err(Unusable::Malformed(problem)) => {
                    tally.malformed += 1;
                    tally.first.get_or_insert(problem);
                    tally.check(malformed::check_early, self.malformed_permille_max)?;
                }
                // Left out; the build counts them.
                Err(_) => {}
            }
        }
        Ok(None)
    }
}

impl Iterator for TrainingDocuments {
    type Item = Result<String, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_document().transpose();
        if matches!(next, Some(Err(_))) {
            // The iterator ends with its first error.
            self.inputs.clear();
            self.reader = None;
        }
        next
    }
}
