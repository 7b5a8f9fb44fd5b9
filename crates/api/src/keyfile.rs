//! Files of secret keys: an sr25519 seed as 64 hexadecimal digits and a line end, readable by its owner only.
//!
//! The mode is checked on the open file, not on its path, so that nobody can put another file there between the check
//! and the read. A key is never written over an existing file: a lost key cannot be made again.

use crate::{Hex32, Key};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Maximum length of a key file, bytes: 64 digits, `0x`, and generous white space.
pub const KEY_FILE_BYTES_MAX: u64 = 128;

/// Why a key file cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is no such file.
    #[error("there is no key file {}", .0.display())]
    Missing(PathBuf),
    /// A key must not be overwritten.
    #[error("{} exists already and a key is never overwritten; move it away, or choose another file", .0.display())]
    Exists(PathBuf),
    /// The file does not hold a key.
    #[error("{} does not hold a key (64 hexadecimal digits); restore it from your backup", .0.display())]
    Format(PathBuf),
    /// Others can read the key.
    #[error("{} can be read by others (mode {mode:o}); run: chmod 600 {}", .path.display(), .path.display())]
    Mode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The operating system refused.
    #[error("cannot {action} the key file {}: {source}; check the permissions", .path.display())]
    Io {
        /// The failed operation, as a verb.
        action: &'static str,
        /// The key file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// Reads a key.
///
/// # Errors
/// Every kind but [`KeyFileError::Exists`].
pub fn load(path: &Path) -> Result<Key, KeyFileError> {
    let failed = |source| KeyFileError::Io {
        action: "read",
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => KeyFileError::Missing(path.to_path_buf()),
        _ => failed(source),
    })?;
    check_mode(&file, path)?;
    let mut bytes = Vec::new();
    file.take(KEY_FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let short_enough = bytes.len() as u64 <= KEY_FILE_BYTES_MAX;
    let text = std::str::from_utf8(&bytes).ok().filter(|_| short_enough);
    let seed = text.and_then(|text| text.trim().parse::<Hex32>().ok());
    let seed = seed.ok_or_else(|| KeyFileError::Format(path.to_path_buf()))?;
    Ok(Key::from_seed(&seed.0))
}

/// Makes a random key and its file. Missing parent folders are not made.
///
/// # Errors
/// [`KeyFileError::Exists`] if there is a file already, [`KeyFileError::Io`].
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// use alice_api::keyfile;
/// let path = dir.path().join("ps.seed");
/// let key = keyfile::generate(&path)?;
/// assert_eq!(keyfile::load(&path)?.public(), key.public());
/// assert!(keyfile::generate(&path).is_err(), "never over an existing file");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn generate(path: &Path) -> Result<Key, KeyFileError> {
    let seed = Key::random_seed();
    let failed = |source| KeyFileError::Io {
        action: "write",
        path: path.to_path_buf(),
        source,
    };
    let mut options = OpenOptions::new();
    // `create_new` and the mode in one system call: the key is at no instant visible to others.
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => KeyFileError::Exists(path.to_path_buf()),
        _ => failed(source),
    })?;
    let written = writeln!(file, "{}", Hex32(seed))
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_folder_of(path));
    if let Err(source) = written {
        // An incomplete file would block every later attempt. It is this call's own: `create_new` made it.
        let _ = std::fs::remove_file(path);
        return Err(failed(source));
    }
    Ok(Key::from_seed(&seed))
}

/// Reads a key; makes one, with the missing parent folders, if there is no file yet. Returns whether it was made now.
///
/// # Errors
/// As [`load`] and [`generate`]. A damaged file is reported, never replaced.
pub fn load_or_create(path: &Path) -> Result<(Key, bool), KeyFileError> {
    match load(path) {
        Ok(key) => return Ok((key, false)),
        Err(KeyFileError::Missing(_)) => {}
        Err(error) => return Err(error),
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|source| KeyFileError::Io {
            action: "make the folder of",
            path: path.to_path_buf(),
            source,
        })?;
    }
    match generate(path) {
        Ok(key) => Ok((key, true)),
        // Another process was faster; its key is as good.
        Err(KeyFileError::Exists(_)) => load(path).map(|key| (key, false)),
        Err(error) => Err(error),
    }
}

/// Refuses a file whose group or others have any permission.
#[cfg(unix)]
fn check_mode(file: &File, path: &Path) -> Result<(), KeyFileError> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = file.metadata().map_err(|source| KeyFileError::Io {
        action: "read",
        path: path.to_path_buf(),
        source,
    })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Mode {
            path: path.to_path_buf(),
            mode,
        });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_mode(_: &File, _: &Path) -> Result<(), KeyFileError> {
    Ok(())
}

/// Makes the new file's name durable: a key whose public half is already known to others must survive a power failure.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if cfg!(unix) {
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    fn set_mode(path: &Path, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn key_should_be_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ps.seed");
        assert!(matches!(load(&path), Err(KeyFileError::Missing(_))));
        let made = generate(&path).unwrap();
        assert_eq!(load(&path).unwrap().public(), made.public());
        let before = std::fs::read(&path).unwrap();
        assert!(matches!(generate(&path), Err(KeyFileError::Exists(_))));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn load_or_create_should_make_folders_and_keep_the_first_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/dir/mining.key");
        let (first, made) = load_or_create(&path).unwrap();
        assert!(made);
        let (second, made) = load_or_create(&path).unwrap();
        assert!(!made);
        assert_eq!(first.public(), second.public());
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn generate_should_name_the_folder_problem_when_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let error = generate(&dir.path().join("none/ps.seed")).err().unwrap();
        assert!(matches!(error, KeyFileError::Io { .. }), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn key_should_be_private_and_refused_when_it_is_not() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ps.seed");
        generate(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{mode:o}");
        for mode in [0o644, 0o640, 0o604, 0o601] {
            set_mode(&path, mode);
            let error = load(&path).err().unwrap();
            assert!(error.to_string().contains("chmod 600"), "{mode:o}: {error}");
        }
        set_mode(&path, 0o400);
        load(&path).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn damaged_key_should_be_refused_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mining.key");
        let long = format!("{}{}", "0".repeat(64), " ".repeat(100));
        for content in [b"garbage".as_slice(), b"", &[0xff; 64], long.as_bytes()] {
            std::fs::write(&path, content).unwrap();
            set_mode(&path, 0o600);
            assert!(matches!(load(&path), Err(KeyFileError::Format(_))), "{content:?}");
            assert!(matches!(load_or_create(&path), Err(KeyFileError::Format(_))));
            assert_eq!(std::fs::read(&path).unwrap(), content);
        }
    }
}
