//! What can go wrong with texts, shards and manifests.

use alice_primitives::Hash;
use alice_store::StoreError;
use std::path::PathBuf;

/// Why a corpus could not be built or read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// No `.txt` file in the folder.
    #[error("no .txt file in {}; put one document in each file, UTF-8", .0.display())]
    NoText(PathBuf),
    /// Too few documents to set one aside.
    #[error("{documents} different documents in {}: every {every}th goes to the reserve, so at least {every} are needed", .dir.display())]
    NoReserve {
        /// Folder of the texts.
        dir: PathBuf,
        /// Documents in it.
        documents: usize,
        /// One in so many goes to the reserve.
        every: usize,
    },
    /// A document that is not UTF-8.
    #[error("{} is not UTF-8 (byte {offset}); convert it, for example with iconv", .path.display())]
    NotUtf8 {
        /// The document.
        path: PathBuf,
        /// First bad byte.
        offset: usize,
    },
    /// A document with a NUL: nearly always a binary file or UTF-16.
    #[error("{} has a NUL at byte {offset}, so it is no text; remove it or convert it to UTF-8", .path.display())]
    Nul {
        /// The document.
        path: PathBuf,
        /// Where the NUL is.
        offset: usize,
    },
    /// A document larger than what is read into memory.
    #[error("{} has {bytes} bytes, a document has at most {max}; split it", .path.display())]
    TooLarge {
        /// The document.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The operating system refused.
    #[error("cannot read {}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A shard or manifest could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A manifest that is no manifest.
    #[error("{} is not a corpus manifest: {source}", .path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A manifest whose shards do not have its root, or not the root of the run.
    #[error("corpus root is {}, expected {}; use the corpus that the run specification names", hex::encode(.found), hex::encode(.expected))]
    Root {
        /// What was promised.
        expected: Hash,
        /// What the shards have.
        found: Hash,
    },
    /// A shard's file is not there.
    #[error("shard {index} is missing: {} is not there; fetch or build the corpus again", .path.display())]
    ShardMissing {
        /// Number of the shard.
        index: usize,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A shard's bytes are not those of its name.
    #[error("shard {index} at {} is corrupted; delete it and fetch or build the corpus again", .path.display())]
    ShardCorrupted {
        /// Number of the shard.
        index: usize,
        /// Its file.
        path: PathBuf,
    },
    /// A sequence that does not exist.
    #[error("sequence {index} does not exist: the corpus has {sequences}")]
    NoSequence {
        /// The sequence asked for.
        index: u64,
        /// How many there are.
        sequences: u64,
    },
    /// A sequence in a shard that was not opened.
    #[error("sequence {index} needs shard {shard}, which was not opened")]
    ShardNotOpened {
        /// The sequence asked for.
        index: u64,
        /// The shard it is in.
        shard: usize,
    },
    /// Sequences of no tokens.
    #[error("a sequence must have at least one token")]
    NoContext,
}

impl DataError {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}
