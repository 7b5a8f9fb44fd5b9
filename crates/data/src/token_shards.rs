//! Cuts a stream of tokens into shards and writes each under its hash.

use crate::{DataError, Manifest, ShardEntry};
use alice_store::{blob_hash, file::write_atomic};
use std::path::{Path, PathBuf};

/// Tokens in every shard but the last: 2 MiB, one request to a server.
pub const SHARD_TOKENS: usize = 1 << 20;

/// A stream of tokens that becomes shards of [`SHARD_TOKENS`] tokens, the last one shorter. Memory: one shard.
#[derive(Debug)]
pub struct ShardWriter {
    dir: PathBuf,
    open: Vec<u16>,
    shards: Vec<ShardEntry>,
}

impl ShardWriter {
    /// Starts a stream whose shards go to `dir`.
    pub fn new(dir: &Path) -> Self {
        Self::resume(dir, Vec::new(), Vec::new())
    }

    /// Continues an earlier writer from its [`ShardWriter::shards`] and [`ShardWriter::open`].
    pub fn resume(dir: &Path, shards: Vec<ShardEntry>, open: Vec<u16>) -> Self {
        Self {
            dir: dir.to_path_buf(),
            open,
            shards,
        }
    }

    /// Shards that are written.
    pub fn shards(&self) -> &[ShardEntry] {
        &self.shards
    }

    /// Tokens of the shard that is not full yet.
    pub fn open(&self) -> &[u16] {
        &self.open
    }

    /// Appends tokens and writes every shard that becomes full.
    pub fn push(&mut self, mut tokens: &[u16]) -> Result<(), DataError> {
        while !tokens.is_empty() {
            let room = SHARD_TOKENS.saturating_sub(self.open.len());
            let (fits, rest) = tokens.split_at(tokens.len().min(room));
            self.open.extend_from_slice(fits);
            tokens = rest;
            // Written as soon as it is full: memory is one shard, and a crash loses one at most.
            if self.open.len() >= SHARD_TOKENS {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes the last shard; returns all of them.
    pub fn finish(mut self) -> Result<Manifest, DataError> {
        if !self.open.is_empty() {
            self.flush()?;
        }
        Ok(Manifest::new(self.shards))
    }

    fn flush(&mut self) -> Result<(), DataError> {
        let bytes: Vec<u8> = self.open.iter().flat_map(|t| t.to_le_bytes()).collect();
        let blob = blob_hash(&bytes);
        // Named by its content: writing it again after a crash changes nothing.
        write_atomic(&self.dir.join(hex::encode(blob)), |out| out.write_all(&bytes))?;
        self.shards.push(ShardEntry {
            blob,
            tokens: self.open.len() as u64,
        });
        self.open.clear();
        Ok(())
    }
}
