//! Errors of writing and checking weights.

use alice_primitives::Hash;
use alice_store::StoreError;
use alice_tokenizer::{LFS_POINTER_ADVICE, TokenizerError};
use std::path::{Path, PathBuf};

/// Why an export or a check failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The target is there already.
    #[error("{} exists; choose another name, or remove it", .0.display())]
    TargetExists(PathBuf),
    /// The operating system refused.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The file it was tried on.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A folder could not be synced.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A setting outside its bounds.
    #[error("export option {option}: {problem}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// The fault, and the allowed values.
        problem: String,
    },
    /// A tokenizer that is not the run's.
    #[error("tokenizer does not fit run {run}: {problem}")]
    Tokenizer {
        /// Name of the run.
        run: String,
        /// The fault.
        problem: String,
    },
    /// A weights file of the wrong size.
    #[error("{} has {found} bytes, the weights of this run have {expected}; it is cut off or belongs to another run", .path.display())]
    WeightsSize {
        /// The file.
        path: PathBuf,
        /// Size for the run.
        expected: u64,
        /// Size on disk.
        found: u64,
    },
    /// A source of weights that gave too few or too many values.
    #[error("tensor {tensor} has {found} values, {expected} are expected for this run")]
    TensorSize {
        /// The tensor.
        tensor: String,
        /// Values for the run.
        expected: u64,
        /// Values that were given.
        found: u64,
    },
    /// A clone without `git lfs`: the file is a pointer to the one that is meant.
    #[error("{} is {LFS_POINTER_ADVICE}", .0.display())]
    LfsPointer(PathBuf),
    /// The folder's tokenizer cannot be read.
    #[error(transparent)]
    TokenizerFile(#[from] TokenizerError),
    /// A weight that no format should carry.
    #[error("tensor {tensor} has {value} at coordinate {coordinate}: these weights are broken and are not exported")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// Position in the tensor.
        coordinate: u64,
        /// NaN or an infinity.
        value: f32,
    },
    /// Weights that do not have the root that was promised.
    #[error("model root is {}, expected {}; these are other weights", hex::encode(.found), hex::encode(.expected))]
    Root {
        /// The expected root.
        expected: Hash,
        /// The root of these weights.
        found: Hash,
    },
    /// A folder without `ALICE.json`.
    #[error("{} is not there: this folder was not written by Alice, or the download is not complete", .0.display())]
    NoAliceFile(PathBuf),
    /// A file that breaks its format.
    #[error("{} is not valid: {problem}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The fault and its position.
        problem: String,
    },
    /// A format or architecture that this program does not know.
    #[error("{what} '{found}' is not known; this program reads {known}")]
    Unknown {
        /// The property: format or architecture.
        what: &'static str,
        /// Its value in the folder.
        found: String,
        /// The known values.
        known: &'static str,
    },
    /// A folder of another run.
    #[error("this folder is of run '{found_name}' ({}), not of '{expected_name}' ({})", hex::encode(.found), hex::encode(.expected))]
    OtherRun {
        /// Name of the run that was asked for.
        expected_name: String,
        /// Its hash.
        expected: Hash,
        /// Name in the folder.
        found_name: String,
        /// Hash in the folder.
        found: Hash,
    },
    /// A folder of another network.
    #[error("this folder is of the chain with genesis {found}, not {}", hex::encode(.expected))]
    OtherChain {
        /// The chain that was asked for.
        expected: Hash,
        /// Genesis hash in the folder, or that it names none.
        found: String,
    },
    /// A listed file is missing.
    #[error("{} is missing; download it again", .0.display())]
    Missing(PathBuf),
    /// A listed file has the wrong size: most often an interrupted download.
    #[error("{} has {found} bytes instead of {expected}; download it again", .path.display())]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Size in the list.
        expected: u64,
        /// Size on disk.
        found: u64,
    },
    /// A listed file has other bytes.
    #[error("{} has BLAKE3 {}, {} is listed; download it again, or do not trust it", .path.display(), hex::encode(.found), hex::encode(.expected))]
    FileHash {
        /// The file.
        path: PathBuf,
        /// Hash in the list.
        expected: Hash,
        /// Hash of what is there.
        found: Hash,
    },
    /// A file that is not listed, so that nothing vouches for it.
    #[error("{} is not listed in ALICE.json, and a program that loads the folder may use it; remove it", .0.display())]
    Unlisted(PathBuf),
    /// A tensor whose bytes are not those that are listed, or not those that the weights give.
    #[error("tensor {tensor} has {what} {}, {} is listed", hex::encode(.found), hex::encode(.expected))]
    TensorHash {
        /// The tensor.
        tensor: String,
        /// The hashed bytes: stored, f32 or rounded.
        what: &'static str,
        /// Hash in the list.
        expected: Hash,
        /// Hash of the bytes.
        found: Hash,
    },
    /// A file that follows from the run, with other contents.
    #[error("{} is not the file that the run and its tokenizer give; do not trust this folder", .0.display())]
    NotDerived(PathBuf),
}

impl ExportError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { what, path, source }
    }

    pub(crate) fn malformed(path: &Path, problem: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }
}
