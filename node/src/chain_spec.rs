//! Chain specifications: networks by name, local networks, and the launch of the main network.

use crate::{
    cli::{LaunchSpecCmd, LocalnetSpecCmd},
    genesis as block_0,
};
use alice_runtime::{configs::MAX_VALIDATORS, genesis, AccountId, SessionKeys, WASM_BINARY};
use pallet_epoch::{ParameterServer, Parameters};
use sc_network::config::MultiaddrWithPeerId;
use sc_service::{ChainType, GenericChainSpec, Properties};
use sp_core::{
    crypto::{default_ss58_version, set_default_ss58_version, Ss58Codec},
    ed25519, sr25519, H256,
};
use sp_genesis_builder::{DEV_RUNTIME_PRESET, LOCAL_TESTNET_RUNTIME_PRESET};
use sp_runtime::BuildStorage;
use std::path::PathBuf;

/// SS58 prefix of addresses that belong to no network.
const GENERIC_PREFIX: u16 = 42;

/// Identifier of the networks that `localnet-spec` describes; a part of the genesis hash follows it.
const LOCALNET_ID: &str = "alice_localnet";

/// Chain specification of a network.
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

/// A local network with the options of the command line.
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
    let patch = with_generic_addresses(|| genesis::patch(parameters, validators, servers, options.run_hash.map(H256)));
    let wasm = wasm()?;
    let with_id = |id: &str| {
        ChainSpec::builder(wasm, None)
            .with_name("Alice local network")
            .with_id(id)
            .with_protocol_id(id)
            .with_chain_type(ChainType::Local)
            .with_properties(properties())
            .with_boot_nodes(bootnodes.clone())
            .with_genesis_config_patch(patch.clone())
            .build()
    };
    // The identifier is also the name of the network's folder under a base path. It does not enter block 0, so it can
    // be made of its hash: networks that differ never share a folder.
    let hash = block_0::block_hash(&with_id(LOCALNET_ID).build_storage()?)?;
    Ok(with_id(&format!("{LOCALNET_ID}_{}", hex::encode(&hash.0[..4]))))
}

/// Runs `build` with the generic address format as the default. The runtime's genesis reads no other, because the
/// default of a wasm runtime is fixed; this program uses the network's own format everywhere else.
pub fn with_generic_addresses<T>(build: impl FnOnce() -> T) -> T {
    let usual = default_ss58_version();
    set_default_ss58_version(GENERIC_PREFIX.into());
    let built = build();
    set_default_ss58_version(usual);
    built
}

/// Launch file of the main network. Accounts and keys are addresses, in this network's format or the generic one.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Launch {
    validators: Vec<LaunchValidator>,
    parameter_servers: Vec<LaunchServer>,
    run_hash: H256,
    #[serde(default)]
    bootnodes: Vec<String>,
}

/// A validator of a launch.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct LaunchValidator {
    account: String,
    keys: LaunchKeys,
}

/// A validator's session keys.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct LaunchKeys {
    grandpa: String,
    babe: String,
    authority_discovery: String,
}

/// A parameter server of a launch.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct LaunchServer {
    account: String,
    key: String,
}

impl LaunchValidator {
    fn decode(&self) -> Result<(AccountId, SessionKeys), String> {
        let keys = SessionKeys {
            grandpa: address::<ed25519::Public>(&self.keys.grandpa)?.into(),
            babe: address::<sr25519::Public>(&self.keys.babe)?.into(),
            authority_discovery: address::<sr25519::Public>(&self.keys.authority_discovery)?.into(),
        };
        Ok((address(&self.account)?, keys))
    }
}

impl LaunchServer {
    fn decode(&self) -> Result<ParameterServer<AccountId>, String> {
        Ok(ParameterServer {
            account: address(&self.account)?,
            key: address(&self.key)?,
        })
    }
}

fn address<T: Ss58Codec>(text: &str) -> Result<T, String> {
    match T::from_ss58check_with_version(text) {
        Ok((found, version)) if [alice_primitives::SS58_PREFIX, GENERIC_PREFIX].contains(&version.into()) => Ok(found),
        Ok((_, version)) => Err(format!(
            "{text} is an address of another network (prefix {})",
            u16::from(version)
        )),
        Err(error) => Err(format!("{text} is not an address: {error:?}")),
    }
}

/// The main network with the validators and parameter servers of a launch file. Nobody has coins.
pub fn launch(options: &LaunchSpecCmd) -> Result<ChainSpec, String> {
    let path = options.launch.display();
    let text = std::fs::read_to_string(&options.launch).map_err(|error| format!("cannot read {path}: {error}"))?;
    let launch: Launch = serde_json::from_str(&text).map_err(|error| format!("{path} is not a launch: {error}"))?;
    if launch.validators.is_empty() || launch.parameter_servers.is_empty() {
        return Err(format!(
            "{path}: a network needs at least one validator and one parameter server"
        ));
    }
    let in_file = |problem: String| format!("{path}: {problem}");
    let servers: Vec<_> = launch
        .parameter_servers
        .iter()
        .map(LaunchServer::decode)
        .collect::<Result<_, _>>()
        .map_err(in_file)?;
    let validators: Vec<_> = launch
        .validators
        .iter()
        .map(LaunchValidator::decode)
        .collect::<Result<_, _>>()
        .map_err(in_file)?;
    let server_keys: Vec<_> = servers.iter().map(|server| server.key.0).collect();
    check_counts(validators.len(), &server_keys).map_err(in_file)?;
    // Genesis accepts duplicates, and the network would count one operator as two.
    for (i, (account, keys)) in validators.iter().enumerate() {
        let same = |(other, others): &(AccountId, SessionKeys)| {
            other == account
                || others.grandpa == keys.grandpa
                || others.babe == keys.babe
                || others.authority_discovery == keys.authority_discovery
        };
        if validators[..i].iter().any(same) {
            return Err(in_file(format!(
                "validator {} shares its account or a key with an earlier one",
                i + 1
            )));
        }
    }
    let patch =
        with_generic_addresses(|| genesis::patch(Parameters::default(), validators, servers, Some(launch.run_hash)));
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

/// Checks what the runtime's genesis would answer with a panic.
fn check_counts(validators: usize, server_keys: &[[u8; 32]]) -> Result<(), String> {
    let (validators_max, servers_max) = (
        MAX_VALIDATORS as usize,
        alice_primitives::PARAMETER_SERVERS_MAX as usize,
    );
    if validators > validators_max {
        return Err(format!("{validators} validators; the maximum is {validators_max}"));
    }
    if server_keys.len() > servers_max {
        return Err(format!(
            "{} parameter servers; the maximum is {servers_max}",
            server_keys.len()
        ));
    }
    let distinct: std::collections::BTreeSet<_> = server_keys.iter().collect();
    if distinct.len() != server_keys.len() {
        return Err("two parameter servers have the same key".into());
    }
    Ok(())
}

/// Refuses a network without validators: it would stay at block 0 for ever, under the name of the network that is
/// launched later.
pub fn check_has_validators(spec: &dyn sc_service::ChainSpec) -> Result<(), String> {
    let storage = spec.as_storage_builder().build_storage()?;
    let key = [
        sp_io::hashing::twox_128(b"Babe"),
        sp_io::hashing::twox_128(b"Authorities"),
    ]
    .concat();
    // SCALE begins a list with its length: an empty one is a single zero.
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

/// The network with this name, or in this file.
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
        // This network's format and the generic one, mixed.
        let address = |seed: u8| {
            let prefix = if seed.is_multiple_of(2) {
                GENERIC_PREFIX
            } else {
                alice_primitives::SS58_PREFIX
            };
            AccountId::from([seed; 32]).to_ss58check_with_version(prefix.into())
        };
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
        assert!(launch_error(launch_json(32)).contains("maximum is 31"));
        let mut json = launch_json(2);
        json["parameterServers"][1] = json["parameterServers"][0].clone();
        assert!(launch_error(json).contains("the same key"));
        let mut json = launch_json(1);
        json.as_object_mut().unwrap().remove("runHash");
        assert!(launch_error(json).contains("runHash"));
    }

    #[test]
    fn a_launch_should_have_its_validators_and_no_coins() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), launch_json(2).to_string()).unwrap();
        let spec = launch(&LaunchSpecCmd {
            launch: file.path().into(),
            output: None,
        })
        .unwrap();
        check_has_validators(&spec).unwrap();
        let mut json = launch_json(1);
        json["validators"][0]["account"] = "5GrwvaEF".into();
        assert!(launch_error(json).contains("is not an address"));
        let mut json = launch_json(1);
        let foreign = AccountId::from([1; 32]).to_ss58check_with_version(0u16.into());
        json["validators"][0]["account"] = foreign.into();
        assert!(launch_error(json).contains("another network (prefix 0)"));
    }

    #[test]
    fn localnets_should_have_different_ids_when_their_genesis_differs() {
        use clap::Parser;
        let id = |arguments: &[&str]| {
            let options = LocalnetSpecCmd::parse_from(["localnet-spec"].iter().chain(arguments));
            localnet(&options).unwrap().id().to_owned()
        };
        let (ones, twos) = ("11".repeat(32), "22".repeat(32));
        assert_eq!(id(&["--run-hash", &ones]), id(&["--run-hash", &ones]));
        assert_ne!(id(&["--run-hash", &ones]), id(&["--run-hash", &twos]));
        assert_ne!(id(&["--validators", "1"]), id(&["--validators", "2"]));
        assert!(id(&[]).starts_with("alice_localnet_"));
    }

    #[test]
    fn only_networks_with_validators_should_run() {
        assert!(check_has_validators(&mainnet().unwrap())
            .unwrap_err()
            .contains("not launched"));
        check_has_validators(&development().unwrap()).unwrap();
    }
}
