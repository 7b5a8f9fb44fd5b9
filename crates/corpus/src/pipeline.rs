//! Reading, encoding and writing at the same time, in the order of the documents.
//!
//! One thread reads, drops duplicates and packs documents into batches. Batch k goes to encoder k mod n and its tokens
//! come back the same way, so that the order, and with it every byte of the output, is that of one thread. Each channel
//! holds one batch, so that memory is bounded.

use crate::checkpoint::{SourceCounts, State, stream_of};
use crate::document::{Document, Unusable, digest, part_of};
use crate::inputs::Input;
use crate::read::{Place, Reader};
use crate::seen::Seen;
use crate::{BuildOptions, CorpusError, Progress, SourceList, malformed};
use alice_tokenizer::{END, Tokenizer};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Batch limit: bytes of text.
const BATCH_BYTES: usize = 1 << 20;
/// Batch limit: bytes read.
const READ_BYTES: u64 = 16 << 20;
/// Batch limit: documents, those that are left out included. In a stretch of duplicates the progress bar and the
/// checkpoints advance all the same.
const BATCH_DOCUMENTS: usize = 4096;

/// A build's inputs and settings.
pub(crate) struct Job<'a> {
    pub(crate) list: &'a SourceList,
    pub(crate) inputs: &'a [Input],
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) options: &'a BuildOptions,
}

/// Position in the inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(crate) file: usize,
    pub(crate) place: Place,
}

/// Documents on their way, with the state after they are written.
#[derive(Default)]
struct Batch {
    documents: Vec<(usize, String)>,
    /// Bytes of their text.
    bytes: usize,
    /// Documents and bytes read for it, those that are left out included.
    read: (usize, u64),
    keys: Vec<u8>,
    after: Position,
    counts: Vec<SourceCounts>,
    last: bool,
}

/// The same batch as tokens.
struct Encoded {
    /// Stream and number of tokens of each document.
    documents: Vec<(usize, usize)>,
    tokens: Vec<u16>,
    batch: Batch,
}

/// Runs until all inputs are in the streams.
pub(crate) fn run(
    state: &mut State,
    seen: Seen,
    job: &Job<'_>,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<(), CorpusError> {
    std::thread::scope(|scope| {
        let (mut to_encoders, mut from_encoders) = (Vec::new(), Vec::new());
        for _ in 0..job.options.threads.get() {
            // One batch in each channel keeps the threads busy; more would only take memory.
            let (to, inbox) = sync_channel(1);
            let (outbox, from) = sync_channel(1);
            scope.spawn(move || encode(job.tokenizer, &inbox, &outbox));
            to_encoders.push(to);
            from_encoders.push(from);
        }
        let mut feed = Feed {
            job,
            seen,
            // The reader is ahead of the writer and counts by itself; the state takes its counts with each written
            // batch.
            counts: state.counts.clone(),
            position: state.position,
            batch: Batch::default(),
            encoders: to_encoders,
            next: 0,
        };
        scope.spawn(move || {
            if let Err(error) = feed.read_all() {
                feed.send(Err(error));
            }
        });
        write(state, &from_encoders, job, progress)
    })
}

/// The reading thread.
struct Feed<'a> {
    job: &'a Job<'a>,
    seen: Seen,
    counts: Vec<SourceCounts>,
    position: Position,
    batch: Batch,
    encoders: Vec<SyncSender<Result<Batch, CorpusError>>>,
    /// Encoder of the next batch.
    next: usize,
}

impl Feed<'_> {
    fn read_all(&mut self) -> Result<(), CorpusError> {
        let options = self.job.options;
        while let Some(input) = self.job.inputs.get(self.position.file) {
            let mut reader = Reader::open(input, self.position.place, options.document_bytes_max)?;
            while let Some(document) = reader.next()? {
                let place = reader.place();
                let (documents, bytes) = &mut self.batch.read;
                *documents += 1;
                *bytes += place.bytes.saturating_sub(self.position.place.bytes);
                self.position.place = place;
                self.take(input.source, document)?;
                let read_much = self.batch.read.0 >= BATCH_DOCUMENTS || self.batch.read.1 >= READ_BYTES;
                if (self.batch.bytes >= BATCH_BYTES || read_much) && !self.send_batch(false) {
                    return Ok(());
                }
            }
            self.position = Position {
                file: self.position.file + 1,
                place: Place::default(),
            };
            let next = self.job.inputs.get(self.position.file);
            if next.is_none_or(|next| next.source != input.source) {
                self.check_malformed(input.source, malformed::check_source)?;
            }
        }
        self.send_batch(true);
        Ok(())
    }

    /// Counts a document and packs it, if it is new.
    fn take(&mut self, source: usize, document: Document) -> Result<(), CorpusError> {
        let Some(counts) = self.counts.get_mut(source) else {
            return Ok(());
        };
        let text = match document {
            Ok(text) => text,
            Err(Unusable::Malformed(problem)) => {
                counts.left_out.malformed += 1;
                counts.first_malformed.get_or_insert(problem);
                return self.check_malformed(source, malformed::check_early);
            }
            Err(reason) => {
                let out = &mut counts.left_out;
                *match reason {
                    Unusable::Empty => &mut out.empty,
                    Unusable::TooLarge => &mut out.too_large,
                    Unusable::WithNul => &mut out.with_nul,
                    Unusable::NotUtf8 => &mut out.not_utf8,
                    Unusable::Malformed(_) => &mut out.malformed,
                } += 1;
                return Ok(());
            }
        };
        // By the first half of the digest across all sources, so that no text of the reserve is in the training text.
        let digest = digest(&text);
        if !self.seen.insert(&digest) {
            counts.left_out.duplicate += 1;
            return Ok(());
        }
        let stream = stream_of(part_of(&self.job.list.split, &digest));
        if let Some((documents, bytes)) = counts.taken.get_mut(stream) {
            *documents += 1;
            *bytes += text.len() as u64;
        }
        // In the same batch as the text: a checkpoint never has the digest of a document whose tokens it lacks.
        self.batch.keys.extend_from_slice(&Seen::key(&digest));
        self.batch.bytes += text.len();
        self.batch.documents.push((stream, text));
        Ok(())
    }

    fn check_malformed(&self, source: usize, check: malformed::Check) -> Result<(), CorpusError> {
        let (Some(counts), Some(source)) = (self.counts.get(source), self.job.list.source.get(source)) else {
            return Ok(());
        };
        let found = malformed::Found {
            malformed: counts.left_out.malformed,
            documents: counts.read(),
            first: counts.first_malformed.as_deref(),
        };
        check(&source.name, &found, self.job.options.malformed_permille_max)
    }

    fn send_batch(&mut self, last: bool) -> bool {
        let mut batch = std::mem::take(&mut self.batch);
        batch.after = self.position;
        batch.counts.clone_from(&self.counts);
        batch.last = last;
        self.send(Ok(batch))
    }

    /// Sends to the next encoder. False if it has ended: writing failed or was stopped.
    fn send(&mut self, batch: Result<Batch, CorpusError>) -> bool {
        let encoder = self.next;
        self.next = (encoder + 1) % self.encoders.len().max(1);
        self.encoders.get(encoder).is_some_and(|to| to.send(batch).is_ok())
    }
}

/// An encoding thread.
fn encode(
    tokenizer: &Tokenizer,
    inbox: &Receiver<Result<Batch, CorpusError>>,
    outbox: &SyncSender<Result<Encoded, CorpusError>>,
) {
    let mut encoder = tokenizer.encoder();
    let mut ids = Vec::new();
    while let Ok(batch) = inbox.recv() {
        let encoded = batch.map(|mut batch| {
            let (mut documents, mut tokens) = (Vec::new(), Vec::with_capacity(batch.bytes / 3));
            for (stream, text) in std::mem::take(&mut batch.documents) {
                ids.clear();
                encoder.encode(text.as_bytes(), &mut ids);
                ids.push(END);
                // The vocabulary was checked: every id has 16 bits.
                tokens.extend(ids.iter().map(|id| *id as u16));
                documents.push((stream, ids.len()));
            }
            // The buffer lives as long as the thread: one long document must not enlarge it for good.
            ids.shrink_to(BATCH_BYTES);
            Encoded {
                documents,
                tokens,
                batch,
            }
        });
        if outbox.send(encoded).is_err() {
            return;
        }
    }
}

/// Writes batches in their order, with a checkpoint every [`BuildOptions::checkpoint_bytes`].
fn write(
    state: &mut State,
    encoders: &[Receiver<Result<Encoded, CorpusError>>],
    job: &Job<'_>,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<(), CorpusError> {
    let mut since_checkpoint = 0;
    // In the order in which batches were sent, whichever encoder is faster.
    for from in encoders.iter().cycle() {
        // An encoder ends before its last batch only if a thread has panicked, which the scope passes on.
        let Ok(encoded) = from.recv() else { break };
        let Encoded {
            documents,
            tokens,
            batch,
        } = encoded?;
        let mut rest = tokens.as_slice();
        for (stream, len) in documents {
            let (these, after) = rest.split_at(len.min(rest.len()));
            if let Some(writer) = state.streams.get_mut(stream) {
                writer.push(these)?;
            }
            rest = after;
        }
        state.append_digests(&batch.keys)?;
        (state.position, state.counts) = (batch.after, batch.counts);
        if progress(&progress_at(state, job.inputs)).is_break() {
            return Err(CorpusError::Stopped);
        }
        if batch.last {
            return Ok(());
        }
        // Whichever is larger: a compressed file has fewer bytes than its text, a duplicate has no text here.
        since_checkpoint += batch.read.1.max(batch.bytes as u64);
        if since_checkpoint >= job.options.checkpoint_bytes {
            state.save()?;
            since_checkpoint = 0;
        }
    }
    Err(CorpusError::Stopped)
}

fn progress_at(state: &State, inputs: &[Input]) -> Progress {
    let bytes = |inputs: &[Input]| inputs.iter().map(|input| input.bytes).sum::<u64>();
    let behind = inputs.get(..state.position.file).unwrap_or_default();
    let taken = state.counts.iter().flat_map(|source| &source.taken);
    Progress {
        read_bytes: bytes(behind) + state.position.place.bytes,
        total_bytes: bytes(inputs),
        documents: taken.map(|(documents, _)| documents).sum(),
        left_out: state.counts.iter().map(|source| source.left_out.total()).sum(),
    }
}
