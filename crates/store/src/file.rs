//! Files that are there in full or not at all.

use crate::StoreError;
use std::io::{BufWriter, Write};
use std::path::Path;

/// How names of files begin that are not complete.
const PARTIAL_PREFIX: &str = ".partial-";

/// Writes a file through a temporary one in the same folder, synced and renamed: a crash at any instant leaves the old
/// file or the new one. Missing parent folders are made. Once it returns, the new file survives a power failure.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<(), StoreError> {
    let parent = parent(path);
    std::fs::create_dir_all(parent).map_err(StoreError::io("make the folder", parent))?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(PARTIAL_PREFIX);
    // The temporary file's mode stays: readable by others (under the umask), for the server may be another user.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    let mut file = builder
        .tempfile_in(parent)
        .map_err(StoreError::io("write in", parent))?;
    let mut buffered = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    write(&mut buffered)
        .and_then(|()| buffered.flush())
        .map_err(StoreError::io("write", path))?;
    drop(buffered);
    file.as_file().sync_all().map_err(StoreError::io("sync", path))?;
    file.persist(path)
        .map_err(|e| StoreError::io("rename to", path)(e.error))?;
    sync_folder(parent)
}

/// A file's name is in its folder, which has to be synced by itself to survive a power failure.
pub fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    // Other systems cannot open a folder as a file, and need not.
    #[cfg(unix)]
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(StoreError::io("sync the folder", folder))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Removes a file, if it is there; once it returns, it is gone also after a power failure.
pub fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_folder(parent(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::io("remove", path)(error)),
    }
}

/// Removes the files of a folder that a crash left half written by [`write_atomic`]: no name refers to them. Nobody else
/// may be writing in the folder.
pub fn remove_partial(folder: &Path) -> Result<(), StoreError> {
    let failed = || StoreError::io("tidy", folder);
    for entry in std::fs::read_dir(folder).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if entry.file_name().to_string_lossy().starts_with(PARTIAL_PREFIX) {
            std::fs::remove_file(entry.path()).map_err(failed())?;
        }
    }
    Ok(())
}

/// Renames a file over another; once it returns, that survives a power failure.
pub fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    std::fs::rename(from, to).map_err(StoreError::io("rename to", to))?;
    sync_folder(parent(to))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_should_leave_the_old_file_when_it_fails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/file");
        write_atomic(&path, |w| w.write_all(b"one")).unwrap();
        let failed = write_atomic(&path, |w| {
            w.write_all(b"half of tw")?;
            Err(std::io::Error::other("disk full"))
        });
        assert!(failed.unwrap_err().to_string().contains("disk full"));
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        write_atomic(&path, |w| w.write_all(b"two")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "temporary files are gone"
        );
    }
}
