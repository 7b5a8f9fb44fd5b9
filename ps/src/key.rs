//! The server's key file: the sr25519 seed as hexadecimal digits, readable by its owner only.

use crate::PsError;
use alice_api::{Hex32, Key};
use std::{
    fs,
    io::{self, Read, Write},
    path::Path,
};

/// Longest key file that is read: 64 digits, `0x`, line ends.
const FILE_BYTES_MAX: u64 = 128;

/// Reads a key file.
pub fn load(path: &Path) -> Result<Key, PsError> {
    let file = fs::File::open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => PsError::KeyMissing(path.to_path_buf()),
        _ => PsError::file("read", path, &e),
    })?;
    check_mode(&file, path)?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|_| PsError::KeyFormat(path.to_path_buf()))?;
    let seed: Hex32 = text
        .trim()
        .parse()
        .map_err(|_| PsError::KeyFormat(path.to_path_buf()))?;
    Ok(Key::from_seed(&seed.0))
}

/// Makes a key file. Made with its mode, so that it is never visible to others, and never over an existing file.
pub fn generate(path: &Path) -> Result<Key, PsError> {
    let seed = Key::random_seed();
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => PsError::KeyExists(path.to_path_buf()),
        _ => PsError::file("write", path, &e),
    })?;
    writeln!(file, "{}", Hex32(seed))
        .and_then(|()| file.sync_all())
        .map_err(|e| PsError::file("write", path, &e))?;
    Ok(Key::from_seed(&seed))
}

#[cfg(unix)]
fn check_mode(file: &fs::File, path: &Path) -> Result<(), PsError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = file
        .metadata()
        .map_err(|e| PsError::file("read", path, &e))?
        .permissions()
        .mode()
        & 0o777;
    if mode & 0o077 != 0 {
        return Err(PsError::KeyMode {
            path: path.to_path_buf(),
            mode,
        });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_mode(_: &fs::File, _: &Path) -> Result<(), PsError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_should_be_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ps.seed");
        assert!(load(&path).err().unwrap().to_string().contains("key generate --out"));
        let made = generate(&path).unwrap();
        assert_eq!(load(&path).unwrap().public(), made.public());
        assert!(matches!(generate(&path), Err(PsError::KeyExists(_))));
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_or_that_is_no_key_should_be_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ps.seed");
        generate(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load(&path).err().unwrap();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "abc").unwrap();
        assert!(matches!(load(&path), Err(PsError::KeyFormat(_))));
    }
}
