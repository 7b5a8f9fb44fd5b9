//! The mining key: signs claims and uploads, holds no money. Pay goes to the payout address.

use crate::{MinerError, files};
use alice_api::{Hex32, Key};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Name of the key file in the data directory.
pub const FILE: &str = "mining.key";
/// Longest key file: 64 digits, `0x`, a line end.
const FILE_BYTES_MAX: u64 = 128;

/// The mining key with what became of its file.
pub struct MiningKey {
    /// The key.
    pub key: Key,
    /// Where it is stored.
    pub path: PathBuf,
    /// Whether it was made now.
    pub created: bool,
}

impl MiningKey {
    /// Reads the key of a data directory; makes one, readable by the owner only, where there is none.
    pub fn load_or_create(data_dir: &Path) -> Result<Self, MinerError> {
        if let Some(key) = Self::load(data_dir)? {
            return Ok(key);
        }
        files::make_dir(data_dir)?;
        let path = data_dir.join(FILE);
        let seed = Key::random_seed();
        write_secret(&path, &format!("{}\n", Hex32(seed))).map_err(|e| MinerError::file("write", &path, &e))?;
        Ok(Self {
            key: Key::from_seed(&seed),
            path,
            created: true,
        })
    }

    /// Reads the key of a data directory; none where none was made yet.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, MinerError> {
        let path = data_dir.join(FILE);
        let Some(bytes) = files::read_optional(&path, FILE_BYTES_MAX)? else {
            return Ok(None);
        };
        check_mode(&path)?;
        let seed = std::str::from_utf8(&bytes)
            .ok()
            .and_then(|text| text.trim().parse::<Hex32>().ok());
        let seed = seed.ok_or_else(|| MinerError::KeyFile(path.clone()))?;
        Ok(Some(Self {
            key: Key::from_seed(&seed.0),
            path,
            created: false,
        }))
    }
}

/// Never visible to others, not even for an instant: made with its mode, and never written over an existing key.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(unix)]
fn check_mode(path: &Path) -> Result<(), MinerError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path)
        .map_err(|e| MinerError::file("read", path, &e))?
        .permissions()
        .mode()
        & 0o777;
    if mode & 0o077 != 0 {
        return Err(MinerError::KeyMode {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_mode(_: &Path) -> Result<(), MinerError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_should_be_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("new/dir");
        assert!(MiningKey::load(&data).unwrap().is_none());
        let first = MiningKey::load_or_create(&data).unwrap();
        let second = MiningKey::load_or_create(&data).unwrap();
        assert!(first.created && !second.created);
        assert_eq!(first.key.public(), second.key.public());
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn the_key_file_should_be_private_and_refused_where_it_is_not() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let made = MiningKey::load_or_create(dir.path()).unwrap();
        let mode = fs::metadata(&made.path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{mode:o}");
        fs::set_permissions(&made.path, fs::Permissions::from_mode(0o644)).unwrap();
        let message = MiningKey::load(dir.path()).err().unwrap().to_string();
        assert!(message.contains("chmod 600"), "{message}");
    }

    #[test]
    fn a_damaged_key_should_never_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "garbage").unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(dir.path().join(FILE), fs::Permissions::from_mode(0o600)).unwrap();
        }
        assert!(matches!(
            MiningKey::load_or_create(dir.path()),
            Err(MinerError::KeyFile(_))
        ));
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), "garbage");
        assert!(write_secret(&dir.path().join(FILE), "other").is_err());
    }
}
