//! The master weights in place: a file of f32 that is mapped instead of read, stepped coordinate by coordinate instead of
//! written again, and hashed only where it changed.
//!
//! Three files: `<path>` are the weights as [`crate::theta`] describes them; `<path>.tree` keeps the hashes of their
//! groups; `<path>.undo` holds what the last step changed. A step is
//!
//! 1. the undo journal, written and synced: until then nothing has changed, and a full disk is an error and no more;
//! 2. θ[j] −= α·d[j] through the map ([`aggregate::apply`]), synced;
//! 3. the touched groups hashed again, the sidecar replaced;
//! 4. the journal's last part, synced: the step is finished.
//!
//! Killed before 4, [`Master::open`] writes the old bits back. After 4 the journal stays until the next step, so that
//! [`Master::revert`] can go back by one. Weights that a crash was near, or that another program wrote to, are hashed from
//! end to end before anybody gets their root.

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

/// Told the bytes that were hashed and the bytes to be hashed in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// In which state [`Master::open`] found the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// As they were left: nothing was read but the sidecar.
    AsLeft,
    /// The sidecar was missing, damaged, of another run, or older than the weights: all was hashed.
    Rehashed,
    /// A step had not been finished: it was undone, and all was hashed.
    RolledBack,
}

/// How far a step has come; what tests interrupt.
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
/// What changes them takes the value and gives it back only when all went well. After an error it is gone; the files are
/// in order or will be when they are opened again.
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
    /// Opens the weights of a run with these tensors, and brings them in order where a step was interrupted. `progress`
    /// is called only where they have to be hashed from end to end.
    ///
    /// The root is that of what is there. Whether it is the wanted one is the caller's check.
    pub fn open(path: &Path, tensors: &[TensorShape], progress: Progress<'_>) -> Result<Self, StoreError> {
        let groups = Groups::new(tensors);
        let mut map = FloatMap::open(path, groups.parameters())?;
        let (undo_path, tree_path) = (undo_path(path), tree_path(path));
        let mut undo = None;
        // Where the journal names the root, the sidecar must agree.
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
        // A journal that leads to other weights than these is of no use: somebody wrote over them.
        if master.undo.as_ref().is_none_or(|undo| undo.after != Some(master.root)) {
            master.undo = None;
            file::remove(&undo_path)?;
        }
        Ok(master)
    }

    /// Opens weights that must have a root, going back by a step if that leads to it: for a caller who knows where it was.
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

    /// Hashes what lies at [`fresh_path`] and, if it has the expected root, puts it in the place of the weights at `path`.
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
        // What belongs to the old weights goes first, and their sidecar before their journal: killed in between, they are
        // hashed from end to end when they are opened.
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

    /// A copy to be changed and thrown away, such as for a loss at another point. It takes memory only where it is written
    /// to, page by page.
    pub fn scratch(&self) -> Result<Scratch<'_>, StoreError> {
        self.map.scratch()
    }

    /// Root of the weights, as [`crate::model_root`] defines it.
    pub fn root(&self) -> Hash {
        self.root
    }

    /// Root that [`Master::revert`] goes back to; none where no step was made, or the last one was reverted.
    pub fn previous(&self) -> Option<Hash> {
        self.undo.as_ref().map(|undo| undo.before)
    }

    /// In which state the files were found.
    pub fn opened(&self) -> Opened {
        self.opened
    }

    /// Where the weights are.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// Bytes of weights that were hashed since they were opened.
    pub fn bytes_hashed(&self) -> u64 {
        self.bytes_hashed
    }

    /// The model's step, θ[j] −= α·d[j] with the operations of [`aggregate::apply`]. Once it returns, the step survives a
    /// power failure; before, the weights are those before the step, or will be when they are opened again.
    ///
    /// `d` is walked several times. Its entries beyond the weights are left out; its indices must ascend, or nothing is changed.
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

    /// Goes back to the weights before the last step. Once it returns, that survives a power failure; interrupted, it is
    /// finished when the weights are opened again.
    pub fn revert(self) -> Result<Self, StoreError> {
        self.revert_through(&mut |_, _| Ok(()))
    }

    fn revert_through(mut self, reached: Hook<'_>) -> Result<Self, StoreError> {
        let Some(mut journal) = self.undo.take() else {
            return Err(StoreError::Step(format!(
                "there is none to go back from in {}",
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

    /// Hashes everything, for whoever does not trust the disk. Where that is another root than the kept one, the weights
    /// are gone as after a failed step, and have their true root when they are opened again.
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

    /// What follows a change: sync, hashes, sidecar.
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

    /// Size of the undo journal, bytes; zero where there is none.
    pub fn undo_bytes(&self) -> u64 {
        self.undo.as_ref().map_or(0, Journal::bytes)
    }
}

/// Called at every stage; an error stops there, as a kill would.
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

/// Whether a file of weights is one that [`Master`] keeps: its sidecar or its journal lies beside it.
pub fn is_kept(path: &Path) -> bool {
    tree_path(path).exists() || undo_path(path).exists()
}

/// Removes weights with all that belongs to them.
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

/// Where weights are put together before they take their place.
pub(crate) fn fresh_path(path: &Path) -> PathBuf {
    with_ending(path, ".new")
}
