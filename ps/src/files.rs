//! Where things are in the data directory.

use crate::PsError;
use alice_api::Hex32;
use std::path::{Path, PathBuf};

/// The data directory.
#[derive(Clone, Debug)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// Makes the folders that are missing.
    pub fn create(dir: &Path) -> Result<Self, PsError> {
        let files = Self { dir: dir.to_path_buf() };
        for part in [files.dir.clone(), files.blobs(), files.uploads(), files.theta_dir()] {
            std::fs::create_dir_all(&part).map_err(|e| PsError::file("make", &part, &e))?;
            alice_store::file::remove_partial(&part)?;
        }
        Ok(files)
    }

    /// SQLite.
    pub fn database(&self) -> PathBuf {
        self.dir.join("state.sqlite")
    }

    /// What anybody may fetch.
    pub fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    /// What was uploaded and is not scored yet.
    pub fn uploads(&self) -> PathBuf {
        self.dir.join("uploads")
    }

    /// An upload.
    pub fn upload(&self, id: &Hex32) -> PathBuf {
        self.uploads().join(id.to_string())
    }

    /// Folder of the weights.
    pub fn theta_dir(&self) -> PathBuf {
        self.dir.join("theta")
    }

    /// The weights, with what [`alice_store::Master`] keeps beside them.
    pub fn theta(&self) -> PathBuf {
        self.theta_dir().join("theta.f32")
    }
}
