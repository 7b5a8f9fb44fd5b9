//! The files of the sources, in the order in which they are read, and those that are not read.

use crate::read::Compression;
use crate::{CorpusError, Format, Source, SourceList};
use serde::Serialize;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// Maximum number of unread files that are named; the rest is counted. A folder may hold millions.
pub const UNREAD_NAMED_MAX: usize = 100;

/// A file of a source.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// Number of the source.
    pub(crate) source: usize,
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    pub(crate) compression: Compression,
    pub(crate) column: String,
    pub(crate) bytes: u64,
    /// Time of the last change, nanoseconds since 1970: shows files that change while a build is interrupted.
    changed: u128,
}

/// A file or folder of a source that is not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnreadFile {
    /// Name of the source.
    pub source: String,
    /// Its path.
    pub path: PathBuf,
    /// Why it is not read, and how it can be.
    pub reason: String,
}

/// The files of all sources.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    /// The sources in their order, the files of each by the bytes of their paths: the order must not depend on the file
    /// system.
    pub(crate) files: Vec<Input>,
    /// The first [`UNREAD_NAMED_MAX`] unread files.
    pub(crate) unread: Vec<UnreadFile>,
    /// Number of unread files of each source.
    pub(crate) unread_counts: Vec<u64>,
}

impl Inputs {
    fn leave_out(&mut self, source: &Source, path: PathBuf, reason: String) {
        if self.unread.len() < UNREAD_NAMED_MAX {
            self.unread.push(UnreadFile {
                source: source.name.clone(),
                path,
                reason,
            });
        }
        if let Some(count) = self.unread_counts.last_mut() {
            *count += 1;
        }
    }
}

/// Finds the files of a list.
pub(crate) fn find(list: &SourceList) -> Result<Inputs, CorpusError> {
    let mut inputs = Inputs::default();
    for (number, source) in list.source.iter().enumerate() {
        let before = (inputs.files.len(), inputs.unread.len());
        inputs.unread_counts.push(0);
        let found = Entries::of(source)?;
        for (path, reason) in found.unread {
            inputs.leave_out(source, path, reason.into());
        }
        for path in found.files {
            let (format, compression) = match format_of(source, &path, found.named)? {
                Ok(known) => known,
                Err(reason) => {
                    inputs.leave_out(source, path, reason);
                    continue;
                }
            };
            let meta = std::fs::metadata(&path).map_err(CorpusError::io("get the size of", &path))?;
            // Some file systems have no time of change; the size is compared all the same.
            let changed = meta.modified().ok();
            let changed = changed.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
            inputs.files.push(Input {
                source: number,
                path,
                format,
                compression,
                column: source.text_column.clone(),
                bytes: meta.len(),
                changed: changed.map_or(0, |since| since.as_nanos()),
            });
        }
        // Refused rather than left out: its share of the run's text would be missing for good.
        if inputs.files.len() == before.0 {
            let unread = inputs.unread.get(before.1).cloned().map(Box::new);
            return Err(no_files(source, unread));
        }
    }
    Ok(inputs)
}

fn no_files(source: &Source, unread: Option<Box<UnreadFile>>) -> CorpusError {
    let wanted = source.format.map_or("text, JSON lines or Parquet".into(), |format| {
        format!(".{}", format.extensions().join(" or ."))
    });
    CorpusError::NoFiles {
        name: source.name.clone(),
        path: source.path.clone(),
        wanted,
        unread,
    }
}

/// BLAKE3 over everything that the output depends on, and over the files' sizes and times.
pub(crate) fn fingerprint(list: &SourceList, inputs: &[Input], settings: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        // The length first: two different lists must not join to the same bytes.
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

/// Files and other entries at a source's path.
struct Entries {
    files: Vec<PathBuf>,
    /// Entries that are no files, with the reason why they are not read.
    unread: Vec<(PathBuf, &'static str)>,
    /// Whether the source names the files one by one: then their endings do not matter.
    named: bool,
}

impl Entries {
    fn of(source: &Source) -> Result<Self, CorpusError> {
        let path = &source.path;
        let mut entries = Self {
            files: Vec::new(),
            unread: Vec::new(),
            named: !path.is_dir(),
        };
        if path.is_file() {
            entries.files.push(path.clone());
        } else if path.is_dir() {
            entries.walk(path)?;
        } else if source.is_pattern() {
            entries.match_pattern(source)?;
        } else if path.symlink_metadata().is_ok() {
            entries.unread.push((path.clone(), unread_reason(path)));
        } else {
            return Err(CorpusError::NoPath {
                name: source.name.clone(),
                path: path.clone(),
            });
        }
        let by_bytes = |a: &PathBuf, b: &PathBuf| bytes_of(a).cmp(bytes_of(b));
        entries.files.sort_by(by_bytes);
        entries.unread.sort_by(|a, b| by_bytes(&a.0, &b.0));
        Ok(entries)
    }

    /// All files of a folder and the folders in it. Names that begin with a dot are for programs, not text.
    fn walk(&mut self, folder: &Path) -> Result<(), CorpusError> {
        let failed = || CorpusError::io("read the folder", folder);
        for entry in std::fs::read_dir(folder).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let path = entry.path();
            if entry.file_type().map_err(failed())?.is_dir() {
                self.walk(&path)?;
            } else if path.is_file() {
                self.files.push(path);
            } else {
                // Links to folders among them: followed, they could form a circle.
                self.unread.push((path.clone(), unread_reason(&path)));
            }
        }
        Ok(())
    }

    fn match_pattern(&mut self, source: &Source) -> Result<(), CorpusError> {
        let bad = |problem: String| CorpusError::setting(format!("path of source '{}'", source.name), problem);
        let mut folders = Vec::new();
        for entry in glob::glob(&source.path.to_string_lossy()).map_err(|e| bad(e.to_string()))? {
            let path = entry.map_err(|e| bad(e.to_string()))?;
            if path.is_file() {
                self.files.push(path);
            } else if path.is_dir() {
                folders.push(path);
            } else {
                self.unread.push((path.clone(), unread_reason(&path)));
            }
        }
        self.files.sort_by(|a, b| bytes_of(a).cmp(bytes_of(b)));
        // `**` matches folders as well as the files in them; only a folder without a matched file is left out.
        folders.retain(|folder| {
            let mut below = folder.as_os_str().to_owned();
            below.push("/");
            let next = self
                .files
                .partition_point(|file| bytes_of(file) < below.as_encoded_bytes());
            !self.files.get(next).is_some_and(|file| file.starts_with(folder))
        });
        let reason = "a folder; give it as a source of its own";
        self.unread.extend(folders.into_iter().map(|folder| (folder, reason)));
        Ok(())
    }
}

fn bytes_of(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

fn unread_reason(path: &Path) -> &'static str {
    match (path.is_symlink(), path.exists()) {
        (true, false) => "a broken link: the file that it names does not exist",
        (true, true) => "a link to a folder, which is not followed; give the folder as a source of its own",
        _ => "neither a file nor a folder",
    }
}

/// Format and compression of a file, or why it is not read.
type Known = Result<(Format, Compression), String>;

fn format_of(source: &Source, path: &Path, named: bool) -> Result<Known, CorpusError> {
    let compression = Compression::of(path).0;
    let by_name = Format::of(path);
    let format = match (source.format, by_name) {
        // Named one by one, with a format: the ending does not matter.
        (Some(format), _) if named => format,
        (Some(format), Some(found)) if format == found => format,
        // A folder of one format may hold others.
        (Some(format), _) => return Ok(Err(format!("not .{}", format.extensions().join(" or .")))),
        (None, Some(found)) => found,
        (None, None) if named => {
            return Err(CorpusError::setting(
                format!("format of source '{}'", source.name),
                format!(
                    "does not follow from the name of {}; say text, jsonl or parquet",
                    path.display()
                ),
            ));
        }
        (None, None) => return Ok(Err(unknown_ending(path))),
    };
    if format == Format::Parquet && compression != Compression::None {
        let reason = "a compressed Parquet file; decompress it first (Parquet compresses by itself)";
        return match named {
            true => Err(CorpusError::Parquet {
                path: path.to_path_buf(),
                problem: reason.into(),
            }),
            false => Ok(Err(reason.into())),
        };
    }
    Ok(Ok((format, compression)))
}

fn unknown_ending(path: &Path) -> String {
    let ending = path.extension().map_or_else(OsString::new, OsStr::to_ascii_lowercase);
    let hint = match ending.to_str() {
        // Ambiguous: one value in the whole file as a rule, JSON lines in many data sets.
        Some("json") => "; if every line of it is a JSON object, name the file itself as a source of format jsonl",
        Some("bz2" | "xz" | "lz4" | "zip" | "7z" | "rar" | "tar" | "tgz" | "br" | "lzma") => {
            "; decompress it first (.gz and .zst are read)"
        }
        _ => "",
    };
    match ending.is_empty() {
        true => "its name has no ending that shows the format".into(),
        false => format!("ending .{} is unknown{hint}", ending.to_string_lossy()),
    }
}
