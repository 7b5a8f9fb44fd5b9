//! Files that survive a crash: written beside, synced, then renamed over.

use crate::MinerError;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// Longest JSON file that is read back, bytes.
pub const JSON_BYTES_MAX: u64 = 64 << 20;

/// Replaces `path` in one step: after a crash it holds either the old bytes or all of the new ones.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), MinerError> {
    let write = || -> io::Result<()> {
        let temporary = with_suffix(path, ".tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, path)?;
        sync_dir(path)
    };
    write().map_err(|e| MinerError::file("write", path, &e))
}

/// Moves a complete file over another in one step.
pub fn rename(from: &Path, to: &Path) -> Result<(), MinerError> {
    fs::rename(from, to)
        .and_then(|()| sync_dir(to))
        .map_err(|e| MinerError::file("move", from, &e))
}

/// Size of a file, bytes; none where there is no such file.
pub fn len(path: &Path) -> Result<Option<u64>, MinerError> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.len())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(MinerError::file("look at", path, &e)),
    }
}

/// Reads a file of at most `bytes_max` bytes; none where there is no such file.
pub fn read_optional(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, MinerError> {
    let read = || -> io::Result<Vec<u8>> {
        let file = File::open(path)?;
        if file.metadata()?.len() > bytes_max {
            return Err(io::Error::other(format!("it is larger than {bytes_max} bytes")));
        }
        let mut bytes = Vec::new();
        file.take(bytes_max).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(MinerError::file("read", path, &e)),
    }
}

/// Writes a value as JSON, in one step.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), MinerError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| MinerError::file("write", path, &e))?;
    write_atomic(path, &bytes)
}

/// Reads a value from JSON; none where there is no such file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, MinerError> {
    let Some(bytes) = read_optional(path, JSON_BYTES_MAX)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| MinerError::file("read", path, &e))
}

/// Removes a file; that it is not there is fine.
pub fn remove(path: &Path) -> Result<(), MinerError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(MinerError::file("remove", path, &e)),
        _ => Ok(()),
    }
}

/// Makes a directory with its parents.
pub fn make_dir(path: &Path) -> Result<(), MinerError> {
    fs::create_dir_all(path).map_err(|e| MinerError::file("make the directory", path, &e))
}

/// All values stored as `*.json` in a directory, in the order of their names. Damaged ones are reported and left out; one that
/// cannot be read is an error, for what is missing may be taken for never having been there.
pub fn read_all<T: DeserializeOwned>(dir: &Path) -> Result<Vec<T>, MinerError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(MinerError::file("read", dir, &e)),
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "json"));
    paths.sort();
    let mut all = Vec::with_capacity(paths.len());
    for path in paths {
        let Some(bytes) = read_optional(&path, JSON_BYTES_MAX)? else {
            continue;
        };
        match serde_json::from_slice(&bytes) {
            Ok(value) => all.push(value),
            Err(error) => tracing::warn!(%error, path = %path.display(), "a stored file is left out"),
        }
    }
    Ok(all)
}

/// Keeps a second miner out of a data directory for as long as it lives.
#[derive(Debug)]
pub struct DirLock(#[expect(dead_code, reason = "held for its lock, which ends with the process")] File);

impl DirLock {
    /// Locks `dir`.
    pub fn take(dir: &Path) -> Result<Self, MinerError> {
        let path = dir.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| MinerError::file("open", &path, &e))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(fs::TryLockError::WouldBlock) => Err(MinerError::Locked(dir.to_owned())),
            Err(fs::TryLockError::Error(e)) => Err(MinerError::file("lock", &path, &e)),
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The rename itself must reach the disk, too.
fn sync_dir(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if cfg!(unix) => File::open(dir)?.sync_all(),
        _ => Ok(()),
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
