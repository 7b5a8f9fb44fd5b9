//! Errors of shards and manifests.

use alice_primitives::Hash;
use alice_store::StoreError;
use std::path::PathBuf;

/// Why shards or a manifest could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A manifest larger than what is read into memory.
    #[error("{} has {bytes} bytes, a manifest has at most {max}; is it the right file?", .path.display())]
    ManifestTooLarge {
        /// The manifest.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Maximum size, bytes.
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
    /// A file that is not a manifest.
    #[error("{} is not a corpus manifest: {source}", .path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        source: serde_json::Error,
    },
    /// A manifest whose shards do not have its root, or not the root of the run.
    #[error("corpus root is {}, expected {}; use the corpus that the run specification names", hex::encode(.found), hex::encode(.expected))]
    Root {
        /// The promised root.
        expected: Hash,
        /// The root of the shards.
        found: Hash,
    },
    /// A shard's file is not there.
    #[error("shard {index} is missing: {} is not there; fetch or build the corpus again", .path.display())]
    ShardMissing {
        /// Number of the shard.
        index: usize,
        /// Its expected path.
        path: PathBuf,
    },
    /// A shard whose bytes do not have the hash of its name.
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
