//! Checks of the `key` commands that the framework does not make.
//!
//! The framework keeps most arguments of its commands private, so they are read from the parsed command line.

use clap::ArgMatches;
use sc_cli::{
    utils::{print_from_uri, read_uri},
    with_crypto_scheme, CryptoScheme, InspectKeyCmd, KeySubcommand,
};
use sp_core::crypto::Ss58Codec;
use sp_runtime::MultiSigner;

/// Session keys of a validator: name in the keystore, scheme, use.
const SESSION_KEYS: [(&str, CryptoScheme, &str); 3] = [
    ("babe", CryptoScheme::Sr25519, "making blocks"),
    ("gran", CryptoScheme::Ed25519, "finality"),
    ("audi", CryptoScheme::Sr25519, "authority discovery"),
];

/// Runs a `key` command. `matches` is the whole command line, as it was parsed into `command`.
pub fn run(command: &KeySubcommand, matches: &ArgMatches, cli: &crate::cli::Cli) -> sc_cli::Result<()> {
    let arguments = matches.subcommand().and_then(|(_, key)| key.subcommand());
    match (command, arguments) {
        (KeySubcommand::Insert(insert), Some((_, arguments))) => {
            let key_type = arguments.get_one::<String>("key_type");
            check_insert(key_type.map_or("", String::as_str), insert.scheme)?;
            insert.run(cli)
        }
        (KeySubcommand::Inspect(inspect), Some((_, arguments))) => run_inspect(inspect, arguments),
        (command, _) => command.run(cli),
    }
}

/// Refuses a key that no part of the node would ever use: the keystore takes any pair of type and scheme, and the
/// validator would then be idle without a word.
fn check_insert(key_type: &str, scheme: CryptoScheme) -> Result<(), String> {
    let known = SESSION_KEYS.iter().find(|(name, ..)| *name == key_type);
    match known {
        Some((_, expected, _)) if *expected == scheme => Ok(()),
        Some((name, expected, purpose)) => Err(format!(
            "a key of type {name} ({purpose}) has the scheme {}, not {}; give --scheme {}",
            scheme_name(*expected),
            scheme_name(scheme),
            scheme_name(*expected)
        )),
        None => {
            let names =
                SESSION_KEYS.map(|(name, scheme, purpose)| format!("{name} ({}, {purpose})", scheme_name(scheme)));
            Err(format!(
                "no part of the node uses keys of type '{key_type}'; a validator has {}",
                names.join(", ")
            ))
        }
    }
}

fn scheme_name(scheme: CryptoScheme) -> &'static str {
    match scheme {
        CryptoScheme::Ed25519 => "ed25519",
        CryptoScheme::Sr25519 => "sr25519",
        CryptoScheme::Ecdsa => "ecdsa",
    }
}

/// `key inspect`, with an error where the framework prints "Invalid phrase/URI given" and reports success.
fn run_inspect(command: &InspectKeyCmd, arguments: &ArgMatches) -> sc_cli::Result<()> {
    // In these forms the framework checks the key itself.
    if arguments.get_flag("public") || command.expect_public.is_some() {
        return command.run();
    }
    let uri = read_uri(arguments.get_one::<String>("uri"))?;
    let scheme = command.crypto_scheme.scheme;
    if !with_crypto_scheme!(scheme, is_key(&uri)) {
        // The text may be a secret with a typing error, so it is not repeated.
        return Err(
            "this is no secret phrase, key URI, address or public key; a hexadecimal public key needs --public".into(),
        );
    }
    let password = command.keystore_params.read_password()?;
    let network = command.network_scheme.network;
    let output = command.output_scheme.output_type;
    with_crypto_scheme!(scheme, print_from_uri(&uri, password, network, output));
    Ok(())
}

/// Whether the text can be read as a secret or public key. A password changes the key, not whether there is one.
fn is_key<Pair>(uri: &str) -> bool
where
    Pair: sp_core::Pair,
    Pair::Public: Into<MultiSigner>,
{
    Pair::from_phrase(uri, None).is_ok()
        || Pair::from_string_with_seed(uri, None).is_ok()
        || Pair::Public::from_string_with_version(uri).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insert_should_take_only_the_pairs_that_validators_use() {
        use CryptoScheme::{Ecdsa, Ed25519, Sr25519};
        for (key_type, scheme) in [("babe", Sr25519), ("gran", Ed25519), ("audi", Sr25519)] {
            assert_eq!(check_insert(key_type, scheme), Ok(()));
        }
        for (key_type, scheme, words) in [
            ("gran", Sr25519, "--scheme ed25519"),
            ("babe", Ed25519, "--scheme sr25519"),
            ("audi", Ecdsa, "--scheme sr25519"),
            ("imon", Sr25519, "a validator has babe"),
            ("Gran", Ed25519, "a validator has babe"),
        ] {
            let error = check_insert(key_type, scheme).unwrap_err();
            assert!(error.contains(words), "{key_type}: {error}");
        }
    }

    #[test]
    fn keys_should_be_recognised() {
        let phrase = "bottom drive obey lake curtain smoke basket hold race lonely fit walk";
        let seed = format!("0x{}", "07".repeat(32));
        for uri in [
            phrase,
            "//Alice",
            &seed,
            "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY",
        ] {
            assert!(is_key::<sp_core::sr25519::Pair>(uri), "{uri}");
        }
        for uri in ["nonsense", "0x12", "bottom drive obey"] {
            assert!(!is_key::<sp_core::sr25519::Pair>(uri), "{uri}");
        }
    }
}
