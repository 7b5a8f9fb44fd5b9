//! Outputs that are either complete or absent: written under a temporary name next to the target, synced, and renamed
//! at the end. An interrupted export leaves at most a hidden `.NAME.partial-…`.

use crate::ExportError;
use alice_primitives::Hash;
use alice_store::file::sync_folder;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Size of the write buffer, bytes.
const BUFFER_BYTES: usize = 1 << 20;

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn prefix_for(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
    format!(".{}.partial-", name.unwrap_or_default())
}

/// Refuses an existing target, except an empty folder if a folder is to be written.
fn check_free(target: &Path, folder: bool) -> Result<(), ExportError> {
    match std::fs::symlink_metadata(target) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(ExportError::io("read the properties of", target)(e)),
        Ok(found) if folder && found.is_dir() => {
            let mut entries = std::fs::read_dir(target).map_err(ExportError::io("read the folder", target))?;
            match entries.next() {
                None => Ok(()),
                Some(_) => Err(ExportError::TargetExists(target.to_path_buf())),
            }
        }
        Ok(_) => Err(ExportError::TargetExists(target.to_path_buf())),
    }
}

/// Folder and name prefix of the temporary, for a target that may be written.
fn prepare(target: &Path, folder: bool) -> Result<(&Path, String), ExportError> {
    check_free(target, folder)?;
    // In the same folder, so that the rename at the end stays within one file system.
    let parent = parent_of(target);
    std::fs::create_dir_all(parent).map_err(ExportError::io("make the folder", parent))?;
    Ok((parent, prefix_for(target)))
}

/// An unfinished folder. Dropped before [`TargetFolder::finish`], it is removed.
pub(crate) struct TargetFolder {
    temporary: TempDir,
    target: PathBuf,
}

impl TargetFolder {
    pub(crate) fn start(target: &Path) -> Result<Self, ExportError> {
        let (parent, prefix) = prepare(target, true)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix);
        #[cfg(unix)]
        // Readable by others, as far as the umask allows: temporary folders are private by default.
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
        let temporary = builder
            .tempdir_in(parent)
            .map_err(ExportError::io("make a folder in", parent))?;
        Ok(Self {
            temporary,
            target: target.to_path_buf(),
        })
    }

    pub(crate) fn file(&self, name: &str) -> Result<HashedFile, ExportError> {
        let path = self.temporary.path().join(name);
        // Never an existing file: the folder is ours, and each name is written once.
        let file = File::create_new(&path).map_err(ExportError::io("write", &path))?;
        Ok(HashedFile::new(file, path))
    }

    /// Gives the folder its name. All files have been finished, which synced them.
    pub(crate) fn finish(self) -> Result<(), ExportError> {
        sync_folder(self.temporary.path())?;
        // Again: somebody may have used the name since. A rename replaces nothing but an empty folder.
        check_free(&self.target, true)?;
        #[cfg(not(unix))]
        // Windows renames onto nothing at all, not even an empty folder.
        let _ = std::fs::remove_dir(&self.target);
        std::fs::rename(self.temporary.path(), &self.target).map_err(ExportError::io("rename to", &self.target))?;
        // The folder has another name now: there is nothing to remove.
        let _ = self.temporary.keep();
        sync_folder(parent_of(&self.target))?;
        Ok(())
    }
}

/// An unfinished file next to its target. Dropped before [`TargetFile::finish`], it is removed.
pub(crate) struct TargetFile {
    pub(crate) file: HashedFile,
    temporary: tempfile::TempPath,
    target: PathBuf,
}

impl TargetFile {
    pub(crate) fn start(target: &Path) -> Result<Self, ExportError> {
        let (parent, prefix) = prepare(target, false)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix);
        #[cfg(unix)]
        // As for folders: others may read a finished export.
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
        let (file, temporary) = builder
            .tempfile_in(parent)
            .map_err(ExportError::io("write in", parent))?
            .into_parts();
        Ok(Self {
            file: HashedFile::new(file, target.to_path_buf()),
            temporary,
            target: target.to_path_buf(),
        })
    }

    /// Syncs the file and gives it its name, unless that is taken by now.
    pub(crate) fn finish(self) -> Result<(u64, Hash), ExportError> {
        let done = self.file.finish()?;
        self.temporary
            // A name that was taken meanwhile is not replaced.
            .persist_noclobber(&self.target)
            .map_err(|e| ExportError::io("rename to", &self.target)(e.error))?;
        sync_folder(parent_of(&self.target))?;
        Ok(done)
    }
}

/// A file that is hashed while it is written.
pub(crate) struct HashedFile {
    out: BufWriter<File>,
    path: PathBuf,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl HashedFile {
    fn new(file: File, path: PathBuf) -> Self {
        Self {
            out: BufWriter::with_capacity(BUFFER_BYTES, file),
            path,
            hasher: blake3::Hasher::new(),
            bytes: 0,
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.out
            .write_all(bytes)
            .map_err(ExportError::io("write", &self.path))?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn position(&self) -> u64 {
        self.bytes
    }

    /// Size and BLAKE3, once the file is on the disk.
    pub(crate) fn finish(self) -> Result<(u64, Hash), ExportError> {
        let failed = || ExportError::io("write", &self.path);
        // On the disk before the folder gets its name: after a crash a named export is a complete one.
        let file = self.out.into_inner().map_err(|e| failed()(e.into_error()))?;
        file.sync_all().map_err(failed())?;
        Ok((self.bytes, *self.hasher.finalize().as_bytes()))
    }
}
