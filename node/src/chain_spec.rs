//! Networks by name.

use crate::cli::{LaunchSpecCmd, LocalnetSpecCmd};
use alice_runtime::{genesis, AccountId, SessionKeys, WASM_BINARY};
use pallet_epoch::{ParameterServer, Parameters};
use sc_network::config::MultiaddrWithPeerId;
use sc_service::{ChainType, GenericChainSpec, Properties};
use sp_core::{sr25519, H256};
use sp_genesis_builder::{DEV_RUNTIME_PRESET, LOCAL_TESTNET_RUNTIME_PRESET};
use std::path::PathBuf;

/// Specification of a network.
pub type ChainSpec = GenericChainSpec;

fn wasm() -> Result<&'static [u8], String> {
    WASM_BINARY.ok_or_else(|| "this node was built without a runtime (SKIP_WASM_BUILD was set)".into())
}

fn properties() -> Properties {
    let mut properties = Properties::new();
    properties.insert("tokenSymbol".into(), alice_primitives::TOKEN_SYMBOL.into());
    properties.insert("tokenDecimals".into(), alice_primitives::TOKEN_DECIMALS.into());
    properties.insert("ss58Format".into(), alice_primitives::SS58_PREFIX.into());
    properties
}

fn preset(name: &str, id: &str, chain_type: ChainType, preset: &str) -> Result<ChainSpec, String> {
    Ok(ChainSpec::builder(wasm()?, None)
        .with_name(name)
        .with_id(id)
        .with_protocol_id(id)
        .with_chain_type(chain_type)
        .with_properties(properties())
        .with_genesis_config_preset_name(preset)
        .build())
}

/// One validator, short epochs.
pub fn development() -> Result<ChainSpec, String> {
    preset(
        "Alice development",
        "alice_dev",
        ChainType::Development,
        DEV_RUNTIME_PRESET,
    )
}

/// Two validators, short epochs.
pub fn local() -> Result<ChainSpec, String> {
    preset(
        "Alice local network",
        "alice_local",
        ChainType::Local,
        LOCAL_TESTNET_RUNTIME_PRESET,
    )
}

/// The main network.
pub fn mainnet() -> Result<ChainSpec, String> {
    preset("Alice", "alice", ChainType::Live, genesis::MAINNET_PRESET)
}

/// A local network as the command line describes it.
pub fn localnet(options: &LocalnetSpecCmd) -> Result<ChainSpec, String> {
    let parameters = Parameters {
        slot_ms: options.slot_ms,
        epoch_blocks: options.epoch_blocks,
        window_blocks: options.window_blocks,
        late_epochs: options.late_epochs,
        session_slots: options.session_slots,
    };
    parameters.validate()?;
    let servers = if options.parameter_servers.is_empty() {
        vec![genesis::test_parameter_server()]
    } else {
        let keys = options
            .parameter_servers
            .iter()
            .map(|key| sr25519::Public::from_raw(*key));
        keys.map(genesis::parameter_server).collect()
    };
    let validators = genesis::test_validators(options.validators.into());
    let bootnodes = parse_bootnodes(&options.bootnodes)?;
    Ok(ChainSpec::builder(wasm()?, None)
        .with_name("Alice local network")
        .with_id("alice_localnet")
        .with_protocol_id("alice_localnet")
        .with_chain_type(ChainType::Local)
        .with_properties(properties())
        .with_boot_nodes(bootnodes)
        .with_genesis_config_patch(genesis::patch(
            parameters,
            validators,
            servers,
            options.run_hash.map(H256),
        ))
        .build())
}

/// Who starts the main network.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Launch {
    validators: Vec<LaunchValidator>,
    parameter_servers: Vec<ParameterServer<AccountId>>,
    run_hash: Option<H256>,
    #[serde(default)]
    bootnodes: Vec<String>,
}

/// One of its validators.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LaunchValidator {
    account: AccountId,
    keys: SessionKeys,
}

/// The main network with those who start it. Everything else is the runtime's preset: nobody has coins.
pub fn launch(options: &LaunchSpecCmd) -> Result<ChainSpec, String> {
    let path = options.launch.display();
    let text = std::fs::read_to_string(&options.launch).map_err(|error| format!("cannot read {path}: {error}"))?;
    let launch: Launch = serde_json::from_str(&text).map_err(|error| format!("{path} is not a launch: {error}"))?;
    if launch.validators.is_empty() || launch.parameter_servers.is_empty() {
        return Err(format!(
            "{path}: a network needs at least one validator and one parameter server"
        ));
    }
    let validators = launch
        .validators
        .into_iter()
        .map(|validator| (validator.account, validator.keys))
        .collect();
    let patch = genesis::patch(
        Parameters::default(),
        validators,
        launch.parameter_servers,
        launch.run_hash,
    );
    Ok(ChainSpec::builder(wasm()?, None)
        .with_name("Alice")
        .with_id("alice")
        .with_protocol_id("alice")
        .with_chain_type(ChainType::Live)
        .with_properties(properties())
        .with_boot_nodes(parse_bootnodes(&launch.bootnodes)?)
        .with_genesis_config_patch(patch)
        .build())
}

fn parse_bootnodes(addresses: &[String]) -> Result<Vec<MultiaddrWithPeerId>, String> {
    addresses
        .iter()
        .map(|address| {
            address
                .parse()
                .map_err(|error| format!("not an address of a node: {address}: {error}"))
        })
        .collect()
}

/// The network with that name, or in that file.
pub fn load(id: &str) -> Result<ChainSpec, String> {
    match id {
        "dev" => development(),
        "local" => local(),
        "mainnet" | "" => mainnet(),
        path => {
            let path = PathBuf::from(path);
            if !path.exists() {
                return Err(format!(
                    "no such chain: {}; give dev, local, mainnet, or the file of a chain specification",
                    path.display()
                ));
            }
            ChainSpec::from_json_file(path)
        }
    }
}
