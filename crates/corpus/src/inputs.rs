//! The files of the sources, in the order in which they are read.

use crate::{CorpusError, Format, Source, SourceList};
use std::path::{Path, PathBuf};

/// A file of a source.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// Number of the source.
    pub(crate) source: usize,
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    pub(crate) column: String,
    pub(crate) bytes: u64,
    /// Time of the last change, nanoseconds since 1970: a file that changes while a build is interrupted is noticed.
    changed: u128,
}

/// All files: sources in their order, the files of each by the bytes of their paths, so that the order does not depend on
/// the file system.
pub(crate) fn find(list: &SourceList) -> Result<Vec<Input>, CorpusError> {
    let mut inputs = Vec::new();
    for (number, source) in list.source.iter().enumerate() {
        let before = inputs.len();
        for (path, named) in files_of(source)? {
            let Some(format) = format_of(source, &path, named)? else {
                continue;
            };
            let meta = std::fs::metadata(&path).map_err(CorpusError::io("look at", &path))?;
            let changed = meta.modified().ok();
            let changed = changed.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
            inputs.push(Input {
                source: number,
                path,
                format,
                column: source.text_column.clone(),
                bytes: meta.len(),
                changed: changed.map_or(0, |since| since.as_nanos()),
            });
        }
        if inputs.len() == before {
            let wanted = source.format.map_or("text, JSON lines or Parquet".into(), |format| {
                format!(".{}", format.extensions().join(" or ."))
            });
            return Err(CorpusError::NoFiles {
                name: source.name.clone(),
                path: source.path.clone(),
                wanted,
            });
        }
    }
    Ok(inputs)
}

/// BLAKE3 over everything that the output depends on, and over the files' sizes and times.
pub(crate) fn fingerprint(list: &SourceList, inputs: &[Input], settings: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    // A list of plain strings and numbers always becomes JSON.
    part(&serde_json::to_vec(list).unwrap_or_default());
    for input in inputs {
        part(input.path.as_os_str().as_encoded_bytes());
        part(&input.bytes.to_le_bytes());
        part(&input.changed.to_le_bytes());
    }
    for setting in settings {
        part(setting);
    }
    *hasher.finalize().as_bytes()
}

/// The files of a source, and whether the source names them one by one (then their ending does not matter).
fn files_of(source: &Source) -> Result<Vec<(PathBuf, bool)>, CorpusError> {
    let path = &source.path;
    if path.is_file() {
        return Ok(vec![(path.clone(), true)]);
    }
    let mut found = Vec::new();
    if path.is_dir() {
        walk(path, &mut found)?;
        found.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
        return Ok(found.into_iter().map(|path| (path, false)).collect());
    }
    let pattern = path.to_string_lossy();
    let bad = |problem: String| CorpusError::setting(format!("path of source '{}'", source.name), problem);
    for entry in glob::glob(&pattern).map_err(|e| bad(e.to_string()))? {
        let path = entry.map_err(|e| bad(e.to_string()))?;
        if path.is_file() {
            found.push(path);
        }
    }
    found.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    Ok(found.into_iter().map(|path| (path, true)).collect())
}

/// All files of a folder and the folders in it. Links to folders are not followed, so that there is an end.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), CorpusError> {
    let failed = || CorpusError::io("read the folder", folder);
    for entry in std::fs::read_dir(folder).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        if entry.file_type().map_err(failed())?.is_dir() {
            walk(&path, found)?;
        } else if path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// The format of a file; none where a folder also holds something else.
fn format_of(source: &Source, path: &Path, named: bool) -> Result<Option<Format>, CorpusError> {
    match (source.format, Format::of(path)) {
        (Some(format), _) if named => Ok(Some(format)),
        (Some(format), by_name) => Ok(by_name.filter(|found| *found == format)),
        (None, None) if named => Err(CorpusError::setting(
            format!("format of source '{}'", source.name),
            format!(
                "cannot be told from the name of {}; say text, jsonl or parquet",
                path.display()
            ),
        )),
        (None, by_name) => Ok(by_name),
    }
}
