//! Settings: flags and environment over the settings file over defaults.

use crate::{
    MinerError,
    cli::{PlaceArgs, RunArgs},
    memory::fit::{Fit, FitArgs},
};
use alice_api::{Client, Hex32, ss58};
use alice_update::Precision;
use figment::{
    Figment,
    providers::{Format, Serialized, Toml},
};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What may stand in the settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Merged {
    device: Option<String>,
    ps: Option<String>,
    payout: Option<String>,
    chain: Option<String>,
    threads: Option<u16>,
    tasks_per_epoch: Option<u32>,
    residual: Option<String>,
    keep_moments: Option<String>,
    precision: Option<String>,
    moments: Option<String>,
    checkpoint: Option<String>,
    micro_batch: Option<u32>,
    device_memory: Option<String>,
    run: Option<Hex32>,
    ps_key: Option<Hex32>,
    data_dir: Option<PathBuf>,
}

/// Everything `run` needs, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Device as given; `auto` where nothing was.
    pub device: String,
    /// Client of the parameter server.
    pub client: Client,
    /// Account that is paid.
    pub payout: Hex32,
    /// A node's WebSocket.
    pub chain: Option<String>,
    /// CPU threads.
    pub threads: Option<u16>,
    /// Tasks in one epoch.
    pub tasks_per_epoch: u32,
    /// How residuals are stored.
    pub residual: Precision,
    /// Whether the optimiser's moments are kept from task to task.
    pub keep_moments: bool,
    /// How tasks are made to fit the device.
    pub fit: Fit,
    /// Run that the user insists on.
    pub run: Option<Hex32>,
    /// Key of the parameter server that the user insists on.
    pub ps_key: Option<Hex32>,
    /// Directory of the miner's files.
    pub data_dir: PathBuf,
    /// Stop after work in so many epochs.
    pub epochs: Option<u32>,
    /// Events as JSON.
    pub json: bool,
}

impl Settings {
    /// Puts flags, environment and file together and checks them.
    pub fn load(args: &RunArgs) -> Result<Self, MinerError> {
        let (file, merged) = merge(&args.place, Some(args))?;
        let missing = |what, flag, env, key| MinerError::Missing {
            what,
            flag,
            env,
            key,
            file: file.clone(),
        };
        let ps = merged
            .ps
            .ok_or_else(|| missing("parameter server", "--ps URL", "ALICE_PS", "ps"))?;
        let payout = merged
            .payout
            .ok_or_else(|| missing("payout address", "--payout ADDRESS", "ALICE_PAYOUT", "payout"))?;
        let tasks_per_epoch = merged.tasks_per_epoch.unwrap_or(1);
        for (name, zero) in [
            ("threads", merged.threads == Some(0)),
            ("tasks_per_epoch", tasks_per_epoch == 0),
            ("epochs", args.epochs == Some(0)),
        ] {
            if zero {
                return Err(MinerError::Setting(format!("{name} is 0; it must be at least 1")));
            }
        }
        Ok(Self {
            device: merged.device.unwrap_or_else(|| "auto".into()),
            client: Client::new(&ps)?,
            payout: Hex32(ss58::decode(&payout)?),
            chain: merged.chain,
            threads: merged.threads,
            tasks_per_epoch,
            residual: precision(merged.residual.as_deref())?,
            keep_moments: on_or_off("keep_moments", merged.keep_moments.as_deref())?,
            fit: Fit::new(&FitArgs {
                precision: merged.precision,
                moments: merged.moments,
                checkpoint: merged.checkpoint,
                micro_batch: merged.micro_batch,
                device_memory: merged.device_memory,
            })?,
            run: merged.run,
            ps_key: merged.ps_key,
            data_dir: merged.data_dir.map_or_else(default_data_dir, Ok)?,
            epochs: if args.once { Some(1) } else { args.epochs },
            json: args.json,
        })
    }
}

fn precision(text: Option<&str>) -> Result<Precision, MinerError> {
    match text {
        None | Some("f32") => Ok(Precision::F32),
        Some("bf16") => Ok(Precision::Bf16),
        Some(other) => Err(MinerError::Setting(format!(
            "residual is '{other}'; it may be f32 or bf16"
        ))),
    }
}

fn on_or_off(name: &str, text: Option<&str>) -> Result<bool, MinerError> {
    match text {
        None | Some("on") => Ok(true),
        Some("off") => Ok(false),
        Some(other) => Err(MinerError::Setting(format!("{name} is '{other}'; it may be on or off"))),
    }
}

/// The data directory for commands that need nothing else, and the chain's address if the file has one.
pub fn place(args: &PlaceArgs) -> Result<(PathBuf, Option<String>), MinerError> {
    let (_, merged) = merge(args, None)?;
    Ok((merged.data_dir.map_or_else(default_data_dir, Ok)?, merged.chain))
}

/// The settings file that is read.
pub fn config_file(place: &PlaceArgs) -> Result<PathBuf, MinerError> {
    match &place.config {
        Some(path) => Ok(path.clone()),
        None => Ok(home("XDG_CONFIG_HOME", ".config")?.join("alice/miner.toml")),
    }
}

fn merge(place: &PlaceArgs, run: Option<&RunArgs>) -> Result<(PathBuf, Merged), MinerError> {
    let file = config_file(place)?;
    if place.config.is_some() && !file.is_file() {
        return Err(MinerError::Setting(format!(
            "there is no settings file {}",
            file.display()
        )));
    }
    let mut figment = Figment::new().merge(Toml::file(&file));
    if let Some(run) = run {
        figment = figment.merge(Serialized::defaults(run));
    }
    if let Some(dir) = &place.data_dir {
        figment = figment.merge(Serialized::default("data_dir", dir));
    }
    match figment.extract() {
        Ok(merged) => Ok((file, merged)),
        Err(e) => Err(MinerError::Setting(format!("settings in {}: {e}", file.display()))),
    }
}

fn default_data_dir() -> Result<PathBuf, MinerError> {
    Ok(home("XDG_DATA_HOME", ".local/share")?.join("alice/miner"))
}

fn home(variable: &str, below_home: &str) -> Result<PathBuf, MinerError> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set(variable)
        .filter(|p| p.is_absolute())
        .or_else(|| set("HOME").map(|h| Path::new(&h).join(below_home)))
        .ok_or_else(|| {
            MinerError::Setting("HOME is not set, so there is no place for files; give --data-dir and --config".into())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(config: &str) -> (tempfile::TempDir, RunArgs) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("miner.toml");
        std::fs::write(&file, config).unwrap();
        let place = PlaceArgs {
            data_dir: Some(dir.path().join("data")),
            config: Some(file),
        };
        (
            dir,
            RunArgs {
                place,
                ..RunArgs::default()
            },
        )
    }

    fn address() -> String {
        ss58::encode(&[7; 32])
    }

    #[test]
    fn flags_should_win_over_the_file() {
        let (_dir, mut args) = args(&format!(
            "ps = 'http://a:1'\npayout = '{}'\ndevice = 'cpu'\nthreads = 2\nresidual = 'bf16'",
            address()
        ));
        let settings = Settings::load(&args).unwrap();
        assert_eq!(settings.client.url(), "http://a:1");
        assert_eq!(settings.payout, Hex32([7; 32]));
        assert_eq!(
            (settings.device.as_str(), settings.threads, settings.tasks_per_epoch),
            ("cpu", Some(2), 1)
        );
        assert_eq!(settings.residual, Precision::Bf16);
        args.ps = Some("http://b:2".into());
        args.fit.micro_batch = Some(3);
        args.once = true;
        let settings = Settings::load(&args).unwrap();
        assert_eq!(settings.client.url(), "http://b:2");
        assert_eq!(settings.epochs, Some(1));
        let spec = alice_spec::RunSpec::parse(alice_spec::preset("dev").unwrap()).unwrap();
        let plan = settings.fit.plan(&spec, None, alice_model::Device::Cpu);
        assert_eq!(plan.rows[0].options.micro_batch, Some(3));
    }

    #[test]
    fn mistakes_should_be_usage_errors_that_say_what_to_do() {
        let generic = ss58::encode_with_prefix(&[7; 32], 42);
        let cases = [
            ("".to_owned(), "--ps"),
            ("ps = 'http://a:1'".to_owned(), "--payout"),
            (format!("ps = 'a:1'\npayout = '{}'", address()), "http://host:port"),
            (format!("ps = 'http://a:1'\npayout = '{generic}'"), "prefix 42"),
            (
                format!("ps = 'http://a:1'\npayout = '{}'\nthreads = 0", address()),
                "threads",
            ),
            (
                format!("ps = 'http://a:1'\npayout = '{}'\nresidual = 'f16'", address()),
                "f32 or bf16",
            ),
            (
                format!("ps = 'http://a:1'\npayout = '{}'\nkeep_moments = 'no'", address()),
                "on or off",
            ),
            (
                format!("ps = 'http://a:1'\npayout = '{}'\nmoments = '4bit'", address()),
                "f32 or 8bit",
            ),
            ("pz = 'http://a:1'".to_owned(), "pz"),
            ("ps = 3".to_owned(), "ps"),
            ("ps = ".to_owned(), "miner.toml"),
        ];
        for (config, expected) in cases {
            let (_dir, args) = args(&config);
            let error = Settings::load(&args).err().unwrap();
            assert_eq!(error.exit_code(), crate::error::EXIT_USAGE, "{error}");
            assert!(error.to_string().contains(expected), "{config}: {error}");
        }
    }

    #[test]
    fn a_settings_file_that_was_named_must_exist() {
        let place = PlaceArgs {
            data_dir: None,
            config: Some("/nowhere/miner.toml".into()),
        };
        assert!(
            super::place(&place)
                .unwrap_err()
                .to_string()
                .contains("/nowhere/miner.toml")
        );
    }
}
