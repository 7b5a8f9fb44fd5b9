//! Command line.

use crate::{memory::fit::FitArgs, memory::plan::PlanArgs};
use alice_api::Hex32;
use alice_program::manual::{CompletionsArgs, ManArgs};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Trains the network's model on this machine and is paid for work that helps.
#[derive(Debug, Parser)]
#[command(name = "alice-miner", version = alice_program::VERSION, args_conflicts_with_subcommands = true)]
#[command(
    after_help = "example: alice-miner --device cuda --ps https://ps.example.org --payout a2…\n\
    The settings file ~/.config/alice/miner.toml takes the same settings: ps, payout, device, data_dir, chain, threads, …"
)]
pub struct Cli {
    /// Command; without one the miner runs.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of `run`.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mine (the same as no command at all)
    Run(RunArgs),
    /// Show the memory that a run's tasks need, and the options with which they fit
    #[command(after_help = "example: alice-miner plan --run genesis-7b --device-memory 24GiB")]
    Plan(PlanArgs),
    /// Continue a text with exported weights (a Hugging Face folder)
    #[command(after_help = GENERATE_EXAMPLES)]
    Generate(GenerateArgs),
    /// List the devices that could train, with the reason why one cannot
    Devices {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the submissions with their receipts and verdicts
    Receipts {
        /// Check every signature.
        #[arg(long)]
        verify: bool,
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Places of the miner's files.
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Push a stored payout page of an epoch to the chain
    Payout {
        /// Epoch.
        #[arg(long)]
        epoch: u32,
        /// A node's WebSocket, for example ws://127.0.0.1:9944
        #[arg(long, env = "ALICE_CHAIN", value_name = "WS_URL")]
        chain: Option<String>,
        /// Places of the miner's files.
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Show the mining key's public part and where the key is stored
    Key {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Places of the miner's files.
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Print the completion script of a shell
    #[command(
        after_help = "example: alice-miner completions bash > ~/.local/share/bash-completion/completions/alice-miner"
    )]
    Completions(CompletionsArgs),
    /// Write a man page for each command
    #[command(after_help = "example: alice-miner man --out ~/.local/share/man/man1")]
    Man(ManArgs),
}

// Long, so that it would hide the flags if it stood at the attribute.
const GENERATE_EXAMPLES: &str = "examples:
  alice-ps export --ps https://ps.example.org --format hf --out alice/
  alice-miner generate --model alice/ --prompt 'The State of the Union'
  alice-miner generate --model alice/ --prompt 'The' --temperature 0 --max-tokens 40 --json
  alice-miner generate --model alice/ --prompt - --top-k 40 --seed 7 < prompt.txt

exit codes: 0 the text ended, also by Ctrl-C; 1 the folder or the machine is at fault; 2 an option or the prompt is";

/// Flags of `generate`.
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// Folder with config.json, tokenizer.model and safetensors, as `alice-ps export --format hf` writes it
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Text to continue; `-` reads it from standard input, to its end
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: String,
    /// Maximum number of tokens to add
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_tokens: usize,
    /// 0 takes the most probable token always, 1 leaves the model's probabilities, more flattens them [default: the
    /// folder's generation_config.json, else 0]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f64>,
    /// Only the K most probable tokens; 0 for all [default: the folder's, else 0]
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Only the most probable tokens that together have the probability P [default: the folder's, else 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Makes tokens that the text has already less probable; 1 for no penalty [default: the folder's, else 1]
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f64>,
    /// The same seed gives the same text on the same machine [default: another one each time]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// cuda, cuda:N, metal, cpu or auto
    #[arg(long, env = "ALICE_DEVICE", default_value = "auto")]
    pub device: String,
    /// CPU threads of one operation [default: all cores]
    #[arg(long, env = "ALICE_THREADS", value_name = "N")]
    pub threads: Option<u16>,
    /// Number format of the matrices; auto is bf16 for large models that are stored so, else f32
    #[arg(long, value_enum, default_value_t)]
    pub precision: PrecisionArg,
    /// One JSON object at the end instead of text
    #[arg(long)]
    pub json: bool,
    /// The logits after the prompt as well, in the JSON object
    #[arg(long, hide = true, requires = "json")]
    pub logits: bool,
}

/// Number format of the matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// bf16 for large models that are stored so, else f32.
    #[default]
    Auto,
    /// f32.
    F32,
    /// bf16.
    Bf16,
}

/// Places of the miner's files.
#[derive(Clone, Debug, Default, Args)]
pub struct PlaceArgs {
    /// Directory for key, receipts, model and shards [default: ~/.local/share/alice/miner]
    #[arg(long, env = "ALICE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Settings file [default: ~/.config/alice/miner.toml]
    #[arg(long, env = "ALICE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Flags of `run`. A flag that is left out comes from the settings file.
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// cuda, cuda:N, metal, cpu or auto [default: auto]
    #[arg(long, env = "ALICE_DEVICE")]
    pub device: Option<String>,
    /// Parameter server, for example https://ps.example.org
    #[arg(long, env = "ALICE_PS", value_name = "URL")]
    pub ps: Option<String>,
    /// Address that is paid (a2…); its key need not be on this machine. A generic Substrate address (5…) is refused,
    /// and the message has the same account's a2… address
    #[arg(long, env = "ALICE_PAYOUT", value_name = "SS58")]
    pub payout: Option<String>,
    /// A node's WebSocket: payouts are followed there and, if nobody else does it, pushed
    #[arg(long, env = "ALICE_CHAIN", value_name = "WS_URL")]
    pub chain: Option<String>,
    /// CPU threads of one operation [default: all cores]
    #[arg(long, env = "ALICE_THREADS", value_name = "N")]
    pub threads: Option<u16>,
    /// Tasks to do in one epoch, if the server has them [default: 1]
    #[arg(long, value_name = "N")]
    pub tasks_per_epoch: Option<u32>,
    /// f32 or bf16: number format of the error-feedback residual on disk; bf16 takes half the space [default: f32]
    #[arg(long, value_name = "FORMAT")]
    pub residual: Option<String>,
    /// on or off: whether the optimiser continues from the fragment's last task; its moments take disk space
    /// [default: on]
    #[arg(long, value_name = "WHEN", value_parser = ["on", "off"])]
    pub keep_moments: Option<String>,
    /// Run that is mined; only needed when the network moved on to another
    #[arg(long, value_name = "HASH")]
    pub run: Option<Hex32>,
    /// The parameter server's key; only needed when it has changed and there is no --chain to look it up
    #[arg(long, value_name = "HEX")]
    pub ps_key: Option<Hex32>,
    /// Options that fit tasks to the device.
    #[command(flatten)]
    pub fit: FitArgs,
    /// Stop after work in N epochs, once it is scored
    #[arg(long, value_name = "N", conflicts_with = "once")]
    pub epochs: Option<u32>,
    /// The same as --epochs 1
    #[arg(long)]
    pub once: bool,
    /// Events as JSON, one a line
    #[arg(long)]
    pub json: bool,
    /// Places of the miner's files.
    #[command(flatten)]
    pub place: PlaceArgs,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_should_be_defined_without_contradictions() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_should_name_the_form_of_an_address_and_version_the_commit() {
        let mut command = Cli::command();
        let help = command.render_long_help().to_string();
        assert!(help.contains("a2…") && help.contains("5…"), "{help}");
        assert!(command.render_version().contains(alice_program::VERSION));
    }
}
