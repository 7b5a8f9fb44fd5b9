//! `verify-genesis`: block 0 recomputed from the specification alone.

use crate::{chain_spec, cli::VerifyGenesisCmd};
use alice_primitives::GENESIS_MESSAGE;
use alice_runtime::{configs::GENESIS_MESSAGE_HASH, opaque::Block};
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
}

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
    println!("message\n");
    for line in String::from_utf8_lossy(&genesis.message).lines() {
        println!("    {line}");
    }
    println!();
    match fault(&genesis, options.expect_hash.map(H256)) {
        Some(fault) => Err(fault.into()),
        None => {
            println!("ok: block 0 is what it should be");
            Ok(())
        }
    }
}

fn fault(genesis: &Genesis, expected: Option<H256>) -> Option<String> {
    if genesis.message != GENESIS_MESSAGE.as_bytes() || sp_io::hashing::blake2_256(&genesis.message) != GENESIS_MESSAGE_HASH {
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
    match expected {
        Some(expected) if expected != genesis.hash => Some(format!(
            "block 0 has the hash {:?}, expected {expected:?}",
            genesis.hash
        )),
        _ => None,
    }
}

fn key(pallet: &str, item: &str) -> Vec<u8> {
    [sp_io::hashing::twox_128(pallet.as_bytes()), sp_io::hashing::twox_128(item.as_bytes())].concat()
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Genesis {
        Genesis {
            hash: H256::repeat_byte(1),
            state_root: H256::zero(),
            message: GENESIS_MESSAGE.into(),
            total_issuance: None,
            accounts_with_coins: 0,
        }
    }

    #[test]
    fn genesis_should_pass_when_it_is_as_published() {
        assert_eq!(fault(&good(), Some(H256::repeat_byte(1))), None);
    }

    #[test]
    fn genesis_should_fail_when_anything_differs() {
        assert!(fault(&good(), Some(H256::zero())).unwrap().contains("expected"));
        assert!(fault(
            &Genesis {
                message: b"no".to_vec(),
                ..good()
            },
            None
        )
        .unwrap()
        .contains("message"));
        assert!(fault(
            &Genesis {
                total_issuance: Some(vec![0; 16]),
                ..good()
            },
            None
        )
        .unwrap()
        .contains("coins"));
        assert!(fault(
            &Genesis {
                accounts_with_coins: 1,
                ..good()
            },
            None
        )
        .unwrap()
        .contains("1 accounts"));
    }
}
