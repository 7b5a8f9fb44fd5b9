//! State of a build on disk, from which a killed build resumes.
//!
//! `checkpoint` holds everything but the digests of the documents seen, which are appended to `digests`; the checkpoint
//! has their number, and digests behind it are cut off. Shards written after the last checkpoint are written again,
//! with the same bytes.

use crate::document::Part;
use crate::pipeline::Position;
use crate::seen::{SEEN_BYTES, Seen};
use crate::{CorpusError, build_folder};
use alice_data::{LeftOut, SHARD_TOKENS, ShardEntry, ShardWriter};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const HASH_BYTES: usize = 32;
/// Maximum checkpoint that is read, bytes: a million shards.
const HEAD_BYTES_MAX: u64 = 256 << 20;

/// Documents of one source so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceCounts {
    pub(crate) left_out: LeftOut,
    /// Documents and bytes of each stream.
    pub(crate) taken: Vec<(u64, u64)>,
    /// The first malformed line: its file, its number and what is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) first_malformed: Option<String>,
}

impl SourceCounts {
    /// Documents read, those that are left out included.
    pub(crate) fn read(&self) -> u64 {
        self.taken.iter().map(|(documents, _)| documents).sum::<u64>() + self.left_out.total()
    }
}

/// Where a part's tokens go: training, yardstick, then the generations of the reserve.
pub(crate) fn stream_of(part: Part) -> usize {
    match part {
        Part::Training => 0,
        Part::Yardstick => 1,
        Part::Reserve(generation) => 2 + generation as usize,
    }
}

#[derive(Serialize, Deserialize)]
struct Head {
    /// Fingerprint of the inputs.
    #[serde(with = "hex::serde")]
    inputs: [u8; 32],
    position: Position,
    digests: u64,
    counts: Vec<SourceCounts>,
    streams: Vec<Stream>,
}

#[derive(Serialize, Deserialize)]
struct Stream {
    shards: Vec<ShardEntry>,
    open_tokens: usize,
}

/// The state of a build.
pub(crate) struct State {
    out: PathBuf,
    inputs: [u8; 32],
    pub(crate) position: Position,
    pub(crate) counts: Vec<SourceCounts>,
    pub(crate) streams: Vec<ShardWriter>,
    digests: u64,
    log: BufWriter<File>,
}

impl State {
    /// The state of the last checkpoint and the documents seen until then, or those of a new build; and whether there
    /// was a checkpoint.
    pub(crate) fn open(
        out: &Path,
        inputs: [u8; 32],
        sources: usize,
        streams: usize,
    ) -> Result<(Self, Seen, bool), CorpusError> {
        let stored = load(out, &inputs)?;
        let resumed = stored.is_some();
        let (head, opens) = stored.unwrap_or_else(|| {
            let counts = SourceCounts {
                taken: vec![(0, 0); streams],
                ..SourceCounts::default()
            };
            let head = Head {
                inputs,
                position: Position::default(),
                digests: 0,
                counts: vec![counts; sources],
                streams: Vec::new(),
            };
            (head, Vec::new())
        });
        let mut writers: Vec<ShardWriter> = head
            .streams
            .into_iter()
            .zip(opens)
            .map(|(stream, open)| ShardWriter::resume(out, stream.shards, open))
            .collect();
        // A new build's head has no streams yet.
        writers.resize_with(streams, || ShardWriter::new(out));
        let (log, seen) = open_log(out, head.digests)?;
        let state = Self {
            out: out.to_path_buf(),
            inputs,
            position: head.position,
            counts: head.counts,
            streams: writers,
            digests: head.digests,
            log,
        };
        Ok((state, seen, resumed))
    }

    /// Appends digests of documents that are now in the streams.
    pub(crate) fn append_digests(&mut self, keys: &[u8]) -> Result<(), CorpusError> {
        // Not synced here: they count only once a checkpoint has their number.
        self.digests += (keys.len() / SEEN_BYTES) as u64;
        self.log
            .write_all(keys)
            .map_err(CorpusError::io("write", &log_path(&self.out)))
    }

    /// Makes the progress so far durable.
    pub(crate) fn save(&mut self) -> Result<(), CorpusError> {
        let path = log_path(&self.out);
        // The digests first: the checkpoint counts on those that it has the number of.
        self.log.flush().map_err(CorpusError::io("write", &path))?;
        self.log.get_ref().sync_data().map_err(CorpusError::io("sync", &path))?;
        let streams = self.streams.iter().map(|writer| Stream {
            shards: writer.shards().to_vec(),
            open_tokens: writer.open().len(),
        });
        let head = Head {
            inputs: self.inputs,
            position: self.position,
            digests: self.digests,
            counts: self.counts.clone(),
            streams: streams.collect(),
        };
        let path = checkpoint_path(&self.out);
        let failed = |e: serde_json::Error| CorpusError::io("write", &path)(e.into());
        let mut bytes = serde_json::to_vec(&head).map_err(failed)?;
        bytes.push(b'\n');
        // Raw, behind the line of JSON: as numbers in JSON they would take several times the room.
        for writer in &self.streams {
            bytes.extend(writer.open().iter().flat_map(|token| token.to_le_bytes()));
        }
        // Checked when it is read: the open tokens go into shards without any other check.
        let hash = blake3::hash(&bytes);
        alice_store::file::write_atomic(&path, |file| {
            file.write_all(hash.as_bytes())?;
            file.write_all(&bytes)
        })?;
        Ok(())
    }
}

fn checkpoint_path(out: &Path) -> PathBuf {
    build_folder(out).join("checkpoint")
}

fn log_path(out: &Path) -> PathBuf {
    build_folder(out).join("digests")
}

/// A stored head with the open tokens of each stream.
type Stored = (Head, Vec<Vec<u16>>);

/// The last checkpoint; `None` if there is none.
fn load(out: &Path, inputs: &[u8; 32]) -> Result<Option<Stored>, CorpusError> {
    let (path, state) = (checkpoint_path(out), build_folder(out));
    let file = match File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(CorpusError::io("read", &path))?,
    };
    let mut bytes = Vec::new();
    file.take(HEAD_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(CorpusError::io("read", &path))?;
    let damaged = || CorpusError::Checkpoint {
        problem: format!("{} is damaged", path.display()),
        state: state.clone(),
    };
    let (hash, content) = bytes.split_at_checked(HASH_BYTES).ok_or_else(damaged)?;
    if blake3::hash(content).as_bytes() != hash {
        return Err(damaged());
    }
    let end = content.iter().position(|b| *b == b'\n').ok_or_else(damaged)?;
    let (json, open) = content.split_at(end);
    let head: Head = serde_json::from_slice(json).map_err(|_| damaged())?;
    // Other inputs would be appended to the shards of these: refused rather than started over, since hours of work may
    // be in the folder.
    if head.inputs != *inputs {
        let dir = out.to_path_buf();
        return Err(CorpusError::OtherBuild { dir, state });
    }
    let mut tokens = open.get(1..).unwrap_or_default().as_chunks::<2>().0;
    let mut opens = Vec::new();
    for stream in &head.streams {
        let (these, rest) = tokens
            .split_at_checked(stream.open_tokens.min(SHARD_TOKENS))
            .ok_or_else(damaged)?;
        opens.push(these.iter().map(|b| u16::from_le_bytes(*b)).collect());
        tokens = rest;
    }
    Ok(Some((head, opens)))
}

/// The log of digests, cut to the number in the checkpoint and ready to be appended to.
fn open_log(out: &Path, digests: u64) -> Result<(BufWriter<File>, Seen), CorpusError> {
    let path = log_path(out);
    let failed = || CorpusError::io("read", &path);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed())?;
    let bytes = digests.saturating_mul(SEEN_BYTES as u64);
    if file.metadata().map_err(failed())?.len() < bytes {
        return Err(CorpusError::Checkpoint {
            problem: format!("{} is too short", path.display()),
            state: build_folder(out),
        });
    }
    // Digests behind the checkpoint are of documents that will be read again: kept, they would make these duplicates.
    file.set_len(bytes).map_err(failed())?;
    let seen = Seen::read(&mut file, digests).map_err(failed())?;
    file.seek(SeekFrom::End(0)).map_err(failed())?;
    Ok((BufWriter::with_capacity(1 << 16, file), seen))
}
