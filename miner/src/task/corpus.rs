//! The training text: the shards that a task needs, cached in `shards/` and checked by their hash before each use.

use crate::{
    MinerError, files,
    report::Reporter,
    shutdown::{Shutdown, unless_requested},
};
use alice_api::{Client, CorpusManifest, Hex32};
use alice_data::{DataError, Manifest, ShardEntry, TokenSource};
use alice_spec::RunSpec;
use std::path::{Path, PathBuf};

/// Size of a token id, bytes.
const TOKEN_BYTES: u64 = 2;
/// Maximum size of a shard, bytes: bounds memory against a manifest that claims more.
const SHARD_BYTES_MAX: u64 = 256 << 20;
/// Maximum number of shards: 10^12 tokens in shards of 1 Mi tokens.
const SHARDS_MAX: usize = 1_000_000;

/// The shards of a run.
#[derive(Debug)]
pub struct Corpus {
    manifest: Manifest,
    context: u32,
    dir: PathBuf,
}

impl Corpus {
    /// Reads the manifest from disk, or fetches it; its root must be the one of the run specification.
    ///
    /// # Errors
    /// The server is away or sends another corpus, or a file cannot be written.
    pub async fn open(
        client: &Client,
        spec: &RunSpec,
        run_dir: &Path,
        shutdown: &Shutdown,
    ) -> Result<Self, MinerError> {
        let path = run_dir.join("corpus.json");
        // A manifest that cannot be read is fetched again: unlike a receipt, it is no evidence.
        let stored = files::read_json::<CorpusManifest>(&path).ok().flatten();
        let manifest = match stored.map(|m| check(m, spec)) {
            Some(Ok(manifest)) => manifest,
            _ => {
                let sent = unless_requested(shutdown, client.corpus()).await?;
                let manifest = check(sent.clone(), spec).map_err(|problem| MinerError::untrue("corpus", problem))?;
                files::write_json(&path, &sent)?;
                manifest
            }
        };
        let dir = run_dir.join("shards");
        files::make_dir(&dir)?;
        Ok(Self {
            manifest,
            context: spec.model.context,
            dir,
        })
    }

    /// Whole sequences in the corpus.
    pub fn sequences(&self) -> u64 {
        self.manifest.tokens() / u64::from(self.context.max(1))
    }

    /// Tokens of the sequences, in their order. Fetches the shards that are missing or damaged.
    ///
    /// # Errors
    /// The server is away or sends another shard, or a file cannot be written or read.
    pub async fn load(
        &self,
        client: &Client,
        sequences: &[u64],
        reporter: &mut Reporter,
        shutdown: &Shutdown,
    ) -> Result<Vec<Vec<u16>>, MinerError> {
        // Only these: the whole corpus may be larger than the disk.
        let needed = self.manifest.shards_for(self.context, sequences);
        let missing: Vec<&ShardEntry> = needed.iter().filter_map(|i| self.manifest.shards.get(*i)).collect();
        let missing: Vec<_> = missing.into_iter().filter(|shard| !self.path(shard).exists()).collect();
        let bar = reporter.bar("text", missing.len() as u64, false);
        for shard in missing {
            let fetched = self.fetch(client, shard, shutdown).await;
            if fetched.is_err() {
                reporter.bar_done();
            }
            fetched?;
            bar.inc(1);
        }
        reporter.bar_done();
        let source = loop {
            match TokenSource::open_shards(self.manifest.clone(), &self.dir, self.context, &needed) {
                Ok(source) => break source,
                // This ends: each pass replaces a damaged shard by one whose hash was checked.
                Err(DataError::ShardCorrupted { index, path }) => {
                    tracing::warn!(path = %path.display(), "a cached shard is damaged and is fetched again");
                    let Some(shard) = self.manifest.shards.get(index) else {
                        return Err(MinerError::Text(DataError::ShardCorrupted { index, path }));
                    };
                    self.fetch(client, shard, shutdown).await?;
                }
                Err(error) => return Err(MinerError::Text(error)),
            }
        };
        sequences
            .iter()
            .map(|s| source.sequence(*s).map_err(MinerError::Text))
            .collect()
    }

    fn path(&self, shard: &ShardEntry) -> PathBuf {
        self.dir.join(Hex32(shard.blob).to_string())
    }

    async fn fetch(&self, client: &Client, shard: &ShardEntry, shutdown: &Shutdown) -> Result<(), MinerError> {
        let size = shard.tokens.saturating_mul(TOKEN_BYTES);
        let blob = Hex32(shard.blob);
        let bytes = unless_requested(shutdown, client.blob(&blob, size)).await?;
        // The hash was checked, so this is a manifest that contradicts itself.
        if bytes.len() as u64 != size {
            return Err(MinerError::untrue(
                "corpus",
                format!("shard {blob} has {} bytes, not {size}", bytes.len()),
            ));
        }
        files::write_atomic(&self.path(shard), &bytes)
    }
}

/// The manifest, if it is the run's and within the limits; the error names the difference.
fn check(sent: CorpusManifest, spec: &RunSpec) -> Result<Manifest, String> {
    if sent.shards.len() > SHARDS_MAX {
        return Err(format!("{} shards, at most {SHARDS_MAX} are read", sent.shards.len()));
    }
    let large = |tokens: u64| tokens.saturating_mul(TOKEN_BYTES) > SHARD_BYTES_MAX;
    if let Some(shard) = sent.shards.iter().find(|s| large(s.tokens)) {
        return Err(format!("shard {} has {} tokens", shard.blob, shard.tokens));
    }
    let shards = sent
        .shards
        .iter()
        .map(|s| ShardEntry {
            blob: s.blob.0,
            tokens: s.tokens,
        })
        .collect();
    let manifest = Manifest {
        root: sent.root.0,
        shards,
        about: None,
    };
    manifest.verify(&spec.corpus_root()).map_err(|e| e.to_string())?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    /// Shards of 5, 1, 10 and 4 tokens that count up from zero, and a server that has them.
    async fn corpus(dir: &Path) -> (Corpus, Client, Arc<AtomicU32>) {
        let mut blobs = Vec::new();
        let mut next = 0u16;
        let shards = [5u16, 1, 10, 4].map(|tokens| {
            let bytes: Vec<u8> = (next..next + tokens).flat_map(u16::to_le_bytes).collect();
            next += tokens;
            let blob = *blake3::hash(&bytes).as_bytes();
            blobs.push(bytes);
            ShardEntry {
                blob,
                tokens: tokens.into(),
            }
        });
        let (client, requests) = crate::testing::blob_server(blobs).await;
        let corpus = Corpus {
            manifest: Manifest::new(shards.to_vec()),
            context: 4,
            dir: dir.to_owned(),
        };
        (corpus, client, requests)
    }

    #[tokio::test]
    async fn only_needed_shards_should_be_fetched_once() {
        let dir = tempfile::tempdir().unwrap();
        let (corpus, client, requests) = corpus(dir.path()).await;
        assert_eq!(corpus.sequences(), 5);
        let (_handle, shutdown) = Shutdown::new();
        let mut reporter = Reporter::new(true);
        let got = corpus.load(&client, &[3, 2], &mut reporter, &shutdown).await.unwrap();
        assert_eq!(got, vec![vec![12, 13, 14, 15], vec![8, 9, 10, 11]]);
        assert_eq!(requests.load(Ordering::SeqCst), 1);
        // Sequence 1 lies in three shards, one of which is cached.
        let got = corpus.load(&client, &[1, 4], &mut reporter, &shutdown).await.unwrap();
        assert_eq!(got, vec![vec![4, 5, 6, 7], vec![16, 17, 18, 19]]);
        assert_eq!(requests.load(Ordering::SeqCst), 4);
    }

    #[tokio::test]
    async fn a_damaged_shard_should_be_fetched_again() {
        let dir = tempfile::tempdir().unwrap();
        let (corpus, client, requests) = corpus(dir.path()).await;
        let (_handle, shutdown) = Shutdown::new();
        let mut reporter = Reporter::new(true);
        let all = [0, 1, 2, 3, 4];
        let good = corpus.load(&client, &all, &mut reporter, &shutdown).await.unwrap();
        for shard in &corpus.manifest.shards[..2] {
            std::fs::write(corpus.path(shard), "garbage").unwrap();
        }
        assert_eq!(
            corpus.load(&client, &all, &mut reporter, &shutdown).await.unwrap(),
            good
        );
        assert_eq!(requests.load(Ordering::SeqCst), 6);
    }
}
