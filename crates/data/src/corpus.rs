//! Builds a corpus and a validation reserve from a folder of texts, with bytes as tokens: what development runs use.
//! `alice-corpus` does the same from other formats, with any tokenizer, in bounded memory.

use crate::{DataError, Manifest, ShardWriter, tokenizer};
use alice_store::blob_hash;
use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Tokens in every shard but the last: 2 MiB.
pub const SHARD_TOKENS: usize = 1 << 20;
/// One document in so many goes to the validation reserve.
pub const RESERVE_EVERY: usize = 10;
/// Largest document, bytes: each is read as a whole.
pub const DOCUMENT_BYTES_MAX: u64 = 256 << 20;
/// File name of the training manifest.
pub const CORPUS_FILE: &str = "corpus.json";
/// File name of the reserve's manifest.
pub const RESERVE_FILE: &str = "reserve.json";

/// What [`build`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltCorpus {
    /// Training shards.
    pub corpus: Manifest,
    /// Shards of the validation reserve. Keep them private until their sequences are retired.
    pub reserve: Manifest,
    /// Different documents, in corpus and reserve.
    pub documents: usize,
    /// Documents of them in the reserve.
    pub reserve_documents: usize,
    /// Files left out because the same text, or no text, was in them.
    pub left_out: usize,
}

/// Reads every `*.txt` of a folder (not of folders in it) in the order of their names and writes shards and the two
/// manifests to `out_dir`. Each document is followed by the end token. Every tenth goes to the reserve; a text that
/// occurs twice is taken once, so that no reserve document is also in the training text.
pub fn build(text_dir: &Path, out_dir: &Path) -> Result<BuiltCorpus, DataError> {
    let paths = documents(text_dir)?;
    let mut seen = HashSet::new();
    let (mut corpus, mut reserve) = (ShardWriter::new(out_dir), ShardWriter::new(out_dir));
    let mut reserve_documents = 0;
    for path in &paths {
        let text = read_document(path)?;
        if text.is_empty() || !seen.insert(blob_hash(text.as_bytes())) {
            continue;
        }
        let mut tokens = tokenizer::encode(&text);
        tokens.push(tokenizer::END);
        if seen.len() % RESERVE_EVERY == 0 {
            reserve_documents += 1;
            reserve.push(&tokens)?;
        } else {
            corpus.push(&tokens)?;
        }
    }
    if reserve_documents == 0 {
        return Err(DataError::NoReserve {
            dir: text_dir.to_path_buf(),
            documents: seen.len(),
            every: RESERVE_EVERY,
        });
    }
    let (corpus, reserve) = (corpus.finish()?, reserve.finish()?);
    // Manifests last: where they are, all shards are.
    corpus.write(&out_dir.join(CORPUS_FILE))?;
    reserve.write(&out_dir.join(RESERVE_FILE))?;
    let documents = seen.len();
    Ok(BuiltCorpus {
        corpus,
        reserve,
        documents,
        reserve_documents,
        left_out: paths.len() - documents,
    })
}

/// The folder's documents, sorted by the bytes of their names: the order must not depend on the file system.
fn documents(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(DataError::io(dir))? {
        let path = entry.map_err(DataError::io(dir))?.path();
        if path.extension().is_some_and(|e| e == "txt") && path.is_file() {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(DataError::NoText(dir.to_path_buf()));
    }
    paths.sort_unstable_by(|a, b| a.file_name().cmp(&b.file_name()));
    Ok(paths)
}

fn read_document(path: &Path) -> Result<String, DataError> {
    let file = std::fs::File::open(path).map_err(DataError::io(path))?;
    let mut bytes = Vec::new();
    file.take(DOCUMENT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(DataError::io(path))?;
    let len = bytes.len() as u64;
    if len > DOCUMENT_BYTES_MAX {
        return Err(DataError::TooLarge {
            path: path.to_path_buf(),
            bytes: len,
            max: DOCUMENT_BYTES_MAX,
        });
    }
    if let Some(offset) = bytes.iter().position(|b| *b == 0) {
        return Err(DataError::Nul {
            path: path.to_path_buf(),
            offset,
        });
    }
    String::from_utf8(bytes).map_err(|e| DataError::NotUtf8 {
        path: path.to_path_buf(),
        offset: e.utf8_error().valid_up_to(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokenSource;

    fn write_texts(dir: &Path, texts: &[(String, String)]) {
        std::fs::create_dir_all(dir).unwrap();
        for (name, text) in texts {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }

    fn texts(n: usize) -> Vec<(String, String)> {
        (0..n)
            .map(|i| {
                (
                    format!("{i:03}.txt"),
                    format!("document {i}: {}", "word ".repeat(i + 1)),
                )
            })
            .collect()
    }

    fn all_text(manifest: &Manifest, dir: &Path) -> String {
        let source = TokenSource::open(manifest.clone(), dir, 1).unwrap();
        let tokens: Vec<u16> = (0..source.sequences())
            .flat_map(|i| source.sequence(i).unwrap())
            .collect();
        tokenizer::decode(&tokens)
    }

    #[test]
    fn build_should_be_deterministic_and_its_parts_disjoint() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, out_a, out_b) = (
            dir.path().join("a"),
            dir.path().join("b"),
            dir.path().join("out-a"),
            dir.path().join("out-b"),
        );
        let mut documents = texts(25);
        write_texts(&a, &documents);
        documents.reverse();
        write_texts(&b, &documents);
        std::fs::write(b.join("README.md"), "not a document").unwrap();
        std::fs::create_dir(b.join("folder.txt")).unwrap();
        let built = build(&a, &out_a).unwrap();
        assert_eq!(built, build(&b, &out_b).unwrap());
        assert_eq!(built, build(&a, &out_a).unwrap(), "building again changes nothing");
        assert_eq!((built.documents, built.reserve_documents, built.left_out), (25, 2, 0));

        let corpus = all_text(&built.corpus, &out_a);
        let reserve = all_text(&built.reserve, &out_a);
        for i in 0..25 {
            let mark = format!("document {i}:");
            assert_eq!(
                reserve.contains(&mark),
                i % RESERVE_EVERY == RESERVE_EVERY - 1,
                "document {i}"
            );
            assert_ne!(corpus.contains(&mark), reserve.contains(&mark), "document {i}");
        }
        assert_eq!(
            built.corpus.tokens() as usize,
            corpus.len() + 23,
            "each document is followed by the end token"
        );
        assert_eq!(Manifest::read(&out_a.join(CORPUS_FILE)).unwrap(), built.corpus);
        assert_eq!(Manifest::read(&out_a.join(RESERVE_FILE)).unwrap(), built.reserve);
    }

    #[test]
    fn the_same_text_twice_should_be_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut documents = texts(20);
        // Document 9 goes to the reserve: its copies must not come into the training text.
        documents.push(("900.txt".into(), documents[9].1.clone()));
        documents.push(("901.txt".into(), String::new()));
        write_texts(&dir.path().join("in"), &documents);
        let built = build(&dir.path().join("in"), &dir.path().join("out")).unwrap();
        assert_eq!((built.documents, built.left_out), (20, 2));
        assert!(!all_text(&built.corpus, &dir.path().join("out")).contains("document 9:"));
    }

    #[test]
    fn long_texts_should_be_cut_into_full_shards() {
        let dir = tempfile::tempdir().unwrap();
        let mut documents = texts(10);
        documents[0].1 = "x".repeat(SHARD_TOKENS * 2 + 5);
        write_texts(&dir.path().join("in"), &documents);
        let built = build(&dir.path().join("in"), &dir.path().join("out")).unwrap();
        let sizes: Vec<u64> = built.corpus.shards.iter().map(|s| s.tokens).collect();
        assert_eq!(sizes.len(), 3);
        assert_eq!(sizes[..2], [SHARD_TOKENS as u64; 2]);
        assert_eq!(built.reserve.shards.len(), 1);
    }

    #[test]
    fn texts_that_are_no_text_should_be_named() {
        let dir = tempfile::tempdir().unwrap();
        let (input, out) = (dir.path().join("in"), dir.path().join("out"));
        assert!(matches!(build(&input, &out), Err(DataError::Io { .. })));
        write_texts(&input, &[]);
        let message = build(&input, &out).unwrap_err().to_string();
        assert!(message.starts_with("no .txt file in"), "{message}");
        write_texts(&input, &texts(9));
        let message = build(&input, &out).unwrap_err().to_string();
        assert!(message.contains("at least 10 are needed"), "{message}");
        std::fs::write(input.join("bad.txt"), b"abc\0def").unwrap();
        let message = build(&input, &out).unwrap_err().to_string();
        assert!(message.contains("bad.txt has a NUL at byte 3"), "{message}");
        std::fs::write(input.join("bad.txt"), b"abc\xff\xfe").unwrap();
        let message = build(&input, &out).unwrap_err().to_string();
        assert!(message.contains("bad.txt is not UTF-8 (byte 3)"), "{message}");
        assert!(!out.join(CORPUS_FILE).exists());
    }
}
