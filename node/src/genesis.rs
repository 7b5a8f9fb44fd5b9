//! `verify-genesis`: block 0 recomputed from the specification alone.

use crate::{chain_spec, cli::VerifyGenesisCmd};
use alice_primitives::GENESIS_MESSAGE;
use alice_runtime::{configs::GENESIS_MESSAGE_HASH, opaque::Block, WASM_BINARY};
use codec::Decode;
use sc_chain_spec::{construct_genesis_block, resolve_state_version_from_wasm};
use sc_executor::WasmExecutor;
use sp_core::{storage::Storage, H256};
use sp_runtime::{
    traits::{BlakeTwo256, Block as BlockT},
    BuildStorage,
};
use sp_state_machine::InMemoryBackend;

/// What block 0 consists of, as far as it can be checked.
struct Genesis {
    hash: H256,
    state_root: H256,
    message: Vec<u8>,
    total_issuance: Option<Vec<u8>>,
    accounts_with_coins: usize,
    /// BLAKE2-256 of the runtime.
    code_hash: [u8; 32],
    /// Items of our pallets that only later blocks may write.
    written_before_time: Vec<String>,
}

/// Storage of our pallets that must be absent in block 0: accepted epochs, issued coins, payments.
const LATER_ITEMS: [(&str, &str); 12] = [
    ("Epoch", "Commitments"),
    ("Epoch", "Latest"),
    ("Epoch", "ClosedBefore"),
    ("Epoch", "Attestations"),
    ("Epoch", "Vetoes"),
    ("Epoch", "ReopenedEpochs"),
    ("Epoch", "PrunedBefore"),
    ("Emission", "Issued"),
    ("Emission", "IssuedByEpoch"),
    ("Emission", "PrunedBefore"),
    ("Reward", "Ledgers"),
    ("Reward", "PrunedBefore"),
];

/// Checks block 0 and says what was found; an error when anything is not as it must be.
pub fn verify(options: &VerifyGenesisCmd) -> sc_cli::Result<()> {
    let spec = chain_spec::load(&options.chain)?;
    let genesis = recompute(spec.build_storage()?)?;
    println!("genesis hash    {:?}", genesis.hash);
    println!("state root      {:?}", genesis.state_root);
    println!(
        "total issuance  {}",
        if genesis.total_issuance.is_none() {
            "absent: no coin exists"
        } else {
            "PRESENT"
        }
    );
    println!("runtime         0x{} (BLAKE2-256)", hex::encode(genesis.code_hash));
    println!("message\n");
    for line in String::from_utf8_lossy(&genesis.message).lines() {
        println!("    {line}");
    }
    println!();
    let ours = WASM_BINARY.map(sp_io::hashing::blake2_256);
    match fault(&genesis, options.expect_hash.map(H256), ours) {
        Some(fault) => Err(fault.into()),
        None => {
            println!("ok: block 0 is what it should be");
            Ok(())
        }
    }
}

fn fault(genesis: &Genesis, expected: Option<H256>, our_code: Option<[u8; 32]>) -> Option<String> {
    if genesis.message != GENESIS_MESSAGE.as_bytes()
        || sp_io::hashing::blake2_256(&genesis.message) != GENESIS_MESSAGE_HASH
    {
        return Some("the message in block 0 is not the published one".into());
    }
    if genesis.total_issuance.is_some() {
        return Some("coins exist in block 0: the total issuance is set".into());
    }
    if genesis.accounts_with_coins > 0 {
        return Some(format!(
            "coins exist in block 0: on {} accounts",
            genesis.accounts_with_coins
        ));
    }
    if let Some(item) = genesis.written_before_time.first() {
        return Some(format!(
            "block 0 already holds {item}, which only later blocks may write"
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

fn key(pallet: &str, item: &str) -> Vec<u8> {
    [
        sp_io::hashing::twox_128(pallet.as_bytes()),
        sp_io::hashing::twox_128(item.as_bytes()),
    ]
    .concat()
}

fn recompute(storage: Storage) -> Result<Genesis, String> {
    let message = match storage.top.get(&key("Genesis", "Message")) {
        Some(encoded) => Vec::decode(&mut &encoded[..]).map_err(|error| format!("the message is damaged: {error}"))?,
        None => Vec::new(),
    };
    let total_issuance = storage.top.get(&key("Balances", "TotalIssuance")).cloned();
    let accounts = key("System", "Account");
    let mut accounts_with_coins = 0;
    for (_, value) in storage
        .top
        .range(accounts.clone()..)
        .take_while(|(key, _)| key.starts_with(&accounts))
    {
        type Account = frame_system::AccountInfo<u32, pallet_balances::AccountData<u128>>;
        let account = Account::decode(&mut &value[..]).map_err(|error| format!("an account is damaged: {error}"))?;
        if account.data != Default::default() {
            accounts_with_coins += 1;
        }
    }
    let code = storage.top.get(sp_core::storage::well_known_keys::CODE);
    let code_hash = sp_io::hashing::blake2_256(code.map_or(&[], |code| code));
    let holds = |prefix: &[u8]| {
        let next = storage.top.range(prefix.to_vec()..).next();
        next.is_some_and(|(key, _)| key.starts_with(prefix))
    };
    let written_before_time = LATER_ITEMS
        .iter()
        .filter(|(pallet, item)| holds(&key(pallet, item)))
        .map(|(pallet, item)| format!("{pallet}::{item}"))
        .collect();
    let executor = WasmExecutor::<sp_io::SubstrateHostFunctions>::builder().build();
    let version = resolve_state_version_from_wasm::<_, BlakeTwo256>(&storage, &executor)
        .map_err(|error| format!("the runtime in the specification does not say its version: {error}"))?;
    let backend: InMemoryBackend<BlakeTwo256> = (storage, version).into();
    let state_root = *backend.root();
    let block = construct_genesis_block::<Block>(state_root, version);
    Ok(Genesis {
        hash: block.header().hash(),
        state_root,
        message,
        total_issuance,
        accounts_with_coins,
        code_hash,
        written_before_time,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> (Storage, [u8; 32]) {
        let storage = chain_spec::mainnet().unwrap().build_storage().unwrap();
        (storage, sp_io::hashing::blake2_256(WASM_BINARY.unwrap()))
    }

    #[test]
    fn genesis_should_pass_when_it_is_as_published() {
        let (storage, code) = good();
        let genesis = recompute(storage).unwrap();
        assert_eq!(fault(&genesis, None, Some(code)), None);
        assert_eq!(fault(&genesis, Some(genesis.hash), None), None);
    }

    #[test]
    fn genesis_should_fail_when_anything_differs() {
        type Change = fn(&mut Storage);
        let cases: [(&str, Change); 5] = [
            ("message", |s| {
                s.top.insert(key("Genesis", "Message"), b"\x08no".to_vec());
            }),
            ("total issuance", |s| {
                s.top.insert(key("Balances", "TotalIssuance"), vec![0; 16]);
            }),
            ("1 accounts", |s| {
                let mut info = frame_system::AccountInfo::<u32, pallet_balances::AccountData<u128>>::default();
                info.data.free = 1;
                s.top.insert(
                    [key("System", "Account"), vec![7; 48]].concat(),
                    codec::Encode::encode(&info),
                );
            }),
            ("Emission::Issued", |s| {
                s.top.insert(key("Emission", "Issued"), vec![1; 16]);
            }),
            ("Epoch::Commitments", |s| {
                s.top
                    .insert([key("Epoch", "Commitments"), vec![0; 12]].concat(), vec![0]);
            }),
        ];
        for (words, change) in cases {
            let (mut storage, code) = good();
            change(&mut storage);
            let genesis = recompute(storage).unwrap();
            let found = fault(&genesis, Some(genesis.hash), Some(code)).unwrap();
            assert!(found.contains(words), "{found}");
        }
        let genesis = recompute(good().0).unwrap();
        assert!(fault(&genesis, None, Some([0; 32])).unwrap().contains("runtime"));
        assert!(fault(&genesis, Some(H256::zero()), None).unwrap().contains("expected"));
    }
}
