//! Prints an account's balance in ALICE, as a node's best block has it:
//!
//! ```text
//! cargo run -p alice-chain --example balance -- --chain ws://127.0.0.1:9944 a2…
//! ```

use alice_chain::Chain;
use alice_primitives::emission::UNIT;
use anyhow::{Context, Result, bail};

/// The node that `alice-node` serves on this machine by default.
const DEFAULT_CHAIN: &str = "ws://127.0.0.1:9944";

/// Node and address of a command line.
fn parse(arguments: impl IntoIterator<Item = String>) -> Result<(String, String)> {
    let (mut chain, mut address) = (DEFAULT_CHAIN.to_owned(), None);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--chain" => chain = arguments.next().context("--chain needs the address of a node")?,
            _ if address.is_none() && !argument.starts_with('-') => address = Some(argument),
            _ => bail!("unexpected argument '{argument}'; usage: balance [--chain ws://…] ADDRESS"),
        }
    }
    Ok((
        chain,
        address.context("which account? usage: balance [--chain ws://…] ADDRESS")?,
    ))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (url, address) = parse(std::env::args().skip(1))?;
    let account = alice_api::ss58::decode(&address).with_context(|| format!("'{address}' is not an address"))?;
    let chain = Chain::connect(&url).await?;
    let planck = chain.balance(account).await?;
    println!("{}.{:012} ALICE", planck / UNIT, planck % UNIT);
    Ok(())
}
