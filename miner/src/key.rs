//! The mining key: signs claims and uploads, holds no money. Pay goes to the payout address.

use crate::MinerError;
use alice_api::{
    Key,
    keyfile::{self, KeyFileError},
};
use std::path::{Path, PathBuf};

/// Name of the key file in the data directory.
pub const FILE: &str = "mining.key";

/// The mining key and its file.
pub struct MiningKey {
    /// The key.
    pub key: Key,
    /// Its file.
    pub path: PathBuf,
    /// Whether it was made now.
    pub created: bool,
}

impl MiningKey {
    /// Reads the key of a data directory; makes one, readable by its owner only, if there is none yet.
    ///
    /// # Errors
    /// The file is damaged or can be read by others; it is never replaced. Or a new one cannot be written.
    pub fn load_or_create(data_dir: &Path) -> Result<Self, MinerError> {
        let path = data_dir.join(FILE);
        let (key, created) = keyfile::load_or_create(&path)?;
        Ok(Self { key, path, created })
    }

    /// Reads the key of a data directory; `None` if none was made yet.
    ///
    /// # Errors
    /// The file is damaged or can be read by others.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, MinerError> {
        let path = data_dir.join(FILE);
        match keyfile::load(&path) {
            Ok(key) => Ok(Some(Self {
                key,
                path,
                created: false,
            })),
            Err(KeyFileError::Missing(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
    fn the_key_file_should_be_private_and_refused_if_it_is_not() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let made = MiningKey::load_or_create(dir.path()).unwrap();
        let mode = fs::metadata(&made.path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{mode:o}");
        fs::set_permissions(&made.path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = MiningKey::load(dir.path()).err().unwrap();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        assert_eq!(error.exit_code(), alice_program::exit::USAGE);
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
            Err(MinerError::KeyFile(KeyFileError::Format(_)))
        ));
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), "garbage");
    }
}
