//! The model's weights: kept on disk, brought up to a task's base by the published deltas, checked by the model root
//! at every step. Nothing that does not have the right root is ever trained on.

use crate::{MinerError, files, report::Reporter, stop::Stop};
use alice_api::{Client, Delta, Hex32, ModelManifest, Snapshot};
use alice_spec::{RunSpec, TensorShape};
use alice_store::{Assembler, model_root, theta};
use alice_update::{Layout, aggregate};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Most deltas between a snapshot and the current model.
const DELTAS_MAX: usize = 10_000;
/// An encoded aggregate may take this much more than one byte a parameter, bytes.
const DELTA_SLACK_BYTES: u64 = 1 << 20;

/// How to get from the weights that are here to those of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// They are here.
    Here,
    /// Apply `deltas[from..to]`.
    Deltas {
        /// First delta.
        from: usize,
        /// One past the last delta.
        to: usize,
    },
    /// Take the snapshot, then apply `deltas[..to]`.
    Snapshot {
        /// One past the last delta.
        to: usize,
    },
}

/// Decides how to reach `target`; none where the manifest does not lead there.
pub fn plan(manifest: &ModelManifest, here: Option<&Hex32>, target: &Hex32) -> Option<Plan> {
    if here == Some(target) {
        return Some(Plan::Here);
    }
    // Position 0 is the snapshot, position i the model after delta i.
    let roots: Vec<&Hex32> = std::iter::once(&manifest.snapshot.model_root)
        .chain(manifest.deltas.iter().map(|d| &d.model_root))
        .collect();
    let to = roots.iter().rposition(|r| *r == target)?;
    let from = here.and_then(|here| roots.iter().take(to).rposition(|r| *r == here));
    Some(match from {
        Some(from) => Plan::Deltas { from, to },
        None => Plan::Snapshot { to },
    })
}

/// The weights of one run.
pub struct Weights {
    tensors: Vec<TensorShape>,
    layout: Layout,
    path: PathBuf,
    theta: Arc<Vec<f32>>,
    root: Option<Hex32>,
}

impl Weights {
    /// Reads the weights of a run's directory, if there are any.
    pub fn open(spec: &RunSpec, run_dir: &Path) -> Self {
        let path = run_dir.join("theta.bin");
        let (tensors, layout) = (spec.tensors(), Layout::from_spec(spec));
        let mut weights = Self {
            tensors,
            layout,
            path,
            theta: Arc::new(Vec::new()),
            root: None,
        };
        weights.read_file();
        weights
    }

    fn read_file(&mut self) {
        if !self.path.exists() {
            return;
        }
        match theta::read_theta(&self.path, self.layout.total() as u64) {
            Ok(theta) => self.take(theta),
            Err(error) => tracing::warn!(%error, "the stored weights are left out and fetched again"),
        }
    }

    fn take(&mut self, theta: Vec<f32>) {
        self.root = Some(Hex32(model_root(&self.tensors, &theta)));
        self.theta = Arc::new(theta);
    }

    /// The weights, to be shared with the trainer.
    pub fn theta(&self) -> Arc<Vec<f32>> {
        self.theta.clone()
    }

    /// Brings the weights to `target`.
    pub async fn bring_to(
        &mut self,
        target: &Hex32,
        source: &Source<'_>,
        reporter: &mut Reporter,
    ) -> Result<(), MinerError> {
        if self.root.is_none() {
            self.read_file();
        }
        if self.root.as_ref() == Some(target) {
            return Ok(());
        }
        let manifest = source.stop.or(source.client.model()).await?;
        if manifest.deltas.len() > DELTAS_MAX {
            return Err(MinerError::untrue(
                "model",
                format!("{} deltas, at most {DELTAS_MAX}", manifest.deltas.len()),
            ));
        }
        let way = plan(&manifest, self.root.as_ref(), target)
            .ok_or_else(|| MinerError::untrue("task", format!("its model {target} is not the published one")))?;
        let deltas = match way {
            Plan::Here => 0..0,
            Plan::Deltas { from, to } => from..to,
            Plan::Snapshot { to } => {
                self.snapshot(&manifest.snapshot, source, reporter).await?;
                0..to
            }
        };
        let deltas = manifest.deltas.get(deltas).unwrap_or_default();
        let bar = reporter.bar("model steps", deltas.len() as u64, false);
        for delta in deltas {
            let result = self.apply(delta, source).await;
            if result.is_err() {
                // Half-way between two models: what is in memory is neither, what is on disk still counts.
                self.root = None;
                reporter.bar_done();
            }
            result?;
            bar.inc(1);
        }
        reporter.bar_done();
        self.root = Some(Hex32(model_root(&self.tensors, &self.theta)));
        if self.root.as_ref() != Some(target) {
            let found = self.root.take().unwrap_or_default();
            files::remove(&self.path)?;
            return Err(MinerError::untrue(
                "model",
                format!("snapshot and deltas lead to {found}, not to {target}"),
            ));
        }
        theta::write_theta(&self.path, &self.theta).map_err(|e| MinerError::file("write", &self.path, &e))
    }

    async fn snapshot(
        &mut self,
        snapshot: &Snapshot,
        source: &Source<'_>,
        reporter: &mut Reporter,
    ) -> Result<(), MinerError> {
        self.root = None;
        self.theta = Arc::new(Vec::new());
        if snapshot.step == 0 {
            // The first model follows from the genesis hash: nobody needs to send it.
            let theta = alice_model::init_theta(source.spec, &source.genesis.0);
            if Hex32(model_root(&self.tensors, &theta)) == snapshot.model_root {
                self.take(theta);
                return Ok(());
            }
            return Err(MinerError::untrue(
                "model",
                "its first state is not the one that follows from the genesis hash",
            ));
        }
        let described = alice_store::Snapshot {
            model_root: snapshot.model_root.0,
            bytes: snapshot.bytes,
            chunk_bytes: snapshot.chunk_bytes,
            chunks: snapshot.chunks.iter().map(|h| h.0).collect(),
        };
        let untrue = |e: alice_store::StoreError| MinerError::untrue("snapshot", e.to_string());
        let mut assembler = Assembler::new(&self.tensors, &described).map_err(untrue)?;
        let bar = reporter.bar("model", snapshot.bytes, true);
        while let Some(hash) = assembler.next_chunk() {
            let result = source.chunk(&Hex32(hash), u64::from(snapshot.chunk_bytes)).await;
            if result.is_err() {
                reporter.bar_done();
            }
            let piece = result?;
            assembler.push(&piece).map_err(untrue)?;
            bar.inc(piece.len() as u64);
        }
        reporter.bar_done();
        let theta = assembler.finish().map_err(untrue)?;
        self.root = Some(snapshot.model_root);
        self.theta = Arc::new(theta);
        source.forget_chunks()
    }

    async fn apply(&mut self, delta: &Delta, source: &Source<'_>) -> Result<(), MinerError> {
        let bytes_max = self.layout.total() as u64 * 2 + DELTA_SLACK_BYTES;
        if delta.bytes > bytes_max {
            return Err(MinerError::untrue(
                "delta",
                format!("{} bytes for {} parameters", delta.bytes, self.layout.total()),
            ));
        }
        let bytes = source.stop.or(source.client.blob(&delta.blob, delta.bytes)).await?;
        let sparse = aggregate::decode_published(&self.layout, &bytes)
            .map_err(|e| MinerError::untrue("delta", format!("of epoch {}: {e}", delta.epoch)))?;
        // Copies only while a trainer still holds the old weights.
        let theta = Arc::make_mut(&mut self.theta);
        aggregate::apply(theta, &sparse, f32::from_bits(delta.alpha_bits));
        Ok(())
    }
}

/// Where weights come from.
pub struct Source<'a> {
    /// The server.
    pub client: &'a Client,
    /// The run.
    pub spec: &'a RunSpec,
    /// Genesis hash of the chain.
    pub genesis: Hex32,
    /// The run's directory: chunks of an unfinished snapshot wait there.
    pub run_dir: &'a Path,
    /// The user's wish to stop.
    pub stop: &'a Stop,
}

impl Source<'_> {
    /// A chunk of a snapshot, from disk where an earlier attempt got it.
    async fn chunk(&self, hash: &Hex32, bytes_max: u64) -> Result<Vec<u8>, MinerError> {
        let dir = self.run_dir.join("chunks");
        let path = dir.join(hash.to_string());
        if let Some(bytes) = files::read_optional(&path, bytes_max).unwrap_or_default()
            && Hex32(*blake3::hash(&bytes).as_bytes()) == *hash
        {
            return Ok(bytes);
        }
        let bytes = self.stop.or(self.client.blob(hash, bytes_max)).await?;
        files::make_dir(&dir)?;
        files::write_atomic(&path, &bytes)?;
        Ok(bytes)
    }

    fn forget_chunks(&self) -> Result<(), MinerError> {
        let dir = self.run_dir.join("chunks");
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(MinerError::file("remove", &dir, &e)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(n: u8) -> Hex32 {
        Hex32([n; 32])
    }

    fn manifest(snapshot: u8, deltas: &[u8]) -> ModelManifest {
        let delta = |n: &u8| Delta {
            epoch: 0,
            model_root: root(*n),
            blob: root(0),
            bytes: 1,
            alpha_bits: 0,
        };
        ModelManifest {
            model_root: root(deltas.last().copied().unwrap_or(snapshot)),
            model_step: 0,
            snapshot: Snapshot {
                model_root: root(snapshot),
                step: 4,
                bytes: 4,
                chunk_bytes: 4,
                chunks: vec![],
            },
            deltas: deltas.iter().map(delta).collect(),
        }
    }

    #[test]
    fn the_shortest_way_should_be_taken() {
        let m = manifest(1, &[2, 3, 4]);
        assert_eq!(plan(&m, Some(&root(4)), &root(4)), Some(Plan::Here));
        assert_eq!(
            plan(&m, Some(&root(2)), &root(4)),
            Some(Plan::Deltas { from: 1, to: 3 })
        );
        assert_eq!(
            plan(&m, Some(&root(1)), &root(2)),
            Some(Plan::Deltas { from: 0, to: 1 })
        );
        assert_eq!(plan(&m, None, &root(4)), Some(Plan::Snapshot { to: 3 }));
        assert_eq!(plan(&m, Some(&root(99)), &root(1)), Some(Plan::Snapshot { to: 0 }));
        // Ahead of the task: the way back is over the snapshot.
        assert_eq!(plan(&m, Some(&root(4)), &root(3)), Some(Plan::Snapshot { to: 2 }));
        assert_eq!(plan(&m, Some(&root(2)), &root(77)), None);
        // A target that is here already needs no manifest at all.
        assert_eq!(plan(&manifest(1, &[]), Some(&root(77)), &root(77)), Some(Plan::Here));
    }
}
