//! Command line.

use crate::{
    PsError,
    commands::audit,
    commands::corpus_build,
    commands::cost,
    commands::export,
    commands::init,
    commands::tokenizer_train,
    commands::upcycle,
    commands::verify,
    config::{Config, SettingsArgs},
    corpus::Corpus,
    key,
    run_context::read_spec,
    run_tokenizer, server,
};
use alice_api::{Client, Hex32, Key, ss58};
use alice_chain::Chain;
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a stopped command may take to end by itself.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// Parameter server of Alice: hands out tasks, scores updates, publishes every decision, attests epochs
#[derive(Debug, Parser)]
#[command(
    name = "alice-ps",
    version,
    after_help = "\
examples:
  alice-ps key generate --out ps.seed
  alice-ps corpus build --source texts/ --license CC0-1.0 --out corpus/
  alice-ps spec check chain-spec/runs/dev.toml
  alice-ps init --config ps.toml
  alice-ps run --config ps.toml
  alice-ps audit --ps http://127.0.0.1:8440 --chain ws://127.0.0.1:9944
  alice-ps export --ps http://127.0.0.1:8440 --format hf --out alice/
  alice-ps verify --model alice/ --run chain-spec/runs/dev.toml --chain ws://127.0.0.1:9944

exit codes: 0 done, 1 failed, 2 wrong flags, settings, key or specification,
            3 data directory, chain, run and corpus do not belong together, 4 chain not reached,
            5 audit found a difference
RUST_LOG sets what is logged (default: info)."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve: follow the chain, open rounds, score, attest
    #[command(
        after_help = "example: ALICE_PS_THREADS=8 alice-ps run --config ps.toml --listen 0.0.0.0:8440\n\
        Settings: flags over ALICE_PS_* variables over the file."
    )]
    Run(SettingsArgs),
    /// Make the first state from run specification and chain; does nothing if it is there
    #[command(after_help = "example: alice-ps init --config ps.toml")]
    Init(InitArgs),
    /// Recompute a run from what its parameter server publishes, from the first state on
    #[command(
        after_help = "example: alice-ps audit --ps https://ps.example.org --chain wss://rpc.example.org\n\
        Needs no key and no data directory. Exit code 5: something published is not what it should be."
    )]
    Audit(AuditArgs),
    /// Write a model's weights for other programs: a Hugging Face folder or a GGUF file
    #[command(
        after_help = "example: alice-ps export --ps https://ps.example.org --format hf --type bf16 --out alice/\n\
        With --ps every step of the run is recomputed first, as audit does, with its time; the weights lie beside --out\n\
        meanwhile.\n\
        With --data the server must be stopped."
    )]
    Export(export::ExportArgs),
    /// Check a Hugging Face folder that was written by export
    #[command(
        after_help = "example: alice-ps verify --model alice/ --run chain-spec/runs/dev.toml --chain wss://rpc.example.org\n\
        Exit code 1: the folder is not what it says, or not the model that was asked for."
    )]
    Verify(verify::VerifyArgs),
    /// Make the first state of a run with experts from a dense model
    #[command(
        after_help = "example: alice-ps upcycle --model alice-7b/ --run chain-spec/runs/phase2-56b.toml --out start.f32\n\
        Prints the root that belongs into [start] of the run specification; alice-ps init takes the file with --start."
    )]
    Upcycle(upcycle::UpcycleArgs),
    /// Vocabularies
    #[command(subcommand)]
    Tokenizer(TokenizerCommand),
    /// Run specifications
    #[command(subcommand)]
    Spec(SpecCommand),
    /// Texts
    #[command(subcommand)]
    Corpus(CorpusCommand),
    /// Keys
    #[command(subcommand)]
    Key(KeyCommand),
}

/// Flags of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Settings.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// File of the first state, for a run specification with [start]: what alice-ps upcycle wrote
    #[arg(long, value_name = "FILE")]
    pub start: Option<PathBuf>,
}

/// Flags of `audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Parameter server whose run is checked
    #[arg(long, value_name = "URL")]
    pub ps: String,
    /// A node's WebSocket: the manifests must be those that were signed, and the pay their shares
    #[arg(long, value_name = "WS_URL")]
    pub chain: Option<String>,
    /// File of the first state, for a run that names its root
    #[arg(long, value_name = "FILE")]
    pub start: Option<PathBuf>,
    /// Folder for the weights meanwhile, 4 bytes a parameter [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// Last epoch to check [default: all that are scored]
    #[arg(long, value_name = "EPOCH", default_value_t = u32::MAX, hide_default_value = true)]
    pub until: u32,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// `alice-ps spec`.
#[derive(Debug, Subcommand)]
pub enum SpecCommand {
    /// Validate a run specification and say what the run costs
    #[command(after_help = "example: alice-ps spec check chain-spec/runs/genesis-7b.toml --json")]
    Check {
        /// Run specification (TOML)
        file: PathBuf,
        /// Folder of a tokenizer: is it the run's?
        #[arg(long, value_name = "DIR")]
        tokenizer: Option<PathBuf>,
        /// Output of `corpus build`: is it the run's?
        #[arg(long, value_name = "DIR")]
        corpus: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `alice-ps tokenizer`.
#[derive(Debug, Subcommand)]
pub enum TokenizerCommand {
    /// Learn a vocabulary from texts; the same texts give the same files
    #[command(
        after_help = "example: alice-ps tokenizer train --vocab 32000 --input texts/ --out tokenizer/\n\
        Writes tokenizer.model (SentencePiece) and tokenizer.json (Hugging Face); prints the BLAKE3 of tokenizer.model."
    )]
    Train(tokenizer_train::TrainArgs),
}

/// `alice-ps corpus`.
#[derive(Debug, Subcommand)]
pub enum CorpusCommand {
    /// Turn texts into token shards: deduplicated, divided into training text, validation reserve and public yardstick
    #[command(
        after_help = "examples:\n  alice-ps corpus build --source corpus.toml --tokenizer tokenizer/ --out corpus/\n  \
        alice-ps corpus build --source texts/ --license CC0-1.0 --tokenizer tokenizer/ --out corpus/\n\
        What it prints belongs into [data] of the run specification. A build that was killed goes on with the same command."
    )]
    Build(corpus_build::BuildArgs),
}

/// `alice-ps key`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key; prints its public key and address, never the seed
    #[command(after_help = "example: alice-ps key generate --out ps.seed")]
    Generate {
        /// File for the seed; it must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the public key and address of a key file
    #[command(after_help = "example: alice-ps key show ps.seed")]
    Show {
        /// Key file
        file: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

impl Cli {
    /// Does what was asked; what it prints goes to `out`.
    pub async fn execute(self, out: &mut (dyn std::io::Write + Send)) -> Result<(), PsError> {
        let text = match self.command {
            Command::Run(args) => {
                server::run(Config::load(&args)?, stop_signal()).await?;
                return Ok(());
            }
            Command::Init(args) => {
                let config = Config::load(&args.settings)?;
                let done = init::init(&config, args.start.as_deref()).await?;
                let what = if done.created {
                    "made the first state"
                } else {
                    "the state is there"
                };
                format!(
                    "{what} in {}: model root {}\n",
                    config.data_dir.display(),
                    Hex32(done.model_root)
                )
            }
            Command::Audit(args) => return stoppable(run_audit(&args, out)).await,
            Command::Export(args) => stoppable(export::run(&args)).await?,
            Command::Verify(args) => stoppable(verify::run(&args)).await?,
            Command::Upcycle(args) => tokio::task::block_in_place(|| upcycle::run(&args))?,
            Command::Tokenizer(TokenizerCommand::Train(args)) => tokenizer_train::train(&args)?,
            Command::Spec(SpecCommand::Check {
                file,
                tokenizer,
                corpus,
                json,
            }) => {
                check_text(&file, tokenizer.as_deref(), corpus.as_deref())?;
                cost::check(&file, json)?
            }
            Command::Corpus(CorpusCommand::Build(args)) => tokio::task::block_in_place(|| corpus_build::run(&args))?,
            Command::Key(KeyCommand::Generate { out, json }) => show_key(&key::generate(&out)?, json),
            Command::Key(KeyCommand::Show { file, json }) => show_key(&key::load(&file)?, json),
        };
        out.write_all(text.as_bytes())
            .map_err(|e| PsError::Setting(format!("cannot print: {e}")))
    }
}

async fn run_audit(args: &AuditArgs, out: &mut (dyn std::io::Write + Send)) -> Result<(), PsError> {
    let client = Client::new(&args.ps)?;
    let chain = match &args.chain {
        Some(url) => Some(Chain::connect(url).await?),
        None => None,
    };
    let mut checked = 0u32;
    // A reader that went away is no reason to stop checking.
    let mut report = |found: &audit::EpochAudit| {
        checked += 1;
        let line = match args.json {
            true => serde_json::to_string(found).unwrap_or_default(),
            false => format!(
                "epoch {:<6} {} of {} accepted  model {}  chain {}",
                found.epoch,
                found.accepted,
                found.submissions,
                found.model_root,
                found.chain.as_deref().unwrap_or("not asked")
            ),
        };
        let _ = writeln!(out, "{line}");
    };
    let source = audit::Source {
        client: &client,
        chain: chain.as_ref(),
        start: args.start.as_deref(),
        work: args.work.as_deref(),
    };
    let root = Hex32(audit::audit(source, args.until, &mut report).await?.theta.root());
    if !args.json {
        let _ = writeln!(out, "{checked} epochs recomputed, all as published; model root {root}");
    }
    Ok(())
}

/// Whether tokenizer and corpus are those of a specification.
fn check_text(file: &Path, tokenizer: Option<&Path>, corpus: Option<&Path>) -> Result<(), PsError> {
    let (_, spec) = read_spec(file)?;
    if let Some(dir) = tokenizer {
        let found = alice_tokenizer::Tokenizer::read_model(&dir.join(alice_tokenizer::TOKENIZER_MODEL_FILE))?;
        run_tokenizer::checked(&spec, found, dir)?;
    }
    if let Some(dir) = corpus {
        Corpus::open(&spec, dir)?.check_counts(&spec)?;
        run_tokenizer::from_folder(&spec, dir)?;
    }
    Ok(())
}

fn show_key(key: &Key, json: bool) -> String {
    let public = key.public();
    let address = ss58::encode(&public.0);
    if json {
        format!("{{\"public\":\"{public}\",\"address\":\"{address}\"}}\n")
    } else {
        format!("public key  {public}\naddress     {address}\n")
    }
}

pub(crate) fn to_json(value: &impl Serialize) -> Result<String, PsError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| PsError::Setting(format!("cannot write JSON: {e}")))?;
    Ok(text + "\n")
}

/// A command that leaves nothing behind when it is stopped while it waits: what it had made goes as it is dropped. In the
/// middle of a long computation or of writing it is ended after a moment; then files with temporary names may stay.
async fn stoppable<T>(command: impl Future<Output = Result<T, PsError>>) -> Result<T, PsError> {
    let (stop, stopped) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        stop_signal().await;
        // The command may be done already.
        let _ = stop.send(());
        tokio::time::sleep(STOP_PATIENCE).await;
        eprintln!("error: stopped; files with temporary names may be left");
        std::process::exit(crate::error::EXIT_FAILURE.into());
    });
    tokio::select! {
        done = command => done,
        Ok(()) = stopped => Err(PsError::Stopped),
    }
}

/// Ctrl-C, or SIGTERM from a service manager.
async fn stop_signal() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_should_be_consistent() {
        Cli::command().debug_assert();
    }
}
