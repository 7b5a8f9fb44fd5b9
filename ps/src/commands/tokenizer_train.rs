//! `alice-ps tokenizer train`: a vocabulary from text files, or from the training text of a corpus to be built.

use crate::{
    PsError,
    cli::to_json,
    commands::corpus_build::{self, SourceFormat},
    error::FlagsError,
};
use alice_api::Hex32;
use alice_corpus::{DOCUMENT_BYTES_MAX, Format, TrainingDocuments};
use alice_program::system::reason;
use alice_tokenizer::{Progress, TOKENIZER_MODEL_FILE, Tokenizer, TrainOptions};
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Learning needs no licence; a list of sources without one is written in a `corpus.toml`.
const NO_LICENSE: &str = "LicenseRef-not-given";

/// Flags of `tokenizer train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Number of ids, the 259 special ones and bytes included
    #[arg(long, value_name = "N")]
    pub vocab: u32,
    /// Sources of a corpus, as for `corpus build --source`: its training text only, each document once
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present = "input", conflicts_with = "input")]
    pub source: Vec<PathBuf>,
    /// Key (JSON lines) or column (Parquet) that holds the text of --source
    #[arg(long, value_name = "NAME", default_value = "text", requires = "source")]
    pub text_column: String,
    /// Format of --source [default: by the endings of names]
    #[arg(long, value_enum, requires = "source")]
    pub format: Option<SourceFormat>,
    /// Longest document of --source, MiB
    #[arg(long, value_name = "MIB", default_value_t = (DOCUMENT_BYTES_MAX >> 20) as u32, requires = "source")]
    pub document_mib: u32,
    /// Maximum malformed JSON lines of a source, of a thousand, as for `corpus build`
    #[arg(long, value_name = "N", default_value_t = alice_corpus::MALFORMED_PERMILLE_MAX)]
    pub malformed_permille: u32,
    /// Documents of a thousand that `corpus build` keeps for the validation reserve [default: 20, or what the list
    /// says]
    #[arg(long, value_name = "N", requires = "source")]
    pub reserve_permille: Option<u32>,
    /// Documents of a thousand that it keeps for the yardstick [default: 5, or what the list says]
    #[arg(long, value_name = "N", requires = "source")]
    pub yardstick_permille: Option<u32>,
    /// All of these text files in UTF-8, or of the .txt files in these folders; one document each
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub input: Vec<PathBuf>,
    /// Folder for the files; it must not hold a tokenizer
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Longest sequence of the model it is for (goes into tokenizer_config.json only)
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    pub context: u32,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Trained {
    out: String,
    vocab: u32,
    documents: u64,
    /// BLAKE3 of `tokenizer.model`.
    blake3: Hex32,
}

/// Learns from the documents in their order and writes the tokenizer's files; returns what is printed.
pub fn train(args: &TrainArgs) -> Result<String, PsError> {
    let target = args.out.join(TOKENIZER_MODEL_FILE);
    if target.exists() {
        return Err(PsError::VocabularyExists(target));
    }
    let mut documents = 0;
    let tokenizer = tokio::task::block_in_place(|| match args.source.is_empty() {
        true => from_files(args, &mut documents),
        false => from_sources(args, &mut documents),
    })?;
    tokenizer.write_files(&args.out, args.context)?;
    let done = Trained {
        out: args.out.display().to_string(),
        vocab: tokenizer.vocab(),
        documents,
        blake3: Hex32(*blake3::hash(&tokenizer.model_bytes()).as_bytes()),
    };
    if args.json {
        return to_json(&done);
    }
    Ok(format!(
        "{} ids from {} documents in {}\nBLAKE3 of {TOKENIZER_MODEL_FILE}  {}\n",
        done.vocab, done.documents, done.out, done.blake3
    ))
}

/// Learns from files as they are.
fn from_files(args: &TrainArgs, documents: &mut u64) -> Result<Tokenizer, PsError> {
    let files = files(&args.input)?;
    // The library knows documents by their number only, so an error gets the file's name here.
    let opened = files.iter().map(|path| {
        *documents += 1;
        std::fs::File::open(path)
            .map_err(|e| std::io::Error::new(e.kind(), format!("{}: {}", path.display(), reason(&e))))
    });
    Ok(alice_tokenizer::train(
        opened,
        &TrainOptions::new(args.vocab),
        &mut progress(),
    )?)
}

/// Learns from the documents that `corpus build` turns into training text, and from no others: text of the reserve in
/// the vocabulary would make the held-out loss look better than it is.
fn from_sources(args: &TrainArgs, documents: &mut u64) -> Result<Tokenizer, PsError> {
    let format = args.format.map(Format::from);
    let mut list = corpus_build::source_list(&args.source, Some(NO_LICENSE), format, &args.text_column)?;
    list.split.reserve_permille = args.reserve_permille.unwrap_or(list.split.reserve_permille);
    list.split.yardstick_permille = args.yardstick_permille.unwrap_or(list.split.yardstick_permille);
    // With another split, text that the vocabulary was learned from would become the reserve.
    eprintln!(
        "leaving out {} ‰ of the documents for the reserve and {} ‰ for the yardstick; give corpus build the same",
        list.split.reserve_permille, list.split.yardstick_permille
    );
    // The library takes errors of readers only: the error itself is kept here, and a placeholder ends the training.
    let mut failed = None;
    let source = TrainingDocuments::open(&list, (args.document_mib as usize) << 20, args.malformed_permille)?;
    let (unread, all) = source.unread();
    eprint!("{}", corpus_build::unread_lines(unread, all));
    let texts = source.map(|text| match text {
        Ok(text) => {
            *documents += 1;
            Ok(std::io::Cursor::new(text))
        }
        Err(error) => {
            failed = Some(error);
            Err(std::io::Error::other("a source cannot be read"))
        }
    });
    let result = alice_tokenizer::train(texts, &TrainOptions::new(args.vocab), &mut progress());
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(result?),
    }
}

/// All files, each once, in ascending order: the order of flags must not change the vocabulary.
fn files(input: &[PathBuf]) -> Result<Vec<PathBuf>, PsError> {
    let mut all = Vec::new();
    for path in input {
        if !path.is_dir() {
            if let Some(format) = Format::of(path).filter(|format| *format != Format::Text) {
                return Err(FlagsError::NotText {
                    path: path.clone(),
                    format: format!("{format:?}"),
                }
                .into());
            }
            all.push(path.clone());
            continue;
        }
        let failed = |e: std::io::Error| PsError::io("read the folder", path, &e);
        let before = all.len();
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let file = entry.map_err(failed)?.path();
            if file.is_file() && is_text(&file) {
                all.push(file);
            }
        }
        if all.len() == before {
            return Err(FlagsError::NoText(path.clone()).into());
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

fn is_text(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "txt")
}

/// Reports progress on standard error: every 64 MiB of text and every tenth of the merges.
fn progress() -> impl FnMut(Progress) {
    let (mut read, mut merged) = (0, 0);
    move |progress| match progress {
        Progress::Read { bytes, documents } => {
            if bytes >> 26 > read {
                read = bytes >> 26;
                eprintln!("read {} MiB, {documents} documents", bytes >> 20);
            }
        }
        Progress::Merge { done, total } => {
            let tenths = u64::from(done) * 10 / u64::from(total.max(1));
            if tenths > merged {
                merged = tenths;
                eprintln!("learned {done} of {total} merges");
            }
        }
    }
}
