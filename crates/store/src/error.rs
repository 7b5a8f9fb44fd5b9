//! Errors of the store.

use alice_primitives::Hash;
use std::path::PathBuf;

/// Why a blob, a snapshot or a theta file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No blob of this hash.
    #[error("blob {} is not in the store at {}", hex::encode(.hash), .store.display())]
    Missing {
        /// The hash asked for.
        hash: Hash,
        /// Folder of the store.
        store: PathBuf,
    },
    /// The bytes on disk do not have the hash of their name.
    #[error("blob {} is corrupted: its bytes hash to {}; delete it and fetch or build it again", hex::encode(.expected), hex::encode(.found))]
    Corrupted {
        /// The hash asked for.
        expected: Hash,
        /// The hash of the bytes on disk.
        found: Hash,
    },
    /// A range that goes beyond the blob's end.
    #[error("bytes {start}..{end} of blob {} do not exist: it has {len} bytes", hex::encode(.hash))]
    Range {
        /// The blob.
        hash: Hash,
        /// First byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
        /// Size of the blob.
        len: u64,
    },
    /// A file that changed while it was read.
    #[error("{} changed while it was being stored; store it again while nothing writes to it", .0.display())]
    Changed(PathBuf),
    /// A file that is longer than its reader accepts.
    #[error("{} has more than {bytes_max} bytes; move it away if it is damaged", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Maximum length, bytes.
        bytes_max: u64,
    },
    /// The operating system refused.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// The failed operation, as a verb.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The object store refused.
    #[error("cannot {what} in the store: {source}")]
    Object {
        /// The failed operation, as a verb.
        what: &'static str,
        /// The reason.
        source: object_store::Error,
    },
    /// A snapshot description that cannot be right for this run.
    #[error("snapshot is not valid: {0}")]
    Snapshot(String),
    /// A chunk whose bytes are not those that the snapshot names.
    #[error("chunk {index} of the snapshot is corrupted: expected {}, got {}; fetch it again", hex::encode(.expected), hex::encode(.found))]
    Chunk {
        /// Number of the chunk.
        index: u32,
        /// Hash in the snapshot.
        expected: Hash,
        /// Hash of the bytes.
        found: Hash,
    },
    /// Weights that do not have the root that was promised.
    #[error("model root is {}, expected {}; fetch the model again from another server", hex::encode(.found), hex::encode(.expected))]
    Root {
        /// The promised root.
        expected: Hash,
        /// The root of the weights.
        found: Hash,
    },
    /// The undo journal could not be written, so no step was begun.
    #[error(
        "{error}; the undo journal of a step needs {bytes} bytes; the weights are unchanged, make room and try again"
    )]
    Journal {
        /// Size of the journal.
        bytes: u64,
        /// The reason.
        error: Box<StoreError>,
    },
    /// A step that cannot be made.
    #[error("the model's step cannot be made: {0}")]
    Step(String),
    /// The weights are in use.
    #[error("{} is used by another process, or twice by this one; stop it first", .0.display())]
    Busy(PathBuf),
    /// Mapped weights are little endian.
    #[error(
        "the weights are little-endian f32, this machine is big endian: they cannot be mapped here; use a little-endian machine"
    )]
    BigEndian,
    /// A theta file of the wrong size.
    #[error("{} has {found} bytes, {expected} are expected for this run; delete it and join again", .path.display())]
    ThetaSize {
        /// The file.
        path: PathBuf,
        /// Size for the run.
        expected: u64,
        /// Size on disk.
        found: u64,
    },
}

impl StoreError {
    pub(crate) fn io(what: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { what, path, source }
    }
}
