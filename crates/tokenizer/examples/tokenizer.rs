//! A small program around the crate, used by `tests/weights.py`:
//!
//! ```text
//! tokenizer train VOCAB OUT TEXT_DIR      learns from *.txt, in the order of their names, and writes the files
//! tokenizer bytes OUT                     writes the files of the byte tokenizer
//! tokenizer encode MODEL                  reads hexadecimal lines, writes the ids of each as a JSON line
//! tokenizer decode MODEL                  reads JSON lines of ids, writes the bytes of each in hexadecimal
//! tokenizer speed MODEL TEXT_DIR          encodes all texts and prints the speed
//! ```

use alice_program::output::quiet_if_closed;
use alice_tokenizer::{Progress, TOKENIZER_MODEL_FILE, Tokenizer, TrainOptions, train};
use std::error::Error;
use std::fs::File;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

fn texts(dir: &str) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    paths.retain(|p| p.extension().is_some_and(|e| e == "txt"));
    paths.sort();
    Ok(paths)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match args[..] {
        ["train", vocab, dir, text] => {
            let started = Instant::now();
            let mut read = 0;
            let mut progress = |p| {
                if let Progress::Read { bytes, .. } = p {
                    read = bytes;
                }
            };
            let options = TrainOptions::new(vocab.parse()?);
            let documents = texts(text)?.into_iter().map(File::open);
            let tokenizer = train(documents, &options, &mut progress)?;
            tokenizer.write_files(Path::new(dir), 2048)?;
            let seconds = started.elapsed().as_secs_f64();
            quiet_if_closed(writeln!(
                out,
                "{} ids from {read} bytes in {seconds:.2} s",
                tokenizer.vocab()
            ))?;
        }
        ["bytes", dir] => Tokenizer::bytes().write_files(Path::new(dir), 2048)?,
        ["encode", dir] => {
            let tokenizer = Tokenizer::read_model(&Path::new(dir).join(TOKENIZER_MODEL_FILE))?;
            let mut encoder = tokenizer.encoder();
            for line in std::io::stdin().lock().lines() {
                let mut ids = Vec::new();
                encoder.encode(&from_hex(&line?)?, &mut ids);
                quiet_if_closed(writeln!(out, "{ids:?}"))?;
            }
        }
        ["decode", dir] => {
            let tokenizer = Tokenizer::read_model(&Path::new(dir).join(TOKENIZER_MODEL_FILE))?;
            for line in std::io::stdin().lock().lines() {
                let ids: Vec<u32> = serde_json::from_str(&line?)?;
                for byte in tokenizer.decode_bytes(&ids) {
                    quiet_if_closed(write!(out, "{byte:02x}"))?;
                }
                quiet_if_closed(writeln!(out))?;
            }
        }
        ["speed", dir, text] => {
            let tokenizer = Tokenizer::read_model(&Path::new(dir).join(TOKENIZER_MODEL_FILE))?;
            let texts: Vec<Vec<u8>> = texts(text)?.iter().map(std::fs::read).collect::<Result<_, _>>()?;
            let bytes: usize = texts.iter().map(Vec::len).sum();
            let started = Instant::now();
            let mut encoder = tokenizer.encoder();
            let mut ids = Vec::new();
            for text in &texts {
                encoder.encode(text, &mut ids);
            }
            let seconds = started.elapsed().as_secs_f64();
            let speed = bytes as f64 / seconds / 1e6;
            quiet_if_closed(writeln!(
                out,
                "{bytes} bytes, {} tokens, {seconds:.3} s, {speed:.1} MB/s",
                ids.len()
            ))?;
        }
        _ => return Err("see the top of examples/tokenizer.rs".into()),
    }
    quiet_if_closed(out.flush())?;
    Ok(())
}

fn from_hex(line: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let digits: Vec<u32> = line
        .chars()
        .map(|c| c.to_digit(16).ok_or("not hexadecimal"))
        .collect::<Result<_, _>>()?;
    Ok(digits
        .as_chunks::<2>()
        .0
        .iter()
        .map(|[h, l]| (h * 16 + l) as u8)
        .collect())
}
