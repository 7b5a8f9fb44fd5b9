//! The miner's files: crash-safe writes (by [`alice_store::file`]), bounded reads, and the lock of a data directory.

use crate::MinerError;
use alice_store::file;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Maximum length of a JSON file that is read back, bytes.
pub const JSON_BYTES_MAX: u64 = 64 << 20;

/// Replaces `path` in one step: after a crash it holds either the old bytes or all of the new ones.
///
/// # Errors
/// [`MinerError::Write`]; the old file is unchanged then.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), MinerError> {
    file::write_atomic(path, |out| out.write_all(bytes)).map_err(|e| MinerError::store(path, e))
}

/// Moves a complete file over another in one step.
///
/// # Errors
/// [`MinerError::Write`]; both files are unchanged then.
pub fn rename(from: &Path, to: &Path) -> Result<(), MinerError> {
    file::rename(from, to).map_err(|e| MinerError::store(to, e))
}

/// Size of a file, bytes; `None` if there is no such file.
///
/// # Errors
/// [`MinerError::File`] if the system does not tell.
pub fn len(path: &Path) -> Result<Option<u64>, MinerError> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.len())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(MinerError::read("get the size of", path, e)),
    }
}

/// Reads a file of at most `bytes_max` bytes; `None` if there is no such file.
///
/// # Errors
/// [`MinerError::File`] if it is longer or cannot be read.
pub fn read_optional(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, MinerError> {
    let read = || -> io::Result<Vec<u8>> {
        let file = File::open(path)?;
        if file.metadata()?.len() > bytes_max {
            return Err(io::Error::other(format!("it is larger than {bytes_max} bytes")));
        }
        let mut bytes = Vec::new();
        // The bound holds also for a file that grows while it is read.
        file.take(bytes_max).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(MinerError::read("read", path, e)),
    }
}

/// Writes a value as JSON, in one step.
///
/// # Errors
/// [`MinerError::Write`]; the old file is unchanged then.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), MinerError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| MinerError::write("write", path, e))?;
    write_atomic(path, &bytes)
}

/// Reads a value from JSON; `None` if there is no such file.
///
/// # Errors
/// [`MinerError::File`] if it cannot be read or is not such a value.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, MinerError> {
    let Some(bytes) = read_optional(path, JSON_BYTES_MAX)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| MinerError::read("read", path, e))
}

/// Removes a file, if it is there.
///
/// # Errors
/// [`MinerError::Write`] if the system refuses.
pub fn remove(path: &Path) -> Result<(), MinerError> {
    file::remove(path).map_err(|e| MinerError::store(path, e))
}

/// Removes the half-written files that a killed process left in a directory, if there is one. Only the holder of the
/// data directory's [`DirLock`] may do that: another process may be writing. Names that end with `.tmp` are those of
/// earlier versions.
pub fn remove_partial(dir: &Path) {
    if dir.is_dir()
        && let Err(error) = file::remove_partial(dir).and_then(|()| file::remove_with_suffix(dir, ".tmp"))
    {
        // They cost space, nothing else, and the next start tries again.
        tracing::warn!(%error, "half-written files stay");
    }
}

/// Makes a directory with its parents.
///
/// # Errors
/// [`MinerError::Write`] if the system refuses.
pub fn make_dir(path: &Path) -> Result<(), MinerError> {
    fs::create_dir_all(path).map_err(|e| MinerError::write("make the directory", path, e))
}

/// All values stored as `*.json` in a directory, in the order of their names. Damaged ones are logged and left out.
///
/// # Errors
/// [`MinerError::File`] if one cannot be read: a receipt that seems never to have existed would be earned twice.
pub fn read_all<T: DeserializeOwned>(dir: &Path) -> Result<Vec<T>, MinerError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(MinerError::read("read", dir, e)),
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    // Temporary files of a running miner have other names.
    paths.retain(|p| p.extension().is_some_and(|e| e == "json"));
    paths.sort();
    let mut all = Vec::with_capacity(paths.len());
    for path in paths {
        let Some(bytes) = read_optional(&path, JSON_BYTES_MAX)? else {
            continue;
        };
        match serde_json::from_slice(&bytes) {
            Ok(value) => all.push(value),
            Err(error) => tracing::warn!(%error, path = %path.display(), "a damaged file is left out"),
        }
    }
    Ok(all)
}

/// The lock that keeps a second miner out of a data directory. The system releases it when the process ends, however
/// it ends, so a crash leaves no stale lock.
#[derive(Debug)]
pub struct DirLock(#[expect(dead_code, reason = "held for its lock, which ends with the process")] File);

impl DirLock {
    /// Locks `dir`.
    ///
    /// # Errors
    /// [`MinerError::Locked`] if another process has it; other variants if there can be no lock.
    pub fn take(dir: &Path) -> Result<Self, MinerError> {
        let path = dir.join("lock");
        // The file stays behind on purpose: removing it would let two processes lock two files of one name.
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| MinerError::write("open", &path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(fs::TryLockError::WouldBlock) => Err(MinerError::Locked(dir.to_owned())),
            Err(fs::TryLockError::Error(e)) => Err(MinerError::read("lock", &path, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_bytes_should_come_back_and_leave_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        assert_eq!(read_json::<Vec<u32>>(&path).unwrap(), None);
        write_json(&path, &vec![1, 2]).unwrap();
        write_json(&path, &vec![3]).unwrap();
        assert_eq!(read_json::<Vec<u32>>(&path).unwrap(), Some(vec![3]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
    }

    #[test]
    fn half_written_files_of_a_killed_process_should_go() {
        let dir = tempfile::tempdir().unwrap();
        write_json(&dir.path().join("a.json"), &1).unwrap();
        fs::write(dir.path().join(".partial-1"), "half").unwrap();
        fs::write(dir.path().join("a.json.tmp"), "half").unwrap();
        remove_partial(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        remove_partial(&dir.path().join("none"));
    }

    #[test]
    fn oversized_files_should_be_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, &[0; 11]).unwrap();
        assert!(
            read_optional(&path, 10)
                .unwrap_err()
                .to_string()
                .contains("larger than 10 bytes")
        );
        assert_eq!(read_optional(&path, 11).unwrap().unwrap().len(), 11);
    }

    #[test]
    fn unreadable_files_should_not_hide_the_others() {
        let dir = tempfile::tempdir().unwrap();
        write_json(&dir.path().join("1.json"), &1).unwrap();
        write_atomic(&dir.path().join("2.json"), b"{ torn").unwrap();
        write_json(&dir.path().join("3.json"), &3).unwrap();
        assert_eq!(read_all::<u32>(dir.path()).unwrap(), vec![1, 3]);
        assert!(read_all::<u32>(&dir.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn a_second_miner_should_be_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::take(dir.path()).unwrap();
        assert!(matches!(DirLock::take(dir.path()), Err(MinerError::Locked(_))));
        drop(first);
        DirLock::take(dir.path()).unwrap();
    }
}
