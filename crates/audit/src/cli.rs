//! Command line of `alice`.

use crate::{
    AuditError,
    commands::{address, audit, balance, export, verify},
};
use alice_program::{VERSION, exit, manual, output, shutdown};
use clap::{CommandFactory, Parser, Subcommand};

/// Checks Alice from the outside: recomputes runs, checks and exports weights, shows addresses and balances
#[derive(Debug, Parser)]
#[command(
    name = "alice",
    version = VERSION,
    after_help = "\
examples:
  alice audit --ps https://ps.example.org --chain wss://rpc.example.org
  alice export --ps https://ps.example.org --format hf --out weights/
  alice verify --model weights/ --run chain-spec/runs/dev.toml --chain wss://rpc.example.org
  alice address new --out payout.seed
  alice balance --chain wss://rpc.example.org ADDRESS

exit codes: 0 done, 1 failed, 2 wrong flags, files or addresses, 3 files and run do not belong together,
            4 chain not reached, 5 audit found a difference
RUST_LOG sets what is logged (default: warn)."
)]
pub struct Cli {
    /// Command.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Recompute a run from what its parameter server publishes, from the first state on
    #[command(
        after_help = "example: alice audit --ps https://ps.example.org --chain wss://rpc.example.org\n\
        Needs no key and no data directory. Exit code 5: something published is not what it should be."
    )]
    Audit(audit::AuditArgs),
    /// Write a model's weights for other programs: a Hugging Face folder or a GGUF file
    #[command(
        after_help = "example: alice export --ps https://ps.example.org --format hf --type bf16 --out weights/\n\
        Every step of the run is recomputed first, as audit does, with its time; until then the weights are in a\n\
        temporary folder next to --out."
    )]
    Export(export::ExportArgs),
    /// Check a Hugging Face folder that was written by export
    #[command(
        after_help = "example: alice verify --model weights/ --run chain-spec/runs/dev.toml --chain wss://rpc.example.org\n\
        Exit code 1: the folder is not what it says, or not the model that was asked for."
    )]
    Verify(verify::VerifyArgs),
    /// Keys and addresses
    #[command(subcommand)]
    Address(address::AddressCommand),
    /// Show what an account holds
    #[command(after_help = "example: alice balance --chain ws://127.0.0.1:9944 ADDRESS")]
    Balance(balance::BalanceArgs),
    /// Print a completion script for a shell
    #[command(after_help = "example: alice completions bash > ~/.local/share/bash-completion/completions/alice")]
    Completions(manual::CompletionsArgs),
    /// Write man pages
    #[command(after_help = "example: alice man --out ~/.local/share/man/man1")]
    Man(manual::ManArgs),
}

impl Cli {
    /// Runs the command and prints its result.
    ///
    /// # Errors
    /// Whatever kept the command from its result, with an exit code.
    pub async fn execute(self) -> Result<(), AuditError> {
        match shutdown::stoppable(self.run(), exit::FAILURE).await {
            Ok(Some(result)) => result,
            Ok(None) => Err(AuditError::Stopped),
            Err(error) => Err(AuditError::Signals(error)),
        }
    }

    async fn run(self) -> Result<(), AuditError> {
        let text = match self.command {
            // Prints a line for each epoch as it is checked.
            Command::Audit(args) => return audit::run(&args).await,
            Command::Export(args) => export::run(&args).await?,
            Command::Verify(args) => verify::run(&args).await?,
            Command::Address(command) => address::run(&command)?,
            Command::Balance(args) => balance::run(&args).await?,
            Command::Completions(args) => {
                String::from_utf8_lossy(&manual::completions(Self::command(), args.shell)).into_owned()
            }
            Command::Man(args) => {
                let pages = manual::write_man_pages(Self::command(), &args.out)
                    .map_err(|e| AuditError::file("write man pages to", &args.out, e))?;
                format!("{pages} man pages in {}\n", args.out.display())
            }
        };
        output::print(&text).map_err(AuditError::Print)
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
