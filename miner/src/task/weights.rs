//! The model's weights: kept on disk and mapped, brought up to a task's base by the published deltas, checked by the model
//! root at every step. Nothing that does not have the right root is ever trained on.

use crate::{MinerError, report::Reporter, shutdown::Stop};
use alice_api::{Client, ClientError, Delta, Earlier, ErrorCode, Hex32, ModelManifest, Snapshot};
use alice_spec::{RunSpec, TensorShape};
use alice_store::{Join, Master, Opened, StoreError, theta::write_values};
use alice_update::{Layout, aggregate};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Most deltas that a server may name.
const DELTAS_MAX: usize = 10_000;

/// How to get from the weights that are here to those of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// They are here.
    Here,
    /// Apply `steps(manifest)[from..to]`.
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

/// The steps that led to the snapshot; none where they would not.
fn earlier(manifest: &ModelManifest) -> Option<&Earlier> {
    let leads =
        |earlier: &&Earlier| earlier.deltas.last().map(|last| last.model_root) == Some(manifest.snapshot.model_root);
    manifest.earlier.as_ref().filter(leads)
}

/// All published steps: those that led to the snapshot, and those after it.
fn steps(manifest: &ModelManifest) -> impl Iterator<Item = &Delta> {
    let earlier = earlier(manifest).into_iter().flat_map(|earlier| &earlier.deltas);
    earlier.chain(&manifest.deltas)
}

/// Decides how to reach `target`; none where the manifest does not lead there.
pub fn plan(manifest: &ModelManifest, here: Option<&Hex32>, target: &Hex32) -> Option<Plan> {
    if here == Some(target) {
        return Some(Plan::Here);
    }
    // Position i is the model before step i.
    let earlier = earlier(manifest);
    let first = earlier.map_or(&manifest.snapshot.model_root, |earlier| &earlier.model_root);
    let roots: Vec<&Hex32> = std::iter::once(first)
        .chain(steps(manifest).map(|delta| &delta.model_root))
        .collect();
    let to = roots.iter().rposition(|r| *r == target)?;
    match here.and_then(|here| roots.iter().take(to).rposition(|r| *r == here)) {
        Some(from) => Some(Plan::Deltas { from, to }),
        None => {
            let snapshot = earlier.map_or(0, |earlier| earlier.deltas.len());
            Some(Plan::Snapshot {
                to: to.checked_sub(snapshot)?,
            })
        }
    }
}

/// The weights of one run.
pub struct Weights {
    tensors: Vec<TensorShape>,
    layout: Layout,
    delta_bytes_max: u64,
    path: PathBuf,
    /// None where there are none, or an attempt to change them failed: then the file is opened again.
    master: Option<Arc<Master>>,
}

impl Weights {
    /// Opens the weights of a run's directory, if there are any.
    pub fn open(spec: &RunSpec, run_dir: &Path) -> Self {
        let layout = Layout::from_spec(spec);
        let mut weights = Self {
            tensors: spec.tensors(),
            delta_bytes_max: aggregate::published_bytes_max(&layout, spec.update.publish_bits),
            layout,
            path: run_dir.join("theta.bin"),
            master: None,
        };
        weights.open_file();
        weights
    }

    fn open_file(&mut self) {
        if !self.path.exists() {
            return;
        }
        match Master::open(&self.path, &self.tensors, &mut |_, _| ()) {
            Ok(master) => {
                match master.opened() {
                    Opened::AsLeft => {}
                    Opened::Rehashed => tracing::info!("the stored weights were checked from end to end"),
                    Opened::RolledBack => tracing::info!("a model step that was interrupted is undone"),
                }
                self.master = Some(Arc::new(master));
            }
            Err(error) => tracing::warn!(%error, "the stored weights are left out and fetched again"),
        }
    }

    fn root(&self) -> Option<Hex32> {
        self.master.as_ref().map(|m| Hex32(m.root()))
    }

    /// Brings the weights to `target` and hands them out, to be shared with the trainer until the next call.
    pub async fn bring_to(
        &mut self,
        target: &Hex32,
        source: &Source<'_>,
        reporter: &mut Reporter,
    ) -> Result<Arc<Master>, MinerError> {
        if self.master.is_none() {
            self.open_file();
        }
        if let Some(master) = self.at(target) {
            return Ok(master);
        }
        let manifest = source.stop.or(source.client.model()).await?;
        let published = steps(&manifest).count();
        if published > DELTAS_MAX {
            return Err(MinerError::untrue(
                "model",
                format!("{published} deltas, at most {DELTAS_MAX}"),
            ));
        }
        let here = self.root();
        match self.walk(&manifest, here.as_ref(), target, source, reporter).await {
            // A step before the snapshot may be gone; the snapshot is not.
            Err(MinerError::Client(error)) if here.is_some() && not_found(&error) => {
                tracing::debug!(%error, "the snapshot is taken instead");
                self.walk(&manifest, None, target, source, reporter).await?;
            }
            walked => walked?,
        }
        self.at(target).ok_or_else(|| {
            let found = self.root().unwrap_or_default();
            MinerError::untrue("model", format!("snapshot and deltas lead to {found}, not to {target}"))
        })
    }

    /// Goes from the weights that are `here` (none: from nothing) to the target.
    async fn walk(
        &mut self,
        manifest: &ModelManifest,
        here: Option<&Hex32>,
        target: &Hex32,
        source: &Source<'_>,
        reporter: &mut Reporter,
    ) -> Result<(), MinerError> {
        let way = plan(manifest, here, target)
            .ok_or_else(|| MinerError::untrue("task", format!("its model {target} is not the published one")))?;
        let deltas: Vec<&Delta> = match way {
            Plan::Here => Vec::new(),
            Plan::Deltas { from, to } => steps(manifest).take(to).skip(from).collect(),
            Plan::Snapshot { to } => {
                let joined = self.snapshot(&manifest.snapshot, source, reporter).await;
                reporter.bar_done();
                self.master = Some(Arc::new(joined?));
                manifest.deltas.iter().take(to).collect()
            }
        };
        let bar = reporter.bar("model steps", deltas.len() as u64, false);
        for delta in deltas {
            let result = self.apply(delta, source).await;
            if result.is_err() {
                reporter.bar_done();
            }
            result?;
            bar.inc(1);
        }
        reporter.bar_done();
        Ok(())
    }

    fn at(&self, target: &Hex32) -> Option<Arc<Master>> {
        self.master.clone().filter(|m| m.root() == target.0)
    }

    async fn snapshot(
        &mut self,
        snapshot: &Snapshot,
        source: &Source<'_>,
        reporter: &mut Reporter,
    ) -> Result<Master, MinerError> {
        // Lets go of the old weights: the new ones take their place.
        self.master = None;
        let start = source.spec.start_root().map(Hex32);
        if let Some(start) = start.filter(|root| snapshot.step == 0 && *root != snapshot.model_root) {
            return Err(MinerError::untrue(
                "model",
                format!(
                    "its first state is {}, the run starts from {start}",
                    snapshot.model_root
                ),
            ));
        }
        if snapshot.step == 0 && start.is_none() {
            // The first model follows from the genesis hash: nobody needs to send it.
            let write = |out: &mut dyn std::io::Write| {
                alice_model::init_tensors(source.spec, &source.genesis.0, |values| write_values(out, values))
            };
            let master = Master::create(&self.path, &self.tensors, write, &mut |_, _| ()).map_err(self.failed())?;
            if Hex32(master.root()) == snapshot.model_root {
                return Ok(master);
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
        let mut join = Join::open(&self.path, &self.tensors, &described).map_err(self.failed())?;
        let bar = reporter.bar("model", snapshot.bytes, true);
        bar.set_position(join.bytes());
        while let Some(hash) = join.next_chunk() {
            let bytes_max = u64::from(snapshot.chunk_bytes);
            let piece = source.stop.or(source.client.blob(&Hex32(hash), bytes_max)).await?;
            join.push(&piece).map_err(self.failed())?;
            bar.set_position(join.bytes());
        }
        join.finish(&mut |_, _| ()).map_err(self.failed())
    }

    async fn apply(&mut self, delta: &Delta, source: &Source<'_>) -> Result<(), MinerError> {
        if delta.bytes > self.delta_bytes_max {
            return Err(MinerError::untrue(
                "delta",
                format!("{} bytes for {} parameters", delta.bytes, self.layout.total()),
            ));
        }
        let bytes = source.stop.or(source.client.blob(&delta.blob, delta.bytes)).await?;
        let d = aggregate::Published::check(&self.layout, bytes)
            .map_err(|e| MinerError::untrue("delta", format!("of epoch {}: {e}", delta.epoch)))?;
        let master = self
            .master
            .take()
            .and_then(Arc::into_inner)
            .ok_or_else(|| MinerError::file("change", &self.path, &"a trainer still reads the weights"))?;
        let master = master
            .step(&d, f32::from_bits(delta.alpha_bits))
            .map_err(self.failed())?;
        let found = Hex32(master.root());
        if found == delta.model_root {
            self.master = Some(Arc::new(master));
            return Ok(());
        }
        // Whether the server lies or the disk does shows in the way back: what does not lead to the root that was here is
        // hashed from end to end when it is opened again.
        self.master = master.revert().ok().map(Arc::new);
        Err(MinerError::untrue(
            "delta",
            format!("of epoch {} leads to {found}, not to {}", delta.epoch, delta.model_root),
        ))
    }

    /// An error of the store, as the server's or the machine's affair.
    fn failed(&self) -> impl FnOnce(StoreError) -> MinerError {
        let path = self.path.clone();
        move |error| match error {
            StoreError::Snapshot(_) | StoreError::Chunk { .. } | StoreError::Root { .. } => {
                MinerError::untrue("snapshot", error.to_string())
            }
            error => MinerError::file("write", &path, &error),
        }
    }
}

fn not_found(error: &ClientError) -> bool {
    error.code() == Some(ErrorCode::NotFound)
}

/// Where weights come from.
pub struct Source<'a> {
    /// The server.
    pub client: &'a Client,
    /// The run.
    pub spec: &'a RunSpec,
    /// Genesis hash of the chain.
    pub genesis: Hex32,
    /// The user's wish to stop.
    pub stop: &'a Stop,
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
            earlier: None,
        }
    }

    #[test]
    fn weights_from_before_the_snapshot_should_go_over_deltas() {
        let mut m = manifest(3, &[4, 5]);
        let earlier = manifest(1, &[2, 3]);
        m.earlier = Some(Earlier {
            model_root: root(1),
            deltas: earlier.deltas,
        });
        assert_eq!(
            plan(&m, Some(&root(2)), &root(3)),
            Some(Plan::Deltas { from: 1, to: 2 })
        );
        assert_eq!(
            plan(&m, Some(&root(1)), &root(5)),
            Some(Plan::Deltas { from: 0, to: 4 })
        );
        assert_eq!(
            plan(&m, Some(&root(3)), &root(4)),
            Some(Plan::Deltas { from: 2, to: 3 })
        );
        let roots: Vec<_> = steps(&m).map(|delta| delta.model_root).collect();
        assert_eq!(roots, [root(2), root(3), root(4), root(5)]);
        // The snapshot is still the way for all others, and does not lead back.
        assert_eq!(plan(&m, Some(&root(99)), &root(4)), Some(Plan::Snapshot { to: 1 }));
        assert_eq!(plan(&m, None, &root(3)), Some(Plan::Snapshot { to: 0 }));
        assert_eq!(plan(&m, None, &root(2)), None);
        // Steps that do not lead to the snapshot are as good as none.
        for deltas in [manifest(1, &[2]).deltas, vec![]] {
            m.earlier = Some(Earlier {
                model_root: root(1),
                deltas,
            });
            assert_eq!(plan(&m, Some(&root(1)), &root(4)), Some(Plan::Snapshot { to: 1 }));
            assert_eq!(
                plan(&m, Some(&root(3)), &root(4)),
                Some(Plan::Deltas { from: 0, to: 1 })
            );
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
