//! `alice-ps corpus build`: from text to shards, manifests, and the lines that go into a run specification.

use crate::{PsError, cli::to_json, error::FlagsError, run_context::read_spec, run_tokenizer};
use alice_api::Hex32;
use alice_corpus::{BuildOptions, BuildReport, DOCUMENT_BYTES_MAX, Format, SourceList, UnreadFile};
use alice_data::{LeftOut, Manifest};
use alice_tokenizer::{TOKENIZER_MODEL_FILE, Tokenizer};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::{
    num::NonZeroUsize,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

/// Flags of `corpus build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// A list of sources (corpus.toml), or files, folders and patterns that --license is for
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present = "text", conflicts_with = "text")]
    pub source: Vec<PathBuf>,
    /// SPDX identifier of the sources' licence, for example CC0-1.0
    #[arg(long, value_name = "SPDX")]
    pub license: Option<String>,
    /// Format of the sources [default: by the endings of names]
    #[arg(long, value_enum)]
    pub format: Option<SourceFormat>,
    /// Key (JSON lines) or column (Parquet) that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_column: String,
    /// Folder of the run's tokenizer, made by `tokenizer train` [default: bytes are tokens]
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Run specification: the tokenizer must be the one that it names
    #[arg(long, value_name = "FILE")]
    pub run: Option<PathBuf>,
    /// Documents of a thousand for the validation reserve [default: 20, or what the list says]
    #[arg(long, value_name = "N")]
    pub reserve_permille: Option<u32>,
    /// Documents of a thousand for the public yardstick [default: 5, or what the list says]
    #[arg(long, value_name = "N")]
    pub yardstick_permille: Option<u32>,
    /// Longest document, MiB; longer ones are left out and counted
    #[arg(long, value_name = "MIB", default_value_t = (DOCUMENT_BYTES_MAX >> 20) as u32)]
    pub document_mib: u32,
    /// Text between two checkpoints, MiB: what is done again after a crash, at most
    #[arg(long, value_name = "MIB", default_value_t = (alice_corpus::CHECKPOINT_BYTES >> 20) as u32)]
    pub checkpoint_mib: u32,
    /// Maximum malformed JSON lines of a source, of a thousand: they are left out and counted; with more the build
    /// stops
    #[arg(long, value_name = "N", default_value_t = alice_corpus::MALFORMED_PERMILLE_MAX)]
    pub malformed_permille: u32,
    /// Threads that encode [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// For development runs: a folder of .txt files, bytes as tokens, every tenth file to the reserve
    #[arg(long, value_name = "DIR", conflicts_with_all = ["license", "format", "tokenizer", "run", "reserve_permille", "yardstick_permille"])]
    pub text: Option<PathBuf>,
    /// Folder for shards and manifests
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Formats of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceFormat {
    /// A file is a document
    Text,
    /// A line is a JSON object with the document
    Jsonl,
    /// A column holds the documents
    Parquet,
}

impl From<SourceFormat> for Format {
    fn from(format: SourceFormat) -> Self {
        match format {
            SourceFormat::Text => Self::Text,
            SourceFormat::Jsonl => Self::Jsonl,
            SourceFormat::Parquet => Self::Parquet,
        }
    }
}

#[derive(Serialize)]
struct Built {
    corpus_root: Hex32,
    reserve_root: Hex32,
    corpus_tokens: u64,
    reserve_tokens: u64,
    documents: u64,
    corpus_shards: usize,
    reserve_shards: usize,
}

impl Built {
    fn new(corpus: &Manifest, reserve: &Manifest, documents: u64) -> Self {
        Self {
            corpus_root: Hex32(corpus.root),
            reserve_root: Hex32(reserve.root),
            corpus_tokens: corpus.tokens(),
            reserve_tokens: reserve.tokens(),
            documents,
            corpus_shards: corpus.shards.len(),
            reserve_shards: reserve.shards.len(),
        }
    }

    /// Lines for `[data]` of the run specification.
    fn lines(&self) -> String {
        format!(
            "corpus_root = \"{}\"\nreserve_root = \"{}\"\ncorpus_tokens = {}\nreserve_tokens = {}\n",
            self.corpus_root, self.reserve_root, self.corpus_tokens, self.reserve_tokens
        )
    }
}

#[derive(Serialize)]
struct Part {
    root: Hex32,
    tokens: u64,
    shards: usize,
    documents: u64,
}

impl Part {
    fn new(manifest: &Manifest) -> Self {
        Self {
            root: Hex32(manifest.root),
            tokens: manifest.tokens(),
            shards: manifest.shards.len(),
            documents: manifest.about.as_ref().map_or(0, |about| about.documents),
        }
    }
}

#[derive(Serialize)]
struct BuiltFromTexts {
    #[serde(flatten)]
    built: Built,
    unread: Vec<UnreadFile>,
    unread_files: u64,
}

#[derive(Serialize)]
struct BuiltFromSources {
    #[serde(flatten)]
    built: Built,
    tokenizer: String,
    vocab: u32,
    bytes: u64,
    left_out: LeftOut,
    /// The first files that were not read; `left_out` has the number of all.
    unread: Vec<UnreadFile>,
    /// The first malformed line of each source that has one.
    first_malformed: Vec<String>,
    training: Part,
    yardstick: Part,
    /// Generation and part.
    reserves: Vec<(u32, Part)>,
    resumed: bool,
    seconds: f64,
}

/// Builds and returns what is printed.
pub fn run(args: &BuildArgs) -> Result<String, PsError> {
    if let Some(text) = &args.text {
        return run_development(text, args);
    }
    let list = sources(args)?;
    let tokenizer = match &args.tokenizer {
        Some(dir) => Tokenizer::read_model(&dir.join(TOKENIZER_MODEL_FILE))?,
        None => Tokenizer::bytes(),
    };
    let tokenizer = match &args.run {
        Some(file) => {
            let (_, spec) = read_spec(file)?;
            let from = args.tokenizer.as_deref().unwrap_or(Path::new("bytes"));
            run_tokenizer::checked(&spec, tokenizer, from)?
        }
        None => tokenizer,
    };
    let default = BuildOptions::default();
    let options = BuildOptions {
        threads: args.threads.unwrap_or(default.threads),
        document_bytes_max: (args.document_mib as usize) << 20,
        checkpoint_bytes: u64::from(args.checkpoint_mib) << 20,
        malformed_permille_max: args.malformed_permille,
    };
    let started = Instant::now();
    let bar = progress_bar();
    let result = alice_corpus::build(&list, &tokenizer, &args.out, &options, &mut |at| {
        bar.set_length(at.total_bytes);
        bar.set_position(at.read_bytes);
        bar.set_message(format!("{} documents, {} left out", at.documents, at.left_out));
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    summary(&result?, &tokenizer, started.elapsed().as_secs_f64(), args)
}

/// The corpus of a development run.
fn run_development(text: &Path, args: &BuildArgs) -> Result<String, PsError> {
    let made = alice_corpus::build_development(text, &args.out)?;
    let built = Built::new(&made.corpus, &made.reserve, made.documents as u64);
    if args.json {
        return to_json(&BuiltFromTexts {
            built,
            unread: made.unread,
            unread_files: made.unread_files,
        });
    }
    Ok(format!(
        "{} documents; for [data] of the run specification:\n{}{}",
        built.documents,
        built.lines(),
        unread_lines(&made.unread, made.unread_files)
    ))
}

/// Unread files that a person is shown; `--json` has up to a hundred.
const UNREAD_SHOWN_MAX: usize = 10;

/// The unread files with their reasons, a line each.
pub(crate) fn unread_lines(unread: &[UnreadFile], all: u64) -> String {
    let shown = unread.iter().take(UNREAD_SHOWN_MAX);
    let mut text: String = shown
        .map(|file| format!("  not read   {}: {}\n", file.path.display(), file.reason))
        .collect();
    if all > UNREAD_SHOWN_MAX as u64 {
        text += &format!("  not read   {} more files\n", all - UNREAD_SHOWN_MAX as u64);
    }
    text
}

/// The sources that the flags name.
fn sources(args: &BuildArgs) -> Result<SourceList, PsError> {
    let format = args.format.map(Format::from);
    if args.license.is_some() && args.source.iter().any(|path| is_list(path)) {
        return Err(FlagsError::LicenseOfList.into());
    }
    let mut list = source_list(&args.source, args.license.as_deref(), format, &args.text_column)?;
    if let Some(permille) = args.reserve_permille {
        list.split.reserve_permille = permille;
    }
    if let Some(permille) = args.yardstick_permille {
        list.split.yardstick_permille = permille;
    }
    Ok(list)
}

fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "toml")
}

/// A `corpus.toml`, or files, folders and patterns of one licence.
pub(crate) fn source_list(
    paths: &[PathBuf],
    license: Option<&str>,
    format: Option<Format>,
    text_column: &str,
) -> Result<SourceList, PsError> {
    match (paths, license) {
        ([path], _) if is_list(path) => {
            if format.is_some() || text_column != "text" {
                return Err(FlagsError::FormatOfList(path.clone()).into());
            }
            Ok(SourceList::read(path)?)
        }
        (paths, _) if paths.iter().any(|path| is_list(path)) => Err(FlagsError::ListAndFiles.into()),
        (paths, license) => {
            let list = SourceList::from_paths(paths, license.unwrap_or_default(), format, text_column);
            // A mistyped path first: its licence is not what is missing.
            list.check_paths()?;
            match license {
                Some(_) => Ok(list),
                None => Err(FlagsError::NoLicense.into()),
            }
        }
    }
}

/// A bar on stderr; nothing where that is no terminal.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("corpus {bar:30} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}  {msg}");
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn summary(report: &BuildReport, tokenizer: &Tokenizer, seconds: f64, args: &BuildArgs) -> Result<String, PsError> {
    // A build without a live generation of the reserve is refused.
    let reserve = report
        .reserves
        .first()
        .map_or(&report.yardstick, |(_, reserve)| reserve);
    let done = BuiltFromSources {
        built: Built::new(&report.training, reserve, report.documents),
        tokenizer: tokenizer.spec_name(),
        vocab: tokenizer.vocab(),
        bytes: report.bytes,
        left_out: report.left_out,
        unread: report.unread.clone(),
        first_malformed: report.first_malformed.clone(),
        training: Part::new(&report.training),
        yardstick: Part::new(&report.yardstick),
        reserves: report.reserves.iter().map(|(g, part)| (*g, Part::new(part))).collect(),
        resumed: report.resumed,
        seconds,
    };
    if args.json {
        return to_json(&done);
    }
    let line = |name: &str, part: &Part| {
        format!(
            "  {name:<10} {:>9} documents {:>13} tokens {:>6} shards  {}\n",
            part.documents, part.tokens, part.shards, part.root
        )
    };
    let out = &done.left_out;
    let mut text = format!(
        "{} documents, {:.1} MB of text in {seconds:.1} s{}\n  left out   {} the same as another, {} empty, {} too large, \
         {} with NUL, {} not UTF-8, {} malformed lines\n",
        report.documents,
        report.bytes as f64 / 1e6,
        if report.resumed {
            " (an interrupted build was finished)"
        } else {
            ""
        },
        out.duplicate,
        out.empty,
        out.too_large,
        out.with_nul,
        out.not_utf8,
        out.malformed
    );
    for first in &report.first_malformed {
        text += &format!("  malformed  {first}\n");
    }
    text += &unread_lines(&report.unread, out.unread_files);
    text += &line("training", &done.training);
    text += &line("yardstick", &done.yardstick);
    for (generation, part) in &done.reserves {
        text += &line(&format!("reserve {generation}"), part);
    }
    text += &format!(
        "for [data] of the run specification (model.vocab = {}):\ntokenizer = \"{}\"\n{}",
        done.vocab,
        done.tokenizer,
        done.built.lines()
    );
    Ok(text)
}
