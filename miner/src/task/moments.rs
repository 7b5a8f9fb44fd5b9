//! The optimiser's moments between two tasks of a fragment, one file for each fragment. A convenience: without the
//! file, or with a damaged one, a task starts from zero moments and learns a little less.

use crate::files;
use alice_trainer::{Carry, MomentsFrom, TaskResult, TrainError};
use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// Buffer between the file and the trainer, bytes.
const BUFFER: usize = 1 << 20;

/// File of a fragment's moments, in a run's directory.
pub fn file(dir: &Path, fragment: u32) -> PathBuf {
    dir.join(format!("moments-{fragment}.bin"))
}

/// Removes the moments of a fragment, to make room on the disk; returns whether there were any.
pub fn evict(dir: &Path, fragment: u32) -> bool {
    std::fs::remove_file(file(dir, fragment)).is_ok()
}

/// Removes the half-written moments that a killed process left.
pub fn remove_partial(dir: &Path) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("moments-") && name.ends_with(".part") {
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// The moments after a task, in a file next to those of the task before. [`keep`](Self::keep) puts them in their place
/// once the task's update is stored: a task that is repeated after a crash must not start from moments that have seen
/// its text. Dropped, they are removed.
#[derive(Debug)]
pub struct SavedMoments {
    part: PathBuf,
    path: PathBuf,
}

impl SavedMoments {
    /// Makes them the moments that the next task starts from.
    pub fn keep(self) {
        // Not synced: an update waits to be sent, and the checksum shows a torn file.
        if let Err(error) = files::rename(&self.part, &self.path) {
            warn(&self.path, NOT_KEPT, &error);
        }
    }
}

impl Drop for SavedMoments {
    fn drop(&mut self) {
        // Half a file, or one that nobody kept; a kept file has another name by now.
        let _ = std::fs::remove_file(&self.part);
    }
}

const NOT_KEPT: &str = "the optimiser's moments cannot be kept for the next task";

fn warn(path: &Path, what: &str, error: &dyn std::fmt::Display) {
    tracing::warn!(%error, path = %path.display(), "{what}");
}

/// Runs `train` from the moments of `path` and returns the new ones with its result; `None` if they could not be
/// written, or `stop` was set meanwhile. No failure of a file prevents training.
///
/// # Errors
/// Those of `train`.
pub fn train_with_moments(
    path: &Path,
    stop: &AtomicBool,
    train: impl FnOnce(Carry<'_>) -> Result<TaskResult, TrainError>,
) -> Result<(TaskResult, Option<SavedMoments>), TrainError> {
    let warn = |what: &str, error: &dyn std::fmt::Display| warn(path, what, error);
    let mut from = match File::open(path) {
        Ok(file) => Some(BufReader::with_capacity(BUFFER, file)),
        Err(error) => {
            // A first task has none, which is not worth a warning.
            if error.kind() != io::ErrorKind::NotFound {
                warn("the optimiser's moments cannot be read and start from zero", &error);
            }
            None
        }
    };
    let saved = SavedMoments {
        part: path.with_extension("part"),
        path: path.to_owned(),
    };
    // The file is made before training, so that a disk without room shows early and costs a warning only.
    let mut to = match File::create(&saved.part) {
        Ok(file) => Some(Stoppable {
            file: BufWriter::with_capacity(BUFFER, file),
            stop,
        }),
        Err(error) => {
            warn(NOT_KEPT, &error);
            None
        }
    };
    let result = train(Carry {
        from: from.as_mut().map(|from| from as &mut dyn Read),
        to: to.as_mut().map(|to| to as &mut dyn Write),
    });
    let result = result?;
    if let MomentsFrom::Refused(problem) = &result.moments {
        warn("the optimiser's moments start from zero", problem);
    }
    // Half a file is as bad as none: `saved` is dropped here, which removes it.
    if let Some(problem) = &result.moments_lost {
        warn(NOT_KEPT, problem);
        return Ok((result, None));
    }
    let written = to.map(|to| to.file.into_inner());
    match written {
        Some(Ok(_)) => Ok((result, Some(saved))),
        Some(Err(error)) => {
            warn(NOT_KEPT, &error);
            Ok((result, None))
        }
        None => Ok((result, None)),
    }
}

/// A file that refuses further writes once the task must end: writing gigabytes must not delay the end.
struct Stoppable<'a> {
    file: BufWriter<File>,
    stop: &'a AtomicBool,
}

impl Write for Stoppable<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(io::Error::other("the task had to end")),
            false => self.file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::ControlFlow;

    /// Trains a task of two steps from `path`; cancels it after `steps`.
    fn task(path: &Path, steps: u32) -> Result<TaskResult, TrainError> {
        let (result, saved) = task_until(path, steps, false)?;
        if let Some(saved) = saved {
            saved.keep();
        }
        Ok(result)
    }

    /// The same, with `stop` set before anything is written or not.
    fn task_until(path: &Path, steps: u32, stop: bool) -> Result<(TaskResult, Option<SavedMoments>), TrainError> {
        let mut spec = alice_spec::RunSpec::parse(alice_spec::preset("dev").unwrap()).unwrap();
        (spec.model.hidden, spec.model.heads, spec.model.kv_heads) = (16, 2, 2);
        (spec.model.layers, spec.model.ffn, spec.model.context) = (1, 32, 16);
        (spec.inner.steps, spec.inner.batch_sequences) = (2, 2);
        let theta = alice_init::init_theta(&spec, &[1; 32]);
        let sequences: Vec<Vec<u16>> = (0..4).map(|s| (0..16).map(|t| s * 16 + t).collect()).collect();
        let task = alice_trainer::Task {
            spec: &spec,
            fragment: 0,
            theta: &theta,
            sequences: &sequences,
        };
        let device = alice_model::Device::Cpu;
        let mut go = |p: alice_trainer::Progress| match p.step < steps {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        };
        train_with_moments(path, &AtomicBool::new(stop), |carry| {
            alice_trainer::train_carrying(&task, device, Default::default(), carry, &mut go)
        })
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn moments_should_go_from_task_to_task() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), 0);
        assert_eq!(task(&path, 9).unwrap().moments, MomentsFrom::Nothing);
        assert_eq!(task(&path, 9).unwrap().moments, MomentsFrom::Carried { steps: 2 });
        // After a cancelled task the old moments stay.
        let before = std::fs::read(&path).unwrap();
        assert!(task(&path, 1).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(task(&path, 9).unwrap().moments, MomentsFrom::Carried { steps: 4 });
        assert_eq!(names(dir.path()), ["moments-0.bin"]);
        // A task that must end while it writes has its update all the same, and the old moments stay.
        let before = std::fs::read(&path).unwrap();
        let (late, saved) = task_until(&path, 9, true).unwrap();
        assert!(late.moments_lost.is_some() && saved.is_none());
        assert_eq!(std::fs::read(&path).unwrap(), before);
        // After a task whose update was not stored the old moments stay, too: the task may be repeated.
        let (_, saved) = task_until(&path, 9, false).unwrap();
        assert_eq!(names(dir.path()).len(), 2);
        drop(saved.unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(names(dir.path()), ["moments-0.bin"]);
        // Half a file of a killed process goes when the run is opened; moments can be evicted once.
        std::fs::write(dir.path().join("moments-3.part"), b"half").unwrap();
        remove_partial(dir.path());
        assert_eq!(names(dir.path()), ["moments-0.bin"]);
        assert!(evict(dir.path(), 0) && !evict(dir.path(), 0));
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn a_damaged_file_or_no_place_for_one_should_cost_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), 0);
        let fresh = task(&path, 9).unwrap().d;
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let result = task(&path, 9).unwrap();
        assert!(
            matches!(result.moments, MomentsFrom::Refused(_)),
            "{:?}",
            result.moments
        );
        assert_eq!(result.d, fresh);
        assert_eq!(task(&path, 9).unwrap().moments, MomentsFrom::Carried { steps: 2 });

        let result = task(&dir.path().join("nowhere/moments-0.bin"), 9).unwrap();
        assert_eq!((result.moments, result.d), (MomentsFrom::Nothing, fresh));
    }
}
