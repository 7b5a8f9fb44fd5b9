//! The run that is mined, with its files: specification, text, weights, residuals, journal.

use crate::{
    MinerError, files,
    settlement::receipts::Receipts,
    task::corpus::Corpus,
    task::journal::{Journal, Recovered, State},
    task::residual::Residuals,
    task::weights::Weights,
};
use alice_api::{Hex32, Lease, sign};
use alice_spec::RunSpec;
use alice_update::ResidualDtype;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Digits of a run's hash in the name of its directory: enough to tell runs apart, short enough to read.
const DIR_DIGITS: usize = 16;

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
    /// Training text; `None` until the first task needs it.
    pub corpus: Option<Corpus>,
    /// Weights.
    pub weights: Weights,
    /// Error-feedback residuals.
    pub residuals: Residuals,
    /// Step of the task in hand.
    pub journal: Journal,
}

impl Run {
    /// Directory of a run below the data directory.
    pub fn dir(data_dir: &Path, hash: &Hex32) -> PathBuf {
        let digits: String = hash.to_string().chars().take(DIR_DIGITS).collect();
        data_dir.join("runs").join(digits)
    }

    /// The stored specification of a run; `None` if there is none that can be read and has the right hash, and it must
    /// be fetched again.
    pub fn stored_spec(dir: &Path, hash: &Hex32) -> Option<RunSpec> {
        let path = dir.join("run.toml");
        let bytes = files::read_optional(&path, alice_spec::SPEC_BYTES_MAX as u64)
            .ok()
            .flatten()?;
        parse_spec(&String::from_utf8(bytes).ok()?, hash).ok()
    }

    /// Opens a run. `text` is the specification as the server sent it, `None` for the stored one; `residual` is the
    /// number format of residuals that are written from now on.
    ///
    /// # Errors
    /// The specification does not have the hash, or a file cannot be read or written.
    pub fn open(
        data_dir: &Path,
        text: Option<&str>,
        hash: Hex32,
        genesis: Hex32,
        residual: ResidualDtype,
    ) -> Result<Self, MinerError> {
        let dir = Self::dir(data_dir, &hash);
        files::make_dir(&dir)?;
        let spec = match text {
            Some(text) => {
                let spec =
                    parse_spec(text, &hash).map_err(|problem| MinerError::untrue("run specification", problem))?;
                // The text as it was sent: comments and order are lost in a value that is written again.
                files::write_atomic(&dir.join("run.toml"), text.as_bytes())?;
                spec
            }
            None => Self::stored_spec(&dir, &hash)
                .ok_or_else(|| MinerError::untrue("run specification", "it is not stored yet"))?,
        };
        // Half-written files of a killed process: no journal names them.
        files::remove_partial(&dir);
        files::remove_partial(&dir.join("shards"));
        crate::task::moments::remove_partial(&dir);
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

    /// The facts on disk besides the journal.
    ///
    /// # Errors
    /// The system does not tell whether a file exists.
    pub fn recovered(&self, receipts: &Receipts, block: u32) -> Result<Recovered, MinerError> {
        let (same_run, record) = match self.journal.state() {
            State::Idle => (true, None),
            State::Leased { lease } => (lease.task.run_hash == self.hash, None),
            State::Ready { outgoing } => {
                let record = receipts.get(&outgoing.id);
                (outgoing.lease.task.run_hash == self.hash, record)
            }
        };
        Ok(Recovered {
            same_run,
            residual_staged: files::len(&self.residuals.staged_file())?.is_some(),
            receipt_stored: record.is_some_and(|r| r.receipt.is_some()),
            // An update that was given up is settled like a refused one.
            refusal_stored: record.is_some_and(|r| r.refusal.is_some() || r.closed.is_some()),
            block,
        })
    }

    /// Returns the values of refused submissions to the residuals, and drops those of accepted ones.
    ///
    /// # Errors
    /// [`MinerError::Write`].
    pub fn settle_residuals(&mut self, receipts: &Receipts) -> Result<(), MinerError> {
        self.residuals
            .settle(|id| receipts.get(&Hex32(id)).map(|record| record.standing()))
    }

    /// Checks that a lease is signed by the server, answers the claim, and follows from the specification.
    ///
    /// # Errors
    /// [`MinerError::Untrue`] with the first contradiction.
    pub fn check_lease(&self, lease: &Lease, ps_key: &Hex32, asked: &Asked) -> Result<(), MinerError> {
        let (task, untrue) = (&lease.task, |problem: &str| Err(MinerError::untrue("task", problem)));
        // The signature first: everything below trusts nothing that is unsigned.
        if !lease.verify(ps_key, &self.genesis.0) {
            return untrue("its signature does not verify");
        }
        if task.run_hash != self.hash || task.task_id != sign::task_id(&self.hash.0, task.epoch, task.slice) {
            return untrue("it belongs to another run");
        }
        if task.epoch != asked.epoch || task.miner != asked.miner || task.payout != asked.payout {
            return untrue("it is for another epoch, key or payout address than was asked for");
        }
        // A server that could choose the seed could choose the text that a miner trains on.
        let seed = alice_data::epoch_seed(&self.genesis.0, &self.hash.0, task.epoch);
        if task.epoch_seed.0 != seed {
            return untrue("its seed is not the epoch's");
        }
        if task.fragment != self.spec.fragment_of(task.epoch, task.slice) {
            return untrue("its fragment is not the one of its slice");
        }
        // Otherwise a server could make a task of any length from a valid lease.
        if task.steps != self.spec.inner.steps || task.batch_sequences != self.spec.inner.batch_sequences {
            return untrue("its size is not the run specification's");
        }
        Ok(())
    }
}

/// Contents of a claim, which the lease must repeat.
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
