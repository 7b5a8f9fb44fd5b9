//! Paths in the data directory.

use crate::PsError;
use alice_api::Hex32;
use std::path::{Path, PathBuf};

/// The data directory.
#[derive(Clone, Debug)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// Makes the folders that are missing, and removes files that a crash left half written.
    ///
    /// # Errors
    /// A folder cannot be made or read.
    pub fn create(dir: &Path) -> Result<Self, PsError> {
        let files = Self { dir: dir.to_path_buf() };
        for part in [files.dir.clone(), files.blobs(), files.uploads(), files.theta_dir()] {
            std::fs::create_dir_all(&part).map_err(|e| PsError::file("make", &part, &e))?;
            alice_store::file::remove_partial(&part)?;
        }
        Ok(files)
    }

    /// The database (SQLite).
    pub fn database(&self) -> PathBuf {
        self.dir.join("state.sqlite")
    }

    /// Folder of the blobs that anybody may fetch.
    pub fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    /// Folder of the uploads that are not scored yet; private.
    pub fn uploads(&self) -> PathBuf {
        self.dir.join("uploads")
    }

    /// File of an upload.
    pub fn upload(&self, id: &Hex32) -> PathBuf {
        self.uploads().join(id.to_string())
    }

    /// Folder of the weights.
    pub fn theta_dir(&self) -> PathBuf {
        self.dir.join("theta")
    }

    /// File of the weights; [`alice_store::Master`] keeps its own files next to it.
    pub fn theta(&self) -> PathBuf {
        self.theta_dir().join("theta.f32")
    }
}
