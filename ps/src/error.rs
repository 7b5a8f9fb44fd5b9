//! Why a command ended, and with which exit code.

use crate::db::DbError;
use alice_api::keyfile::KeyFileError;
use alice_audit::{AuditError, error::chain_exit_code};
use alice_chain::ChainError;
use alice_corpus::CorpusError;
use alice_init::upcycle::UpcycleError;
use alice_program::{exit, settings::SettingsError, system};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a command ended.
#[derive(Debug, thiserror::Error)]
pub enum PsError {
    /// The settings file.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A setting that must be given.
    #[error("{key} is not set; write it into the settings file, or give --{} or ALICE_PS_{}", key.replace('_', "-"), key.to_uppercase())]
    SettingMissing {
        /// Key in the settings file.
        key: &'static str,
    },
    /// A setting with a value that it cannot have.
    #[error("{key}: {problem}")]
    SettingValue {
        /// Key in the settings file.
        key: &'static str,
        /// Reason.
        problem: String,
    },
    /// A setting that names a file which is not there.
    #[error("{key}: there is no file {}; correct it in the settings file, or give --{} or ALICE_PS_{}", .path.display(), key.replace('_', "-"), key.to_uppercase())]
    SettingPath {
        /// Key in the settings file.
        key: &'static str,
        /// The value.
        path: PathBuf,
    },
    /// Flags that exclude each other, or that lack another.
    #[error(transparent)]
    Flags(#[from] FlagsError),
    /// A second process in a data directory.
    #[error("another alice-ps uses {}; stop it first", .0.display())]
    DataDirInUse(PathBuf),
    /// A file or folder.
    #[error("cannot {what} {}: {problem}", .path.display())]
    File {
        /// Attempted action.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why it failed.
        problem: String,
    },
    /// Key file missing.
    #[error("there is no key file {}; make one with: alice-ps key generate --out {}", .0.display(), .0.display())]
    KeyMissing(PathBuf),
    /// Key file unreadable.
    #[error("{} is not a key file: it must hold 64 hexadecimal digits; make one with: alice-ps key generate --out FILE", .0.display())]
    KeyFormat(PathBuf),
    /// Any other fault of a key file.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// Specification.
    #[error("{}: {source}", .path.display())]
    Spec {
        /// The file.
        path: PathBuf,
        /// First mistake in it.
        source: alice_spec::SpecError,
    },
    /// Corpus.
    #[error(transparent)]
    Data(#[from] alice_data::DataError),
    /// The corpus is another one than the specification's.
    #[error("{which} in {} has root {found}, the run specification says {expected}; build the right text, or write this root into the specification before the network starts", .dir.display())]
    CorpusRoot {
        /// `corpus` or `reserve`.
        which: &'static str,
        /// Where it is.
        dir: PathBuf,
        /// Root found.
        found: String,
        /// Root in the specification.
        expected: String,
    },
    /// A public evaluation set that would publish other text.
    #[error("{} is no public yardstick and would be served to everybody: {problem}; put the yardstick.json there that was \
        built with this corpus, or remove it", .path.display())]
    NotPublic {
        /// Manifest of the evaluation set.
        path: PathBuf,
        /// Reason.
        problem: String,
    },
    /// Building a corpus.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// Things that do not belong together.
    #[error("{what} is {found}, expected {expected}; {hint}")]
    Mismatch {
        /// Name of the value.
        what: &'static str,
        /// Value found.
        found: String,
        /// Value expected.
        expected: String,
        /// Remedy.
        hint: &'static str,
    },
    /// `run` before `init`.
    #[error("{} holds no state; run: alice-ps init --config FILE", .0.display())]
    NotInitialised(PathBuf),
    /// An export of an epoch that a data directory does not hold.
    #[error("{} holds {} and no others; leave --epoch out for those, or recompute others with --ps URL", .dir.display(), held(*newest))]
    EpochNotKept {
        /// The data directory.
        dir: PathBuf,
        /// Epoch of its weights; `None` for the first state.
        newest: Option<u32>,
    },
    /// Data of an epoch that the database should have.
    #[error("epoch {epoch} cannot be scored: {what} is not stored")]
    NotStored {
        /// The epoch.
        epoch: u32,
        /// Name of the missing data.
        what: String,
    },
    /// A file that is there already, of a vocabulary.
    #[error("{} exists; a vocabulary is never written over, choose another --out", .0.display())]
    VocabularyExists(PathBuf),
    /// A dense model of other shapes than the run's.
    #[error("{} does not fit run '{run}': {found}, the run needs {expected}; width, blocks, heads and vocabulary must be equal", .dir.display())]
    OtherShape {
        /// Folder of the dense model.
        dir: PathBuf,
        /// Name of the run.
        run: String,
        /// First tensor that differs.
        found: String,
        /// Tensor of the run in the same place.
        expected: String,
    },
    /// Chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Blobs and weights.
    #[error(transparent)]
    Store(#[from] alice_store::StoreError),
    /// Scoring.
    #[error(transparent)]
    Scoring(#[from] crate::round::scoring::ScoringError),
    /// Weights for other programs.
    #[error(transparent)]
    Export(#[from] alice_export::ExportError),
    /// Vocabularies.
    #[error(transparent)]
    Tokenizer(#[from] alice_tokenizer::TokenizerError),
    /// A dense model that cannot become the first state of a run.
    #[error(transparent)]
    Upcycle(#[from] UpcycleError),
    /// A command of the auditor, or the first state.
    #[error(transparent)]
    Audit(Box<AuditError>),
    /// Address in use and the like.
    #[error("cannot listen on {address}: {problem}; another alice-ps may be running, or choose another `listen`")]
    Listen {
        /// Address.
        address: String,
        /// The operating system's reason.
        problem: String,
    },
    /// A value that cannot be written as JSON.
    #[error("{what} cannot be written as JSON: {problem}")]
    Json {
        /// The value.
        what: String,
        /// Why not.
        problem: String,
    },
    /// Standard output.
    #[error("cannot print: {}", system::reason(.0))]
    Print(io::Error),
    /// Signals of the operating system.
    #[error("cannot wait for signals: {}", system::reason(.0))]
    Signals(io::Error),
    /// Ctrl-C or SIGTERM.
    #[error("stopped")]
    Stopped,
}

/// Flags that do not fit together, in words for who typed them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagsError {
    /// `export` without a source.
    #[error("give --ps URL or --data DIR")]
    NoSource,
    /// `upcycle` without a dense model.
    #[error("give --model DIR, or --snapshot FILE with --dense FILE")]
    NoDenseModel,
    /// `corpus build` with a list and a licence.
    #[error("a list of sources (.toml) stands alone: it says the licence of each source, give no --license with it")]
    LicenseOfList,
    /// `corpus build` with a list and how to read files.
    #[error("--format and --text-column are for files; {} says them for each source", .0.display())]
    FormatOfList(PathBuf),
    /// `corpus build` with a list and files.
    #[error("a list of sources (.toml) stands alone: give no other --source with it")]
    ListAndFiles,
    /// `corpus build` of files without a licence.
    #[error("the sources' licence is not known: give --license with an SPDX identifier, for example CC0-1.0")]
    NoLicense,
    /// `tokenizer train --input` with a file that is no text.
    #[error("{} is no text but {format}; give it with --source", .path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Its format by its name.
        format: String,
    },
    /// `tokenizer train --input` with a folder without texts.
    #[error("{} holds no .txt files; give the files themselves, or the folder with --source, which looks in folders below, too", .0.display())]
    NoText(PathBuf),
}

impl From<AuditError> for PsError {
    /// Boxed, because it is the largest of all and errors are returned through every function.
    fn from(error: AuditError) -> Self {
        Self::Audit(Box::new(error))
    }
}

fn held(newest: Option<u32>) -> String {
    match newest {
        Some(epoch) => format!("the weights after epoch {epoch}"),
        None => "the first state".into(),
    }
}

impl PsError {
    /// An error about a file. `problem` may be an error of the operating system or of a parser.
    pub fn file(what: &'static str, path: &Path, problem: &impl ToString) -> Self {
        Self::File {
            what,
            path: path.to_path_buf(),
            problem: problem.to_string(),
        }
    }

    /// An error of the operating system about a file.
    pub fn io(what: &'static str, path: &Path, error: &io::Error) -> Self {
        Self::File {
            what,
            path: path.to_path_buf(),
            problem: system::reason(error),
        }
    }

    /// Exit code of the program that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Settings(_)
            | Self::SettingMissing { .. }
            | Self::SettingValue { .. }
            | Self::SettingPath { .. }
            | Self::Flags(_)
            | Self::DataDirInUse(_)
            | Self::KeyMissing(_)
            | Self::KeyFormat(_)
            | Self::KeyFile(_)
            | Self::Spec { .. }
            | Self::EpochNotKept { .. }
            | Self::VocabularyExists(_)
            | Self::OtherShape { .. }
            | Self::Upcycle(_) => exit::USAGE,
            Self::Export(alice_export::ExportError::TargetExists(_) | alice_export::ExportError::Option { .. }) => {
                exit::USAGE
            }
            Self::Tokenizer(alice_tokenizer::TokenizerError::Option { .. }) => exit::USAGE,
            Self::Corpus(error) => corpus_exit_code(error),
            Self::CorpusRoot { .. } | Self::NotPublic { .. } | Self::Mismatch { .. } | Self::NotInitialised(_) => {
                exit::MISMATCH
            }
            Self::Chain(error) => chain_exit_code(error),
            Self::Audit(error) => error.exit_code(),
            Self::File { .. }
            | Self::NotStored { .. }
            | Self::Data(_)
            | Self::Db(_)
            | Self::Store(_)
            | Self::Scoring(_)
            | Self::Export(_)
            | Self::Tokenizer(_)
            | Self::Listen { .. }
            | Self::Json { .. }
            | Self::Print(_)
            | Self::Signals(_)
            | Self::Stopped => exit::FAILURE,
        }
    }
}

fn corpus_exit_code(error: &CorpusError) -> u8 {
    match error {
        CorpusError::List { .. }
        | CorpusError::Setting { .. }
        | CorpusError::License { .. }
        | CorpusError::NoPath { .. }
        | CorpusError::NoFiles { .. }
        | CorpusError::Exists(_) => exit::USAGE,
        CorpusError::OtherBuild { .. } => exit::MISMATCH,
        _ => exit::FAILURE,
    }
}
