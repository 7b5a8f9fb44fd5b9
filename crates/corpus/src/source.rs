//! Sources of a corpus with their licences.

use crate::CorpusError;
use crate::read::Compression;
use alice_data::SplitRule;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest list of sources that is read, bytes.
const LIST_BYTES_MAX: u64 = 1 << 20;
/// Longest name and licence, bytes.
const NAME_BYTES_MAX: usize = 128;
/// Longest address, bytes.
const URL_BYTES_MAX: usize = 1024;
/// Most generations of a reserve.
pub const GENERATIONS_MAX: u32 = 64;
/// Most that reserve and yardstick may take together, thousandths.
const HELD_OUT_PERMILLE_MAX: u32 = 500;

/// How documents are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A document is a file.
    Text,
    /// A document is a string in the JSON object of a line.
    Jsonl,
    /// A document is a value of a Parquet column.
    Parquet,
}

impl Format {
    /// Endings of the names of its files.
    pub fn extensions(self) -> &'static [&'static str] {
        match self {
            Self::Text => &["txt"],
            Self::Jsonl => &["jsonl", "ndjson"],
            Self::Parquet => &["parquet"],
        }
    }

    /// The format of a file by the ending of its name, in capitals or not, before `.gz` or `.zst` if it has one of
    /// them.
    ///
    /// ```
    /// use alice_corpus::Format;
    /// assert_eq!(Format::of("notes.TXT".as_ref()), Some(Format::Text));
    /// assert_eq!(Format::of("dump.jsonl.gz".as_ref()), Some(Format::Jsonl));
    /// assert_eq!(Format::of("README.md".as_ref()), None);
    /// ```
    pub fn of(path: &Path) -> Option<Self> {
        let (_, name) = Compression::of(path);
        let extension = Path::new(name).extension()?.to_str()?.to_ascii_lowercase();
        [Self::Text, Self::Jsonl, Self::Parquet]
            .into_iter()
            .find(|format| format.extensions().contains(&extension.as_str()))
    }
}

/// One source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name, as manifests show it.
    pub name: String,
    /// A file, a folder (with all folders in it), or a pattern with `*`, `?` and `[…]`. Relative to the list's folder.
    pub path: PathBuf,
    /// Format of its files; `None`: by the ending of each name.
    #[serde(default)]
    pub format: Option<Format>,
    /// SPDX expression.
    pub license: String,
    /// Address from which it can be downloaded.
    #[serde(default)]
    pub url: Option<String>,
    /// Key or column of the text.
    #[serde(default = "text_column")]
    pub text_column: String,
}

/// The column that most data sets have.
pub(crate) fn text_column() -> String {
    "text".into()
}

/// The contents of a `corpus.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceList {
    /// Sources in the order in which they are read.
    pub source: Vec<Source>,
    /// How the documents are divided.
    #[serde(default)]
    pub split: SplitRule,
}

impl SourceList {
    /// Reads a list; relative paths in it start at its folder.
    pub fn read(path: &Path) -> Result<Self, CorpusError> {
        let bad = |problem: String| CorpusError::List {
            path: path.to_path_buf(),
            problem,
        };
        let file = std::fs::File::open(path).map_err(CorpusError::io("read", path))?;
        let mut text = String::new();
        // One byte more than allowed shows a file that is too large.
        file.take(LIST_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(CorpusError::io("read", path))?;
        if text.len() as u64 > LIST_BYTES_MAX {
            return Err(bad(format!("it is larger than {LIST_BYTES_MAX} bytes")));
        }
        // Relative to the list, so that list and texts can be moved together.
        let mut list: Self = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for source in &mut list.source {
            source.path = folder.join(&source.path);
        }
        list.check()?;
        Ok(list)
    }

    /// A list of files, folders and patterns of one licence, with the default split. Each source is named after its
    /// file or folder, with as many folders before it as make the names unique.
    pub fn from_paths(paths: &[PathBuf], license: &str, format: Option<Format>, text_column: &str) -> Self {
        let source = paths.iter().zip(unique_names(paths)).map(|(path, name)| Source {
            name,
            path: path.clone(),
            format,
            license: license.into(),
            url: None,
            text_column: text_column.into(),
        });
        Self {
            source: source.collect(),
            split: SplitRule::default(),
        }
    }

    /// Checks that every path that is not a pattern exists.
    ///
    /// # Errors
    /// [`CorpusError::NoPath`] with the first that does not.
    pub fn check_paths(&self) -> Result<(), CorpusError> {
        let exists = |source: &&Source| source.is_pattern() || source.path.symlink_metadata().is_ok();
        match self.source.iter().find(|source| !exists(source)) {
            None => Ok(()),
            Some(source) => Err(CorpusError::NoPath {
                name: source.name.clone(),
                path: source.path.clone(),
            }),
        }
    }

    /// Checks names, licences and the split.
    pub fn check(&self) -> Result<(), CorpusError> {
        if self.source.is_empty() {
            return Err(CorpusError::setting("source", "there is none; give at least one"));
        }
        let mut names = BTreeSet::new();
        for source in &self.source {
            source.check()?;
            // Manifests and errors refer to sources by name.
            if !names.insert(&source.name) {
                let problem = format!(
                    "'{}' is there twice; give each source its own name, and each path once",
                    source.name
                );
                return Err(CorpusError::setting("source.name", problem));
            }
        }
        check_split(&self.split)
    }
}

impl Source {
    /// Whether the path is a pattern and not the name of a file or folder.
    pub(crate) fn is_pattern(&self) -> bool {
        let path = self.path.to_string_lossy();
        // A file whose name has brackets is that file.
        !self.path.exists() && path.contains(['*', '?', '['])
    }

    fn check(&self) -> Result<(), CorpusError> {
        let plain = |text: &str| text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control);
        if self.name.is_empty() || !plain(&self.name) {
            let problem = format!("must be one line of 1 to {NAME_BYTES_MAX} bytes");
            return Err(CorpusError::setting("source.name", problem));
        }
        let bad = |problem: String| CorpusError::License {
            name: self.name.clone(),
            license: self.license.chars().take(NAME_BYTES_MAX).collect(),
            problem,
        };
        if self
            .url
            .as_deref()
            .is_some_and(|url| url.len() > URL_BYTES_MAX || url.chars().any(char::is_control))
        {
            let problem = format!("must be one line of at most {URL_BYTES_MAX} bytes");
            return Err(CorpusError::setting("source.url", problem));
        }
        if self.license.is_empty() || !plain(&self.license) {
            return Err(bad("one line of text is needed".into()));
        }
        // Checked, because the licence is published with the run and nobody can correct it there.
        spdx::Expression::parse(&self.license).map_err(|e| bad(e.reason.to_string()))?;
        Ok(())
    }
}

/// The last part of each path; where several paths share it, with the folders before it that tell them apart. Equal
/// paths keep equal names: they are an error.
fn unique_names(paths: &[PathBuf]) -> Vec<String> {
    let name = |path: &Path, parts: usize| {
        let all: Vec<_> = path.components().collect();
        let last = all.get(all.len().saturating_sub(parts)..).unwrap_or_default();
        last.iter().collect::<PathBuf>().to_string_lossy().into_owned()
    };
    let parts_max = paths.iter().map(|path| path.components().count()).max().unwrap_or(1);
    let mut parts = vec![1; paths.len()];
    // One more part for those that still collide; a unique name never changes, so the others' names stay short.
    for _ in 1..parts_max {
        let names: Vec<String> = paths
            .iter()
            .zip(&parts)
            .map(|(path, parts)| name(path, *parts))
            .collect();
        let mut counts = std::collections::BTreeMap::<&str, u32>::new();
        for name in &names {
            *counts.entry(name).or_default() += 1;
        }
        for (parts, name) in parts.iter_mut().zip(&names) {
            *parts += usize::from(counts.get(name.as_str()).is_some_and(|count| *count > 1));
        }
    }
    let named = |(path, parts): (&PathBuf, &usize)| match path.file_name() {
        Some(_) => name(path, *parts),
        None => path.to_string_lossy().into_owned(),
    };
    paths.iter().zip(&parts).map(named).collect()
}

fn check_split(split: &SplitRule) -> Result<(), CorpusError> {
    let bad = |field: &str, problem: String| Err(CorpusError::setting(format!("split.{field}"), problem));
    if split.reserve_permille == 0 {
        return bad(
            "reserve_permille",
            "at least 1: scoring needs text nobody has seen".into(),
        );
    }
    let held_out = split.reserve_permille.saturating_add(split.yardstick_permille);
    if held_out > HELD_OUT_PERMILLE_MAX {
        let problem = format!("{held_out} with yardstick_permille; both together at most {HELD_OUT_PERMILLE_MAX}");
        return bad("reserve_permille", problem);
    }
    if !(1..=GENERATIONS_MAX).contains(&split.generations) {
        let problem = format!("{} must be between 1 and {GENERATIONS_MAX}", split.generations);
        return bad("generations", problem);
    }
    if split.retired >= split.generations {
        let problem = format!(
            "{} of {} generations: one must remain to score with",
            split.retired, split.generations
        );
        return bad("retired", problem);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<SourceList, CorpusError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("corpus.toml");
        std::fs::write(&path, text).unwrap();
        SourceList::read(&path)
    }

    #[test]
    fn a_list_should_be_read_relative_to_its_folder() {
        let list = read(
            "[split]\nreserve_permille = 100\n\n[[source]]\nname = \"sotu\"\npath = \"texts\"\nlicense = \"PDDL-1.0\"\n\
             [[source]]\nname = \"other\"\npath = \"/data/*.parquet\"\nformat = \"parquet\"\ntext_column = \"body\"\n\
             license = \"CC-BY-4.0 OR CC0-1.0\"\nurl = \"https://example.org\"\n",
        )
        .unwrap();
        assert!(list.source[0].path.is_absolute() && list.source[0].path.ends_with("texts"));
        assert_eq!(list.source[0].text_column, "text");
        assert_eq!(list.source[1].path, Path::new("/data/*.parquet"));
        assert_eq!(list.source[1].format, Some(Format::Parquet));
        assert_eq!((list.split.reserve_permille, list.split.yardstick_permille), (100, 5));
    }

    #[test]
    fn what_is_wrong_with_a_list_should_be_said() {
        let source = |license: &str| format!("[[source]]\nname = \"a\"\npath = \"a\"\nlicense = \"{license}\"\n");
        let good = source("CC0-1.0");
        for (text, words) in [
            ("source = []".to_owned(), "at least one"),
            ("[[source]]\nname = \"a\"\npath = \"a\"\n".into(), "license"),
            (source(""), "not an SPDX identifier"),
            (source("Public Domain"), "not an SPDX identifier"),
            (source("MIT-ish"), "spdx.org/licenses"),
            (format!("{good}{good}"), "is there twice"),
            (format!("{good}surprise = 1"), "surprise"),
            (good.replace("\"a\"", "\"\""), "source.name"),
            (format!("{good}[split]\nreserve_permille = 0"), "reserve_permille"),
            (
                format!("{good}[split]\nreserve_permille = 400\nyardstick_permille = 200"),
                "at most 500",
            ),
            (format!("{good}[split]\ngenerations = 65"), "between 1 and 64"),
            (format!("{good}[split]\nretired = 1"), "one must remain"),
        ] {
            let message = read(&text).unwrap_err().to_string();
            assert!(message.contains(words), "{words}: {message}");
        }
        assert!(read(&source("LicenseRef-us-government")).is_ok());
        assert!(read(&"#".repeat(LIST_BYTES_MAX as usize + 1)).is_err());
    }
    #[test]
    fn names_should_be_unique_when_files_share_a_name() {
        let names = |paths: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            let list = SourceList::from_paths(&paths, "CC0-1.0", None, "text");
            let names: Vec<String> = list.source.iter().map(|source| source.name.clone()).collect();
            (names, list.check())
        };
        for (paths, expected) in [
            (&["texts/", "b/lines.jsonl"][..], &["texts", "lines.jsonl"][..]),
            (
                &["en/train.jsonl", "de/train.jsonl"],
                &["en/train.jsonl", "de/train.jsonl"],
            ),
            (
                &["a/x/t.txt", "b/x/t.txt", "b/y/t.txt", "u.txt"],
                &["a/x/t.txt", "b/x/t.txt", "y/t.txt", "u.txt"],
            ),
            (&["t.txt", "a/t.txt"], &["t.txt", "a/t.txt"]),
            (&["/data/t.txt", "t.txt"], &["data/t.txt", "t.txt"]),
            (&["."], &["."]),
            (&[".."], &[".."]),
        ] {
            let (found, checked) = names(paths);
            assert_eq!(found, expected, "{paths:?}");
            checked.unwrap();
        }
        let (_, twice) = names(&["a/t.txt", "a/t.txt"]);
        assert!(twice.unwrap_err().to_string().contains("each path once"));
    }

    #[test]
    fn format_should_follow_from_the_ending() {
        for (name, format) in [
            ("a.txt", Some(Format::Text)),
            ("A.TXT", Some(Format::Text)),
            ("a.JsonL", Some(Format::Jsonl)),
            ("a.ndjson.GZ", Some(Format::Jsonl)),
            ("a.txt.zst", Some(Format::Text)),
            ("a.parquet", Some(Format::Parquet)),
            ("a.json", None),
            ("a.gz", None),
            ("txt", None),
        ] {
            assert_eq!(Format::of(Path::new(name)), format, "{name}");
        }
    }
}
