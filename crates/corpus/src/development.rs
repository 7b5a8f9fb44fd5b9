//! The corpus of development runs: a folder of `.txt` files, bytes as tokens, every tenth document to the reserve.
//!
//! The roots in the shipped run specifications `dev` and `small` come from this rule, and it needs no licence, so that
//! `localnet` works with any folder of text. Unlike [`build`](crate::build) it divides by position, so adding a
//! document moves others between the parts: a run that will grow its text must not use it.

use crate::inputs::UnreadFile;
use crate::{CorpusError, UNREAD_NAMED_MAX};
use alice_data::{CORPUS_FILE, Manifest, RESERVE_FILE, ShardWriter};
use alice_store::blob_hash;
use alice_tokenizer::{END, Tokenizer};
use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// One document of this number goes to the validation reserve.
pub const RESERVE_EVERY: usize = 10;
/// Maximum document, bytes: each is read as a whole.
pub const DEVELOPMENT_DOCUMENT_BYTES_MAX: u64 = 256 << 20;

/// A development run's corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevelopmentCorpus {
    /// Training shards.
    pub corpus: Manifest,
    /// Shards of the validation reserve. Keep them private until their sequences are retired.
    pub reserve: Manifest,
    /// Different documents, in corpus and reserve.
    pub documents: usize,
    /// Number of them in the reserve.
    pub reserve_documents: usize,
    /// Documents left out because they are empty or equal to another.
    pub left_out: usize,
    /// Entries of the folder that are no `.txt` files, the first [`UNREAD_NAMED_MAX`].
    pub unread: Vec<UnreadFile>,
    /// Number of all such entries.
    pub unread_files: u64,
}

/// Reads every `*.txt` of a folder (not of folders in it) in the order of their names and writes shards and the two
/// manifests to `out_dir`. Each document is followed by the end token. A text that occurs twice is taken once, so that
/// no reserve document is also in the training text.
///
/// # Errors
/// [`CorpusError::NoText`], [`CorpusError::NoReserve`] with fewer than ten documents, and an error that names the file
/// if one is not UTF-8 text.
pub fn build_development(text_dir: &Path, out_dir: &Path) -> Result<DevelopmentCorpus, CorpusError> {
    let listing = Listing::of(text_dir)?;
    let tokenizer = Tokenizer::bytes();
    let (mut encoder, mut ids) = (tokenizer.encoder(), Vec::new());
    let mut seen = HashSet::new();
    let (mut corpus, mut reserve) = (ShardWriter::new(out_dir), ShardWriter::new(out_dir));
    let mut reserve_documents = 0;
    for path in &listing.documents {
        let text = read_document(path)?;
        // By the exact bytes, unlike `build`: the shipped roots depend on it.
        if text.is_empty() || !seen.insert(blob_hash(text.as_bytes())) {
            continue;
        }
        ids.clear();
        encoder.encode(text.as_bytes(), &mut ids);
        ids.push(END);
        // Ids of bytes are below 259.
        let tokens: Vec<u16> = ids.iter().map(|id| *id as u16).collect();
        if seen.len() % RESERVE_EVERY == 0 {
            reserve_documents += 1;
            reserve.push(&tokens)?;
        } else {
            corpus.push(&tokens)?;
        }
    }
    if reserve_documents == 0 {
        return Err(CorpusError::NoReserve {
            dir: text_dir.to_path_buf(),
            documents: seen.len(),
            every: RESERVE_EVERY,
        });
    }
    let (corpus, reserve) = (corpus.finish()?, reserve.finish()?);
    // Manifests last: their presence shows that all shards are there.
    corpus.write(&out_dir.join(CORPUS_FILE))?;
    reserve.write(&out_dir.join(RESERVE_FILE))?;
    let documents = seen.len();
    Ok(DevelopmentCorpus {
        corpus,
        reserve,
        documents,
        reserve_documents,
        left_out: listing.documents.len() - documents,
        unread: listing.unread,
        unread_files: listing.unread_files,
    })
}

/// Entries of a folder of texts.
struct Listing {
    /// Sorted by the bytes of their names: the order must not depend on the file system.
    documents: Vec<PathBuf>,
    unread: Vec<UnreadFile>,
    unread_files: u64,
}

impl Listing {
    fn of(dir: &Path) -> Result<Self, CorpusError> {
        let failed = || CorpusError::io("read", dir);
        let (mut documents, mut others) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(dir).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            let is_text = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt")) && path.is_file();
            match is_text {
                true => documents.push(path),
                false => others.push(path),
            }
        }
        if documents.is_empty() {
            return Err(CorpusError::NoText(dir.to_path_buf()));
        }
        documents.sort_unstable_by(|a, b| a.file_name().cmp(&b.file_name()));
        // Names with a dot at the start are for programs, not text.
        others.retain(|path| !path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".")));
        others.sort_unstable();
        let name = dir
            .file_name()
            .unwrap_or(dir.as_os_str())
            .to_string_lossy()
            .into_owned();
        Ok(Self {
            documents,
            unread_files: others.len() as u64,
            unread: others
                .into_iter()
                .take(UNREAD_NAMED_MAX)
                .map(|path| UnreadFile {
                    source: name.clone(),
                    path,
                    reason: "not a .txt file; --source reads other formats and folders in the folder".into(),
                })
                .collect(),
        })
    }
}

fn read_document(path: &Path) -> Result<String, CorpusError> {
    let file = std::fs::File::open(path).map_err(CorpusError::io("read", path))?;
    let mut bytes = Vec::new();
    file.take(DEVELOPMENT_DOCUMENT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(CorpusError::io("read", path))?;
    let path = path.to_path_buf();
    if bytes.len() as u64 > DEVELOPMENT_DOCUMENT_BYTES_MAX {
        return Err(CorpusError::TooLarge {
            path,
            max: DEVELOPMENT_DOCUMENT_BYTES_MAX,
        });
    }
    if let Some(offset) = bytes.iter().position(|b| *b == 0) {
        return Err(CorpusError::Nul { path, offset });
    }
    String::from_utf8(bytes).map_err(|e| CorpusError::NotUtf8 {
        path,
        offset: e.utf8_error().valid_up_to(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alice_data::{SHARD_TOKENS, TokenSource};

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
        let tokens: Vec<u32> = (0..source.sequences())
            .flat_map(|i| source.sequence(i).unwrap())
            .map(u32::from)
            .collect();
        Tokenizer::bytes().decode(&tokens)
    }

    #[test]
    fn build_should_match_the_golden_roots() {
        // Golden: the shipped run specifications name roots of this rule.
        let dir = tempfile::tempdir().unwrap();
        let mut documents = texts(25);
        documents.push(("900.txt".into(), documents[9].1.clone()));
        documents.push(("901.txt".into(), "\u{feff} with a mark \r\n".into()));
        documents.push(("902.txt".into(), " \n".into()));
        write_texts(&dir.path().join("in"), &documents);
        let built = build_development(&dir.path().join("in"), &dir.path().join("out")).unwrap();
        assert_eq!((built.documents, built.reserve_documents, built.left_out), (27, 2, 1));
        assert_eq!(hex::encode(built.corpus.root), GOLDEN_CORPUS_ROOT);
        assert_eq!(hex::encode(built.reserve.root), GOLDEN_RESERVE_ROOT);
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
        std::fs::write(b.join(".hidden"), "").unwrap();
        let built = build_development(&a, &out_a).unwrap();
        let mut other = build_development(&b, &out_b).unwrap();
        assert_eq!(other.unread_files, 2);
        let names: Vec<_> = other.unread.iter().filter_map(|file| file.path.file_name()).collect();
        assert_eq!(names, ["README.md", "folder.txt"]);
        (other.unread, other.unread_files) = (Vec::new(), 0);
        assert_eq!(built, other);
        assert_eq!(
            built,
            build_development(&a, &out_a).unwrap(),
            "building again changes nothing"
        );
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
        let built = build_development(&dir.path().join("in"), &dir.path().join("out")).unwrap();
        assert_eq!((built.documents, built.left_out), (20, 2));
        assert!(!all_text(&built.corpus, &dir.path().join("out")).contains("document 9:"));
    }

    #[test]
    fn long_texts_should_be_cut_into_full_shards() {
        let dir = tempfile::tempdir().unwrap();
        let mut documents = texts(10);
        documents[0].1 = "x".repeat(SHARD_TOKENS * 2 + 5);
        write_texts(&dir.path().join("in"), &documents);
        let built = build_development(&dir.path().join("in"), &dir.path().join("out")).unwrap();
        let sizes: Vec<u64> = built.corpus.shards.iter().map(|s| s.tokens).collect();
        assert_eq!(sizes.len(), 3);
        assert_eq!(sizes[..2], [SHARD_TOKENS as u64; 2]);
        assert_eq!(built.reserve.shards.len(), 1);
    }

    #[test]
    fn texts_that_are_no_text_should_be_named() {
        let dir = tempfile::tempdir().unwrap();
        let (input, out) = (dir.path().join("in"), dir.path().join("out"));
        assert!(matches!(build_development(&input, &out), Err(CorpusError::Io { .. })));
        write_texts(&input, &[]);
        let message = |input: &Path| build_development(input, &out).unwrap_err().to_string();
        assert!(message(&input).starts_with("no .txt file in"));
        write_texts(&input, &texts(9));
        assert!(message(&input).contains("at least 10 are needed"));
        for (content, words) in [
            (&b"abc\0def"[..], "bad.txt has a NUL at byte 3"),
            (b"abc\xff\xfe", "bad.txt is not UTF-8 (byte 3)"),
        ] {
            std::fs::write(input.join("bad.txt"), content).unwrap();
            let message = message(&input);
            assert!(message.contains(words), "{message}");
        }
        assert!(!out.join(CORPUS_FILE).exists());
    }

    const GOLDEN_CORPUS_ROOT: &str = "17c2608510f073a77049e6f4055a9d036ef51b1ba42c4dabf676d9702dcfe9a9";
    const GOLDEN_RESERVE_ROOT: &str = "04d402f501fede289a551b93e0a3ba8df4632e09aab9a386ad30b224a26ab4d7";
}
