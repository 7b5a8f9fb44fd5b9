//! Carries the command line out.

use crate::{
    chain_spec,
    cli::{Cli, Subcommand},
    genesis, key_command, service,
};
use alice_program::output;
use alice_runtime::opaque::Block;
use clap::{CommandFactory, FromArgMatches};
use futures::FutureExt;
use sc_cli::{print_node_infos, CliConfiguration, Signals, SubstrateCli};
use sc_network::config::NetworkBackendType;
use sc_service::{config::RpcMethods, ChainSpec, ChainType, Configuration, PartialComponents};
use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener},
    path::Path,
    time::Duration,
};

/// Log filter in front of the user's own: at `info`, authority discovery reports its missing cache as a failure on
/// every first start, and every ten minutes that it has saved it.
const LOG_FILTER: &str = "sub-authority-discovery=warn";
/// Longest wait for the node's tasks after a request to stop: the database must be closed, a hanging connection need
/// not.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

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

/// Parses the command line and carries it out.
pub fn run() -> sc_cli::Result<()> {
    // Before anything reads or writes an address: RPC refuses those of a format that is neither registered nor the
    // default, and ours is not registered.
    sp_core::crypto::set_default_ss58_version(alice_primitives::SS58_PREFIX.into());
    end_quietly_on_closed_pipe();
    let matches = Cli::setup_command(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match &cli.subcommand {
        None => run_node(cli),
        Some(Subcommand::Key(command)) => key_command::run(command, &matches, &cli),
        Some(Subcommand::ExportChainSpec(command)) => {
            let spec = cli.load_spec(&command.chain)?;
            write_json(
                &sc_service::chain_ops::build_spec(&*spec, command.raw)?,
                command.output.as_deref(),
            )
        }
        Some(Subcommand::LocalnetSpec(command)) => write_json(
            &chain_spec::localnet(command)?.as_json(true)?,
            command.output.as_deref(),
        ),
        Some(Subcommand::LaunchSpec(command)) => {
            write_json(&chain_spec::launch(command)?.as_json(true)?, command.output.as_deref())
        }
        Some(Subcommand::VerifyGenesis(command)) => genesis::verify(command),
        Some(command) => run_on_database(&cli, command),
    }
}

/// Commands of the framework that work on a stopped node's database.
fn run_on_database(cli: &Cli, command: &Subcommand) -> sc_cli::Result<()> {
    match command {
        Subcommand::PurgeChain(command) => {
            let runner = cli.create_runner(command)?;
            runner.sync_run(|config| command.run(config.database))
        }
        Subcommand::CheckBlock(command) => {
            let runner = cli.create_runner(command)?;
            runner.async_run(|config| {
                let parts = service::new_partial(&config)?;
                Ok((command.run(parts.client, parts.import_queue), parts.task_manager))
            })
        }
        Subcommand::ExportBlocks(command) => {
            let runner = cli.create_runner(command)?;
            runner.async_run(|config| {
                let parts = service::new_partial(&config)?;
                Ok((command.run(parts.client, config.database), parts.task_manager))
            })
        }
        Subcommand::ImportBlocks(command) => {
            let runner = cli.create_runner(command)?;
            runner.async_run(|config| {
                let parts = service::new_partial(&config)?;
                Ok((command.run(parts.client, parts.import_queue), parts.task_manager))
            })
        }
        Subcommand::Revert(command) => {
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
        Subcommand::ChainInfo(command) => {
            let runner = cli.create_runner(command)?;
            // The runner has replaced the hook.
            end_quietly_on_closed_pipe();
            runner.sync_run(|config| command.run::<Block>(&config))
        }
        // Commands without a database, which `run` has carried out.
        Subcommand::Key(_)
        | Subcommand::ExportChainSpec(_)
        | Subcommand::LocalnetSpec(_)
        | Subcommand::LaunchSpec(_)
        | Subcommand::VerifyGenesis(_) => Ok(()),
    }
}

/// Runs the node until a signal, or until one of its essential tasks fails.
fn run_node(mut cli: Cli) -> sc_cli::Result<()> {
    // A validator without a network key makes one and keeps it in its base path, as every other node does.
    cli.run.network_params.node_key_params.unsafe_force_node_key_generation = true;
    cli.run.shared_params.log.insert(0, LOG_FILTER.into());
    let tokio = sc_cli::build_runtime()?;
    // Captured first: a signal during a slow start must not be lost.
    let signals = tokio.block_on(async { Signals::capture() })?;
    let mut config = cli.run.create_configuration(&cli, tokio.handle().clone())?;
    cli.run.init(&Cli::support_url(), &Cli::impl_version(), |_| {})?;
    print_node_infos::<Cli>(&config);

    chain_spec::check_has_validators(&*config.chain_spec)?;
    check_ports(&config)?;
    restrict_rpc(&mut config);
    let mut task_manager = tokio.block_on(async {
        match config.network.network_backend {
            NetworkBackendType::Libp2p => service::new_full::<sc_network::NetworkWorker<_, _>>(config),
            NetworkBackendType::Litep2p => service::new_full::<sc_network::Litep2pNetworkBackend>(config),
        }
    })?;
    let outcome = tokio.block_on(signals.try_until_signal(task_manager.future().fuse()));
    let log_level = log::max_level();
    if outcome.is_err() {
        log::info!("Stopping, as asked by a signal");
        // From here on tasks end on purpose, but the framework logs each end of an essential one as a failure of the
        // node.
        log::set_max_level(log::LevelFilter::Off);
    }
    let tasks = task_manager.into_task_registry();
    tokio.shutdown_timeout(STOP_TIMEOUT);
    log::set_max_level(log_level);
    let running = tasks.running_tasks();
    if !running.is_empty() {
        let names: Vec<_> = running.keys().map(|task| task.name).collect();
        log::warn!(
            "Tasks that did not end within {} s: {}",
            STOP_TIMEOUT.as_secs(),
            names.join(", ")
        );
    }
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.into()),
        Err(()) => {
            log::info!("Stopped");
            Ok(())
        }
    }
}

/// Ends the process without a word if standard output is a pipe whose reader has gone, as in `… | head -1`. The
/// framework's commands print with `println!`, which panics then.
fn end_quietly_on_closed_pipe() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload().downcast_ref::<String>();
        if message.is_some_and(|text| text.starts_with("failed printing to stdout") && text.contains("Broken pipe")) {
            std::process::exit(0);
        }
        usual(info)
    }));
}

/// Writes a specification into a file, or to standard output without one.
fn write_json(json: &str, output: Option<&Path>) -> sc_cli::Result<()> {
    match output {
        Some(path) => {
            std::fs::write(path, json).map_err(|error| format!("cannot write {}: {error}", path.display()))?
        }
        None => output::print(json)?,
    }
    Ok(())
}

/// Switches unsafe RPC methods off unless they were asked for by name.
///
/// The framework's `auto` allows them on the loopback interface, where a web page that the operator visits can reach
/// them: browsers let any page open a WebSocket, and the server does not look at its `Origin`. A development network
/// has nothing to lose.
fn restrict_rpc(config: &mut Configuration) {
    if config.chain_spec.chain_type() == ChainType::Development {
        return;
    }
    let safe_unless_named = |methods: &mut RpcMethods| {
        if matches!(methods, RpcMethods::Auto) {
            *methods = RpcMethods::Safe;
        }
    };
    safe_unless_named(&mut config.rpc.methods);
    for endpoint in config.rpc.addr.iter_mut().flatten() {
        safe_unless_named(&mut endpoint.rpc_methods);
    }
}

/// Refuses a port that another program has, by its option. Without this the RPC server would take a random port without
/// a word, and Prometheus would fail with the text of a data structure.
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
    let prometheus = config.prometheus_config.iter();
    let prometheus = prometheus.map(|prometheus| ("--prometheus-port", prometheus.port));
    for (option, address) in p2p.chain(rpc).chain(prometheus) {
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
