//! Genesis of the networks. No account has coins in any of them: all ALICE is mined.

use crate::{configs::MAX_VALIDATORS, AccountId, RuntimeGenesisConfig, SessionKeys, BABE_GENESIS_EPOCH_CONFIG};
use alloc::{string::ToString, vec, vec::Vec};
use frame_support::build_struct_json_patch;
use pallet_epoch::{ParameterServer, Parameters};
use serde_json::Value;
use sp_core::{sr25519, H256};
use sp_genesis_builder::{PresetId, DEV_RUNTIME_PRESET, LOCAL_TESTNET_RUNTIME_PRESET};
use sp_keyring::{Ed25519Keyring, Sr25519Keyring};

/// Name of the main network's preset.
pub const MAINNET_PRESET: &str = "mainnet";

/// The keyring's accounts in the order in which test networks take their validators.
pub const TEST_VALIDATORS: [(Sr25519Keyring, Ed25519Keyring); 6] = [
    (Sr25519Keyring::Alice, Ed25519Keyring::Alice),
    (Sr25519Keyring::Bob, Ed25519Keyring::Bob),
    (Sr25519Keyring::Charlie, Ed25519Keyring::Charlie),
    (Sr25519Keyring::Dave, Ed25519Keyring::Dave),
    (Sr25519Keyring::Eve, Ed25519Keyring::Eve),
    (Sr25519Keyring::Ferdie, Ed25519Keyring::Ferdie),
];

/// The parameter server of the development networks: the keyring's `//One`.
pub fn test_parameter_server() -> ParameterServer<AccountId> {
    parameter_server(Sr25519Keyring::One.public())
}

/// A parameter server whose account is that of its key.
pub fn parameter_server(key: sr25519::Public) -> ParameterServer<AccountId> {
    ParameterServer {
        account: key.0.into(),
        key,
    }
}

/// The first `count` validators of test networks, with the keyring's keys.
pub fn test_validators(count: usize) -> Vec<(AccountId, SessionKeys)> {
    TEST_VALIDATORS
        .iter()
        .take(count)
        .map(|(sr25519, ed25519)| {
            let keys = SessionKeys {
                grandpa: ed25519.public().into(),
                babe: sr25519.public().into(),
                authority_discovery: sr25519.public().into(),
            };
            (sr25519.to_account_id(), keys)
        })
        .collect()
}

/// Patch of the genesis configuration of a network.
pub fn patch(
    parameters: Parameters,
    validators: Vec<(AccountId, SessionKeys)>,
    parameter_servers: Vec<ParameterServer<AccountId>>,
    run_hash: Option<H256>,
) -> Value {
    assert!(
        validators.len() <= MAX_VALIDATORS as usize,
        "more than {MAX_VALIDATORS} validators"
    );
    build_struct_json_patch!(RuntimeGenesisConfig {
        babe: pallet_babe::GenesisConfig {
            epoch_config: BABE_GENESIS_EPOCH_CONFIG
        },
        session: pallet_session::GenesisConfig {
            keys: validators
                .into_iter()
                // Account and validator are the same: without staking nobody validates for somebody else.
                .map(|(account, keys)| (account.clone(), account, keys))
                .collect::<Vec<_>>(),
        },
        epoch: pallet_epoch::GenesisConfig {
            parameters,
            parameter_servers,
            run_hash
        },
    })
}

/// The preset of that name, as JSON.
pub fn preset(id: &PresetId) -> Option<Vec<u8>> {
    let patch = match id.as_ref() {
        DEV_RUNTIME_PRESET => patch(
            Parameters::development(),
            test_validators(1),
            vec![test_parameter_server()],
            None,
        ),
        LOCAL_TESTNET_RUNTIME_PRESET => patch(
            Parameters::development(),
            test_validators(2),
            vec![test_parameter_server()],
            None,
        ),
        // The launch file names validators and parameter servers.
        MAINNET_PRESET => patch(Parameters::default(), Vec::new(), Vec::new(), None),
        _ => return None,
    };
    Some(patch.to_string().into_bytes())
}

/// Names of the presets.
pub fn preset_names() -> Vec<PresetId> {
    [DEV_RUNTIME_PRESET, LOCAL_TESTNET_RUNTIME_PRESET, MAINNET_PRESET]
        .map(PresetId::from)
        .to_vec()
}
