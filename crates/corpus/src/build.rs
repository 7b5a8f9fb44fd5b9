//! From sources to a complete corpus.

use crate::checkpoint::{SourceCounts, State, stream_of};
use crate::document::{DOCUMENT_BYTES_MAX, Part};
use crate::{CorpusError, SourceList, UnreadFile, files, inputs, pipeline, reserve_file};
use alice_data::{About, CORPUS_FILE, CORPUS_FORMAT, LeftOut, Manifest, PartName, SourceEntry, SplitRule};
use alice_tokenizer::{TOKENIZER_MODEL_FILE, Tokenizer};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;

/// Text between two checkpoints by default, bytes: at most that much is encoded again after a crash.
pub const CHECKPOINT_BYTES: u64 = 256 << 20;
/// File name of the yardstick's manifest.
pub const YARDSTICK_FILE: &str = "yardstick.json";
/// Maximum malformed lines of a source by default, thousandths: more look like a wrong key or a damaged file, not like
/// a few bad records.
pub const MALFORMED_PERMILLE_MAX: u32 = 10;
/// Number of ids of 16 bits, the size of an id in a shard.
const VOCABULARY_MAX: u32 = 1 << 16;

/// Limits of a build; none of them changes the result, except by what is left out.
#[derive(Clone, Copy, Debug)]
pub struct BuildOptions {
    /// Threads that encode; one more reads.
    pub threads: NonZeroUsize,
    /// Longest document, bytes; longer ones are left out and counted.
    pub document_bytes_max: usize,
    /// Text between two checkpoints, bytes.
    pub checkpoint_bytes: u64,
    /// Malformed JSON lines that are left out and counted, thousandths of a source's documents (one is always left out,
    /// unless this is 0). With more the build stops.
    pub malformed_permille_max: u32,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            document_bytes_max: DOCUMENT_BYTES_MAX,
            checkpoint_bytes: CHECKPOINT_BYTES,
            malformed_permille_max: MALFORMED_PERMILLE_MAX,
        }
    }
}

/// Progress of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the sources' files that are read.
    pub read_bytes: u64,
    /// Bytes of them all.
    pub total_bytes: u64,
    /// Different documents so far.
    pub documents: u64,
    /// Documents left out so far.
    pub left_out: u64,
}

/// A complete corpus.
#[derive(Clone, Debug)]
pub struct BuildReport {
    /// Training text: `corpus.json`.
    pub training: Manifest,
    /// Public yardstick: `yardstick.json`. It has no shards if no document fell to it.
    pub yardstick: Manifest,
    /// Generations of the reserve that are not retired, with their numbers: see [`reserve_file`].
    pub reserves: Vec<(u32, Manifest)>,
    /// Different documents.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Documents left out, and files that were not read.
    pub left_out: LeftOut,
    /// The unread files, the first [`UNREAD_NAMED_MAX`](crate::UNREAD_NAMED_MAX) of them.
    pub unread: Vec<UnreadFile>,
    /// The first malformed line of each source that has one: its file, its number and what is wrong with it.
    pub first_malformed: Vec<String>,
    /// Whether an interrupted build was finished.
    pub resumed: bool,
}

/// Builds the corpus of `list` in `out`, or finishes a build there that was interrupted. `progress` is called about
/// once for each MiB of text; if it breaks, the build stops with [`CorpusError::Stopped`] as if it had been killed.
///
/// # Errors
/// Of the settings and the sources before anything is written; later [`CorpusError::Empty`] and
/// [`CorpusError::NoPart`], which leave nothing behind, and errors of files, after which the same call resumes.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// use alice_corpus::{BuildOptions, SourceList, build};
/// use std::ops::ControlFlow;
/// let lines: String = (0..200).map(|i| format!("{{\"text\": \"document {i}\"}}\n")).collect();
/// let path = dir.path().join("lines.jsonl");
/// std::fs::write(&path, lines)?;
/// let mut list = SourceList::from_paths(&[path], "CC0-1.0", None, "text");
/// list.split.reserve_permille = 100;
/// let tokenizer = alice_tokenizer::Tokenizer::bytes();
/// let out = dir.path().join("corpus");
/// let report = build(&list, &tokenizer, &out, &BuildOptions::default(), &mut |_| ControlFlow::Continue(()))?;
/// assert_eq!(report.documents, 200);
/// assert!(out.join("corpus.json").exists() && out.join("reserve.json").exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn build(
    list: &SourceList,
    tokenizer: &Tokenizer,
    out: &Path,
    options: &BuildOptions,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<BuildReport, CorpusError> {
    list.check()?;
    if tokenizer.vocab() > VOCABULARY_MAX {
        return Err(CorpusError::Vocabulary(tokenizer.vocab()));
    }
    if options.document_bytes_max == 0 {
        return Err(CorpusError::setting(
            "the longest document (--document-mib)",
            "must be at least 1",
        ));
    }
    // Before the folder is made: a mistyped path should leave nothing behind.
    let inputs = inputs::find(list)?;
    let _lock = files::claim(out)?;
    let model = tokenizer.model_bytes();
    let limit = (options.document_bytes_max as u64).to_le_bytes();
    // Only settings that change the output: threads and checkpoints may differ when a build is resumed.
    let fingerprint = inputs::fingerprint(list, &inputs.files, &[CORPUS_FORMAT.as_bytes(), &model, &limit]);
    let streams = stream_of(Part::Reserve(list.split.generations));
    let (mut state, seen, resumed) = State::open(out, fingerprint, list.source.len(), streams)?;
    let job = pipeline::Job {
        list,
        inputs: &inputs.files,
        tokenizer,
        options,
    };
    pipeline::run(&mut state, seen, &job, progress)?;
    for (counts, unread) in state.counts.iter_mut().zip(&inputs.unread_counts) {
        counts.left_out.unread_files = *unread;
    }

    if let Err(error) = check_parts(&state.counts, &list.split) {
        // Shards of the reserve must not stay: without manifests nobody would know that they are private.
        for shard in state.streams.iter().flat_map(|stream| stream.shards()) {
            alice_store::file::remove(&out.join(hex::encode(shard.blob)))?;
        }
        files::forget(out)?;
        return Err(error);
    }
    // Next to the shards, because these cannot be read without it.
    if !tokenizer.is_bytes() {
        alice_store::file::write_atomic(&out.join(TOKENIZER_MODEL_FILE), |file| file.write_all(&model))?;
    }
    let report = write_manifests(state, list, tokenizer, out)?;
    files::forget(out)?;
    Ok(BuildReport {
        resumed,
        unread: inputs.unread,
        ..report
    })
}

/// Documents of a stream, over all sources.
fn documents(counts: &[SourceCounts], stream: usize) -> u64 {
    let taken = counts.iter().filter_map(|source| source.taken.get(stream));
    taken.map(|(documents, _)| documents).sum()
}

/// Training text and every live generation of the reserve must have something.
fn check_parts(counts: &[SourceCounts], split: &SplitRule) -> Result<(), CorpusError> {
    let all = (0..stream_of(Part::Reserve(split.generations)))
        .map(|stream| documents(counts, stream))
        .sum();
    if all == 0 {
        let left_out = counts.iter().map(|source| source.left_out.total()).sum();
        return Err(CorpusError::Empty { left_out });
    }
    let empty = |part: String, raise| {
        Err(CorpusError::NoPart {
            part,
            documents: all,
            raise,
        })
    };
    // Scoring draws from each of them in its turn.
    for generation in split.retired..split.generations {
        if documents(counts, stream_of(Part::Reserve(generation))) == 0 {
            return empty(
                format!("reserve's generation {generation}"),
                "split.reserve_permille (--reserve-permille)",
            );
        }
    }
    // Only with very few documents, all of which fell to the held-out parts.
    if documents(counts, stream_of(Part::Training)) == 0 {
        return empty(
            "training text".into(),
            "nothing: lower split.reserve_permille (--reserve-permille)",
        );
    }
    Ok(())
}

/// Writes the last shards and the manifests, the training manifest last: its presence shows that all others are there.
fn write_manifests(
    state: State,
    list: &SourceList,
    tokenizer: &Tokenizer,
    out: &Path,
) -> Result<BuildReport, CorpusError> {
    let counts = state.counts;
    let mut manifests = Vec::new();
    for (stream, writer) in state.streams.into_iter().enumerate() {
        let mut manifest = writer.finish()?;
        manifest.about = Some(about(list, tokenizer, &counts, stream));
        manifests.push(manifest);
    }
    let mut manifests = manifests.into_iter();
    let (Some(training), Some(yardstick)) = (manifests.next(), manifests.next()) else {
        return Err(CorpusError::Stopped);
    };
    let reserves: Vec<(u32, Manifest)> = (0..)
        .zip(manifests)
        // The stream of a retired generation is empty: its documents are training text.
        .filter(|(generation, _)| *generation >= list.split.retired)
        .collect();
    for (generation, reserve) in &reserves {
        reserve.write(&out.join(reserve_file(*generation)))?;
    }
    yardstick.write(&out.join(YARDSTICK_FILE))?;
    training.write(&out.join(CORPUS_FILE))?;
    let taken = || counts.iter().flat_map(|source| &source.taken);
    Ok(BuildReport {
        training,
        yardstick,
        reserves,
        documents: taken().map(|(documents, _)| documents).sum(),
        bytes: taken().map(|(_, bytes)| bytes).sum(),
        left_out: counts
            .iter()
            .fold(LeftOut::default(), |sum, source| sum.plus(&source.left_out)),
        unread: Vec::new(),
        first_malformed: counts
            .iter()
            .filter_map(|source| source.first_malformed.clone())
            .collect(),
        resumed: false,
    })
}

fn about(list: &SourceList, tokenizer: &Tokenizer, counts: &[SourceCounts], stream: usize) -> About {
    let part = match stream {
        0 => PartName::Training,
        1 => PartName::Yardstick,
        _ => PartName::Reserve,
    };
    let sources: Vec<SourceEntry> = list
        .source
        .iter()
        .zip(counts)
        .map(|(source, counts)| {
            let (documents, bytes) = counts.taken.get(stream).copied().unwrap_or_default();
            SourceEntry {
                name: source.name.clone(),
                license: source.license.clone(),
                url: source.url.clone(),
                documents,
                bytes,
                left_out: (part == PartName::Training).then_some(counts.left_out),
            }
        })
        .collect();
    About {
        format: CORPUS_FORMAT.into(),
        part,
        generation: (part == PartName::Reserve).then(|| (stream - stream_of(Part::Reserve(0))) as u32),
        split: list.split,
        tokenizer: tokenizer.spec_name(),
        vocab: tokenizer.vocab(),
        documents: sources.iter().map(|source| source.documents).sum(),
        bytes: sources.iter().map(|source| source.bytes).sum(),
        sources,
    }
}
