//! The model's weights: mapped from `theta.bin`, synchronised to a task's base by the published deltas, and checked by
//! the model root after every step. Weights without the right root are never trained on.
//!
//! **Synchronisation.** [`plan`] picks the shortest path from the weights on disk to the task's model: deltas if they
//! are on the published path, else the snapshot and the deltas after it. A delta that is no longer served leads to the
//! snapshot.
//!
//! **Durable when.** [`Master`] makes each step crash-safe by its undo journal. A download of a snapshot continues
//! where it stopped ([`Join`]). After a failed change the file is opened, and checked, again.

use crate::{
    MinerError,
    report::Reporter,
    shutdown::{Shutdown, unless_requested},
};
use alice_api::{Client, ClientError, Delta, Earlier, ErrorCode, Hex32, ModelManifest, Snapshot};
use alice_spec::{RunSpec, TensorShape};
use alice_store::{Join, Master, Opened, StoreError, theta::write_values};
use alice_update::{Layout, aggregate};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Maximum number of deltas that a server may name: far more than any run publishes between two snapshots.
const DELTAS_MAX: usize = 10_000;

/// Path from the weights on disk to those of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPlan {
    /// They are the same.
    UpToDate,
    /// Apply `steps(manifest)[from..to]`.
    Deltas {
        /// First delta.
        from: usize,
        /// One past the last delta.
        to: usize,
    },
    /// Fetch the snapshot, then apply `deltas[..to]`.
    Snapshot {
        /// One past the last delta.
        to: usize,
    },
}

/// The steps before the snapshot; `None` if there are none, or they do not lead to it.
fn earlier(manifest: &ModelManifest) -> Option<&Earlier> {
    let leads =
        |earlier: &&Earlier| earlier.deltas.last().map(|last| last.model_root) == Some(manifest.snapshot.model_root);
    manifest.earlier.as_ref().filter(leads)
}

/// All published steps: those before the snapshot, and those after it.
fn steps(manifest: &ModelManifest) -> impl Iterator<Item = &Delta> {
    let earlier = earlier(manifest).into_iter().flat_map(|earlier| &earlier.deltas);
    earlier.chain(&manifest.deltas)
}

/// The shortest path from `here` (`None`: no weights) to `target`; `None` if the manifest does not lead there.
pub fn plan(manifest: &ModelManifest, here: Option<&Hex32>, target: &Hex32) -> Option<SyncPlan> {
    if here == Some(target) {
        return Some(SyncPlan::UpToDate);
    }
    // Position i is the model before step i.
    let earlier = earlier(manifest);
    let first = earlier.map_or(&manifest.snapshot.model_root, |earlier| &earlier.model_root);
    let roots: Vec<&Hex32> = std::iter::once(first)
        .chain(steps(manifest).map(|delta| &delta.model_root))
        .collect();
    // From the end: a model that was reached twice is left by its later occurrence.
    let to = roots.iter().rposition(|r| *r == target)?;
    match here.and_then(|here| roots.iter().take(to).rposition(|r| *r == here)) {
        Some(from) => Some(SyncPlan::Deltas { from, to }),
        None => {
            let snapshot = earlier.map_or(0, |earlier| earlier.deltas.len());
            Some(SyncPlan::Snapshot {
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
    /// `None` if there are none, or an attempt to change them failed: then the file is opened again.
    master: Option<Arc<Master>>,
}

impl Weights {
    /// Opens the weights of a run's directory, if there are any.
    pub fn open(spec: &RunSpec, run_dir: &Path) -> Self {
        let layout = Layout::from_spec(spec);
        let mut weights = Self {
            tensors: spec.tensors(),
            delta_bytes_max: aggregate::aggregate_bytes_max(&layout, spec.update.publish_bits),
            layout,
            path: run_dir.join("theta.bin"),
            master: None,
        };
        // Opened here, before the first claim: rehashing after a crash takes minutes, which a lease would not wait for.
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
            Err(error) => tracing::warn!(%error, "the stored weights cannot be used and are fetched again"),
        }
    }

    fn root(&self) -> Option<Hex32> {
        self.master.as_ref().map(|m| Hex32(m.root()))
    }

    /// Synchronises the weights to `target` and returns them, to be shared with the trainer until the next call.
    ///
    /// # Errors
    /// The server is away, publishes no path to `target`, or sends data that do not have the promised root; or a file
    /// cannot be written. Whatever was applied before is kept.
    pub async fn sync_to(
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
        let manifest = unless_requested(source.shutdown, source.client.model()).await?;
        let published = steps(&manifest).count();
        if published > DELTAS_MAX {
            return Err(MinerError::untrue(
                "model",
                format!("{published} deltas, at most {DELTAS_MAX}"),
            ));
        }
        // Taken before anything changes: after a failed step `self.root()` may be another.
        let here = self.root();
        match self
            .apply_plan(&manifest, here.as_ref(), target, source, reporter)
            .await
        {
            // Servers keep old steps for a while only; the snapshot is always there.
            Err(MinerError::Client(error)) if here.is_some() && not_found(&error) => {
                tracing::debug!(%error, "a step is gone; the snapshot is fetched instead");
                self.apply_plan(&manifest, None, target, source, reporter).await?;
            }
            applied => applied?,
        }
        self.at(target).ok_or_else(|| {
            let found = self.root().unwrap_or_default();
            MinerError::untrue("model", format!("snapshot and deltas lead to {found}, not to {target}"))
        })
    }

    /// Changes the weights from `here` (`None`: no weights) to `target`.
    async fn apply_plan(
        &mut self,
        manifest: &ModelManifest,
        here: Option<&Hex32>,
        target: &Hex32,
        source: &Source<'_>,
        reporter: &mut Reporter,
    ) -> Result<(), MinerError> {
        let path = plan(manifest, here, target)
            .ok_or_else(|| MinerError::untrue("task", format!("its model {target} is not the published one")))?;
        let deltas: Vec<&Delta> = match path {
            SyncPlan::UpToDate => Vec::new(),
            SyncPlan::Deltas { from, to } => steps(manifest).take(to).skip(from).collect(),
            SyncPlan::Snapshot { to } => {
                let joined = self.fetch_snapshot(&manifest.snapshot, source, reporter).await;
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

    async fn fetch_snapshot(
        &mut self,
        snapshot: &Snapshot,
        source: &Source<'_>,
        reporter: &mut Reporter,
    ) -> Result<Master, MinerError> {
        // The old weights are unmapped first: the new ones are written over their file.
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
            // The first model is computed from the genesis hash: nobody needs to send it.
            let write = |out: &mut dyn std::io::Write| {
                alice_init::init_tensors(source.spec, &source.genesis.0, |values| write_values(out, values))
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
            let piece = unless_requested(source.shutdown, source.client.blob(&Hex32(hash), bytes_max)).await?;
            join.push(&piece).map_err(self.failed())?;
            bar.set_position(join.bytes());
        }
        join.finish(&mut |_, _| ()).map_err(self.failed())
    }

    async fn apply(&mut self, delta: &Delta, source: &Source<'_>) -> Result<(), MinerError> {
        // Bounded before the download, by what this run's largest aggregate can have.
        if delta.bytes > self.delta_bytes_max {
            return Err(MinerError::untrue(
                "delta",
                format!("{} bytes for {} parameters", delta.bytes, self.layout.total()),
            ));
        }
        let bytes = unless_requested(source.shutdown, source.client.blob(&delta.blob, delta.bytes)).await?;
        let d = aggregate::EncodedAggregate::check(&self.layout, bytes)
            .map_err(|e| MinerError::untrue("delta", format!("of epoch {}: {e}", delta.epoch)))?;
        let master = self
            .master
            .take()
            .and_then(Arc::into_inner)
            .ok_or_else(|| MinerError::read("change", &self.path, "a trainer still reads the weights"))?;
        let master = master
            .step(&d, f32::from_bits(delta.alpha_bits))
            .map_err(self.failed())?;
        let found = Hex32(master.root());
        if found == delta.model_root {
            self.master = Some(Arc::new(master));
            return Ok(());
        }
        // Undoing the step shows whether server or disk is at fault: weights that do not return to their old root are
        // hashed from end to end when the file is opened again.
        self.master = master.revert().ok().map(Arc::new);
        Err(MinerError::untrue(
            "delta",
            format!("of epoch {} leads to {found}, not to {}", delta.epoch, delta.model_root),
        ))
    }

    /// An error of the store, as the server's or the machine's fault.
    fn failed(&self) -> impl FnOnce(StoreError) -> MinerError {
        let path = self.path.clone();
        move |error| match error {
            StoreError::Snapshot(_) | StoreError::Chunk { .. } | StoreError::Root { .. } => {
                MinerError::untrue("snapshot", error.to_string())
            }
            error => MinerError::store(&path, error),
        }
    }
}

fn not_found(error: &ClientError) -> bool {
    error.code() == Some(ErrorCode::NotFound)
}

/// The server and run that weights are fetched for.
pub struct Source<'a> {
    /// The server.
    pub client: &'a Client,
    /// The run.
    pub spec: &'a RunSpec,
    /// Genesis hash of the chain.
    pub genesis: Hex32,
    /// Shutdown request.
    pub shutdown: &'a Shutdown,
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
    fn weights_older_than_the_snapshot_should_be_synchronised_by_deltas() {
        let mut m = manifest(3, &[4, 5]);
        let earlier = manifest(1, &[2, 3]);
        m.earlier = Some(Earlier {
            model_root: root(1),
            deltas: earlier.deltas,
        });
        assert_eq!(
            plan(&m, Some(&root(2)), &root(3)),
            Some(SyncPlan::Deltas { from: 1, to: 2 })
        );
        assert_eq!(
            plan(&m, Some(&root(1)), &root(5)),
            Some(SyncPlan::Deltas { from: 0, to: 4 })
        );
        assert_eq!(
            plan(&m, Some(&root(3)), &root(4)),
            Some(SyncPlan::Deltas { from: 2, to: 3 })
        );
        let roots: Vec<_> = steps(&m).map(|delta| delta.model_root).collect();
        assert_eq!(roots, [root(2), root(3), root(4), root(5)]);
        // All other weights need the snapshot, which leads to no older model.
        assert_eq!(plan(&m, Some(&root(99)), &root(4)), Some(SyncPlan::Snapshot { to: 1 }));
        assert_eq!(plan(&m, None, &root(3)), Some(SyncPlan::Snapshot { to: 0 }));
        assert_eq!(plan(&m, None, &root(2)), None);
        // Steps that do not lead to the snapshot are ignored.
        for deltas in [manifest(1, &[2]).deltas, vec![]] {
            m.earlier = Some(Earlier {
                model_root: root(1),
                deltas,
            });
            assert_eq!(plan(&m, Some(&root(1)), &root(4)), Some(SyncPlan::Snapshot { to: 1 }));
            assert_eq!(
                plan(&m, Some(&root(3)), &root(4)),
                Some(SyncPlan::Deltas { from: 0, to: 1 })
            );
        }
    }

    #[test]
    fn the_shortest_path_should_be_taken() {
        let m = manifest(1, &[2, 3, 4]);
        assert_eq!(plan(&m, Some(&root(4)), &root(4)), Some(SyncPlan::UpToDate));
        assert_eq!(
            plan(&m, Some(&root(2)), &root(4)),
            Some(SyncPlan::Deltas { from: 1, to: 3 })
        );
        assert_eq!(
            plan(&m, Some(&root(1)), &root(2)),
            Some(SyncPlan::Deltas { from: 0, to: 1 })
        );
        assert_eq!(plan(&m, None, &root(4)), Some(SyncPlan::Snapshot { to: 3 }));
        assert_eq!(plan(&m, Some(&root(99)), &root(1)), Some(SyncPlan::Snapshot { to: 0 }));
        // Weights ahead of the task go back through the snapshot.
        assert_eq!(plan(&m, Some(&root(4)), &root(3)), Some(SyncPlan::Snapshot { to: 2 }));
        assert_eq!(plan(&m, Some(&root(2)), &root(77)), None);
        // A target that is on disk needs no manifest at all.
        assert_eq!(
            plan(&manifest(1, &[]), Some(&root(77)), &root(77)),
            Some(SyncPlan::UpToDate)
        );
    }
}
