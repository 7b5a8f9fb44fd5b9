//! Command line.

use crate::{
    PsError,
    commands::{corpus_build, cost, export, init, tokenizer_train, upcycle},
    config::{Config, SettingsArgs},
    corpus::Corpus,
    key,
    run_context::read_spec,
    run_tokenizer, server,
};
use alice_api::{Hex32, Key, ss58};
use alice_audit::commands::{audit, verify};
use alice_program::{VERSION, exit, manual, output, shutdown};
use clap::{Args, CommandFactory, Parser, Subcommand};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Parameter server of Alice: hands out tasks, scores updates, publishes every decision, attests epochs
#[derive(Debug, Parser)]
#[command(
    name = "alice-ps",
    version = VERSION,
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
    /// Command.
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
    Audit(audit::AuditArgs),
    /// Write a model's weights for other programs: a Hugging Face folder or a GGUF file
    #[command(
        after_help = "example: alice-ps export --ps https://ps.example.org --format hf --type bf16 --out alice/\n\
        With --ps every step of the run is recomputed first, as audit does, with its time; until then the weights\n\
        are in a temporary folder next to --out.\n\
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
    /// Print a completion script for a shell
    #[command(after_help = "example: alice-ps completions bash > ~/.local/share/bash-completion/completions/alice-ps")]
    Completions(manual::CompletionsArgs),
    /// Write man pages
    #[command(after_help = "example: alice-ps man --out ~/.local/share/man/man1")]
    Man(manual::ManArgs),
}

/// Flags of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Settings.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// File of the first state, for a run specification with [start]; alice-ps upcycle writes it
    #[arg(long, value_name = "FILE")]
    pub start: Option<PathBuf>,
}

/// `alice-ps spec`.
#[derive(Debug, Subcommand)]
pub enum SpecCommand {
    /// Validate a run specification and show the costs of the run
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
        Its output belongs into [data] of the run specification. A build that was killed continues with the same command."
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
    /// Runs the command and prints its result.
    ///
    /// # Errors
    /// Whatever kept the command from its result, with an exit code.
    pub async fn execute(self) -> Result<(), PsError> {
        let text = match self.command {
            Command::Run(args) => return serve(&args).await,
            Command::Init(args) => make_state(&args).await?,
            // Prints a line for each epoch as it is checked.
            Command::Audit(args) => return stoppable(async { Ok(audit::run(&args).await?) }).await,
            Command::Export(args) => stoppable(export::run(&args)).await?,
            Command::Verify(args) => stoppable(async { Ok(verify::run(&args).await?) }).await?,
            // Not stoppable: files under their temporary names are all that an interrupted one leaves.
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
            Command::Completions(args) => {
                String::from_utf8_lossy(&manual::completions(Self::command(), args.shell)).into_owned()
            }
            Command::Man(args) => {
                let pages = manual::write_man_pages(Self::command(), &args.out)
                    .map_err(|e| PsError::io("write man pages to", &args.out, &e))?;
                format!("{pages} man pages in {}\n", args.out.display())
            }
        };
        output::print(&text).map_err(PsError::Print)
    }
}

async fn serve(args: &SettingsArgs) -> Result<(), PsError> {
    let config = Config::load(args)?;
    config.check_paths()?;
    let shutdown = shutdown::Shutdown::on_signals().map_err(PsError::Signals)?;
    server::run(config, async move { shutdown.wait().await }).await
}

async fn make_state(args: &InitArgs) -> Result<String, PsError> {
    let config = Config::load(&args.settings)?;
    config.check_paths()?;
    let done = init::init(&config, args.start.as_deref()).await?;
    let result = match done.created {
        true => "made the first state",
        false => "the state is there",
    };
    let (dir, root) = (config.data_dir.display(), Hex32(done.model_root));
    Ok(format!("{result} in {dir}: model root {root}\n"))
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
    Ok(alice_audit::commands::to_json(value)?)
}

/// Runs a command that leaves nothing behind when it is stopped: it is dropped, and removes what it had made.
async fn stoppable<T>(command: impl Future<Output = Result<T, PsError>>) -> Result<T, PsError> {
    match shutdown::stoppable(command, exit::FAILURE).await {
        Ok(Some(result)) => result,
        Ok(None) => Err(PsError::Stopped),
        Err(error) => Err(PsError::Signals(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_should_be_consistent() {
        Cli::command().debug_assert();
    }
}
