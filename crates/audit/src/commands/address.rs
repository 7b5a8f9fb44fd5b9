//! `address`: keys and addresses, without a network.

use super::to_json;
use crate::AuditError;
use alice_api::{
    Hex32, keyfile,
    ss58::{self, Ss58Error},
};
use alice_primitives::SS58_PREFIX;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::path::PathBuf;

/// Prefix of addresses that belong to no network in particular: they start with 5, and wallets show them by default.
const GENERIC_PREFIX: u16 = 42;

/// `address`.
#[derive(Debug, Subcommand)]
pub enum AddressCommand {
    /// Make a key file; prints its address and public key, never the seed
    #[command(after_help = "example: alice address new --out payout.seed\n\
        Keep the file: whoever has it has the account, and nobody can make it again.")]
    New(NewArgs),
    /// Show the Alice address of a public key, an address of another network, or a key file
    #[command(
        after_help = "examples:\n  alice address show 5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY\n  \
        alice address show 0xd43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d\n  \
        alice address show --key payout.seed\n\
        The addresses of an account on different networks differ by their prefix; the key is the same."
    )]
    Show(ShowArgs),
}

/// Flags of `address new`.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// File for the seed; it must not exist
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `address show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Address of any network, or public key as 64 hexadecimal digits
    #[arg(required_unless_present = "key", conflicts_with = "key")]
    pub account: Option<String>,
    /// Key file
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Shown {
    address: String,
    public: Hex32,
    /// The same account where no network is named.
    generic: String,
}

/// Makes a key or shows an address; returns what is printed.
///
/// # Errors
/// The text is neither address nor key, or the key file cannot be used.
pub fn run(command: &AddressCommand) -> Result<String, AuditError> {
    match command {
        // The public half only: a seed in a terminal ends up in its history and in screenshots.
        AddressCommand::New(args) => show(keyfile::generate(&args.out)?.public().0, args.json),
        AddressCommand::Show(ShowArgs {
            key: Some(path), json, ..
        }) => show(keyfile::load(path)?.public().0, *json),
        AddressCommand::Show(ShowArgs { account, json, .. }) => {
            show(account_of(account.as_deref().unwrap_or_default())?, *json)
        }
    }
}

/// The account that a text names: a public key, or an address of any network.
fn account_of(text: &str) -> Result<[u8; 32], Ss58Error> {
    // Hexadecimal first: no address has 64 characters.
    match text.trim().parse::<Hex32>() {
        Ok(public) => Ok(public.0),
        Err(_) => Ok(ss58::decode_with_prefix(text)?.1),
    }
}

fn show(public: [u8; 32], json: bool) -> Result<String, AuditError> {
    let shown = Shown {
        address: ss58::encode_with_prefix(&public, SS58_PREFIX),
        public: Hex32(public),
        generic: ss58::encode_with_prefix(&public, GENERIC_PREFIX),
    };
    if json {
        return to_json(&shown);
    }
    Ok(format!(
        "address     {}\npublic key  {}\nelsewhere   {} (prefix {GENERIC_PREFIX}; the same account, do not give it for pay)\n",
        shown.address, shown.public, shown.generic
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE_KEY: &str = "d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d";
    const GENERIC: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";

    fn shown(account: &str) -> Result<String, AuditError> {
        run(&AddressCommand::Show(ShowArgs {
            account: Some(account.into()),
            key: None,
            json: false,
        }))
    }

    #[test]
    fn an_account_should_be_shown_alike_whatever_it_is_given_as() {
        let by_key = shown(ALICE_KEY).unwrap();
        assert!(by_key.starts_with("address     a2"), "{by_key}");
        assert!(by_key.contains(GENERIC), "{by_key}");
        assert_eq!(shown(GENERIC).unwrap(), by_key);
        assert_eq!(shown(&format!("0x{ALICE_KEY}")).unwrap(), by_key);
        let address = by_key.lines().next().unwrap().split_whitespace().last().unwrap();
        assert_eq!(shown(address).unwrap(), by_key);
    }

    #[test]
    fn a_text_that_is_no_account_should_be_a_mistake_of_the_user() {
        for text in ["", "5Grwva", "nonsense", &ALICE_KEY[1..]] {
            let error = shown(text).unwrap_err();
            assert_eq!(error.exit_code(), alice_program::exit::USAGE, "{text}: {error}");
        }
    }

    #[test]
    fn a_new_key_should_be_shown_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("payout.seed");
        let new = || {
            run(&AddressCommand::New(NewArgs {
                out: path.clone(),
                json: true,
            }))
        };
        let made = new().unwrap();
        let again = run(&AddressCommand::Show(ShowArgs {
            account: None,
            key: Some(path.clone()),
            json: true,
        }));
        assert_eq!(again.unwrap(), made);
        assert_eq!(new().unwrap_err().exit_code(), alice_program::exit::USAGE);
    }
}
