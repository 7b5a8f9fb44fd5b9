//! The master weights in place: one file of f32 that is mapped instead of read, stepped coordinate by coordinate, and
//! hashed again only where it changed.
//!
//! The master weights of 7 billion parameters have 27 GB, and an aggregate of sparse updates changes a small part of
//! them. A step reads, hashes and writes what it changes, and a sidecar of 0.01 % of the model's size.
//!
//! # Files
//!
//! | file | content |
//! |---|---|
//! | `<path>` | the weights ([`crate::theta`]): f32 little endian, tensors in canonical order, nothing between them |
//! | `<path>.tree` | hash of each group of weights, root, time of the weights' last change (`sidecar.rs`) |
//! | `<path>.undo` | the old bits of every coordinate that the last step changed (`journal.rs`) |
//! | `<path>.new` | weights that are being put together: [`Master::create`], [`crate::Join`] |
//!
//! # A step
//!
//! 1. The undo journal is written and synced. Until then nothing has changed: a full disk is an ordinary error.
//! 2. `θ[j] −= α·d[j]` through the map ([`aggregate::apply`]), then synced.
//! 3. The touched groups are hashed, and the sidecar is replaced.
//! 4. The journal is sealed with the new root and synced. The step is finished, and durable.
//!
//! The journal stays until the next step, so that [`Master::revert`] can take the last step back.
//!
//! # Recovery
//!
//! [`Master::open`] decides by the journal:
//!
//! * none, and the sidecar has the weights' time of change: [`Opened::AsLeft`], the weights are not read;
//! * sealed with the sidecar's root, and the sidecar has the weights' time of change: the same, and the step can be
//!   reverted;
//! * not sealed, so killed between 1 and 4: the old bits are written back, all is hashed ([`Opened::RolledBack`]);
//! * damaged, or the sidecar does not fit: all is hashed ([`Opened::Rehashed`]).
//!
//! The kernel writes mapped pages in any order, so between 1 and 4 each coordinate may have its old or its new bits.
//! Writing the old bits of all of them back is right in every case, and may be interrupted and repeated.
//!
//! **Durability invariant**: a root is returned only for weights that are synced, except by [`Master::step_for_good`],
//! whose weights are made anew after a crash. Weights possibly affected by a crash, or written to by another program,
//! are hashed from end to end before anybody gets their root.

mod journal;
mod sidecar;
#[cfg(test)]
mod tests;
mod tree;

use crate::{
    BlobStore, StoreError, file,
    map::{FloatMap, Scratch},
    snapshot::{self, Snapshot},
};
use alice_primitives::Hash;
use alice_spec::TensorShape;
use alice_update::{Entries, aggregate};
use journal::{Entry, Found, Journal};
use sidecar::Sidecar;
use std::io::Write;
use std::path::{Path, PathBuf};
use tree::Groups;

/// Called with the bytes hashed so far and the bytes to be hashed in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// State in which [`Master::open`] found the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// As they were closed: only the sidecar was read.
    AsLeft,
    /// The sidecar was missing, damaged, of another run, or older than the weights: all was hashed.
    Rehashed,
    /// A step was not finished: it was undone, and all was hashed.
    RolledBack,
}

/// Stages of a step, at which tests interrupt it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Journalled,
    Applied,
    Flushed,
    TreeSaved,
    Reopened,
}

/// The master weights of a run, mapped. One at a time: the file is locked.
///
/// Methods that change the weights take the value and return it only if they succeeded. After an error the value is
/// gone, and opening the files again brings them in order.
#[derive(Debug)]
pub struct Master {
    map: FloatMap,
    groups: Groups,
    values: Vec<Hash>,
    root: Hash,
    undo: Option<Journal>,
    opened: Opened,
    bytes_hashed: u64,
}

impl Master {
    /// Opens the weights of a run with these tensors, and recovers from an interrupted step. `progress` is called only
    /// if they have to be hashed from end to end.
    ///
    /// The root is that of what is there. Whether it is the wanted one is the caller's check.
    pub fn open(path: &Path, tensors: &[TensorShape], progress: Progress<'_>) -> Result<Self, StoreError> {
        let groups = Groups::new(tensors);
        let mut map = FloatMap::open(path, groups.parameters())?;
        let (undo_path, tree_path) = (undo_path(path), tree_path(path));
        let mut undo = None;
        // Whether the sidecar may be believed. Where the journal names the root, the sidecar must agree.
        let mut trust = true;
        let mut opened = Opened::Rehashed;
        match Journal::find(&undo_path, groups.id(), groups.parameters())? {
            Found::Nothing => {}
            Found::Damaged => trust = false,
            Found::Journal(journal) if journal.after.is_some() => undo = Some(journal),
            Found::Journal(journal) => {
                write_back(&mut map, &groups, &journal)?;
                trust = false;
                opened = Opened::RolledBack;
            }
        }
        let changed_at = map.changed_at()?;
        let kept = Sidecar::read(&tree_path, groups.id(), groups.len()).filter(|kept| {
            let known = undo.as_ref().is_none_or(|undo| undo.after == Some(kept.root));
            trust && known && changed_at != 0 && kept.changed_at == changed_at
        });
        let mut master = Self::unhashed(map, groups);
        (master.undo, master.opened) = (undo, opened);
        if let Some(kept) = kept {
            (master.values, master.root, master.opened) = (kept.values, kept.root, Opened::AsLeft);
            return Ok(master);
        }
        master.hash_all(progress);
        master.save_tree()?;
        // A journal that leads to other weights cannot take these back: another program has overwritten them.
        if master.undo.as_ref().is_none_or(|undo| undo.after != Some(master.root)) {
            master.undo = None;
            file::remove(&undo_path)?;
        }
        Ok(master)
    }

    /// Opens weights that must have a root, taking one step back if that leads to it.
    pub fn open_at(
        path: &Path,
        tensors: &[TensorShape],
        root: &Hash,
        progress: Progress<'_>,
    ) -> Result<Self, StoreError> {
        let master = Self::open(path, tensors, progress)?;
        if master.root != *root && master.previous() == Some(*root) {
            return master.revert();
        }
        if master.root != *root {
            return Err(StoreError::Root {
                expected: *root,
                found: master.root,
            });
        }
        Ok(master)
    }

    /// Writes new weights and opens them. `write` gets a buffered writer and has to write all of them
    /// ([`crate::theta::write_values`]), which need not be in memory at the same time.
    pub fn create(
        path: &Path,
        tensors: &[TensorShape],
        write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
        progress: Progress<'_>,
    ) -> Result<Self, StoreError> {
        let fresh = fresh_path(path);
        file::write_atomic(&fresh, write)?;
        Self::adopt(path, tensors, None, progress)
    }

    /// Hashes what lies at [`fresh_path`] and, if it has the expected root, puts it in the place of the weights at
    /// `path`.
    pub(crate) fn adopt(
        path: &Path,
        tensors: &[TensorShape],
        expected: Option<Hash>,
        progress: Progress<'_>,
    ) -> Result<Self, StoreError> {
        let groups = Groups::new(tensors);
        let map = FloatMap::open(&fresh_path(path), groups.parameters())?;
        let mut master = Self::unhashed(map, groups);
        master.hash_all(progress);
        if let Some(expected) = expected.filter(|expected| *expected != master.root) {
            return Err(StoreError::Root {
                expected,
                found: master.root,
            });
        }
        // First the files of the old weights, the sidecar before the journal: killed in between, the weights are hashed
        // from end to end when they are opened.
        file::remove(&tree_path(path))?;
        file::remove(&undo_path(path))?;
        master.map.rename(path)?;
        master.save_tree()?;
        Ok(master)
    }

    fn unhashed(map: FloatMap, groups: Groups) -> Self {
        Self {
            values: vec![Hash::default(); groups.len()],
            map,
            groups,
            root: Hash::default(),
            undo: None,
            opened: Opened::Rehashed,
            bytes_hashed: 0,
        }
    }

    /// The weights: tensors in canonical order, nothing between them.
    pub fn theta(&self) -> &[f32] {
        self.map.values()
    }

    /// A copy to be changed and thrown away, such as for a loss at another point. It takes memory only where it is
    /// written to, page by page.
    pub fn scratch(&self) -> Result<Scratch<'_>, StoreError> {
        self.map.scratch()
    }

    /// Root of the weights, as [`crate::model_root`] defines it.
    pub fn root(&self) -> Hash {
        self.root
    }

    /// Root that [`Master::revert`] returns to; `None` before the first step and after a revert.
    pub fn previous(&self) -> Option<Hash> {
        self.undo.as_ref().map(|undo| undo.before)
    }

    /// State in which the files were found.
    pub fn opened(&self) -> Opened {
        self.opened
    }

    /// Path of the weights.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// Bytes of weights that were hashed since they were opened.
    pub fn bytes_hashed(&self) -> u64 {
        self.bytes_hashed
    }

    /// The model's step, `θ[j] −= α·d[j]` with the operations of [`aggregate::apply`]. Once it returns, the step
    /// survives a power failure; before, the weights are those before the step, or will be when they are opened again.
    ///
    /// `d` is walked several times. Its entries beyond the weights are left out; its indices must ascend, or nothing is
    /// changed.
    pub fn step(self, d: &impl Entries, alpha: f32) -> Result<Self, StoreError> {
        self.step_through(d, alpha, &mut |_, _| Ok(()))
    }

    /// [`Master::step`] with no way back: nothing is journalled, nothing synced. For weights that are made anew after a
    /// crash, such as those of an audit; opened again, they are hashed from end to end.
    pub fn step_for_good(mut self, d: &impl Entries, alpha: f32) -> Result<Self, StoreError> {
        let touched = self.touched(d)?;
        file::remove(&tree_path(self.map.path()))?;
        file::remove(&undo_path(self.map.path()))?;
        self.undo = None;
        aggregate::apply(self.map.values_mut(), d, alpha);
        self.hash(&touched, &mut |_, _| ());
        Ok(self)
    }

    fn step_through(mut self, d: &impl Entries, alpha: f32, reached: Hook<'_>) -> Result<Self, StoreError> {
        let touched = self.touched(d)?;
        let before = self.map.values();
        let entries = || {
            let old = |(at, _)| -> Option<Entry> { Some((at, before.get(usize::try_from(at).ok()?)?.to_bits())) };
            d.entries().map_while(old)
        };
        let undo_path = undo_path(self.map.path());
        let journal = Journal::write(&undo_path, self.groups.id(), &self.root, entries)?;
        reached(Stage::Journalled, &mut self.map)?;
        aggregate::apply(self.map.values_mut(), d, alpha);
        self.undo = Some(journal);
        reached(Stage::Applied, &mut self.map)?;
        self.changed(&touched, reached)?;
        let root = self.root;
        if let Some(undo) = &mut self.undo {
            undo.finish(&root)?;
        }
        Ok(self)
    }

    /// Groups that a step changes. Refuses one that would not be the same for everybody.
    fn touched(&self, d: &impl Entries) -> Result<Vec<usize>, StoreError> {
        let (mut marker, mut next) = (self.groups.marker(), 0);
        for (at, _) in d.entries() {
            if at < next {
                return Err(StoreError::Step(
                    "its indices do not ascend; decode the aggregate with alice-update".into(),
                ));
            }
            next = at.saturating_add(1);
            marker.mark(at);
        }
        Ok(marker.touched())
    }

    /// Takes the last step back. Once it returns, that survives a power failure; interrupted, it is finished when the
    /// weights are opened again.
    pub fn revert(self) -> Result<Self, StoreError> {
        self.revert_through(&mut |_, _| Ok(()))
    }

    fn revert_through(mut self, reached: Hook<'_>) -> Result<Self, StoreError> {
        let Some(mut journal) = self.undo.take() else {
            return Err(StoreError::Step(format!(
                "there is none to take back in {}",
                self.map.path().display()
            )));
        };
        journal.reopen()?;
        reached(Stage::Reopened, &mut self.map)?;
        let touched = write_back(&mut self.map, &self.groups, &journal)?;
        reached(Stage::Applied, &mut self.map)?;
        self.changed(&touched, reached)?;
        if self.root != journal.before {
            // The journal stays: opened again, everything is hashed.
            return Err(StoreError::Root {
                expected: journal.before,
                found: self.root,
            });
        }
        file::remove(&undo_path(self.map.path()))?;
        Ok(self)
    }

    /// Hashes everything, for callers that do not trust the disk. If that gives another root than the kept one, the
    /// value is gone as after a failed step, and the weights have their true root when they are opened again.
    pub fn verify(mut self, progress: Progress<'_>) -> Result<Self, StoreError> {
        let expected = self.root;
        self.hash_all(progress);
        if self.root == expected {
            return Ok(self);
        }
        file::remove(&tree_path(self.map.path()))?;
        Err(StoreError::Root {
            expected,
            found: self.root,
        })
    }

    /// Sync, hashes and sidecar after a change.
    fn changed(&mut self, touched: &[usize], reached: Hook<'_>) -> Result<(), StoreError> {
        self.map.flush()?;
        reached(Stage::Flushed, &mut self.map)?;
        self.hash(touched, &mut |_, _| ());
        self.save_tree()?;
        reached(Stage::TreeSaved, &mut self.map)
    }

    fn hash(&mut self, which: &[usize], progress: Progress<'_>) {
        self.groups.hash(self.map.bytes(), which, &mut self.values, progress);
        self.bytes_hashed += self.groups.bytes_in(which);
        self.root = self.groups.root(&self.values);
    }

    fn hash_all(&mut self, progress: Progress<'_>) {
        let all: Vec<usize> = (0..self.groups.len()).collect();
        self.hash(&all, progress);
    }

    fn save_tree(&self) -> Result<(), StoreError> {
        let (path, at) = (tree_path(self.map.path()), self.map.changed_at()?);
        Sidecar::write(&path, self.groups.id(), at, &self.root, &self.values)
    }

    /// Publishes the weights as a snapshot: chunk by chunk from the map, with the root that is known.
    pub async fn publish(&self, store: &BlobStore) -> Result<Snapshot, StoreError> {
        snapshot::publish_rooted(store, self.root, self.theta()).await
    }

    /// Size of the undo journal, bytes; zero if there is none.
    pub fn undo_bytes(&self) -> u64 {
        self.undo.as_ref().map_or(0, Journal::bytes)
    }
}

/// Called at every stage; an error stops there, as a kill would. It is how tests interrupt a step.
type Hook<'a> = &'a mut dyn FnMut(Stage, &mut FloatMap) -> Result<(), StoreError>;

/// Writes a journal's old bits, synced, and returns the groups that they are in.
fn write_back(map: &mut FloatMap, groups: &Groups, journal: &Journal) -> Result<Vec<usize>, StoreError> {
    let values = map.values_mut();
    let mut marker = groups.marker();
    let whole = journal.for_each(|(at, bits)| {
        if let Some(slot) = usize::try_from(at).ok().and_then(|at| values.get_mut(at)) {
            *slot = f32::from_bits(bits);
            marker.mark(at);
        }
        true
    });
    if !whole.map_err(StoreError::io("read the undo journal of", map.path()))? {
        return Err(StoreError::Step(format!(
            "the undo journal of {} changed while it was used",
            map.path().display()
        )));
    }
    map.flush()?;
    Ok(marker.touched())
}

/// Whether [`Master`] keeps a file of weights: it has a sidecar or a journal.
pub fn is_kept(path: &Path) -> bool {
    tree_path(path).exists() || undo_path(path).exists()
}

/// Removes weights with their sidecar and journal.
pub fn remove(path: &Path) -> Result<(), StoreError> {
    for file in [tree_path(path), undo_path(path), fresh_path(path), path.to_path_buf()] {
        file::remove(&file)?;
    }
    Ok(())
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn tree_path(path: &Path) -> PathBuf {
    with_ending(path, ".tree")
}

fn undo_path(path: &Path) -> PathBuf {
    with_ending(path, ".undo")
}

/// Path of weights that are being put together, before they replace those at `path`.
pub(crate) fn fresh_path(path: &Path) -> PathBuf {
    with_ending(path, ".new")
}
