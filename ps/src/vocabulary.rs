//! `alice-ps tokenizer train`: a vocabulary from text files.

use crate::{PsError, cli::to_json};
use alice_api::Hex32;
use alice_tokenizer::{Progress, TOKENIZER_MODEL_FILE, TrainOptions};
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Flags of `tokenizer train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Number of ids, the 259 special ones and bytes included
    #[arg(long, value_name = "N")]
    pub vocab: u32,
    /// Text files in UTF-8, or folders whose .txt files are taken; one document each
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
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
    documents: usize,
    /// BLAKE3 of `tokenizer.model`.
    blake3: Hex32,
}

/// Learns from the files in ascending order of their paths and writes the tokenizer's files; returns what is printed.
pub fn train(args: &TrainArgs) -> Result<String, PsError> {
    let target = args.out.join(TOKENIZER_MODEL_FILE);
    if target.exists() {
        return Err(PsError::Setting(format!(
            "{} exists; a vocabulary is never written over, choose another --out",
            target.display()
        )));
    }
    let files = documents(&args.input)?;
    // A file that cannot be opened is named here; the library knows documents by their number only.
    let opened = files.iter().map(|path| {
        std::fs::File::open(path).map_err(|e| std::io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    });
    let mut progress = report();
    let options = TrainOptions::new(args.vocab);
    let tokenizer = tokio::task::block_in_place(|| alice_tokenizer::train(opened, &options, &mut progress))?;
    tokenizer.write_files(&args.out, args.context)?;
    let done = Trained {
        out: args.out.display().to_string(),
        vocab: tokenizer.vocab(),
        documents: files.len(),
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

/// All files, each once, in ascending order.
fn documents(input: &[PathBuf]) -> Result<Vec<PathBuf>, PsError> {
    let mut all = Vec::new();
    for path in input {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let failed = |e: std::io::Error| PsError::file("read the folder", path, &e);
        let before = all.len();
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let file = entry.map_err(failed)?.path();
            if file.is_file() && is_text(&file) {
                all.push(file);
            }
        }
        if all.len() == before {
            return Err(PsError::Setting(format!(
                "{} holds no .txt files; give the files themselves, or another folder with --input",
                path.display()
            )));
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

fn is_text(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "txt")
}

/// Says on stderr how far it is: every 64 MiB of text and every tenth of the merges.
fn report() -> impl FnMut(Progress) {
    let (mut read, mut merged) = (0, 0);
    move |at| match at {
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
