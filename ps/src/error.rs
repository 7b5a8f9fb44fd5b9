//! Why a command ended, and with which exit code.

use crate::db::DbError;
use alice_chain::ChainError;
use alice_corpus::CorpusError;
use std::path::{Path, PathBuf};

/// Exit code: something failed that another try may not fix (disk, database, device).
pub const EXIT_FAILURE: u8 = 1;
/// Exit code: wrong flags, settings, key file or specification. (clap's own code for wrong flags is the same.)
pub const EXIT_USAGE: u8 = 2;
/// Exit code: the data directory, chain, run and corpus do not belong together.
pub const EXIT_MISMATCH: u8 = 3;
/// Exit code: the chain cannot be reached.
pub const EXIT_CHAIN: u8 = 4;

/// Exit code: what is published does not agree with what was recomputed from it.
pub const EXIT_AUDIT: u8 = 5;

/// Why a command ended.
#[derive(Debug, thiserror::Error)]
pub enum PsError {
    /// A setting is missing or wrong.
    #[error("{0}")]
    Setting(String),
    /// A file or folder.
    #[error("cannot {what} {}: {problem}", .path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// The operating system's words.
        problem: String,
    },
    /// Key file missing.
    #[error("there is no key file {}; make one with: alice-ps key generate --out {}", .0.display(), .0.display())]
    KeyMissing(PathBuf),
    /// Key file unreadable.
    #[error("{} is not a key file: it must hold 64 hexadecimal digits; make one with: alice-ps key generate --out FILE", .0.display())]
    KeyFormat(PathBuf),
    /// Key file readable by others.
    #[error("key file {} can be read by others (mode {mode:o}); run: chmod 600 {}", .path.display(), .path.display())]
    KeyMode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Key file exists.
    #[error("{} exists; a key is never written over, choose another --out", .0.display())]
    KeyExists(PathBuf),
    /// Specification.
    #[error("{}: {source}", .path.display())]
    Spec {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
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
    /// A yardstick that would publish other text.
    #[error("{} is no public yardstick and would be served to everybody: {problem}; put the yardstick.json there that was \
        built with this corpus, or remove it", .path.display())]
    NotPublic {
        /// The yardstick's manifest.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A tokenizer, or tokens, of another run.
    #[error("{what} in {} is not the run's: {problem}", .from.display())]
    OtherTokenizer {
        /// The tokenizer, or what made the shards.
        what: &'static str,
        /// Where it is.
        from: PathBuf,
        /// What does not fit, and what to do.
        problem: String,
    },
    /// Building a corpus.
    #[error(transparent)]
    Corpus(#[from] alice_corpus::CorpusError),
    /// Things that do not belong together.
    #[error("{what} is {found}, expected {expected}; {hint}")]
    Mismatch {
        /// What does not fit.
        what: &'static str,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
        /// What to do.
        hint: &'static str,
    },
    /// `run` before `init`.
    #[error("{} holds no state; run: alice-ps init --config FILE", .0.display())]
    NotInitialised(PathBuf),
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
    Upcycle(#[from] alice_model::upcycle::UpcycleError),
    /// Ctrl-C or SIGTERM.
    #[error("stopped")]
    Stopped,
    /// A folder of weights that is not what was asked for.
    #[error("{0}; do not use these weights")]
    OtherWeights(String),
    /// A chain proof that does not hold.
    #[error("{0}")]
    ChainProof(#[from] alice_chain::proof::ProofError),
    /// A parameter server that was asked.
    #[error(transparent)]
    Client(#[from] alice_api::ClientError),
    /// What is published does not agree with what was recomputed.
    #[error("{0}; keep what you have downloaded and show it to others: nothing here can be explained by your machine")]
    Audit(String),
    /// Address in use and the like.
    #[error("cannot listen on {address}: {problem}; another alice-ps may be running, or choose another `listen`")]
    Listen {
        /// Address.
        address: String,
        /// The operating system's words.
        problem: String,
    },
}

impl PsError {
    /// An error about a file.
    pub fn file(what: &'static str, path: &Path, problem: &impl ToString) -> Self {
        Self::File {
            what,
            path: path.to_path_buf(),
            problem: problem.to_string(),
        }
    }

    /// Exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Setting(_) | Self::KeyMissing(_) | Self::KeyFormat(_) | Self::KeyMode { .. } | Self::KeyExists(_) => {
                EXIT_USAGE
            }
            Self::Spec { .. } | Self::Upcycle(_) => EXIT_USAGE,
            Self::Export(alice_export::ExportError::TargetExists(_) | alice_export::ExportError::Option { .. }) => {
                EXIT_USAGE
            }
            Self::Tokenizer(alice_tokenizer::TokenizerError::Option { .. }) => EXIT_USAGE,
            Self::Chain(ChainError::BadUrl { .. }) => EXIT_USAGE,
            Self::ChainProof(alice_chain::proof::ProofError::Spec(_)) => EXIT_USAGE,
            Self::Corpus(error) => match error {
                CorpusError::List { .. }
                | CorpusError::Setting { .. }
                | CorpusError::License { .. }
                | CorpusError::NoFiles { .. }
                | CorpusError::Exists(_) => EXIT_USAGE,
                CorpusError::OtherBuild { .. } => EXIT_MISMATCH,
                _ => EXIT_FAILURE,
            },
            Self::OtherTokenizer { .. } => EXIT_MISMATCH,
            Self::CorpusRoot { .. } | Self::NotPublic { .. } | Self::Mismatch { .. } | Self::NotInitialised(_) => {
                EXIT_MISMATCH
            }
            Self::Chain(_) => EXIT_CHAIN,
            Self::Audit(_) => EXIT_AUDIT,
            Self::Client(alice_api::ClientError::Url { .. }) => EXIT_USAGE,
            Self::File { .. }
            | Self::Data(_)
            | Self::Db(_)
            | Self::Store(_)
            | Self::Scoring(_)
            | Self::Export(_)
            | Self::Tokenizer(_)
            | Self::OtherWeights(_)
            | Self::Stopped
            | Self::ChainProof(_)
            | Self::Client(_)
            | Self::Listen { .. } => EXIT_FAILURE,
        }
    }
}
