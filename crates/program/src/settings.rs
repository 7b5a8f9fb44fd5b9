//! One settings file in TOML, under flags and environment variables.
//!
//! A program deserialises its file into a struct of `Option`s, does the same with its flags (clap reads the
//! environment), and joins them with `Option::or`: flag over variable over file over default.

use serde::de::DeserializeOwned;
use std::{
    io,
    path::{Component, Path, PathBuf},
};

/// Maximum length of a settings file, bytes: a file of settings has a few lines, and a wrong path may name anything.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// A settings file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file was named and is not there.
    #[error("there is no settings file {}", .0.display())]
    Missing(PathBuf),
    /// The file cannot be read.
    #[error("cannot read the settings file {}: {}", path.display(), crate::system::reason(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not TOML, or has a key or value that the program does not know.
    #[error("{}{}: {problem}", path.display(), line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Content {
        /// The file.
        path: PathBuf,
        /// Line of the mistake, counted from 1.
        line: Option<usize>,
        /// The mistake.
        problem: String,
    },
    /// A path begins with `~user`, which only shells know.
    #[error("the path '{0}' begins with another user's home, which only a shell can find; write it in full")]
    OtherHome(String),
    /// A path begins with `~` and `HOME` is not set.
    #[error("the path '{0}' begins with ~, but HOME is not set; write it in full")]
    NoHome(String),
}

/// Reads a settings file. `T` should refuse unknown fields, so that a misspelt key is an error.
///
/// # Errors
/// The file is missing, unreadable or longer than [`FILE_BYTES_MAX`], is not TOML, or does not fit `T`.
///
/// ```
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Settings {
///     listen: Option<String>,
/// }
/// let dir = tempfile::tempdir()?;
/// let file = dir.path().join("settings.toml");
/// std::fs::write(&file, "listen = '127.0.0.1:1'\nlisen = 2\n")?;
/// let error = alice_program::settings::read_file::<Settings>(&file).err().unwrap();
/// assert!(error.to_string().contains("settings.toml, line 2: unknown field `lisen`"));
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn read_file<T: DeserializeOwned>(path: &Path) -> Result<T, SettingsError> {
    let failed = |source| SettingsError::Read {
        path: path.to_path_buf(),
        source,
    };
    let file = std::fs::File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SettingsError::Missing(path.to_path_buf()),
        _ => failed(error),
    })?;
    let mut text = String::new();
    // One byte more than allowed tells a file that is too long from one that just fits.
    io::Read::read_to_string(&mut io::Read::take(file, FILE_BYTES_MAX + 1), &mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(io::Error::other(format!(
            "it is longer than {FILE_BYTES_MAX} bytes; is it a settings file?"
        ))));
    }
    toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let problem = error.message().trim().replace('\n', "; ");
        SettingsError::Content {
            path: path.to_path_buf(),
            line: before.map(|before| before.matches('\n').count() + 1),
            problem: match before.and_then(key_of_value) {
                Some(key) => format!("{key}: {problem}"),
                None => problem,
            },
        }
    })
}

/// The key whose value is being read where a text ends; `None` if it ends in a key or in another place.
fn key_of_value(before: &str) -> Option<&str> {
    let (key, _) = before.rsplit('\n').next()?.split_once('=')?;
    Some(key.trim())
}

/// The value of an environment variable; `None` if it is unset or empty, as in `ALICE_CHAIN= alice-miner …`.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Replaces `~` at the start of a path by the user's home, which a shell does for flags but nobody does for files.
///
/// # Errors
/// The path begins with `~user`, or with `~` while `HOME` is not set.
pub fn expand_home(path: &Path) -> Result<PathBuf, SettingsError> {
    let mut components = path.components();
    // Only a whole first component counts: `~backup` next to the program is a name like any other for the system, but a
    // shell would take it for a user, so it is refused rather than guessed.
    let Some(Component::Normal(first)) = components.next() else {
        return Ok(path.to_path_buf());
    };
    let shown = || path.display().to_string();
    match first.to_string_lossy().as_ref() {
        "~" => match std::env::home_dir().filter(|home| !home.as_os_str().is_empty()) {
            Some(home) => Ok(home.join(components.as_path())),
            None => Err(SettingsError::NoHome(shown())),
        },
        name if name.starts_with('~') => Err(SettingsError::OtherHome(shown())),
        _ => Ok(path.to_path_buf()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        #[allow(dead_code)]
        number: Option<u16>,
    }

    fn read(text: &str) -> Result<Example, SettingsError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        std::fs::write(&file, text).unwrap();
        read_file(&file)
    }

    #[test]
    fn mistakes_should_name_file_line_and_key() {
        for (text, expected) in [
            ("\n\nnumbre = 1", "a.toml, line 3: unknown field `numbre`"),
            ("number = 1\nnumbre = 1", "a.toml, line 2: unknown field `numbre`"),
            ("number = 70000", "a.toml, line 1: number: invalid value"),
            ("# a = b\nnumber = 'x'", "a.toml, line 2: number: "),
            ("number = ", "line 1"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert_eq!(read("number = 7").unwrap().number, Some(7));
    }

    #[test]
    fn a_missing_or_huge_file_should_be_refused_by_name() {
        let missing = read_file::<Example>(Path::new("/nowhere/a.toml")).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/a.toml"), "{missing}");
        let huge = read(&"#".repeat(FILE_BYTES_MAX as usize + 1)).unwrap_err();
        assert!(huge.to_string().contains("longer than"), "{huge}");
    }

    #[test]
    fn home_should_be_expanded_only_at_the_start() {
        let home = std::env::home_dir().unwrap();
        assert_eq!(expand_home(Path::new("~/a/b")).unwrap(), home.join("a/b"));
        assert_eq!(expand_home(Path::new("a/~/b")).unwrap(), Path::new("a/~/b"));
        assert_eq!(expand_home(Path::new("/a")).unwrap(), Path::new("/a"));
        assert!(expand_home(Path::new("~root/a")).is_err());
    }
}
