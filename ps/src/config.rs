//! Settings: flags over environment (`ALICE_PS_*`) over the settings file over defaults.

use crate::PsError;
use clap::Args;
use figment::{
    Figment,
    providers::{Env, Format, Serialized, Toml},
};
use serde::{Deserialize, Serialize};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

/// Default address: loopback, so that nothing is public by accident.
pub const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8440);
const KEYS: [&str; 8] = [
    "listen",
    "data_dir",
    "chain_url",
    "run_spec",
    "corpus_dir",
    "key_file",
    "threads",
    "device",
];

/// Where settings come from, and flags that win over them.
#[derive(Clone, Debug, Default, Args, Serialize)]
pub struct SettingsArgs {
    /// Settings file (TOML): listen, data_dir, chain_url, run_spec, corpus_dir, key_file, threads, device
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Address of the API [default: 127.0.0.1:8440]
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Directory of the server's state
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// A node's WebSocket, for example ws://127.0.0.1:9944
    #[arg(long, value_name = "WS_URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain_url: Option<String>,
    /// Run specification
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_spec: Option<PathBuf>,
    /// Shards made by `alice-ps corpus build`
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corpus_dir: Option<PathBuf>,
    /// The server's key, made by `alice-ps key generate`
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// CPU threads of one operation [default: all cores]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u16>,
    /// Device that measures losses: cpu, cuda, cuda:N, metal or auto [default: auto]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Merged {
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
    /// CPU threads.
    pub threads: Option<u16>,
    /// Device that measures losses.
    pub device: String,
}

impl Config {
    /// Puts flags, environment and file together.
    pub fn load(args: &SettingsArgs) -> Result<Self, PsError> {
        let mut figment = Figment::new();
        if let Some(file) = &args.config {
            if !file.is_file() {
                return Err(PsError::Setting(format!(
                    "there is no settings file {}",
                    file.display()
                )));
            }
            figment = figment.merge(Toml::file(file));
        }
        let figment = figment
            .merge(Env::prefixed("ALICE_PS_").only(&KEYS))
            .merge(Serialized::defaults(args));
        let merged: Merged = figment
            .extract()
            .map_err(|e| PsError::Setting(format!("settings: {e}")))?;
        fn need<T>(value: Option<T>, key: &str) -> Result<T, PsError> {
            let flag = key.replace('_', "-");
            value.ok_or_else(|| {
                PsError::Setting(format!(
                    "{key} is not set; write it into the settings file, or give --{flag} or ALICE_PS_{}",
                    key.to_uppercase()
                ))
            })
        }
        if merged.threads == Some(0) {
            return Err(PsError::Setting("threads is 0; it must be at least 1".into()));
        }
        Ok(Self {
            listen: merged.listen.unwrap_or(LISTEN),
            data_dir: need(merged.data_dir, "data_dir")?,
            chain_url: need(merged.chain_url, "chain_url")?,
            run_spec: need(merged.run_spec, "run_spec")?,
            corpus_dir: need(merged.corpus_dir, "corpus_dir")?,
            key_file: need(merged.key_file, "key_file")?,
            threads: merged.threads,
            device: merged.device.unwrap_or_else(|| "auto".into()),
        })
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
            (&format!("{FULL}surprise = 1"), "surprise"),
            (&format!("{FULL}threads = 0"), "at least 1"),
            (&format!("{FULL}listen = 'x'"), "listen"),
        ] {
            let error = Config::load(&args(&dir, text)).unwrap_err();
            assert!(error.to_string().contains(expected), "{text}: {error}");
            assert_eq!(error.exit_code(), crate::error::EXIT_USAGE);
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
}
