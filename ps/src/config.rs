//! Settings: flags over environment (`ALICE_PS_*`) over the settings file over defaults.

use crate::PsError;
use alice_program::settings;
use clap::Args;
use serde::Deserialize;
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// Default address: loopback, so that nothing is public by accident.
pub const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8440);

/// Flags and variables, and the file that they win over.
#[derive(Clone, Debug, Default, Args)]
pub struct SettingsArgs {
    /// Settings file (TOML): listen, data_dir, chain_url, run_spec, corpus_dir, key_file, threads, device
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address of the API [default: 127.0.0.1:8440]
    #[arg(long, value_name = "ADDRESS:PORT", env = "ALICE_PS_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Directory of the server's state
    #[arg(long, value_name = "DIR", env = "ALICE_PS_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// A node's WebSocket, for example ws://127.0.0.1:9944
    #[arg(long, value_name = "WS_URL", env = "ALICE_PS_CHAIN_URL")]
    pub chain_url: Option<String>,
    /// Run specification
    #[arg(long, value_name = "FILE", env = "ALICE_PS_RUN_SPEC")]
    pub run_spec: Option<PathBuf>,
    /// Shards made by `alice-ps corpus build`
    #[arg(long, value_name = "DIR", env = "ALICE_PS_CORPUS_DIR")]
    pub corpus_dir: Option<PathBuf>,
    /// The server's key, made by `alice-ps key generate`
    #[arg(long, value_name = "FILE", env = "ALICE_PS_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// CPU threads of one operation [default: all cores]
    #[arg(long, value_name = "N", env = "ALICE_PS_THREADS")]
    pub threads: Option<u16>,
    /// Device that measures losses: cpu, cuda, cuda:N, metal or auto [default: auto]
    #[arg(long, env = "ALICE_PS_DEVICE")]
    pub device: Option<String>,
}

/// The settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSettings {
    listen: Option<SocketAddr>,
    data_dir: Option<PathBuf>,
    chain_url: Option<String>,
    run_spec: Option<PathBuf>,
    corpus_dir: Option<PathBuf>,
    key_file: Option<PathBuf>,
    threads: Option<u16>,
    device: Option<String>,
}

/// Everything that `run` and `init` need.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Address of the API.
    pub listen: SocketAddr,
    /// Directory of the server's state.
    pub data_dir: PathBuf,
    /// A node's WebSocket.
    pub chain_url: String,
    /// Run specification.
    pub run_spec: PathBuf,
    /// Built shards.
    pub corpus_dir: PathBuf,
    /// The server's key.
    pub key_file: PathBuf,
    /// CPU threads of one operation; all cores if `None`.
    pub threads: Option<u16>,
    /// Device that measures losses.
    pub device: String,
}

impl Config {
    /// Joins flags, environment and file.
    ///
    /// # Errors
    /// The file cannot be used, or a setting is missing or impossible.
    pub fn load(args: &SettingsArgs) -> Result<Self, PsError> {
        let file: FileSettings = match &args.config {
            Some(path) => settings::read_file(path)?,
            None => FileSettings::default(),
        };
        let threads = args.threads.or(file.threads);
        if threads == Some(0) {
            return Err(PsError::SettingValue {
                key: "threads",
                problem: "it is 0; it must be at least 1".into(),
            });
        }
        let chain_url = args.chain_url.clone().or(file.chain_url);
        Ok(Self {
            listen: args.listen.or(file.listen).unwrap_or(LISTEN),
            data_dir: path("data_dir", args.data_dir.as_ref(), file.data_dir.as_deref())?,
            chain_url: chain_url.ok_or(PsError::SettingMissing { key: "chain_url" })?,
            run_spec: path("run_spec", args.run_spec.as_ref(), file.run_spec.as_deref())?,
            corpus_dir: path("corpus_dir", args.corpus_dir.as_ref(), file.corpus_dir.as_deref())?,
            key_file: path("key_file", args.key_file.as_ref(), file.key_file.as_deref())?,
            threads,
            device: args.device.clone().or(file.device).unwrap_or_else(|| "auto".into()),
        })
    }

    /// Whether the run specification is there. The key file and the corpus have errors of their own, which name the
    /// command that makes them.
    ///
    /// # Errors
    /// It is not.
    pub fn check_paths(&self) -> Result<(), PsError> {
        match self.run_spec.is_file() {
            true => Ok(()),
            false => Err(PsError::SettingPath {
                key: "run_spec",
                path: self.run_spec.clone(),
            }),
        }
    }
}

/// A path that must be given. A shell expands `~` in flags; in files nobody else does.
fn path(key: &'static str, flag: Option<&PathBuf>, file: Option<&Path>) -> Result<PathBuf, PsError> {
    match (flag, file) {
        (Some(path), _) => Ok(path.clone()),
        (None, Some(path)) => Ok(settings::expand_home(path)?),
        (None, None) => Err(PsError::SettingMissing { key }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &tempfile::TempDir, text: &str) -> SettingsArgs {
        let file = dir.path().join("ps.toml");
        std::fs::write(&file, text).unwrap();
        SettingsArgs {
            config: Some(file),
            ..SettingsArgs::default()
        }
    }

    const FULL: &str = "data_dir = 'd'\nchain_url = 'ws://h:1'\nrun_spec = 'r'\ncorpus_dir = 'c'\nkey_file = 'k'\n";

    #[test]
    fn flags_should_win_over_the_file_and_defaults_fill_in() {
        let dir = tempfile::tempdir().unwrap();
        let mut args = args(&dir, FULL);
        let config = Config::load(&args).unwrap();
        assert_eq!(
            (config.listen, config.device.as_str(), config.threads),
            (LISTEN, "auto", None)
        );
        assert_eq!(config.chain_url, "ws://h:1");
        args.chain_url = Some("ws://other:2".into());
        args.threads = Some(3);
        let config = Config::load(&args).unwrap();
        assert_eq!((config.chain_url.as_str(), config.threads), ("ws://other:2", Some(3)));
    }

    #[test]
    fn mistakes_should_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        for (text, expected) in [
            ("", "ALICE_PS_DATA_DIR"),
            ("data_dir = 'd'", "--chain-url"),
            (
                &format!("{FULL}surprise = 1"),
                "ps.toml, line 6: unknown field `surprise`",
            ),
            (&format!("{FULL}threads = 0"), "at least 1"),
            (&format!("{FULL}threads = 70000"), "ps.toml, line 6: threads: "),
            (&format!("{FULL}listen = 'x'"), "ps.toml, line 6: listen: "),
            (&FULL.replace("'d'", "'~nobody/d'"), "~nobody/d"),
        ] {
            let error = Config::load(&args(&dir, text)).unwrap_err();
            assert!(error.to_string().contains(expected), "{text}: {error}");
            assert_eq!(error.exit_code(), alice_program::exit::USAGE);
        }
        let missing = SettingsArgs {
            config: Some("/nowhere/ps.toml".into()),
            ..SettingsArgs::default()
        };
        assert!(
            Config::load(&missing)
                .unwrap_err()
                .to_string()
                .contains("/nowhere/ps.toml")
        );
    }

    #[test]
    fn home_should_be_expanded_in_paths_of_the_file_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut args = args(&dir, &FULL.replace("'d'", "'~/alice'").replace("'k'", "'~/ps.seed'"));
        // A shell has expanded flags already; a ~ that is left was quoted on purpose.
        args.corpus_dir = Some("~/corpus".into());
        let config = Config::load(&args).unwrap();
        let home = std::env::home_dir().unwrap();
        assert_eq!(config.data_dir, home.join("alice"));
        assert_eq!(config.key_file, home.join("ps.seed"));
        assert_eq!(config.corpus_dir, PathBuf::from("~/corpus"));
    }

    #[test]
    fn a_run_specification_that_is_not_there_should_be_named_by_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::load(&args(&dir, FULL)).unwrap();
        let error = config.check_paths().unwrap_err();
        assert!(
            error.to_string().starts_with("run_spec: there is no file r;"),
            "{error}"
        );
        assert_eq!(error.exit_code(), alice_program::exit::USAGE);
    }
}
