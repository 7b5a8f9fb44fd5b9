//! Crash-safe files: after a crash or a power failure a file has its old content or its new content, never a mixture.
//!
//! Every function that changes a folder syncs it before it returns, since on Linux a file's name is durable only once
//! its folder is. Half-written files have names of their own ([`PARTIAL_PREFIX`]); [`remove_partial`] removes them at
//! the next start.

use crate::StoreError;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::path::Path;

/// First characters of the names of files that are still being written.
pub const PARTIAL_PREFIX: &str = ".partial-";

/// Buffer between the writer and the file, bytes: fewer system calls for writers that write small pieces.
const BUFFER_BYTES: usize = 1 << 20;

/// Writes a file through a temporary one in the same folder, which is synced and renamed. Missing parent folders are
/// made.
///
/// # Errors
/// [`StoreError::Io`], also with an error of `write`; the old file, if any, is unchanged then.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// use alice_store::file;
/// let path = dir.path().join("state.json");
/// assert_eq!(file::read_optional(&path, 100)?, None);
/// file::write_atomic(&path, |out| out.write_all(b"{}"))?;
/// assert_eq!(file::read_optional(&path, 100)?, Some(b"{}".to_vec()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
    let mut buffered = BufWriter::with_capacity(BUFFER_BYTES, file.as_file_mut());
    write(&mut buffered)
        .and_then(|()| buffered.flush())
        .map_err(StoreError::io("write", path))?;
    drop(buffered);
    // Before the rename: otherwise a power failure may leave the new name with none of the new bytes.
    file.as_file().sync_all().map_err(StoreError::io("sync", path))?;
    file.persist(path)
        .map_err(|e| StoreError::io("rename to", path)(e.error))?;
    sync_folder(parent)
}

/// Reads a file of at most `bytes_max` bytes; `None` if there is no such file.
///
/// # Errors
/// [`StoreError::TooLarge`] if it is longer, [`StoreError::Io`] if it cannot be read.
pub fn read_optional(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("read", path)(error)),
    };
    let mut bytes = Vec::new();
    // One byte more than allowed shows a file that is too long, also one that grows while it is read.
    file.take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(StoreError::io("read", path))?;
    if bytes.len() as u64 > bytes_max {
        return Err(StoreError::TooLarge {
            path: path.to_path_buf(),
            bytes_max,
        });
    }
    Ok(Some(bytes))
}

/// Size of a file, bytes; `None` if there is no such file.
///
/// # Errors
/// [`StoreError::Io`] if its metadata cannot be read.
pub fn size(path: &Path) -> Result<Option<u64>, StoreError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("get the size of", path)(error)),
    }
}

/// Syncs a folder, which makes the names in it durable.
///
/// # Errors
/// [`StoreError::Io`].
pub fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    // Other systems cannot open a folder as a file, and need not.
    #[cfg(unix)]
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(StoreError::io("sync the folder", folder))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Removes a file, if it is there, durably.
///
/// # Errors
/// [`StoreError::Io`].
pub fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_folder(parent(path)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::io("remove", path)(error)),
    }
}

/// Renames a file over another, durably. Both must be on one file system.
///
/// # Errors
/// [`StoreError::Io`]; both files are unchanged then.
pub fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    std::fs::rename(from, to).map_err(StoreError::io("rename to", to))?;
    sync_folder(parent(to))
}

/// Removes the files of a folder that a crash left half written by [`write_atomic`]. Only the process that owns the
/// folder may do that: another one may be writing.
///
/// # Errors
/// [`StoreError::Io`].
pub fn remove_partial(folder: &Path) -> Result<(), StoreError> {
    remove_named(folder, |name| name.starts_with(PARTIAL_PREFIX))
}

/// Removes the files of a folder whose names end with `suffix`: what a program that wrote its temporary files as
/// `<name><suffix>` left behind. For folders in which nobody but the program keeps files.
///
/// # Errors
/// [`StoreError::Io`].
pub fn remove_with_suffix(folder: &Path, suffix: &str) -> Result<(), StoreError> {
    remove_named(folder, |name| name.ends_with(suffix))
}

fn remove_named(folder: &Path, matches: impl Fn(&str) -> bool) -> Result<(), StoreError> {
    let failed = || StoreError::io("tidy", folder);
    for entry in std::fs::read_dir(folder).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let is_file = entry.file_type().map_err(failed())?.is_file();
        if is_file && matches(&entry.file_name().to_string_lossy()) {
            std::fs::remove_file(entry.path()).map_err(failed())?;
        }
    }
    Ok(())
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
    #[test]
    fn read_should_be_bounded_and_none_when_there_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        assert_eq!(read_optional(&path, 10).unwrap(), None);
        assert_eq!(size(&path).unwrap(), None);
        write_atomic(&path, |w| w.write_all(&[7; 11])).unwrap();
        assert_eq!(size(&path).unwrap(), Some(11));
        assert_eq!(read_optional(&path, 11).unwrap().unwrap(), [7; 11]);
        let error = read_optional(&path, 10).unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { bytes_max: 10, .. }), "{error}");
        assert!(error.to_string().contains("more than 10 bytes"), "{error}");
    }

    #[test]
    fn leftovers_should_be_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".partial-abc", "journal.json.tmp", "journal.json", "tmp"] {
            std::fs::write(dir.path().join(name), b"x").unwrap();
        }
        std::fs::create_dir(dir.path().join(".partial-folder")).unwrap();
        std::fs::create_dir(dir.path().join("folder.tmp")).unwrap();
        let names = || {
            let entries = std::fs::read_dir(dir.path()).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        remove_partial(dir.path()).unwrap();
        assert_eq!(
            names(),
            [
                ".partial-folder",
                "folder.tmp",
                "journal.json",
                "journal.json.tmp",
                "tmp"
            ]
        );
        remove_with_suffix(dir.path(), ".tmp").unwrap();
        assert_eq!(names(), [".partial-folder", "folder.tmp", "journal.json", "tmp"]);
    }

    #[test]
    fn rename_and_remove_should_act_on_the_named_file_only() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, b"new").unwrap();
        std::fs::write(&b, b"old").unwrap();
        rename(&a, &b).unwrap();
        assert_eq!(std::fs::read(&b).unwrap(), b"new");
        assert!(rename(&a, &b).is_err(), "there is no such file any more");
        remove(&a).unwrap();
        remove(&b).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
