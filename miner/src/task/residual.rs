//! The error-feedback residual: the part of earlier updates that compression left out, kept on disk for each fragment
//! and added to the fragment's next update. It may be larger than memory, so it is streamed, once to encode an update
//! and once to store the remainder.
//!
//! **Format.**
//!
//! ```text
//! ledger-<p>.bin          fragment p: updates without a verdict, and the generation g of the valid residual
//! residual-<p>-<g>.bin    residual of generation g: one value for each parameter of fragment p
//! outgoing.ledger         the ledger as it will be once the update in hand is committed (staged)
//! ```
//!
//! The crate `alice-update` defines the bytes ([`PendingUpdates`]); every file ends with a checksum. Both number
//! formats are read, whichever is written now.
//!
//! **States.** Generation g is valid while the ledger names it. [`Residuals::prepare`] writes generation g + 1 under
//! its own name and returns the ledger that names it; the [journal](super::journal) stages that ledger with the update.
//! [`Residuals::adopt`] (committed) or [`Residuals::restore`] (refused: the update's values go back) makes it the valid
//! one. [`Residuals::settle`] then follows the verdicts: values of accepted updates are dropped, values of all others
//! return to the residual.
//!
//! **Recovery.** The rename of the ledger is the instant at which a new generation counts. Before it, the old residual
//! is untouched; after it, the old one is removed, and a crash in between leaves a file that no ledger names, which the
//! next start removes. While a ledger is staged, the start keeps generation g + 1 of every fragment, because only the
//! journal knows to which one it belongs.
//!
//! **Damage.** A damaged ledger costs the residual and the pending updates of its fragment; a damaged residual costs
//! the residual only, and pending updates still return if they are refused. A disk that does not answer is an error
//! instead: files that may be whole are never replaced.
//!
//! **Durable when.** A generation is synced before the ledger that names it is staged.

use crate::{MinerError, files, settlement::receipts::Standing};
use alice_spec::RunSpec;
use alice_update::{Encoder, EncoderOutput, FeedbackError, Header, Layout, PendingUpdates, ResidualDtype, Update};
use std::{
    fs::File,
    io::{BufReader, BufWriter},
    path::{Path, PathBuf},
};

/// Maximum length of a ledger, bytes: all entries that may be pending (12 bytes each), as many again that were just
/// returned, and room for their headers.
const LEDGER_BYTES_MAX: u64 = 12 * alice_update::PENDING_ENTRIES_MAX * 2 + (1 << 20);
/// Buffer of a stream, bytes: large, because a residual has gigabytes and is read in order.
const BUFFER: usize = 1 << 20;

/// The residuals of a run.
#[derive(Debug)]
pub struct Residuals {
    dir: PathBuf,
    dtype: ResidualDtype,
    layouts: Vec<Layout>,
    pending: Vec<PendingUpdates>,
}

impl Residuals {
    /// Opens the residuals of a run's directory; a damaged ledger starts from zero. `dtype` is the number format of
    /// residuals that are written from now on.
    ///
    /// # Errors
    /// The disk does not answer, or a file that no ledger names cannot be removed.
    pub fn open(dir: &Path, spec: &RunSpec, dtype: ResidualDtype) -> Result<Self, MinerError> {
        let whole = Layout::from_spec(spec);
        let layouts: Vec<Layout> = (0..spec.task.fragments)
            .map(|p| whole.fragment(spec.fragment_tensors(p)))
            .collect();
        let mut residuals = Self {
            dir: dir.to_owned(),
            dtype,
            pending: layouts
                .iter()
                .map(|layout| PendingUpdates::new(layout.covered()))
                .collect(),
            layouts,
        };
        for fragment in 0..spec.task.fragments {
            let path = residuals.ledger_file(fragment);
            match residuals.read_ledger(&path, fragment) {
                Ok(Some(ledger)) => residuals.replace(fragment, ledger),
                Ok(None) => {}
                Err(MinerError::Residual(error)) => {
                    tracing::warn!(%error, path = %path.display(), "the residual starts from zero");
                }
                // The file may be whole, and the next start may be able to read it.
                Err(error) => return Err(error),
            }
        }
        residuals.sweep()?;
        Ok(residuals)
    }

    /// File of the staged ledger.
    pub fn staged_file(&self) -> PathBuf {
        staged_file(&self.dir)
    }

    /// Layout of a fragment's updates.
    ///
    /// # Errors
    /// The run has no such fragment.
    pub fn layout(&self, fragment: u32) -> Result<&Layout, MinerError> {
        let layout = self.layouts.get(fragment as usize);
        layout.ok_or(MinerError::NoFragment(fragment))
    }

    fn pending(&self, fragment: u32) -> Result<&PendingUpdates, MinerError> {
        let pending = self.pending.get(fragment as usize);
        pending.ok_or(MinerError::NoFragment(fragment))
    }

    fn replace(&mut self, fragment: u32, pending: PendingUpdates) {
        if let Some(slot) = self.pending.get_mut(fragment as usize) {
            *slot = pending;
        }
    }

    /// Encodes d + residual. `d` has a value for each parameter of the fragment. A residual that turns out to be
    /// damaged is zero from here on.
    ///
    /// # Errors
    /// `d` cannot be encoded, or the disk does not answer.
    pub fn encode(
        &mut self,
        fragment: u32,
        spec: &RunSpec,
        header: &Header,
        d: &[f32],
    ) -> Result<EncoderOutput, MinerError> {
        match self.try_encode(fragment, spec, header, d) {
            Err(Streaming::Feedback(
                error @ (FeedbackError::Damaged(_) | FeedbackError::Missing { .. } | FeedbackError::Length { .. }),
            )) => {
                tracing::warn!(%error, fragment, "the residual starts from zero");
                // The pending updates are whole, and still return if they are refused.
                let kept = self.pending(fragment)?.without_residual();
                files::write_atomic(&self.ledger_file(fragment), &kept.to_bytes())?;
                self.replace(fragment, kept);
                Ok(self.try_encode(fragment, spec, header, d)?)
            }
            encoded => Ok(encoded?),
        }
    }

    fn try_encode(
        &self,
        fragment: u32,
        spec: &RunSpec,
        header: &Header,
        d: &[f32],
    ) -> Result<EncoderOutput, Streaming> {
        let (layout, pending) = (self.layout(fragment)?, self.pending(fragment)?);
        let mut encoder = Encoder::new(layout, &spec.update).map_err(MinerError::Encode)?;
        pending.combine(self.stored(fragment)?, from_slice(pending, d), |_, sums| {
            encoder.push(sums).map_err(|e| Streaming::Miner(MinerError::Encode(e)))
        })?;
        Ok(encoder.finish(header).map_err(MinerError::Encode)?)
    }

    /// Stores the residual for the time after `sent` is committed under `id`, as the next generation; returns the
    /// ledger that names it, to be staged.
    ///
    /// # Errors
    /// The disk is full or does not answer; the valid residual is unchanged then.
    pub fn prepare(
        &self,
        fragment: u32,
        id: [u8; 32],
        d: &[f32],
        (sent, decay): (&Update, f32),
    ) -> Result<Vec<u8>, MinerError> {
        let pending = self.pending(fragment)?;
        let next = pending.committed(id, sent, decay);
        let path = self.residual_file(fragment, next.generation());
        // Under another name until it is whole: a start that finds generation g + 1 may rely on it.
        let part = path.with_extension("part");
        let written = || -> Result<(), Streaming> {
            let create = || File::create(&part).map_err(|e| MinerError::write("create", &part, e));
            let target = pending.store(
                &next,
                self.stored(fragment)?,
                from_slice(pending, d),
                (sent, decay),
                self.dtype,
                BufWriter::with_capacity(BUFFER, create()?),
            )?;
            let file = target
                .into_inner()
                .map_err(|e| MinerError::write("write", &part, e.into_error()))?;
            file.sync_all().map_err(|e| MinerError::write("sync", &part, e))?;
            files::rename(&part, &path)?;
            Ok(())
        };
        if let Err(error) = written() {
            // A full disk needs the room at once; the next start would remove the file in any case.
            let _ = std::fs::remove_file(&part);
            return Err(error.into());
        }
        Ok(next.to_bytes())
    }

    /// Makes the staged ledger the valid one: the update is committed.
    ///
    /// # Errors
    /// [`MinerError::Write`], or the disk does not answer; the ledger is still staged then.
    pub fn adopt(&mut self, fragment: u32) -> Result<(), MinerError> {
        self.take_over(fragment, None)
    }

    /// Makes the staged ledger the valid one, with the values of the refused update returned to the residual.
    ///
    /// # Errors
    /// As for [`adopt`](Self::adopt).
    pub fn restore(&mut self, fragment: u32, id: [u8; 32]) -> Result<(), MinerError> {
        self.take_over(fragment, Some(id))
    }

    fn take_over(&mut self, fragment: u32, refused: Option<[u8; 32]>) -> Result<(), MinerError> {
        let staged = self.staged_file();
        match self.read_ledger(&staged, fragment) {
            Ok(Some(mut pending)) => {
                if let Some(id) = refused {
                    pending.refused(id);
                }
                files::write_atomic(&self.ledger_file(fragment), &pending.to_bytes())?;
                self.replace(fragment, pending);
            }
            Ok(None) => {}
            Err(MinerError::Residual(error)) => {
                tracing::warn!(%error, path = %staged.display(), "the residual stays as it was before the update");
            }
            Err(error) => return Err(error),
        }
        // Last: until it is gone, a crash repeats the adoption, which has the same result.
        files::remove(&staged)?;
        self.sweep()
    }

    /// Drops the values of accepted submissions, and returns those of all other decided ones to the residual.
    ///
    /// # Errors
    /// [`MinerError::Write`].
    pub fn settle(&mut self, standing: impl Fn([u8; 32]) -> Option<Standing>) -> Result<(), MinerError> {
        let files: Vec<PathBuf> = (0..).map(|p| self.ledger_file(p)).take(self.pending.len()).collect();
        for (path, pending) in files.iter().zip(&mut self.pending) {
            let mut changed = false;
            for id in pending.pending() {
                match standing(id) {
                    Some(Standing::Pending) => continue,
                    Some(Standing::Accepted) => pending.accepted(id),
                    // A record that is gone counts as refused: no verdict will ever accept it.
                    Some(Standing::Refused | Standing::Late | Standing::Voided) | None => pending.refused(id),
                }
                changed = true;
            }
            if changed {
                // If this fails, memory is ahead of the disk: the next commit writes it, or the next start settles
                // again.
                files::write_atomic(path, &pending.to_bytes())?;
            }
        }
        Ok(())
    }

    /// Pending submissions of a fragment, and its residual with returned values included: one value for each parameter.
    ///
    /// # Errors
    /// The residual is damaged, or the disk does not answer.
    pub fn remainder(&self, fragment: u32) -> Result<(Vec<[u8; 32]>, Vec<f32>), MinerError> {
        let pending = self.pending(fragment)?;
        let mut remainder = Vec::with_capacity(self.layout(fragment)?.covered().len());
        pending.combine::<_, Streaming>(
            self.stored(fragment)?,
            |_, _| Ok(()),
            |_, residual| {
                remainder.extend_from_slice(residual);
                Ok(())
            },
        )?;
        Ok((pending.pending(), remainder))
    }

    fn ledger_file(&self, fragment: u32) -> PathBuf {
        self.dir.join(format!("ledger-{fragment}.bin"))
    }

    fn residual_file(&self, fragment: u32, generation: u64) -> PathBuf {
        self.dir.join(format!("residual-{fragment}-{generation}.bin"))
    }

    /// The valid residual of a fragment as a stream; `None` before its first update.
    fn stored(&self, fragment: u32) -> Result<Option<BufReader<File>>, MinerError> {
        let generation = self.pending(fragment)?.generation();
        let path = self.residual_file(fragment, generation);
        match File::open(&path) {
            Ok(file) => Ok(Some(BufReader::with_capacity(BUFFER, file))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(MinerError::read("open", &path, error)),
        }
    }

    /// A ledger; `None` if there is none.
    ///
    /// # Errors
    /// [`MinerError::Residual`] if it is damaged, others if the disk does not answer.
    fn read_ledger(&self, path: &Path, fragment: u32) -> Result<Option<PendingUpdates>, MinerError> {
        if files::len(path)?.is_some_and(|len| len > LEDGER_BYTES_MAX) {
            return Err(MinerError::Residual(FeedbackError::Damaged("too long")));
        }
        let Some(bytes) = files::read_optional(path, LEDGER_BYTES_MAX)? else {
            return Ok(None);
        };
        let pending = PendingUpdates::from_bytes(&bytes, self.layout(fragment)?.covered());
        pending.map(Some).map_err(MinerError::Residual)
    }

    /// Removes residuals that no ledger names, left by a crash or a damaged ledger.
    fn sweep(&self) -> Result<(), MinerError> {
        // The valid generation of each fragment, whether the file exists or not.
        let mut needed: Vec<PathBuf> = (0..)
            .zip(&self.pending)
            .map(|(p, pending)| self.residual_file(p, pending.generation()))
            .collect();
        if files::len(&self.staged_file())?.is_some() {
            // The journal says which fragment it belongs to; the next generation is kept for all of them.
            needed.extend(
                (0..)
                    .zip(&self.pending)
                    .map(|(p, pending)| self.residual_file(p, pending.generation().saturating_add(1))),
            );
        }
        let entries = std::fs::read_dir(&self.dir).map_err(|e| MinerError::read("read", &self.dir, e))?;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("residual-") && !needed.contains(&path) {
                files::remove(&path)?;
            }
        }
        Ok(())
    }
}

/// File of the staged ledger, in a run's directory.
pub fn staged_file(dir: &Path) -> PathBuf {
    dir.join("outgoing.ledger")
}

/// Fills blocks from `d`, which begins at the fragment's first coordinate. Missing values stay zero.
fn from_slice(pending: &PendingUpdates, d: &[f32]) -> impl FnMut(u64, &mut [f32]) -> Result<(), Streaming> {
    let first = pending.covered().start;
    move |start, block| {
        let offset = start.saturating_sub(first) as usize;
        let values = d.get(offset..).unwrap_or_default();
        block.iter_mut().zip(values).for_each(|(slot, value)| *slot = *value);
        Ok(())
    }
}

/// Error of a stream: of the residual's format, or of the miner.
enum Streaming {
    Feedback(FeedbackError),
    Miner(MinerError),
}

impl From<FeedbackError> for Streaming {
    fn from(error: FeedbackError) -> Self {
        Self::Feedback(error)
    }
}

impl From<MinerError> for Streaming {
    fn from(error: MinerError) -> Self {
        Self::Miner(error)
    }
}

impl From<Streaming> for MinerError {
    fn from(error: Streaming) -> Self {
        match error {
            Streaming::Feedback(error) => Self::Residual(error),
            Streaming::Miner(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECAY: f32 = 0.5;

    fn spec() -> RunSpec {
        let mut spec = alice_testkit::fixtures::dev();
        spec.model.hidden = 16;
        spec.model.heads = 2;
        spec.model.kv_heads = 2;
        spec.model.layers = 2;
        spec.model.ffn = 32;
        spec.task.fragments = 2;
        spec.update.k_max = 8;
        spec
    }

    fn d(residuals: &Residuals, fragment: u32) -> Vec<f32> {
        let n = residuals.layout(fragment).unwrap().covered().len();
        (0..n).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect()
    }

    /// Encodes and stores an update of a fragment; its values.
    fn update(residuals: &mut Residuals, spec: &RunSpec, fragment: u32, id: u8) -> Update {
        let d = d(residuals, fragment);
        let encoded = residuals.encode(fragment, spec, &Header::default(), &d).unwrap();
        let ledger = residuals
            .prepare(fragment, [id; 32], &d, (&encoded.sent, DECAY))
            .unwrap();
        files::write_atomic(&residuals.staged_file(), &ledger).unwrap();
        encoded.sent
    }

    #[test]
    fn the_remainder_should_be_the_unsent_and_the_refused_values() {
        let (dir, spec) = (tempfile::tempdir().unwrap(), spec());
        let mut residuals = Residuals::open(dir.path(), &spec, ResidualDtype::F32).unwrap();
        let sent = update(&mut residuals, &spec, 1, 1);
        // Not committed yet: the valid residual is the old one, also after a restart.
        assert!(residuals.remainder(1).unwrap().1.iter().all(|v| *v == 0.0));
        let mut residuals = Residuals::open(dir.path(), &spec, ResidualDtype::F32).unwrap();
        residuals.adopt(1).unwrap();
        let start = residuals.layout(1).unwrap().covered().start;
        let mut expected = d(&residuals, 1);
        for (index, value) in sent.indices.iter().zip(&sent.values) {
            expected[*index as usize - start] -= value;
        }
        expected.iter_mut().for_each(|v| *v *= DECAY);
        assert_eq!(residuals.remainder(1).unwrap(), (vec![[1; 32]], expected.clone()));
        let mut residuals = Residuals::open(dir.path(), &spec, ResidualDtype::F32).unwrap();
        assert_eq!(residuals.remainder(1).unwrap().1, expected);
        // The other fragment has its own.
        assert!(residuals.remainder(0).unwrap().1.iter().all(|v| *v == 0.0));
        residuals.settle(|_| Some(Standing::Pending)).unwrap();
        assert_eq!(residuals.remainder(1).unwrap().0.len(), 1);
        residuals.settle(|_| Some(Standing::Refused)).unwrap();
        for (index, value) in sent.indices.iter().zip(&sent.values) {
            expected[*index as usize - start] += DECAY * value;
        }
        let residuals = Residuals::open(dir.path(), &spec, ResidualDtype::F32).unwrap();
        assert_eq!(residuals.remainder(1).unwrap(), (vec![], expected));
    }

    #[test]
    fn old_generations_should_not_stay() {
        let (dir, spec) = (tempfile::tempdir().unwrap(), spec());
        let mut residuals = Residuals::open(dir.path(), &spec, ResidualDtype::Bf16).unwrap();
        for id in 1..4 {
            update(&mut residuals, &spec, 0, id);
            residuals.adopt(0).unwrap();
        }
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["ledger-0.bin", "residual-0-3.bin"]);
        // Two bytes a value, and no more than a block's head and checksum besides.
        let bytes = std::fs::metadata(dir.path().join("residual-0-3.bin")).unwrap().len();
        let values = residuals.layout(0).unwrap().covered().len() as u64;
        assert!((2 * values..2 * values + 200).contains(&bytes), "{bytes} {values}");
    }

    #[test]
    fn a_stored_residual_should_be_read_in_either_number_format() {
        let spec = spec();
        for (first, second) in [
            (ResidualDtype::F32, ResidualDtype::Bf16),
            (ResidualDtype::Bf16, ResidualDtype::F32),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut residuals = Residuals::open(dir.path(), &spec, first).unwrap();
            update(&mut residuals, &spec, 0, 1);
            residuals.adopt(0).unwrap();
            let before = residuals.remainder(0).unwrap();
            let mut residuals = Residuals::open(dir.path(), &spec, second).unwrap();
            assert_eq!(residuals.remainder(0).unwrap(), before);
            // The next residual has the new format.
            update(&mut residuals, &spec, 0, 2);
            residuals.adopt(0).unwrap();
            let bytes = |path: PathBuf| std::fs::metadata(path).unwrap().len();
            let values = residuals.layout(0).unwrap().covered().len() as u64;
            assert_eq!(bytes(residuals.residual_file(0, 2)) / values, second.bytes() as u64);
        }
    }

    #[test]
    fn damage_should_cost_the_residual_and_nothing_else() {
        // A damaged ledger costs its pending updates, a damaged residual does not.
        for (name, pending) in [
            ("ledger-0.bin", vec![[2; 32]]),
            ("residual-0-1.bin", vec![[1; 32], [2; 32]]),
        ] {
            let (dir, spec) = (tempfile::tempdir().unwrap(), spec());
            let mut residuals = Residuals::open(dir.path(), &spec, ResidualDtype::F32).unwrap();
            let first = update(&mut residuals, &spec, 0, 1);
            residuals.adopt(0).unwrap();
            let path = dir.path().join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let mut residuals = Residuals::open(dir.path(), &spec, ResidualDtype::F32).unwrap();
            assert_eq!(update(&mut residuals, &spec, 0, 2), first, "{name}");
            residuals.adopt(0).unwrap();
            let residuals = Residuals::open(dir.path(), &spec, ResidualDtype::F32).unwrap();
            let (ids, before) = residuals.remainder(0).unwrap();
            assert_eq!(ids, pending, "{name}");
            // An update that was pending through the damage returns whole: decayed twice, as if nothing had happened.
            let mut residuals = residuals;
            let first_only = |id: [u8; 32]| {
                Some(if id == [1; 32] {
                    Standing::Refused
                } else {
                    Standing::Pending
                })
            };
            residuals.settle(first_only).unwrap();
            let returned = if pending.len() == 2 { DECAY * DECAY } else { 0.0 };
            let (start, after) = (
                residuals.layout(0).unwrap().covered().start,
                residuals.remainder(0).unwrap().1,
            );
            let mut expected = before;
            for (index, value) in first.indices.iter().zip(&first.values) {
                expected[*index as usize - start] += returned * value;
            }
            assert_eq!(after, expected, "{name}");
        }
    }

    #[test]
    fn a_disk_that_does_not_answer_should_cost_nothing() {
        let (dir, spec) = (tempfile::tempdir().unwrap(), spec());
        let mut residuals = Residuals::open(dir.path(), &spec, ResidualDtype::F32).unwrap();
        update(&mut residuals, &spec, 0, 1);
        residuals.adopt(0).unwrap();
        update(&mut residuals, &spec, 0, 2);
        let before = residuals.remainder(0).unwrap();
        // A folder in a file's place can be opened, and not read.
        let hide = |path: &Path| {
            std::fs::rename(path, dir.path().join("aside")).unwrap();
            std::fs::create_dir(path).unwrap();
        };
        let show = |path: &Path| {
            std::fs::remove_dir(path).unwrap();
            std::fs::rename(dir.path().join("aside"), path).unwrap();
        };
        let (ledger, staged) = (residuals.ledger_file(0), residuals.staged_file());
        hide(&ledger);
        assert!(Residuals::open(dir.path(), &spec, ResidualDtype::F32).is_err());
        show(&ledger);
        let mut residuals = Residuals::open(dir.path(), &spec, ResidualDtype::F32).unwrap();
        assert_eq!(residuals.remainder(0).unwrap(), before);
        hide(&staged);
        assert!(residuals.adopt(0).is_err());
        show(&staged);
        residuals.adopt(0).unwrap();
        assert_eq!(residuals.remainder(0).unwrap().0, [[1; 32], [2; 32]]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_should_leave_the_valid_residual_as_it_is() {
        let (dir, spec) = (tempfile::tempdir().unwrap(), spec());
        let mut residuals = Residuals::open(dir.path(), &spec, ResidualDtype::F32).unwrap();
        update(&mut residuals, &spec, 0, 1);
        residuals.adopt(0).unwrap();
        let before = residuals.remainder(0).unwrap();
        // Every write to this device fails with "no space left".
        std::os::unix::fs::symlink("/dev/full", dir.path().join("residual-0-2.part")).unwrap();
        let d = d(&residuals, 0);
        let encoded = residuals.encode(0, &spec, &Header::default(), &d).unwrap();
        let error = residuals
            .prepare(0, [2; 32], &d, (&encoded.sent, DECAY))
            .unwrap_err()
            .to_string();
        assert!(error.contains("No space left on device"), "{error}");
        assert!(!dir.path().join("residual-0-2.bin").exists());
        let part = dir.path().join("residual-0-2.part");
        assert!(part.symlink_metadata().is_err(), "its room is free again");
        let residuals = Residuals::open(dir.path(), &spec, ResidualDtype::F32).unwrap();
        assert_eq!(residuals.remainder(0).unwrap(), before);
    }
}
