//! What a corpus is made from: sources with their licences.

use crate::CorpusError;
use alice_data::SplitRule;
use serde::{Deserialize, Serialize};
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

    /// The format of a file, by the ending of its name.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?;
        [Self::Text, Self::Jsonl, Self::Parquet]
            .into_iter()
            .find(|format| format.extensions().contains(&extension))
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
    /// Format of its files; where it is not given, the ending of each name says it.
    #[serde(default)]
    pub format: Option<Format>,
    /// SPDX expression.
    pub license: String,
    /// Where it can be had.
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
        file.take(LIST_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(CorpusError::io("read", path))?;
        if text.len() as u64 > LIST_BYTES_MAX {
            return Err(bad(format!("it is larger than {LIST_BYTES_MAX} bytes")));
        }
        let mut list: Self = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for source in &mut list.source {
            source.path = folder.join(&source.path);
        }
        list.check()?;
        Ok(list)
    }

    /// Checks names, licences and the split.
    pub fn check(&self) -> Result<(), CorpusError> {
        if self.source.is_empty() {
            return Err(CorpusError::setting("source", "there is none; give at least one"));
        }
        let mut names = std::collections::HashSet::new();
        for source in &self.source {
            source.check()?;
            if !names.insert(&source.name) {
                let problem = format!("'{}' is there twice; names tell sources apart", source.name);
                return Err(CorpusError::setting("source.name", problem));
            }
        }
        check_split(&self.split)
    }
}

impl Source {
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
        spdx::Expression::parse(&self.license).map_err(|e| bad(e.reason.to_string()))?;
        Ok(())
    }
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
}
