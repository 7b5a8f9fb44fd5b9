//! The server's key file, see [`alice_api::keyfile`]. Errors name the command that makes one.

use crate::PsError;
use alice_api::{
    Key,
    keyfile::{self, KeyFileError},
};
use std::path::Path;

/// Reads a key file.
///
/// # Errors
/// The file is missing, holds no seed, or can be read by others.
pub fn load(path: &Path) -> Result<Key, PsError> {
    keyfile::load(path).map_err(|error| match error {
        KeyFileError::Missing(path) => PsError::KeyMissing(path),
        KeyFileError::Format(path) => PsError::KeyFormat(path),
        other => PsError::KeyFile(other),
    })
}

/// Makes a key file, never over an existing file.
///
/// # Errors
/// The file exists or cannot be written.
pub fn generate(path: &Path) -> Result<Key, PsError> {
    Ok(keyfile::generate(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_wrong_key_file_should_say_how_to_make_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ps.seed");
        assert!(load(&path).err().unwrap().to_string().contains("key generate --out"));
        let made = generate(&path).unwrap();
        assert_eq!(load(&path).unwrap().public(), made.public());
        assert!(matches!(
            generate(&path),
            Err(PsError::KeyFile(KeyFileError::Exists(_)))
        ));
        std::fs::write(&path, "abc").unwrap();
        let error = load(&path).err().unwrap();
        assert!(matches!(error, PsError::KeyFormat(_)), "{error}");
    }
}
