//! Settings: flag over environment variable over settings file over default.

use crate::{
    MinerError,
    cli::{PlaceArgs, RunArgs},
    memory::fit::{Fit, FitArgs},
};
use alice_api::{Client, Hex32, ss58};
use alice_program::settings::{SettingsError, expand_home, read_file};
use alice_update::ResidualDtype;
use serde::Deserialize;
use std::path::PathBuf;

/// Maximum CPU threads of one operation. OpenMP ends the process if the system refuses it a thread, and more threads
/// than cores are never faster; the largest machines have fewer cores than this.
pub const THREADS_MAX: u16 = 1024;

/// A setting with a value that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// Not one of the words that the setting knows.
    #[error("{name} is '{value}'; it may be {choices}")]
    Choice {
        /// Setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// The words it may be.
        choices: &'static str,
    },
    /// A number that must be at least 1.
    #[error("{0} is 0; it must be at least 1")]
    Zero(&'static str),
    /// More threads than any machine has cores.
    #[error("threads is {0}; it may be at most {THREADS_MAX}, and more than the machine's cores are never faster")]
    Threads(u16),
    /// Not a size of memory.
    #[error("'{0}' is not a size of memory; write for example 24GiB")]
    Size(String),
    /// A size of memory without its unit.
    #[error("'{0}' has no unit; write for example {0}GiB")]
    SizeWithoutUnit(String),
    /// There is no home directory to keep files in.
    #[error("this user has no home directory, so there is no default place for the miner's files; give --data-dir DIR")]
    NoDataDir,
    /// A fragment that the run does not have.
    #[error("fragment '{text}' is not one of the run's; it may be auto, full or 0 to {last}")]
    Fragment {
        /// The text given.
        text: String,
        /// The run's last fragment.
        last: u32,
    },
    /// Neither a built-in run nor a file.
    #[error("run '{name}' is neither built in ({known}) nor a text file")]
    UnknownRun {
        /// The text given.
        name: String,
        /// Built-in runs.
        known: String,
    },
    /// The file of a run specification is not one.
    #[error("run '{name}': {source}")]
    Run {
        /// The text given.
        name: String,
        /// The mistake.
        source: alice_spec::SpecError,
    },
    /// The prompt on standard input cannot be read.
    #[error("cannot read the prompt from standard input: {0}")]
    Prompt(#[source] std::io::Error),
    /// The prompt on standard input is too long.
    #[error("the prompt on standard input is larger than {bytes_max} bytes; shorten it")]
    PromptTooLong {
        /// Maximum length, bytes.
        bytes_max: u64,
    },
}

/// The settings file: every key is optional, an unknown one is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsFile {
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
    /// Device as given; `auto` by default.
    pub device: String,
    /// Client of the parameter server.
    pub client: Client,
    /// Account that is paid.
    pub payout: Hex32,
    /// A node's WebSocket; its form is checked.
    pub chain: Option<String>,
    /// CPU threads of one operation, 1 to [`THREADS_MAX`]; `None` for all cores.
    pub threads: Option<u16>,
    /// Tasks in one epoch.
    pub tasks_per_epoch: u32,
    /// Number format of stored residuals.
    pub residual: ResidualDtype,
    /// Whether the optimiser's moments are kept from task to task.
    pub keep_moments: bool,
    /// Options that fit tasks to the device.
    pub fit: Fit,
    /// Run that the user insists on.
    pub run: Option<Hex32>,
    /// Key of the parameter server that the user insists on.
    pub ps_key: Option<Hex32>,
    /// Directory of the miner's files.
    pub data_dir: PathBuf,
    /// Stop after work in this number of epochs.
    pub epochs: Option<u32>,
    /// Events as JSON.
    pub json: bool,
}

impl Settings {
    /// Joins flags, environment and file, and checks the result.
    ///
    /// # Errors
    /// A setting is missing or wrong, or the settings file cannot be used.
    pub fn load(args: &RunArgs) -> Result<Self, MinerError> {
        let (path, file) = load_file(&args.place)?;
        let missing = |what, flag, env, key| MinerError::Missing {
            what,
            flag,
            env,
            key,
            file: path.clone(),
        };
        let ps = args.ps.clone().or(file.ps);
        let ps = ps.ok_or_else(|| missing("parameter server", "--ps URL", "ALICE_PS", "ps"))?;
        let payout = args.payout.clone().or(file.payout);
        let payout = payout.ok_or_else(|| missing("payout address", "--payout ADDRESS", "ALICE_PAYOUT", "payout"))?;
        let tasks_per_epoch = args.tasks_per_epoch.or(file.tasks_per_epoch).unwrap_or(1);
        if tasks_per_epoch == 0 {
            return Err(SettingError::Zero("tasks_per_epoch").into());
        }
        // 0 might mean "none" or "no limit"; neither is guessed.
        if args.epochs == Some(0) {
            return Err(SettingError::Zero("epochs").into());
        }
        let residual = args.residual.clone().or(file.residual);
        let keep_moments = args.keep_moments.clone().or(file.keep_moments);
        let from_file = FitArgs {
            precision: file.precision,
            moments: file.moments,
            checkpoint: file.checkpoint,
            micro_batch: file.micro_batch,
            device_memory: file.device_memory,
        };
        Ok(Self {
            device: args.device.clone().or(file.device).unwrap_or_else(|| "auto".into()),
            client: Client::new(&ps)?,
            payout: Hex32(ss58::decode(&payout)?),
            // Checked now: the connection is made only when it is first needed, perhaps hours later.
            chain: args.chain.clone().or(file.chain).map(chain_url).transpose()?,
            threads: threads(args.threads.or(file.threads))?,
            tasks_per_epoch,
            residual: residual_dtype(residual.as_deref())?,
            keep_moments: on_or_off("keep_moments", keep_moments.as_deref())?,
            fit: Fit::new(&args.fit.clone().or(from_file))?,
            run: args.run.or(file.run),
            ps_key: args.ps_key.or(file.ps_key),
            data_dir: data_dir(&args.place, file.data_dir)?,
            epochs: if args.once { Some(1) } else { args.epochs },
            json: args.json,
        })
    }
}

/// CPU threads, if their number can be used.
///
/// # Errors
/// The number is 0 or above [`THREADS_MAX`].
pub fn threads(number: Option<u16>) -> Result<Option<u16>, SettingError> {
    match number {
        Some(0) => Err(SettingError::Zero("threads")),
        Some(n) if n > THREADS_MAX => Err(SettingError::Threads(n)),
        number => Ok(number),
    }
}

/// A node's address, if it has the form of one. A wrong form would otherwise pass for a node that is away, for ever.
fn chain_url(url: String) -> Result<String, MinerError> {
    alice_chain::check_url(&url)?;
    Ok(url)
}

fn residual_dtype(text: Option<&str>) -> Result<ResidualDtype, SettingError> {
    match text {
        None | Some("f32") => Ok(ResidualDtype::F32),
        Some("bf16") => Ok(ResidualDtype::Bf16),
        Some(other) => Err(SettingError::Choice {
            name: "residual",
            value: other.into(),
            choices: "f32 or bf16",
        }),
    }
}

fn on_or_off(name: &'static str, text: Option<&str>) -> Result<bool, SettingError> {
    match text {
        None | Some("on") => Ok(true),
        Some("off") => Ok(false),
        Some(other) => Err(SettingError::Choice {
            name,
            value: other.into(),
            choices: "on or off",
        }),
    }
}

/// Settings of commands that need no server.
#[derive(Debug)]
pub struct Place {
    /// Directory of the miner's files.
    pub data_dir: PathBuf,
    /// A node's WebSocket, if the flag or the settings file has one; its form is checked.
    pub chain: Option<String>,
    /// The settings file; `None` if this user has no place for one.
    pub file: Option<PathBuf>,
}

/// Reads the settings of a command that needs no server. `chain` is the command's own flag.
///
/// # Errors
/// The settings file cannot be used, there is no place for files, or the node's address is none.
pub fn place(args: &PlaceArgs, chain: Option<String>) -> Result<Place, MinerError> {
    let (path, file) = load_file(args)?;
    Ok(Place {
        data_dir: data_dir(args, file.data_dir)?,
        chain: chain.or(file.chain).map(chain_url).transpose()?,
        file: path,
    })
}

/// The settings file with its contents; empty if there is none at the default place.
fn load_file(place: &PlaceArgs) -> Result<(Option<PathBuf>, SettingsFile), SettingsError> {
    if let Some(path) = &place.config {
        let path = expand_home(path)?;
        let file = read_file(&path)?;
        return Ok((Some(path), file));
    }
    // A user without a home, of a service for example, can still give everything by flags.
    let Some(path) = user_dir("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("alice/miner.toml")) else {
        return Ok((None, SettingsFile::default()));
    };
    match read_file(&path) {
        // Only a file that was named must exist. Its path is kept for the advice in errors.
        Err(SettingsError::Missing(_)) => Ok((Some(path), SettingsFile::default())),
        file => Ok((Some(path), file?)),
    }
}

fn data_dir(place: &PlaceArgs, from_file: Option<PathBuf>) -> Result<PathBuf, MinerError> {
    if let Some(dir) = place.data_dir.as_ref().or(from_file.as_ref()) {
        return Ok(expand_home(dir)?);
    }
    let data = user_dir("XDG_DATA_HOME", ".local/share").ok_or(SettingError::NoDataDir)?;
    Ok(data.join("alice/miner"))
}

/// The user's directory of a kind: the variable of the XDG base directory specification, else a folder of the home.
fn user_dir(variable: &str, below_home: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    user_dir_of(named, std::env::home_dir(), below_home)
}

fn user_dir_of(named: Option<PathBuf>, home: Option<PathBuf>, below_home: &str) -> Option<PathBuf> {
    // The specification says that relative paths in the variables are to be ignored.
    named
        .filter(|path| path.is_absolute())
        .or_else(|| Some(home.filter(|home| !home.as_os_str().is_empty())?.join(below_home)))
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
        assert_eq!(settings.residual, ResidualDtype::Bf16);
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
            ("pz = 'http://a:1'".to_owned(), "miner.toml, line 1: unknown field `pz`"),
            ("\nps = 3".to_owned(), "miner.toml, line 2"),
            ("ps = ".to_owned(), "miner.toml"),
            ("threads = 70000".to_owned(), "miner.toml, line 1"),
            (
                format!("ps = 'http://a:1/?key=1'\npayout = '{}'", address()),
                "http://host:port",
            ),
        ];
        for (config, expected) in cases {
            let (_dir, args) = args(&config);
            let error = Settings::load(&args).err().unwrap();
            assert_eq!(error.exit_code(), alice_program::exit::USAGE, "{error}");
            assert!(error.to_string().contains(expected), "{config}: {error}");
        }
    }

    #[test]
    fn the_form_of_a_nodes_address_should_be_checked_at_once() {
        let base = format!("ps = 'http://a:1'\npayout = '{}'\n", address());
        for url in ["127.0.0.1:9944", "http://127.0.0.1:9944", "ws://", ""] {
            let (_dir, args) = args(&format!("{base}chain = '{url}'"));
            let error = Settings::load(&args).err().unwrap();
            assert_eq!(error.exit_code(), alice_program::exit::USAGE, "{error}");
            assert!(error.to_string().contains("ws://"), "{error}");
            assert!(super::place(&args.place, None).is_err());
            assert!(
                super::place(&args.place, Some("ws://a:1".into())).is_ok(),
                "the flag wins"
            );
        }
        let (_dir, args) = args(&format!("{base}chain = 'ws://127.0.0.1:9944'"));
        assert!(Settings::load(&args).unwrap().chain.is_some());
    }

    #[test]
    fn more_threads_than_any_machine_has_should_be_refused() {
        assert_eq!(threads(Some(THREADS_MAX)).unwrap(), Some(THREADS_MAX));
        for (number, expected) in [
            (0, "at least 1"),
            (THREADS_MAX + 1, "at most 1024"),
            (u16::MAX, "65535"),
        ] {
            let error = threads(Some(number)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_home_in_a_path_of_the_file_should_be_expanded() {
        let (_dir, mut args) = args("data_dir = '~/alice'");
        args.place.data_dir = None;
        let home = std::env::home_dir().unwrap();
        assert_eq!(super::place(&args.place, None).unwrap().data_dir, home.join("alice"));
        // Somebody else's home is known to shells only: refused, not made as a folder of that name.
        args.place.data_dir = Some("~root/alice".into());
        let error = super::place(&args.place, None).unwrap_err();
        assert_eq!(error.exit_code(), alice_program::exit::USAGE, "{error}");
    }

    #[test]
    fn a_user_without_a_home_should_need_flags_only() {
        assert_eq!(user_dir_of(None, None, "x"), None);
        assert_eq!(user_dir_of(None, Some("".into()), "x"), None);
        assert_eq!(
            user_dir_of(Some("relative".into()), Some("/h".into()), "x"),
            Some("/h/x".into())
        );
        assert_eq!(user_dir_of(Some("/named".into()), None, "x"), Some("/named".into()));
        let error = MinerError::Missing {
            what: "node",
            flag: "--chain URL",
            env: "ALICE_CHAIN",
            key: "chain",
            file: None,
        };
        assert_eq!(error.to_string(), "no node is set; give --chain URL, set ALICE_CHAIN");
    }

    #[cfg(unix)]
    #[test]
    fn a_data_dir_that_is_not_utf_8_should_work() {
        use std::os::unix::ffi::OsStrExt;
        let (dir, mut args) = args("");
        let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
        args.place.data_dir = Some(dir.path().join(name));
        let place = super::place(&args.place, None).unwrap();
        assert_eq!(place.data_dir, dir.path().join(name));
        assert!(crate::key::MiningKey::load_or_create(&place.data_dir).unwrap().created);
    }

    #[test]
    fn a_settings_file_that_was_named_must_exist() {
        let place = PlaceArgs {
            data_dir: None,
            config: Some("/nowhere/miner.toml".into()),
        };
        assert!(
            super::place(&place, None)
                .unwrap_err()
                .to_string()
                .contains("/nowhere/miner.toml")
        );
    }
}
