//! Carries the command line out.

use crate::{
    chain_spec,
    cli::{Cli, Subcommand},
    genesis, service,
};
use alice_runtime::opaque::Block;
use sc_cli::SubstrateCli;
use sc_network::config::NetworkBackendType;
use sc_service::{ChainSpec, Configuration, PartialComponents};
use std::{
    io::{ErrorKind, Write},
    net::{IpAddr, SocketAddr, TcpListener},
    path::Path,
};

impl SubstrateCli for Cli {
    fn impl_name() -> String {
        "Alice Node".into()
    }
    fn impl_version() -> String {
        env!("SUBSTRATE_CLI_IMPL_VERSION").into()
    }
    fn description() -> String {
        env!("CARGO_PKG_DESCRIPTION").into()
    }
    fn author() -> String {
        "the Alice contributors".into()
    }
    fn support_url() -> String {
        concat!(env!("CARGO_PKG_REPOSITORY"), "/issues").into()
    }
    fn copyright_start_year() -> i32 {
        2026
    }
    fn executable_name() -> String {
        "alice-node".into()
    }
    fn load_spec(&self, id: &str) -> Result<Box<dyn ChainSpec>, String> {
        chain_spec::load(id).map(|spec| Box::new(spec) as Box<dyn ChainSpec>)
    }
}

/// Parses the command line and runs what it says.
pub fn run() -> sc_cli::Result<()> {
    let mut cli = Cli::from_args();
    match &cli.subcommand {
        Some(Subcommand::Key(command)) => {
            // It knows no chain, and shall show this network's addresses all the same. Not for the other commands: the
            // runtime reads genesis accounts in the generic format only.
            sp_core::crypto::set_default_ss58_version(alice_primitives::SS58_PREFIX.into());
            command.run(&cli)
        }
        Some(Subcommand::ExportChainSpec(command)) => command.run(cli.load_spec(&command.chain)?),
        Some(Subcommand::LocalnetSpec(command)) => {
            write_spec(chain_spec::localnet(command)?, command.output.as_deref())
        }
        Some(Subcommand::LaunchSpec(command)) => write_spec(chain_spec::launch(command)?, command.output.as_deref()),
        Some(Subcommand::VerifyGenesis(command)) => genesis::verify(command),
        Some(Subcommand::PurgeChain(command)) => {
            let runner = cli.create_runner(command)?;
            runner.sync_run(|config| command.run(config.database))
        }
        Some(Subcommand::CheckBlock(command)) => {
            let runner = cli.create_runner(command)?;
            runner.async_run(|config| {
                let PartialComponents {
                    client,
                    task_manager,
                    import_queue,
                    ..
                } = service::new_partial(&config)?;
                Ok((command.run(client, import_queue), task_manager))
            })
        }
        Some(Subcommand::ExportBlocks(command)) => {
            let runner = cli.create_runner(command)?;
            runner.async_run(|config| {
                let PartialComponents {
                    client, task_manager, ..
                } = service::new_partial(&config)?;
                Ok((command.run(client, config.database), task_manager))
            })
        }
        Some(Subcommand::ImportBlocks(command)) => {
            let runner = cli.create_runner(command)?;
            runner.async_run(|config| {
                let PartialComponents {
                    client,
                    task_manager,
                    import_queue,
                    ..
                } = service::new_partial(&config)?;
                Ok((command.run(client, import_queue), task_manager))
            })
        }
        Some(Subcommand::Revert(command)) => {
            let runner = cli.create_runner(command)?;
            runner.async_run(|config| {
                let PartialComponents {
                    client,
                    task_manager,
                    backend,
                    ..
                } = service::new_partial(&config)?;
                let aux_revert = Box::new(|client: std::sync::Arc<service::FullClient>, backend, blocks| {
                    sc_consensus_babe::revert(client.clone(), backend, blocks)?;
                    sc_consensus_grandpa::revert(client, blocks)?;
                    Ok(())
                });
                Ok((command.run(client, backend, Some(aux_revert)), task_manager))
            })
        }
        Some(Subcommand::ChainInfo(command)) => {
            let runner = cli.create_runner(command)?;
            runner.sync_run(|config| command.run::<Block>(&config))
        }
        None => {
            // A validator without a network key makes one and keeps it in its base path, as every other node does.
            cli.run.network_params.node_key_params.unsafe_force_node_key_generation = true;
            let runner = cli.create_runner(&cli.run)?;
            runner.run_node_until_exit(|config| async move {
                chain_spec::check_has_validators(&*config.chain_spec)?;
                check_ports(&config)?;
                match config.network.network_backend {
                    NetworkBackendType::Libp2p => service::new_full::<sc_network::NetworkWorker<_, _>>(config),
                    NetworkBackendType::Litep2p => service::new_full::<sc_network::Litep2pNetworkBackend>(config),
                }
                .map_err(sc_cli::Error::Service)
            })
        }
    }
}

fn write_spec(spec: chain_spec::ChainSpec, output: Option<&Path>) -> sc_cli::Result<()> {
    let json = spec.as_json(true)?;
    match output {
        Some(path) => std::fs::write(path, json)?,
        None => std::io::stdout().write_all(json.as_bytes())?,
    }
    Ok(())
}

/// A port that somebody else has is an error that names it. Without this the RPC server takes another port in silence.
fn check_ports(config: &Configuration) -> sc_cli::Result<()> {
    let p2p = config.network.listen_addresses.iter().filter_map(|address| {
        let text = address.to_string();
        let mut parts = text.split('/').skip(1);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("ip4" | "ip6"), Some(ip), Some("tcp"), Some(port)) => Some((
                "--port",
                SocketAddr::new(ip.parse::<IpAddr>().ok()?, port.parse().ok()?),
            )),
            _ => None,
        }
    });
    let rpc = config
        .rpc
        .addr
        .iter()
        .flatten()
        .filter(|endpoint| !endpoint.is_optional);
    let rpc = rpc.map(|endpoint| ("--rpc-port", endpoint.listen_addr));
    for (option, address) in p2p.chain(rpc) {
        if TcpListener::bind(address).is_err_and(|error| error.kind() == ErrorKind::AddrInUse) {
            let port = address.port();
            return Err(format!(
                "port {port} is in use by another program; is a node running already? choose another with {option}"
            )
            .into());
        }
    }
    Ok(())
}
