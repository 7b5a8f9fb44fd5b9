//! What earlier updates had no room for, on disk, fragment by fragment. It may be larger than memory: it is streamed, once
//! to encode an update and once to store what the update leaves.
//!
//! ```text
//! ledger-<p>.bin              the updates that wait for a verdict, and the generation of the residual that counts
//! residual-<p>-<g>.bin        the residual of generation g, a value for each parameter of fragment p
//! outgoing.ledger             the ledger as it will be once the update is committed
//! ```
//!
//! The new residual is written beside the old one; the rename of the ledger is the instant at which it counts.

use crate::{MinerError, files, settlement::receipts::Standing};
use alice_spec::RunSpec;
use alice_update::{Encoded, Encoder, FeedbackError, Header, Layout, Ledger, Precision, Update};
use std::{
    fs::File,
    io::{BufReader, BufWriter},
    path::{Path, PathBuf},
};

/// Largest ledger that is read: all entries that may wait, and room for their heads.
const LEDGER_BYTES_MAX: u64 = 12 * alice_update::PENDING_ENTRIES_MAX * 2 + (1 << 20);
/// Buffer of a stream, bytes.
const BUFFER: usize = 1 << 20;

/// The residuals of a run.
#[derive(Debug)]
pub struct Residuals {
    dir: PathBuf,
    precision: Precision,
    layouts: Vec<Layout>,
    ledgers: Vec<Ledger>,
}

impl Residuals {
    /// Opens what there is in a run's directory. A damaged ledger is left out: that costs a little of the last updates'
    /// remainder, not the miner. `precision` is for what is written from now on.
    pub fn open(dir: &Path, spec: &RunSpec, precision: Precision) -> Result<Self, MinerError> {
        let whole = Layout::from_spec(spec);
        let layouts: Vec<Layout> = (0..spec.task.fragments)
            .map(|p| whole.fragment(spec.fragment_tensors(p)))
            .collect();
        let mut residuals = Self {
            dir: dir.to_owned(),
            precision,
            ledgers: layouts.iter().map(|layout| Ledger::new(layout.covered())).collect(),
            layouts,
        };
        for fragment in 0..spec.task.fragments {
            let path = residuals.ledger_file(fragment);
            match residuals.read_ledger(&path, fragment) {
                Ok(Some(ledger)) => residuals.replace(fragment, ledger),
                Ok(None) => {}
                Err(MinerError::Residual(error)) => {
                    tracing::warn!(%error, path = %path.display(), "the residual starts from nothing");
                }
                // A disk that does not answer is no reason to throw away what lies on it.
                Err(error) => return Err(error),
            }
        }
        residuals.sweep()?;
        Ok(residuals)
    }

    /// Where the ledger of after the commit waits.
    pub fn waiting_file(&self) -> PathBuf {
        waiting_file(&self.dir)
    }

    /// Layout of a fragment's updates.
    pub fn layout(&self, fragment: u32) -> Result<&Layout, MinerError> {
        let unknown = || MinerError::Encode(format!("the run has no fragment {fragment}"));
        self.layouts.get(fragment as usize).ok_or_else(unknown)
    }

    fn ledger(&self, fragment: u32) -> Result<&Ledger, MinerError> {
        let unknown = || MinerError::Encode(format!("the run has no fragment {fragment}"));
        self.ledgers.get(fragment as usize).ok_or_else(unknown)
    }

    fn replace(&mut self, fragment: u32, ledger: Ledger) {
        if let Some(slot) = self.ledgers.get_mut(fragment as usize) {
            *slot = ledger;
        }
    }

    /// Encodes d + residual. `d` has a value for each parameter of the fragment. A residual that turns out to be damaged
    /// is left out from here on.
    pub fn encode(&mut self, fragment: u32, spec: &RunSpec, header: &Header, d: &[f32]) -> Result<Encoded, MinerError> {
        match self.try_encode(fragment, spec, header, d) {
            Err(Streaming::Feedback(
                error @ (FeedbackError::Damaged(_) | FeedbackError::Missing { .. } | FeedbackError::Length { .. }),
            )) => {
                tracing::warn!(%error, fragment, "the residual starts from nothing");
                // What waits for its verdict is whole, and returns if it is refused.
                let kept = self.ledger(fragment)?.without_residual();
                files::write_atomic(&self.ledger_file(fragment), &kept.to_bytes())?;
                self.replace(fragment, kept);
                Ok(self.try_encode(fragment, spec, header, d)?)
            }
            encoded => Ok(encoded?),
        }
    }

    fn try_encode(&self, fragment: u32, spec: &RunSpec, header: &Header, d: &[f32]) -> Result<Encoded, Streaming> {
        let (layout, ledger) = (self.layout(fragment)?, self.ledger(fragment)?);
        let mut encoder = Encoder::new(layout, &spec.update).map_err(|e| MinerError::Encode(e.to_string()))?;
        ledger.combine(self.stored(fragment)?, from_slice(ledger, d), |_, sums| {
            encoder
                .push(sums)
                .map_err(|e| Streaming::Miner(MinerError::Encode(e.to_string())))
        })?;
        Ok(encoder.finish(header).map_err(|e| MinerError::Encode(e.to_string()))?)
    }

    /// Stores the residual that is left once `sent` is committed under `id`, beside the valid one; returns the ledger
    /// that makes it count. On an error, a full disk for one, the valid residual is as it was.
    pub fn prepare(
        &self,
        fragment: u32,
        id: [u8; 32],
        d: &[f32],
        (sent, decay): (&Update, f32),
    ) -> Result<Vec<u8>, MinerError> {
        let ledger = self.ledger(fragment)?;
        let next = ledger.committed(id, sent, decay);
        let path = self.residual_file(fragment, next.generation());
        let part = path.with_extension("part");
        let written = || -> Result<(), Streaming> {
            let create = || File::create(&part).map_err(|e| MinerError::file("create", &part, &e));
            let target = ledger.store(
                &next,
                self.stored(fragment)?,
                from_slice(ledger, d),
                (sent, decay),
                self.precision,
                BufWriter::with_capacity(BUFFER, create()?),
            )?;
            let file = target
                .into_inner()
                .map_err(|e| MinerError::file("write", &part, e.error()))?;
            file.sync_all().map_err(|e| MinerError::file("write", &part, &e))?;
            files::rename(&part, &path)?;
            Ok(())
        };
        if let Err(error) = written() {
            // On a full disk its room is needed; what is left of it is removed at the next start in any case.
            let _ = std::fs::remove_file(&part);
            return Err(error.into());
        }
        Ok(next.to_bytes())
    }

    /// The update is committed: the ledger that waited is the valid one.
    pub fn adopt(&mut self, fragment: u32) -> Result<(), MinerError> {
        self.take_over(fragment, None)
    }

    /// The update was refused: what it would have sent goes back into the residual.
    pub fn restore(&mut self, fragment: u32, id: [u8; 32]) -> Result<(), MinerError> {
        self.take_over(fragment, Some(id))
    }

    fn take_over(&mut self, fragment: u32, refused: Option<[u8; 32]>) -> Result<(), MinerError> {
        let waiting = self.waiting_file();
        match self.read_ledger(&waiting, fragment) {
            Ok(Some(mut ledger)) => {
                if let Some(id) = refused {
                    ledger.refused(id);
                }
                files::write_atomic(&self.ledger_file(fragment), &ledger.to_bytes())?;
                self.replace(fragment, ledger);
            }
            Ok(None) => {}
            Err(MinerError::Residual(error)) => {
                tracing::warn!(%error, path = %waiting.display(), "the residual stays as it was before the update");
            }
            Err(error) => return Err(error),
        }
        files::remove(&waiting)?;
        self.sweep()
    }

    /// Gives back, or lets go of, what was set aside for submissions that are decided by now.
    pub fn settle(&mut self, standing: impl Fn([u8; 32]) -> Option<Standing>) -> Result<(), MinerError> {
        let files: Vec<PathBuf> = (0..).map(|p| self.ledger_file(p)).take(self.ledgers.len()).collect();
        for (path, ledger) in files.iter().zip(&mut self.ledgers) {
            let mut changed = false;
            for id in ledger.pending() {
                match standing(id) {
                    Some(Standing::Pending) => continue,
                    Some(Standing::Accepted) => ledger.accepted(id),
                    // Also where the record is gone: then nobody will ever say that it was accepted.
                    Some(Standing::Refused | Standing::Late | Standing::Voided) | None => ledger.refused(id),
                }
                changed = true;
            }
            if changed {
                files::write_atomic(path, &ledger.to_bytes())?;
            }
        }
        Ok(())
    }

    /// Submissions of a fragment that wait for a verdict, and what is left of its updates, refused ones included: a
    /// value for each of its parameters.
    pub fn left(&self, fragment: u32) -> Result<(Vec<[u8; 32]>, Vec<f32>), MinerError> {
        let ledger = self.ledger(fragment)?;
        let mut left = Vec::with_capacity(self.layout(fragment)?.covered().len());
        ledger.combine::<_, Streaming>(
            self.stored(fragment)?,
            |_, _| Ok(()),
            |_, residual| {
                left.extend_from_slice(residual);
                Ok(())
            },
        )?;
        Ok((ledger.pending(), left))
    }

    fn ledger_file(&self, fragment: u32) -> PathBuf {
        self.dir.join(format!("ledger-{fragment}.bin"))
    }

    fn residual_file(&self, fragment: u32, generation: u64) -> PathBuf {
        self.dir.join(format!("residual-{fragment}-{generation}.bin"))
    }

    /// The valid residual of a fragment as a stream; none before its first update.
    fn stored(&self, fragment: u32) -> Result<Option<BufReader<File>>, MinerError> {
        let generation = self.ledger(fragment)?.generation();
        let path = self.residual_file(fragment, generation);
        match File::open(&path) {
            Ok(file) => Ok(Some(BufReader::with_capacity(BUFFER, file))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(MinerError::file("open", &path, &error)),
        }
    }

    /// A ledger; [`MinerError::Residual`] where it is not one, other errors where it could not be read.
    fn read_ledger(&self, path: &Path, fragment: u32) -> Result<Option<Ledger>, MinerError> {
        if files::len(path)?.is_some_and(|len| len > LEDGER_BYTES_MAX) {
            return Err(MinerError::Residual(FeedbackError::Damaged("too long")));
        }
        let Some(bytes) = files::read_optional(path, LEDGER_BYTES_MAX)? else {
            return Ok(None);
        };
        let ledger = Ledger::from_bytes(&bytes, self.layout(fragment)?.covered());
        ledger.map(Some).map_err(MinerError::Residual)
    }

    /// Removes residuals that no ledger names: a crash or a damaged ledger leaves them.
    fn sweep(&self) -> Result<(), MinerError> {
        let mut needed: Vec<PathBuf> = (0..)
            .zip(&self.ledgers)
            .map(|(p, ledger)| self.residual_file(p, ledger.generation()))
            .collect();
        if files::len(&self.waiting_file())?.is_some() {
            // Whose it is stands in the journal; the generation after the valid one is kept for every fragment.
            needed.extend(
                (0..)
                    .zip(&self.ledgers)
                    .map(|(p, ledger)| self.residual_file(p, ledger.generation().saturating_add(1))),
            );
        }
        let entries = std::fs::read_dir(&self.dir).map_err(|e| MinerError::file("read", &self.dir, &e))?;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("residual-") && !needed.contains(&path) {
                files::remove(&path)?;
            }
        }
        Ok(())
    }
}

/// Where the ledger of after the commit waits, in a run's directory.
pub fn waiting_file(dir: &Path) -> PathBuf {
    dir.join("outgoing.ledger")
}

/// Fills a block from `d`, which begins at the ledger's first coordinate. What `d` lacks is zero.
fn from_slice(ledger: &Ledger, d: &[f32]) -> impl FnMut(u64, &mut [f32]) -> Result<(), Streaming> {
    let first = ledger.covered().start;
    move |start, block| {
        let at = start.saturating_sub(first) as usize;
        let values = d.get(at..).unwrap_or_default();
        block.iter_mut().zip(values).for_each(|(slot, value)| *slot = *value);
        Ok(())
    }
}

/// What ends a stream.
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
        let mut spec = RunSpec::parse(include_str!("../../../chain-spec/runs/dev.toml")).unwrap();
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
        files::write_atomic(&residuals.waiting_file(), &ledger).unwrap();
        encoded.sent
    }

    #[test]
    fn what_is_left_should_be_what_was_not_sent_and_what_was_refused() {
        let (dir, spec) = (tempfile::tempdir().unwrap(), spec());
        let mut residuals = Residuals::open(dir.path(), &spec, Precision::F32).unwrap();
        let sent = update(&mut residuals, &spec, 1, 1);
        // Not committed yet: the valid residual is the old one, also after a restart.
        assert!(residuals.left(1).unwrap().1.iter().all(|v| *v == 0.0));
        let mut residuals = Residuals::open(dir.path(), &spec, Precision::F32).unwrap();
        residuals.adopt(1).unwrap();
        let start = residuals.layout(1).unwrap().covered().start;
        let mut expected = d(&residuals, 1);
        for (index, value) in sent.indices.iter().zip(&sent.values) {
            expected[*index as usize - start] -= value;
        }
        expected.iter_mut().for_each(|v| *v *= DECAY);
        assert_eq!(residuals.left(1).unwrap(), (vec![[1; 32]], expected.clone()));
        let mut residuals = Residuals::open(dir.path(), &spec, Precision::F32).unwrap();
        assert_eq!(residuals.left(1).unwrap().1, expected);
        // The other fragment has its own.
        assert!(residuals.left(0).unwrap().1.iter().all(|v| *v == 0.0));
        residuals.settle(|_| Some(Standing::Pending)).unwrap();
        assert_eq!(residuals.left(1).unwrap().0.len(), 1);
        residuals.settle(|_| Some(Standing::Refused)).unwrap();
        for (index, value) in sent.indices.iter().zip(&sent.values) {
            expected[*index as usize - start] += DECAY * value;
        }
        let residuals = Residuals::open(dir.path(), &spec, Precision::F32).unwrap();
        assert_eq!(residuals.left(1).unwrap(), (vec![], expected));
    }

    #[test]
    fn old_generations_should_not_stay() {
        let (dir, spec) = (tempfile::tempdir().unwrap(), spec());
        let mut residuals = Residuals::open(dir.path(), &spec, Precision::Bf16).unwrap();
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
    fn what_is_stored_should_be_read_whichever_way_is_asked_for_next() {
        let spec = spec();
        for (first, second) in [(Precision::F32, Precision::Bf16), (Precision::Bf16, Precision::F32)] {
            let dir = tempfile::tempdir().unwrap();
            let mut residuals = Residuals::open(dir.path(), &spec, first).unwrap();
            update(&mut residuals, &spec, 0, 1);
            residuals.adopt(0).unwrap();
            let before = residuals.left(0).unwrap();
            let mut residuals = Residuals::open(dir.path(), &spec, second).unwrap();
            assert_eq!(residuals.left(0).unwrap(), before);
            // The next one is stored as asked.
            update(&mut residuals, &spec, 0, 2);
            residuals.adopt(0).unwrap();
            let bytes = |path: PathBuf| std::fs::metadata(path).unwrap().len();
            let values = residuals.layout(0).unwrap().covered().len() as u64;
            assert_eq!(bytes(residuals.residual_file(0, 2)) / values, second.bytes() as u64);
        }
    }

    #[test]
    fn damage_should_cost_the_residual_and_nothing_else() {
        // A ledger takes along what waits in it, a residual does not.
        for (name, waiting) in [
            ("ledger-0.bin", vec![[2; 32]]),
            ("residual-0-1.bin", vec![[1; 32], [2; 32]]),
        ] {
            let (dir, spec) = (tempfile::tempdir().unwrap(), spec());
            let mut residuals = Residuals::open(dir.path(), &spec, Precision::F32).unwrap();
            let first = update(&mut residuals, &spec, 0, 1);
            residuals.adopt(0).unwrap();
            let path = dir.path().join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let mut residuals = Residuals::open(dir.path(), &spec, Precision::F32).unwrap();
            assert_eq!(update(&mut residuals, &spec, 0, 2), first, "{name}");
            residuals.adopt(0).unwrap();
            let residuals = Residuals::open(dir.path(), &spec, Precision::F32).unwrap();
            let (ids, before) = residuals.left(0).unwrap();
            assert_eq!(ids, waiting, "{name}");
            // What waited through the damage comes back whole: it has decayed twice, as if nothing had happened.
            let mut residuals = residuals;
            let first_only = |id: [u8; 32]| {
                Some(if id == [1; 32] {
                    Standing::Refused
                } else {
                    Standing::Pending
                })
            };
            residuals.settle(first_only).unwrap();
            let returned = if waiting.len() == 2 { DECAY * DECAY } else { 0.0 };
            let (start, after) = (
                residuals.layout(0).unwrap().covered().start,
                residuals.left(0).unwrap().1,
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
        let mut residuals = Residuals::open(dir.path(), &spec, Precision::F32).unwrap();
        update(&mut residuals, &spec, 0, 1);
        residuals.adopt(0).unwrap();
        update(&mut residuals, &spec, 0, 2);
        let before = residuals.left(0).unwrap();
        // A folder in a file's place opens, and cannot be read.
        let hide = |path: &Path| {
            std::fs::rename(path, dir.path().join("aside")).unwrap();
            std::fs::create_dir(path).unwrap();
        };
        let show = |path: &Path| {
            std::fs::remove_dir(path).unwrap();
            std::fs::rename(dir.path().join("aside"), path).unwrap();
        };
        let (ledger, waiting) = (residuals.ledger_file(0), residuals.waiting_file());
        hide(&ledger);
        assert!(Residuals::open(dir.path(), &spec, Precision::F32).is_err());
        show(&ledger);
        let mut residuals = Residuals::open(dir.path(), &spec, Precision::F32).unwrap();
        assert_eq!(residuals.left(0).unwrap(), before);
        hide(&waiting);
        assert!(residuals.adopt(0).is_err());
        show(&waiting);
        residuals.adopt(0).unwrap();
        assert_eq!(residuals.left(0).unwrap().0, [[1; 32], [2; 32]]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_should_leave_the_valid_residual_as_it_is() {
        let (dir, spec) = (tempfile::tempdir().unwrap(), spec());
        let mut residuals = Residuals::open(dir.path(), &spec, Precision::F32).unwrap();
        update(&mut residuals, &spec, 0, 1);
        residuals.adopt(0).unwrap();
        let before = residuals.left(0).unwrap();
        // Every write to this device says that no space is left.
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
        let residuals = Residuals::open(dir.path(), &spec, Precision::F32).unwrap();
        assert_eq!(residuals.left(0).unwrap(), before);
    }
}
