//! Names of a build's files, and the lock of its folder.

use crate::CorpusError;
use alice_data::{CORPUS_FILE, RESERVE_FILE};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Folder of a build's state, in the output folder; gone when the build is complete.
pub fn build_folder(out: &Path) -> PathBuf {
    out.join(".build")
}

/// Name of the manifest of a generation of the reserve.
pub fn reserve_file(generation: u32) -> String {
    match (generation, RESERVE_FILE.strip_suffix(".json")) {
        (0, _) | (_, None) => RESERVE_FILE.into(),
        (_, Some(stem)) => format!("{stem}-{generation}.json"),
    }
}

/// Makes the folders of a build and keeps other builds out of them until it is dropped.
pub(crate) fn claim(out: &Path) -> Result<File, CorpusError> {
    let state = build_folder(out);
    // With both, a build was killed between its last manifest and the removal of its state: it is finished again.
    if out.join(CORPUS_FILE).exists() && !state.exists() {
        return Err(CorpusError::Exists(out.to_path_buf()));
    }
    std::fs::create_dir_all(&state).map_err(CorpusError::io("make the folder", &state))?;
    let path = state.join("lock");
    // The system releases the lock when the process ends, however it ends: a crash leaves no stale lock.
    let lock = File::create(&path).map_err(CorpusError::io("write", &path))?;
    lock.try_lock().map_err(|_| CorpusError::Locked(out.to_path_buf()))?;
    alice_store::file::remove_partial(out)?;
    alice_store::file::remove_partial(&state)?;
    Ok(lock)
}

/// Removes the state of a build that is complete, or that has nothing worth keeping.
pub(crate) fn forget(out: &Path) -> Result<(), CorpusError> {
    let state = build_folder(out);
    std::fs::remove_dir_all(&state).map_err(CorpusError::io("remove", &state))?;
    Ok(alice_store::file::sync_folder(out)?)
}
