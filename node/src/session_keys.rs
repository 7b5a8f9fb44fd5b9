//! Warns an operator whose validator cannot do its work for lack of keys.

use alice_runtime::opaque::Block;
use sp_api::ProvideRuntimeApi;
use sp_blockchain::HeaderBackend;
use sp_consensus_babe::BabeApi;
use sp_consensus_grandpa::GrandpaApi;
use sp_core::crypto::{key_types, ByteArray, KeyTypeId};
use sp_keystore::{Keystore, KeystorePtr};

/// Logs a warning for each duty for which the keystore has no key of a current validator. Without it such a node runs
/// and follows the chain, and nothing shows that it makes no block and casts no vote.
pub fn warn_if_missing<C>(client: &C, keystore: &KeystorePtr)
where
    C: ProvideRuntimeApi<Block> + HeaderBackend<Block>,
    C::Api: BabeApi<Block> + GrandpaApi<Block>,
{
    let (best, number) = (client.info().best_hash, client.info().best_number);
    let api = client.runtime_api();
    let babe = api.configuration(best).map(|configuration| {
        let authorities = configuration.authorities.into_iter();
        authorities.map(|(key, _)| key.to_raw_vec()).collect::<Vec<_>>()
    });
    let grandpa = api.grandpa_authorities(best).map(|authorities| {
        let authorities = authorities.into_iter();
        authorities.map(|(key, _)| key.to_raw_vec()).collect::<Vec<_>>()
    });
    for (key_type, keys, name, idle) in [
        (key_types::BABE, babe, "babe", "makes no blocks"),
        (key_types::GRANDPA, grandpa, "gran", "does not vote on finality"),
    ] {
        match keys {
            Ok(keys) if has_any(&**keystore, key_type, &keys) => {}
            Ok(keys) => log::warn!(
                "This node runs as a validator, but its keystore has none of the {} `{name}` keys of the validators at \
                 block {number}: it {idle}. Insert your keys with `alice-node key insert --key-type {name} …` (the same \
                 --chain and --base-path) and start again; without --validator it is a full node.",
                keys.len()
            ),
            Err(error) => log::warn!("Cannot read the validators of block {number}: {error}"),
        }
    }
}

fn has_any(keystore: &dyn Keystore, key_type: KeyTypeId, keys: &[Vec<u8>]) -> bool {
    keys.iter().any(|key| keystore.has_keys(&[(key.clone(), key_type)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sp_keystore::testing::MemoryKeystore;

    #[test]
    fn any_of_the_validators_keys_should_do() {
        let keystore = MemoryKeystore::new();
        let own = keystore
            .sr25519_generate_new(key_types::BABE, None)
            .unwrap()
            .to_raw_vec();
        let keys = [vec![7; 32], own];
        assert!(has_any(&keystore, key_types::BABE, &keys));
        assert!(!has_any(&keystore, key_types::BABE, &keys[..1]));
        assert!(!has_any(&keystore, key_types::GRANDPA, &keys));
        assert!(!has_any(&keystore, key_types::BABE, &[]));
    }
}
