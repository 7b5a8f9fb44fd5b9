//! Why the miner stops, or waits.

use alice_api::{ClientError, Hex32, ss58::Ss58Error};
use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

/// Exit code for wrong flags or settings.
pub const EXIT_USAGE: u8 = 2;
/// Exit code for everything else.
pub const EXIT_FAILURE: u8 = 1;

/// What went wrong, where, and what to do: one line.
#[derive(Debug, thiserror::Error)]
pub enum MinerError {
    /// A setting is missing.
    #[error("no {what} is set; give {flag}, set {env}, or write `{key} = …` into {}", .file.display())]
    Missing {
        /// What is missing.
        what: &'static str,
        /// Flag that sets it.
        flag: &'static str,
        /// Environment variable that sets it.
        env: &'static str,
        /// Key in the settings file.
        key: &'static str,
        /// The settings file.
        file: PathBuf,
    },
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// The payout address is wrong.
    #[error("payout address: {0}")]
    Payout(#[from] Ss58Error),
    /// The device cannot be used.
    #[error("{0}")]
    Device(String),
    /// No combination of options fits the run's tasks into the device.
    #[error("{0}; `alice-miner plan` says more")]
    DoesNotFit(String),
    /// A file of the miner.
    #[error("cannot {action} {}: {problem}; check the disk and the permissions (a file that stays unreadable can be moved away, \
        what it held is lost then)", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// Another miner works in the data directory.
    #[error("another miner uses {}; give each miner its own --data-dir", .0.display())]
    Locked(PathBuf),
    /// The key file does not hold a key.
    #[error("{} does not hold a mining key (64 hexadecimal digits); restore it from your backup, or move it away to get a new key", .0.display())]
    KeyFile(PathBuf),
    /// The key file can be read by others.
    #[error("{} can be read by others (mode {mode:o}); run: chmod 600 {}", .path.display(), .path.display())]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// There is no key yet.
    #[error("there is no mining key in {} yet; the first `alice-miner run` makes one", .0.display())]
    NoKey(PathBuf),
    /// No page to push.
    #[error("no payout page of epoch {epoch} is stored in {}; pages come once the epoch's work is accepted and attested", .dir.display())]
    NoPage {
        /// Epoch.
        epoch: u32,
        /// Where pages are.
        dir: PathBuf,
    },
    /// Stored receipts or verdicts do not verify.
    #[error("{0} stored submissions do not verify; the lines above say which and why")]
    Verify(u32),
    /// The server speaks another protocol.
    #[error("the parameter server speaks protocol {server}, this miner {miner}; update the older one")]
    Protocol {
        /// The server's version.
        server: u32,
        /// The miner's version.
        miner: u32,
    },
    /// The server belongs to another chain than the data directory.
    #[error("the parameter server follows the network {found}, {} belongs to {expected}; use another --data-dir for another network", .data_dir.display())]
    OtherNetwork {
        /// Genesis hash seen first.
        expected: Hex32,
        /// Genesis hash seen now.
        found: Hex32,
        /// The data directory.
        data_dir: PathBuf,
    },
    /// The server trains another run than before.
    #[error(
        "the parameter server's run is now {found}, it was {expected}; waiting (if the network announced this run, restart with --run {found})"
    )]
    OtherRun {
        /// Run seen first, or given with `--run`.
        expected: Hex32,
        /// Run seen now.
        found: Hex32,
    },
    /// The server signs with another key than before.
    #[error(
        "the parameter server's key is now {found}, it was {expected}; waiting (give --chain, so that the key is looked up, or --ps-key {found} if the operator confirms it)"
    )]
    OtherServer {
        /// Key seen first, or given with `--ps-key`.
        expected: Hex32,
        /// Key seen now.
        found: Hex32,
    },
    /// The server sent something that contradicts what it signed or what is known.
    #[error("the parameter server's {what} cannot be true: {problem}; nothing of it was used")]
    Untrue {
        /// What it sent.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The parameter server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The chain.
    #[error("chain: {0}")]
    Chain(String),
    /// The training text.
    #[error("training text: {0}")]
    Text(String),
    /// Training.
    #[error("training: {0}")]
    Train(String),
    /// Text could not be generated.
    #[error(transparent)]
    Generate(#[from] alice_generate::GenerateError),
    /// The update could not be encoded.
    #[error("the update cannot be encoded: {0}")]
    Encode(String),
    /// What updates had no room for could not be read or stored.
    #[error(transparent)]
    Residual(alice_update::FeedbackError),
    /// The user asked to stop.
    #[error("stopped")]
    Stopped,
}

impl MinerError {
    /// A failed file operation.
    pub fn file(action: &'static str, path: &Path, problem: &dyn Display) -> Self {
        Self::File {
            action,
            path: path.to_owned(),
            problem: problem.to_string(),
        }
    }

    /// Something the server sent that cannot be true.
    pub fn untrue(what: &'static str, problem: impl Into<String>) -> Self {
        Self::Untrue {
            what,
            problem: problem.into(),
        }
    }

    /// Whether waiting may help, so that the miner goes on instead of leaving: everything that is the network's or
    /// the server's affair.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Client(ClientError::Url { .. } | ClientError::Setup(_)) => false,
            Self::Client(_) | Self::Chain(_) | Self::OtherRun { .. } => true,
            Self::OtherServer { .. } | Self::Untrue { .. } => true,
            Self::Train(_) | Self::Encode(_) | Self::Text(_) => true,
            _ => false,
        }
    }

    /// Exit code of the program.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Missing { .. } | Self::Setting(_) | Self::Payout(_) | Self::Device(_) => EXIT_USAGE,
            Self::Client(ClientError::Url { .. }) => EXIT_USAGE,
            Self::Generate(error) if error.is_usage() => EXIT_USAGE,
            _ => EXIT_FAILURE,
        }
    }
}
