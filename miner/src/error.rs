//! Why the miner ends, or waits.

use crate::settings::SettingError;
use alice_api::{ClientError, Hex32, keyfile::KeyFileError, ss58::Ss58Error};
use alice_chain::ChainError;
use alice_data::DataError;
use alice_generate::GenerateError;
use alice_model::DeviceError;
use alice_program::{exit, settings::SettingsError};
use alice_store::StoreError;
use alice_trainer::TrainError;
use alice_update::{EncodeError, FeedbackError};
use std::{
    io,
    path::{Path, PathBuf},
};

/// The system's or another crate's reason.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Error of the miner. Its text is one line: what failed, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum MinerError {
    /// A setting is missing.
    #[error("no {what} is set; give {flag}, set {env}{}", in_file(.key, .file.as_deref()))]
    Missing {
        /// The setting, as a noun.
        what: &'static str,
        /// Flag that sets it.
        flag: &'static str,
        /// Environment variable that sets it.
        env: &'static str,
        /// Key in the settings file.
        key: &'static str,
        /// The settings file; `None` if this user has no place for one.
        file: Option<PathBuf>,
    },
    /// A setting is wrong.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The settings file cannot be used.
    #[error(transparent)]
    SettingsFile(#[from] SettingsError),
    /// The payout address is wrong.
    #[error("payout address: {0}")]
    Payout(#[from] Ss58Error),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No combination of options fits the run's tasks into the device.
    #[error("{0}; `alice-miner plan` shows every combination")]
    DoesNotFit(String),
    /// A file of the miner cannot be read.
    #[error("cannot {action} {}: {source}; check the disk and the permissions (a file that stays unreadable can be moved away, \
        what it held is lost then)", .path.display())]
    File {
        /// The failed operation, as a verb.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The reason.
        source: Cause,
    },
    /// A file of the miner cannot be written: as a rule the disk is full.
    #[error("cannot {action} {}: {source}; make room on the disk, or check the permissions", .path.display())]
    Write {
        /// The failed operation, as a verb.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The reason.
        source: Cause,
    },
    /// An update could not be stored before its task's deadline.
    #[error("the update of epoch {epoch} is lost, because it could not be stored while its task lasted: {source}")]
    NotStored {
        /// Epoch of the task.
        epoch: u32,
        /// The last try's error.
        source: Box<MinerError>,
    },
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    /// The system refuses to report signals.
    #[error("cannot listen for Ctrl-C and SIGTERM: {0}")]
    Signals(io::Error),
    /// Another miner works in the data directory.
    #[error("another miner uses {}; give each miner its own --data-dir", .0.display())]
    Locked(PathBuf),
    /// The key file cannot be read or made.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
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
    #[error("{0} stored submissions do not verify; the lines above name them and the reasons")]
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
        /// Kind of the message.
        what: &'static str,
        /// The contradiction.
        problem: String,
    },
    /// The parameter server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The chain.
    #[error("chain: {0}")]
    Chain(#[from] ChainError),
    /// The node given with `--chain` serves another network.
    #[error(
        "chain: the node at {url} serves the network {found}, mined is {expected}; give a node of that network with --chain"
    )]
    OtherChain {
        /// Address of the node.
        url: String,
        /// Genesis hash of the network that is mined.
        expected: Hex32,
        /// Genesis hash of the node.
        found: Hex32,
    },
    /// The training text.
    #[error("training text: {0}")]
    Text(#[source] DataError),
    /// Training.
    #[error("training: {0}")]
    Train(#[source] TrainError),
    /// The training thread panicked.
    #[error("training: the training thread died: {0}")]
    TrainThread(#[source] tokio::task::JoinError),
    /// Text could not be generated.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The update could not be encoded.
    #[error("the update cannot be encoded: {0}")]
    Encode(#[source] EncodeError),
    /// A task for a fragment that the run does not have.
    #[error("the update cannot be encoded: the run has no fragment {0}")]
    NoFragment(u32),
    /// The error-feedback residual could not be read or stored.
    #[error(transparent)]
    Residual(FeedbackError),
    /// No run is open yet: the next poll opens it.
    #[error("the parameter server's run is not open yet")]
    NoRun,
    /// The shutdown was requested.
    #[error("stopped")]
    Stopped,
}

fn in_file(key: &str, file: Option<&Path>) -> String {
    file.map_or_else(String::new, |file| {
        format!(", or write `{key} = …` into {}", file.display())
    })
}

impl MinerError {
    /// A file that cannot be read.
    pub fn read(action: &'static str, path: &Path, source: impl Into<Cause>) -> Self {
        Self::File {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// A file that cannot be written.
    pub fn write(action: &'static str, path: &Path, source: impl Into<Cause>) -> Self {
        Self::Write {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// A failed write of the store's; `path` is the file for errors that name none.
    pub fn store(path: &Path, error: StoreError) -> Self {
        match error {
            // The same words once, not "cannot write a: cannot write a".
            StoreError::Io { what, path, source } => Self::write(what, &path, source),
            error => Self::write("write", path, error),
        }
    }

    /// An answer of the server that cannot be true.
    pub fn untrue(what: &'static str, problem: impl Into<String>) -> Self {
        Self::Untrue {
            what,
            problem: problem.into(),
        }
    }

    /// Whether a file of the miner or its disk is at fault.
    pub fn is_disk_trouble(&self) -> bool {
        matches!(self, Self::File { .. } | Self::Write { .. } | Self::Residual(_))
    }

    /// Whether a write failed: then the same write is tried again until somebody has made room.
    pub fn is_failed_write(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Residual(FeedbackError::Store { .. }))
    }

    /// Whether waiting may help, so that the miner does not end: everything that is up to the network or the server,
    /// and every write, since a full disk must not cost work that the next try could store.
    pub fn is_temporary(&self) -> bool {
        match self {
            // No waiting mends these two.
            Self::Client(ClientError::Url { .. } | ClientError::Setup(_)) => false,
            Self::Client(_) | Self::Chain(_) | Self::OtherChain { .. } => true,
            Self::OtherRun { .. } | Self::OtherServer { .. } | Self::Untrue { .. } => true,
            Self::Text(_) | Self::NoRun => true,
            error => error.is_training_failure() || error.is_failed_write(),
        }
    }

    /// Whether the device or the run is at fault: a few in a row end the miner.
    pub fn is_training_failure(&self) -> bool {
        matches!(
            self,
            Self::Train(_) | Self::TrainThread(_) | Self::Encode(_) | Self::NoFragment(_)
        )
    }

    /// Exit code of the program.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Missing { .. } | Self::Setting(_) | Self::SettingsFile(_) => exit::USAGE,
            Self::Payout(_) | Self::Device(_) => exit::USAGE,
            // A full disk or wrong permissions of the folder are no mistake in the file.
            Self::KeyFile(KeyFileError::Io { .. }) => exit::FAILURE,
            Self::KeyFile(_) => exit::USAGE,
            Self::Client(ClientError::Url { .. }) | Self::Chain(ChainError::BadUrl { .. }) => exit::USAGE,
            Self::Generate(error) if error.is_usage() => exit::USAGE,
            Self::OtherNetwork { .. } | Self::OtherChain { .. } => exit::MISMATCH,
            // Only `payout` ends with it; the running miner waits for its node.
            Self::Chain(_) => exit::CHAIN,
            Self::Verify(_) => exit::AUDIT,
            _ => exit::FAILURE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failed_write_should_be_waited_out_and_no_failed_read() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let path = Path::new("a");
        let of_store = StoreError::Io {
            what: "sync",
            path: path.into(),
            source: full(),
        };
        let feedback = FeedbackError::Store {
            kind: io::ErrorKind::StorageFull,
            problem: full().to_string(),
        };
        for error in [
            MinerError::write("write", path, full()),
            MinerError::store(path, of_store),
            MinerError::store(path, StoreError::Step("x".into())),
            MinerError::Residual(feedback),
        ] {
            assert!(error.is_failed_write() && error.is_temporary(), "{error}");
        }
        for error in [
            MinerError::read("read", path, full()),
            MinerError::NotStored {
                epoch: 1,
                source: Box::new(MinerError::write("write", path, full())),
            },
        ] {
            assert!(!error.is_temporary(), "{error}");
            assert_eq!(error.exit_code(), exit::FAILURE);
        }
    }

    #[test]
    fn exit_codes_should_follow_the_class_of_the_error() {
        let chain = |error| MinerError::Chain(error);
        let bad_url = ChainError::BadUrl {
            url: "x".into(),
            problem: "y",
        };
        let hash = Hex32([0; 32]);
        for (error, code) in [
            (MinerError::KeyFile(KeyFileError::Format("k".into())), exit::USAGE),
            (chain(bad_url), exit::USAGE),
            (chain(ChainError::NoBlock { number: 1 }), exit::CHAIN),
            (MinerError::Verify(1), exit::AUDIT),
            (MinerError::DoesNotFit("x".into()), exit::FAILURE),
            (
                MinerError::OtherNetwork {
                    expected: hash,
                    found: hash,
                    data_dir: "d".into(),
                },
                exit::MISMATCH,
            ),
        ] {
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }
}
