//! The network that a data directory is pinned to at the first contact.
//!
//! **Format.** `network.json` holds a [`PinnedNetwork`]: genesis hash, run hash and the server's key. It is written
//! when a server is first accepted, and again when the chain or the user confirms another run or key. The genesis hash
//! never changes: receipts, pages and residuals below the directory are worth nothing on another chain.

use crate::{MinerError, files};
use alice_api::Hex32;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The network that a data directory belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedNetwork {
    /// Genesis hash of the chain.
    pub genesis_hash: Hex32,
    /// Hash of the run that is mined.
    pub run_hash: Hex32,
    /// Key of the parameter server; `None` in files of the first version.
    #[serde(default)]
    pub ps_key: Option<Hex32>,
}

impl PinnedNetwork {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("network.json")
    }

    /// The pinned network; `None` before the first contact.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, MinerError> {
        files::read_json(&Self::path(data_dir))
    }

    /// Pins the network.
    ///
    /// # Errors
    /// [`MinerError::Write`].
    pub fn store(&self, data_dir: &Path) -> Result<(), MinerError> {
        files::write_json(&Self::path(data_dir), self)
    }

    /// Checks that a server follows the chain that the directory is pinned to.
    ///
    /// # Errors
    /// [`MinerError::OtherNetwork`].
    pub fn check_genesis(&self, seen: &Self, data_dir: &Path) -> Result<(), MinerError> {
        if seen.genesis_hash == self.genesis_hash {
            return Ok(());
        }
        Err(MinerError::OtherNetwork {
            expected: self.genesis_hash,
            found: seen.genesis_hash,
            data_dir: data_dir.to_owned(),
        })
    }
}
