//! Networks by name.

use crate::cli::{LaunchSpecCmd, LocalnetSpecCmd};
use alice_runtime::{configs::MAX_VALIDATORS, genesis, AccountId, SessionKeys, WASM_BINARY};
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
    check_counts(options.validators.into(), &options.parameter_servers)?;
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
    run_hash: H256,
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
    let server_keys: Vec<_> = launch.parameter_servers.iter().map(|server| server.key.0).collect();
    check_counts(launch.validators.len(), &server_keys).map_err(|problem| format!("{path}: {problem}"))?;
    for (i, validator) in launch.validators.iter().enumerate() {
        let same = |other: &LaunchValidator| {
            let (a, b) = (&other.keys, &validator.keys);
            other.account == validator.account
                || a.grandpa == b.grandpa
                || a.babe == b.babe
                || a.authority_discovery == b.authority_discovery
        };
        if launch.validators[..i].iter().any(same) {
            return Err(format!(
                "{path}: validator {} shares its account or a key with an earlier one",
                i + 1
            ));
        }
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
        Some(launch.run_hash),
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

/// What genesis would panic about.
fn check_counts(validators: usize, server_keys: &[[u8; 32]]) -> Result<(), String> {
    let (validators_max, servers_max) = (
        MAX_VALIDATORS as usize,
        alice_primitives::PARAMETER_SERVERS_MAX as usize,
    );
    if validators > validators_max {
        return Err(format!("{validators} validators, at most {validators_max} can be"));
    }
    if server_keys.len() > servers_max {
        return Err(format!(
            "{} parameter servers, at most {servers_max} can be",
            server_keys.len()
        ));
    }
    let distinct: std::collections::BTreeSet<_> = server_keys.iter().collect();
    if distinct.len() != server_keys.len() {
        return Err("two parameter servers have the same key".into());
    }
    Ok(())
}

/// A network that nobody validates would stand at block 0 for ever, under the name of the one that is launched later.
pub fn check_has_validators(spec: &dyn sc_service::ChainSpec) -> Result<(), String> {
    let storage = spec.as_storage_builder().build_storage()?;
    let key = [
        sp_io::hashing::twox_128(b"Babe"),
        sp_io::hashing::twox_128(b"Authorities"),
    ]
    .concat();
    // An encoded list without entries is a single zero.
    match storage.top.get(&key) {
        Some(list) if list.first().is_some_and(|count| *count != 0) => Ok(()),
        _ => Err(format!(
            "the network '{}' has no validators: it is not launched yet; give the specification of its launch with --chain FILE, \
             or run a network of your own with --dev",
            spec.id()
        )),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn launch_error(json: serde_json::Value) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json.to_string()).unwrap();
        launch(&LaunchSpecCmd {
            launch: file.path().into(),
            output: None,
        })
        .err()
        .unwrap()
    }

    fn launch_json(servers: usize) -> serde_json::Value {
        let address = |seed: u8| sp_core::crypto::Ss58Codec::to_ss58check(&AccountId::from([seed; 32]));
        let validator = |seed: u8| {
            serde_json::json!({ "account": address(seed), "keys": {
                "grandpa": address(seed), "babe": address(seed), "authority_discovery": address(seed) } })
        };
        let server = |seed: u8| serde_json::json!({ "account": address(seed), "key": address(seed) });
        serde_json::json!({
            "validators": [validator(1), validator(2)],
            "parameterServers": (0..servers).map(|i| server(i as u8)).collect::<Vec<_>>(),
            "runHash": format!("0x{}", "01".repeat(32)),
        })
    }

    #[test]
    fn launches_should_be_refused_with_a_reason() {
        let mut json = launch_json(1);
        json["validators"] = serde_json::json!([]);
        assert!(launch_error(json).contains("at least one validator"));
        let mut json = launch_json(1);
        json["validators"][1] = json["validators"][0].clone();
        assert!(launch_error(json).contains("shares its account or a key"));
        assert!(launch_error(launch_json(32)).contains("at most 31"));
        let mut json = launch_json(2);
        json["parameterServers"][1] = json["parameterServers"][0].clone();
        assert!(launch_error(json).contains("the same key"));
        let mut json = launch_json(1);
        json.as_object_mut().unwrap().remove("runHash");
        assert!(launch_error(json).contains("runHash"));
    }

    #[test]
    fn only_networks_with_validators_should_run() {
        assert!(check_has_validators(&mainnet().unwrap())
            .unwrap_err()
            .contains("not launched"));
        check_has_validators(&development().unwrap()).unwrap();
    }
}
