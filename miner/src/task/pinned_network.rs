//! The run that is mined, and what is kept for it on disk: specification, text, weights, residual, journal.

use crate::{
    MinerError, files,
    settlement::receipts::Receipts,
    task::corpus::Corpus,
    task::journal::{Journal, State, Surroundings},
    task::residual::Residuals,
    task::weights::Weights,
};
use alice_api::{Hex32, Lease, sign};
use alice_spec::RunSpec;
use alice_update::Precision;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Digits of a run's hash in the name of its directory: enough to tell runs apart, short enough to read.
const DIR_DIGITS: usize = 16;

/// The network a data directory belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Genesis hash of the chain.
    pub genesis_hash: Hex32,
    /// The run that is mined.
    pub run_hash: Hex32,
    /// Key of the parameter server; none in files of the first version.
    #[serde(default)]
    pub ps_key: Option<Hex32>,
}

impl Network {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("network.json")
    }

    /// The network seen first; none before the first contact.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, MinerError> {
        files::read_json(&Self::path(data_dir))
    }

    /// Stores it.
    pub fn store(&self, data_dir: &Path) -> Result<(), MinerError> {
        files::write_json(&Self::path(data_dir), self)
    }

    /// A data directory belongs to one chain for ever.
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

/// A run with its files.
pub struct Run {
    /// Specification; its hash was checked.
    pub spec: Arc<RunSpec>,
    /// Hash of the specification.
    pub hash: Hex32,
    /// Genesis hash of the chain.
    pub genesis: Hex32,
    /// Directory of the run.
    pub dir: PathBuf,
    /// Text, once it was needed.
    pub corpus: Option<Corpus>,
    /// Weights.
    pub weights: Weights,
    /// What earlier updates had no room for.
    pub residuals: Residuals,
    /// What the miner was doing.
    pub journal: Journal,
}

impl Run {
    /// Directory of a run below the data directory.
    pub fn dir(data_dir: &Path, hash: &Hex32) -> PathBuf {
        let digits: String = hash.to_string().chars().take(DIR_DIGITS).collect();
        data_dir.join("runs").join(digits)
    }

    /// The stored text of a run's specification, if it is there and has the right hash.
    pub fn stored_spec(dir: &Path, hash: &Hex32) -> Result<Option<RunSpec>, MinerError> {
        let bytes = files::read_optional(&dir.join("run.toml"), alice_spec::SPEC_BYTES_MAX as u64).unwrap_or_default();
        let text = bytes.and_then(|b| String::from_utf8(b).ok());
        Ok(text.and_then(|t| parse_spec(&t, hash).ok()))
    }

    /// Opens a run. `text` is the specification as the server sent it, `residual` how residuals are stored.
    pub fn open(
        data_dir: &Path,
        text: Option<&str>,
        hash: Hex32,
        genesis: Hex32,
        residual: Precision,
    ) -> Result<Self, MinerError> {
        let dir = Self::dir(data_dir, &hash);
        files::make_dir(&dir)?;
        let spec = match text {
            Some(text) => {
                let spec =
                    parse_spec(text, &hash).map_err(|problem| MinerError::untrue("run specification", problem))?;
                files::write_atomic(&dir.join("run.toml"), text.as_bytes())?;
                spec
            }
            None => Self::stored_spec(&dir, &hash)?
                .ok_or_else(|| MinerError::untrue("run specification", "it is not stored yet"))?,
        };
        crate::task::moments::sweep(&dir);
        let journal = Journal::open(&dir)?;
        let residuals = Residuals::open(&dir, &spec, residual)?;
        let weights = Weights::open(&spec, &dir);
        Ok(Self {
            spec: Arc::new(spec),
            hash,
            genesis,
            dir,
            corpus: None,
            weights,
            residuals,
            journal,
        })
    }

    /// What there is besides the journal.
    pub fn surroundings(&self, receipts: &Receipts, block: u32) -> Result<Surroundings, MinerError> {
        let (same_run, record) = match self.journal.state() {
            State::Idle => (true, None),
            State::Leased { lease } => (lease.task.run_hash == self.hash, None),
            State::Ready { outgoing } => {
                let record = receipts.get(&outgoing.id);
                (outgoing.lease.task.run_hash == self.hash, record)
            }
        };
        Ok(Surroundings {
            same_run,
            residual_waits: files::len(&self.residuals.waiting_file())?.is_some(),
            receipt_stored: record.is_some_and(|r| r.receipt.is_some()),
            refusal_stored: record.is_some_and(|r| r.refusal.is_some() || r.closed.is_some()),
            block,
        })
    }

    /// Gives back, or lets go of, what was set aside for submissions that are decided by now.
    pub fn settle_residuals(&mut self, receipts: &Receipts) -> Result<(), MinerError> {
        self.residuals
            .settle(|id| receipts.get(&Hex32(id)).map(|record| record.standing()))
    }

    /// Whether a lease is what was asked for, signed by the server, and what the specification says.
    pub fn check_lease(&self, lease: &Lease, ps_key: &Hex32, asked: &Asked) -> Result<(), MinerError> {
        let (task, untrue) = (&lease.task, |problem: &str| Err(MinerError::untrue("task", problem)));
        if !lease.verify(ps_key, &self.genesis.0) {
            return untrue("its signature does not verify");
        }
        if task.run_hash != self.hash || task.task_id != sign::task_id(&self.hash.0, task.epoch, task.slice) {
            return untrue("it belongs to another run");
        }
        if task.epoch != asked.epoch || task.miner != asked.miner || task.payout != asked.payout {
            return untrue("it is for another epoch, key or payout address than was asked for");
        }
        let seed = alice_data::epoch_seed(&self.genesis.0, &self.hash.0, task.epoch);
        if task.epoch_seed.0 != seed {
            return untrue("its seed is not the epoch's");
        }
        if task.fragment != self.spec.fragment_of(task.epoch, task.slice) {
            return untrue("its fragment is not the one of its slice");
        }
        if task.steps != self.spec.inner.steps || task.batch_sequences != self.spec.inner.batch_sequences {
            return untrue("its size is not the run specification's");
        }
        Ok(())
    }
}

/// What a claim asked for.
pub struct Asked {
    /// Epoch.
    pub epoch: u32,
    /// Mining key.
    pub miner: Hex32,
    /// Account that is paid.
    pub payout: Hex32,
}

fn parse_spec(text: &str, hash: &Hex32) -> Result<RunSpec, String> {
    let spec = RunSpec::parse(text).map_err(|e| e.to_string())?;
    let found = Hex32(spec.run_hash());
    if found != *hash {
        return Err(format!("its hash is {found}, the run is {hash}"));
    }
    Ok(spec)
}
