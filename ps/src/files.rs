//! Where things are in the data directory.

use crate::PsError;
use alice_api::Hex32;
use alice_primitives::Hash;
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

    /// Weights.
    pub fn theta_dir(&self) -> PathBuf {
        self.dir.join("theta")
    }

    /// Weights of a root.
    pub fn theta(&self, root: &Hash) -> PathBuf {
        self.theta_dir().join(format!("{}.f32", Hex32(*root)))
    }

    /// Removes all weights but those of a root.
    pub fn keep_theta(&self, root: &Hash) -> std::io::Result<()> {
        let keep = self.theta(root);
        for entry in std::fs::read_dir(self.theta_dir())? {
            let path = entry?.path();
            if path != keep {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}
