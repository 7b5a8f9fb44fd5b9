//! Block 0, recomputed from a chain specification alone: its hash, and `verify-genesis`.
//!
//! A specification is a map of storage, so it can hold anything: coins, but also a runtime upgrade that comes into
//! force with block 1 (`:pending_code`). A list of what is forbidden would never be complete. Instead the few things
//! that a network may choose ([`Choices`]) are read, block 0 is built anew from them, and both maps must be equal.

use crate::{chain_spec, cli::VerifyGenesisCmd};
use alice_primitives::GENESIS_MESSAGE;
use alice_runtime::{configs::GENESIS_MESSAGE_HASH, genesis, opaque::Block, AccountId, SessionKeys, WASM_BINARY};
use codec::{Decode, DecodeAll};
use pallet_epoch::{ParameterServer, Parameters};
use sc_chain_spec::{construct_genesis_block, resolve_state_version_from_wasm, GenesisConfigBuilderRuntimeCaller};
use sc_executor::WasmExecutor;
use sp_core::{
    storage::{well_known_keys, Storage},
    H256,
};
use sp_io::hashing::{blake2_256, twox_128};
use sp_runtime::{
    traits::{BlakeTwo256, Block as BlockT},
    BuildStorage,
};
use sp_state_machine::InMemoryBackend;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// Map of storage, keys and values encoded.
type StorageMap = BTreeMap<Vec<u8>, Vec<u8>>;

/// Storage items named in an error at most; the rest is counted.
const FAULTS_NAMED_MAX: usize = 5;

/// Block 0 of a specification.
struct Genesis {
    hash: H256,
    state_root: H256,
    message: Vec<u8>,
    total_issuance: Option<Vec<u8>>,
    /// BLAKE2-256 of the runtime.
    code_hash: [u8; 32],
    /// Storage items that differ from the block 0 that [`rebuild`] makes.
    differences: Vec<String>,
}

/// Parts of block 0 that a network may choose, besides the runtime.
struct Choices {
    parameters: Parameters,
    validators: Vec<(AccountId, SessionKeys)>,
    parameter_servers: Vec<ParameterServer<AccountId>>,
    run_hash: Option<H256>,
}

/// Checks block 0 and prints what it consists of. Fails if anything is not as it must be.
pub fn verify(options: &VerifyGenesisCmd) -> sc_cli::Result<()> {
    let spec = chain_spec::load(&options.chain)?;
    let genesis = inspect(&spec.build_storage()?)?;
    // The exit code is the result, so a closed pipe must not cut the check short.
    alice_program::output::print_while_read(&report(&genesis))?;
    let ours = WASM_BINARY.map(blake2_256);
    match fault(&genesis, options.expect_hash.map(H256), ours) {
        Some(fault) => Err(fault.into()),
        None => Ok(alice_program::output::print_while_read(
            "ok: block 0 is what it should be\n",
        )?),
    }
}

/// Hash of the block 0 that this storage makes.
pub fn block_hash(storage: &Storage) -> Result<H256, String> {
    block(storage).map(|(hash, _)| hash)
}

fn report(genesis: &Genesis) -> String {
    let issuance = match genesis.total_issuance {
        None => "absent: no coin exists",
        Some(_) => "PRESENT",
    };
    let mut text = format!(
        "genesis hash    {:?}\nstate root      {:?}\ntotal issuance  {issuance}\nruntime         0x{} (BLAKE2-256)\nmessage\n\n",
        genesis.hash,
        genesis.state_root,
        hex::encode(genesis.code_hash)
    );
    for line in String::from_utf8_lossy(&genesis.message).lines() {
        let _ = writeln!(text, "    {line}");
    }
    text.push('\n');
    text
}

fn fault(genesis: &Genesis, expected: Option<H256>, our_code: Option<[u8; 32]>) -> Option<String> {
    if genesis.message != GENESIS_MESSAGE.as_bytes() || blake2_256(&genesis.message) != GENESIS_MESSAGE_HASH {
        return Some("the message in block 0 is not the published one".into());
    }
    if genesis.total_issuance.is_some() {
        return Some("coins exist in block 0: the total issuance is set".into());
    }
    if !genesis.differences.is_empty() {
        let named = genesis.differences.iter().take(FAULTS_NAMED_MAX).cloned();
        let named = named.collect::<Vec<_>>().join(", ");
        let more = genesis.differences.len().saturating_sub(FAULTS_NAMED_MAX);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        return Some(format!(
            "the storage of block 0 is not what its runtime builds for this network: {named}{more}"
        ));
    }
    match expected {
        // Nothing else vouches for the runtime: it could mint as it likes.
        None if our_code != Some(genesis.code_hash) => Some(
            "the specification's runtime is another one than this node was built with; check it with --expect-hash \
             against a hash that you trust"
                .into(),
        ),
        Some(expected) if expected != genesis.hash => Some(format!(
            "block 0 has the hash {:?}, expected {expected:?}",
            genesis.hash
        )),
        _ => None,
    }
}

fn inspect(storage: &Storage) -> Result<Genesis, String> {
    // By the specification's own runtime, not the one of this program: a release must still verify networks that were
    // launched with an older one. Whether that runtime can be trusted is a question of its own (`fault`).
    let expected = rebuild(code(storage)?, Choices::read(&storage.top)?)?;
    compare(storage, &expected)
}

/// Describes block 0, with its differences from the expected storage.
fn compare(storage: &Storage, expected: &StorageMap) -> Result<Genesis, String> {
    let message = match storage.top.get(&key("Genesis", "Message")) {
        Some(encoded) => Vec::decode(&mut &encoded[..]).map_err(|error| format!("the message is damaged: {error}"))?,
        None => Vec::new(),
    };
    let (hash, state_root) = block(storage)?;
    let mut differences = differences(&storage.top, expected);
    if !storage.children_default.is_empty() {
        differences.push(format!("{} child tries", storage.children_default.len()));
    }
    Ok(Genesis {
        hash,
        state_root,
        message,
        total_issuance: storage.top.get(&key("Balances", "TotalIssuance")).cloned(),
        code_hash: blake2_256(code(storage)?),
        differences,
    })
}

fn code(storage: &Storage) -> Result<&[u8], String> {
    let code = storage.top.get(well_known_keys::CODE);
    code.map(Vec::as_slice)
        .ok_or_else(|| "the specification has no runtime (`:code`)".into())
}

/// Hash and state root of the block 0 that this storage makes.
fn block(storage: &Storage) -> Result<(H256, H256), String> {
    let executor = WasmExecutor::<sp_io::SubstrateHostFunctions>::builder().build();
    let version = resolve_state_version_from_wasm::<_, BlakeTwo256>(storage, &executor)
        .map_err(|error| format!("the runtime in the specification does not state its version: {error}"))?;
    let backend: InMemoryBackend<BlakeTwo256> = (storage.clone(), version).into();
    let state_root = *backend.root();
    let block = construct_genesis_block::<Block>(state_root, version);
    Ok((block.header().hash(), state_root))
}

impl Choices {
    /// Reads them from the places where genesis writes them.
    fn read(top: &StorageMap) -> Result<Self, String> {
        Ok(Self {
            parameters: value(top, "Epoch", "NetworkParameters")?.ok_or("the network has no parameters")?,
            validators: value(top, "Session", "QueuedKeys")?.unwrap_or_default(),
            parameter_servers: value(top, "Epoch", "ParameterServers")?.unwrap_or_default(),
            run_hash: value(top, "Epoch", "RunHash")?,
        })
    }
}

fn value<T: Decode>(top: &StorageMap, pallet: &str, item: &str) -> Result<Option<T>, String> {
    top.get(&key(pallet, item))
        .map(|encoded| {
            T::decode_all(&mut &encoded[..]).map_err(|error| format!("{pallet}::{item} is damaged: {error}"))
        })
        .transpose()
}

/// Block 0's storage as the runtime builds it from these choices.
fn rebuild(code: &[u8], choices: Choices) -> Result<StorageMap, String> {
    let failed = |error: String| format!("the runtime in the specification cannot build its block 0: {error}");
    let patch = chain_spec::with_generic_addresses(|| {
        genesis::patch(
            choices.parameters,
            choices.validators,
            choices.parameter_servers,
            choices.run_hash,
        )
    });
    let runtime = GenesisConfigBuilderRuntimeCaller::<()>::new(code);
    // The runtime builds all but itself.
    let mut storage = runtime.get_storage_for_patch(patch).map_err(failed)?;
    storage.top.insert(well_known_keys::CODE.to_vec(), code.to_vec());
    Ok(storage.top)
}

/// Names of the items whose values differ, or which only one of the maps has.
fn differences(found: &StorageMap, expected: &StorageMap) -> Vec<String> {
    let keys: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    let mut names = Vec::new();
    for key in keys {
        let what = match (found.get(key), expected.get(key)) {
            (found, expected) if found == expected => continue,
            (Some(_), None) => "should not be there",
            (None, _) => "is missing",
            (Some(_), Some(_)) => "has another value",
        };
        names.push(format!("{} {what}", key_name(key)));
    }
    names
}

/// `Pallet::Item` if the runtime has it; else the key as text (`:pending_code`) or in hexadecimal.
fn key_name(key: &[u8]) -> String {
    let readable = || {
        let text = std::str::from_utf8(key).ok()?;
        text.chars().all(|c| c.is_ascii_graphic()).then(|| text.to_owned())
    };
    alice_runtime::storage_item_name(key)
        .or_else(readable)
        .unwrap_or_else(|| format!("0x{}", hex::encode(key)))
}

fn key(pallet: &str, item: &str) -> Vec<u8> {
    [twox_128(pallet.as_bytes()), twox_128(item.as_bytes())].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use codec::Encode;

    fn good() -> (Storage, [u8; 32]) {
        let storage = chain_spec::mainnet().unwrap().build_storage().unwrap();
        (storage, blake2_256(WASM_BINARY.unwrap()))
    }

    #[test]
    fn genesis_should_pass_when_it_is_as_published() {
        let (storage, code) = good();
        let genesis = inspect(&storage).unwrap();
        assert_eq!(fault(&genesis, None, Some(code)), None);
        assert_eq!(fault(&genesis, Some(genesis.hash), None), None);
    }

    #[test]
    fn genesis_should_pass_when_it_has_validators_servers_and_a_run() {
        use clap::Parser;
        let options = crate::cli::LocalnetSpecCmd::parse_from([
            "localnet-spec",
            "--validators=3",
            &format!("--ps=0x{}", "07".repeat(32)),
            &format!("--run-hash=0x{}", "11".repeat(32)),
        ]);
        let storage = chain_spec::localnet(&options).unwrap().build_storage().unwrap();
        let genesis = inspect(&storage).unwrap();
        assert_eq!(fault(&genesis, None, WASM_BINARY.map(blake2_256)), None);
    }

    #[test]
    fn genesis_should_fail_when_anything_differs() {
        type Change = fn(&mut Storage);
        let cases: [(&str, Change); 9] = [
            ("message", |s| {
                s.top.insert(key("Genesis", "Message"), b"\x08no".to_vec());
            }),
            ("total issuance", |s| {
                s.top.insert(key("Balances", "TotalIssuance"), vec![0; 16]);
            }),
            ("System::Account should not be there", |s| {
                let mut info = frame_system::AccountInfo::<u32, pallet_balances::AccountData<u128>>::default();
                info.data.free = 1;
                s.top
                    .insert([key("System", "Account"), vec![7; 48]].concat(), info.encode());
            }),
            ("Emission::Issued should not be there", |s| {
                s.top.insert(key("Emission", "Issued"), vec![1; 16]);
            }),
            ("Epoch::Commitments", |s| {
                s.top
                    .insert([key("Epoch", "Commitments"), vec![0; 12]].concat(), vec![0]);
            }),
            // A runtime that replaces this one at the end of block 1.
            (":pending_code should not be there", |s| {
                s.top.insert(b":pending_code".to_vec(), vec![0; 9]);
            }),
            ("System::AuthorizedUpgrade", |s| {
                s.top.insert(key("System", "AuthorizedUpgrade"), vec![0; 33]);
            }),
            ("Session::CurrentIndex", |s| {
                s.top.remove(&key("Session", "CurrentIndex"));
                s.top.insert(key("Session", "CurrentIndex"), vec![9, 0, 0, 0]);
            }),
            ("0xabcdef", |s| {
                s.top.insert(vec![0xab, 0xcd, 0xef], vec![]);
            }),
        ];
        // Built once: none of the changes is a choice of the network, and building takes seconds without optimisation.
        let (published, our_code) = good();
        let expected = rebuild(code(&published).unwrap(), Choices::read(&published.top).unwrap()).unwrap();
        for (words, change) in cases {
            let mut storage = published.clone();
            change(&mut storage);
            let genesis = compare(&storage, &expected).unwrap();
            let found = fault(&genesis, Some(genesis.hash), Some(our_code)).unwrap();
            assert!(found.contains(words), "{found}");
        }
        let genesis = compare(&published, &expected).unwrap();
        assert!(fault(&genesis, None, Some([0; 32])).unwrap().contains("runtime"));
        assert!(fault(&genesis, Some(H256::zero()), None).unwrap().contains("expected"));
    }

    #[test]
    fn genesis_should_fail_when_something_is_missing_or_damaged() {
        let (mut storage, code) = good();
        storage.top.remove(&key("Genesis", "Message"));
        storage.top.remove(&key("Session", "Validators"));
        let genesis = inspect(&storage).unwrap();
        assert!(genesis
            .differences
            .iter()
            .any(|d| d == "Session::Validators is missing"));
        assert!(fault(&genesis, None, Some(code)).is_some());
        storage.top.insert(key("Epoch", "NetworkParameters"), vec![1]);
        assert!(inspect(&storage).err().unwrap().contains("damaged"));
        storage.top.remove(well_known_keys::CODE);
        assert!(inspect(&storage).err().unwrap().contains(":code"));
    }
}
