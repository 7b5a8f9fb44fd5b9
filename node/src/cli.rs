//! Command line.

use clap::Parser;
use sc_cli::RunCmd;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  alice-node --dev
      A private chain on this machine: one validator, epochs of a minute, nothing stored.
  alice-node --chain local --alice --base-path ./alice
  alice-node --chain local --bob --base-path ./bob --port 30334 --rpc-port 9945 --prometheus-port 9616
      Two validators of a local network, which find each other (mDNS).
  alice-node --chain mainnet.json --base-path ./data
      A full node of the network with this specification.
  alice-node localnet-spec --validators 2 --ps 0x… > local.json
      The specification of a local network with your own parameter server.
  alice-node verify-genesis --chain mainnet.json --expect-hash 0x…
      Checks block 0: every item of its state, the message, and that no coin exists.";

/// Keeps the ledger of epochs and mints exactly what they earned.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Command to run instead of the node.
    #[command(subcommand)]
    pub subcommand: Option<Subcommand>,

    /// Options of the node.
    #[command(flatten)]
    pub run: RunCmd,
}

/// Commands of the program.
#[derive(Debug, clap::Subcommand)]
#[allow(clippy::large_enum_variant)]
pub enum Subcommand {
    /// Generates, inspects and inserts keys.
    #[command(subcommand)]
    Key(sc_cli::KeySubcommand),

    /// Writes the specification of a network.
    #[command(alias = "build-spec")]
    ExportChainSpec(sc_cli::ExportChainSpecCmd),

    /// Writes the raw specification of a local network.
    LocalnetSpec(LocalnetSpecCmd),

    /// Writes the raw specification of the main network from the file of its launch.
    LaunchSpec(LaunchSpecCmd),

    /// Recomputes block 0 from a specification and checks it: hash, state root, message, and that nothing else is in
    /// it.
    VerifyGenesis(VerifyGenesisCmd),

    /// Removes a chain's database.
    PurgeChain(sc_cli::PurgeChainCmd),

    /// Executes a block again.
    CheckBlock(sc_cli::CheckBlockCmd),

    /// Writes blocks into a file.
    ExportBlocks(sc_cli::ExportBlocksCmd),

    /// Reads blocks from a file.
    ImportBlocks(sc_cli::ImportBlocksCmd),

    /// Reverts blocks that are not final.
    Revert(sc_cli::RevertCmd),

    /// Shows the state of the database.
    ChainInfo(sc_cli::ChainInfoCmd),
}

/// Options of `localnet-spec`.
#[derive(Debug, Parser)]
pub struct LocalnetSpecCmd {
    /// Number of validators: alice, bob, charlie, dave, eve, ferdie, in this order.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=6))]
    pub validators: u8,

    /// sr25519 public key of a parameter server, hex; repeat it for several. Default: the development key `//One`.
    #[arg(long = "ps", alias = "ps-key", value_name = "HEX", value_parser = parse_bytes32)]
    pub parameter_servers: Vec<[u8; 32]>,

    /// Hash of the run specification, hex. Default: commitments of any run are accepted.
    #[arg(long, value_name = "HEX", value_parser = parse_bytes32)]
    pub run_hash: Option<[u8; 32]>,

    /// Length of a block, milliseconds.
    #[arg(long, default_value_t = 2_000)]
    pub slot_ms: u64,

    /// Blocks in an epoch.
    #[arg(long, default_value_t = 30)]
    pub epoch_blocks: u32,

    /// Blocks of the dispute window, in which validators can veto.
    #[arg(long, default_value_t = 2)]
    pub window_blocks: u32,

    /// Epochs after its end during which an epoch can still be attested.
    #[arg(long, default_value_t = 24)]
    pub late_epochs: u32,

    /// Slots in a session.
    #[arg(long, default_value_t = 60)]
    pub session_slots: u32,

    /// Address of a node to connect to, as `/ip4/…/tcp/…/p2p/…`; repeat it for several.
    #[arg(long = "bootnode", value_name = "ADDRESS")]
    pub bootnodes: Vec<String>,

    /// File to write. Default: standard output.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Options of `launch-spec`.
#[derive(Debug, Parser)]
pub struct LaunchSpecCmd {
    /// JSON: `{"validators": [{"account", "keys": {"grandpa", "babe", "authority_discovery"}}], "parameterServers":
    /// [{"account", "key"}], "runHash": "0x…", "bootnodes": []}`, accounts and keys as addresses.
    #[arg(long, value_name = "FILE")]
    pub launch: PathBuf,

    /// File to write. Default: standard output.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Options of `verify-genesis`.
#[derive(Debug, Parser)]
pub struct VerifyGenesisCmd {
    /// Name or file of the chain specification.
    #[arg(long, default_value = "mainnet")]
    pub chain: String,

    /// The hash that block 0 must have, hex.
    #[arg(long, value_name = "HEX", value_parser = parse_bytes32)]
    pub expect_hash: Option<[u8; 32]>,
}

fn parse_bytes32(text: &str) -> Result<[u8; 32], String> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text.trim_start_matches("0x"), &mut bytes)
        .map_err(|error| format!("expected 32 bytes as hex: {error}"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_should_be_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn bytes32_should_be_refused_when_short() {
        assert!(parse_bytes32("0x00").is_err());
        assert_eq!(parse_bytes32(&"0a".repeat(32)), Ok([10; 32]));
    }
}
