//! `balance`: what an account holds.

use super::to_json;
use crate::AuditError;
use alice_api::{Hex32, ss58};
use alice_chain::Chain;
use alice_primitives::emission::UNIT;
use clap::Args;
use serde::Serialize;

/// Flags of `balance`.
#[derive(Debug, Args)]
pub struct BalanceArgs {
    /// A node's WebSocket, for example ws://127.0.0.1:9944
    #[arg(long, value_name = "WS_URL")]
    pub chain: String,
    /// Alice address, which starts with a2
    pub address: String,
    /// As JSON, in planck
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Balance {
    address: String,
    public: Hex32,
    /// Planck; text, because JSON's numbers end at 2⁵³.
    free_planck: String,
}

/// Asks a node and returns what is printed.
///
/// # Errors
/// The address is not one of Alice, or the node does not answer.
pub async fn run(args: &BalanceArgs) -> Result<String, AuditError> {
    // Addresses of other networks are refused: their owner most likely means another coin. `address show` converts.
    let account = ss58::decode(&args.address)?;
    let planck = Chain::connect(&args.chain).await?.balance(account).await?;
    let address = ss58::encode(&account);
    if args.json {
        return to_json(&Balance {
            address,
            public: Hex32(account),
            free_planck: planck.to_string(),
        });
    }
    Ok(format!("{} ALICE  {address}\n", alice(planck)))
}

/// An amount with all twelve decimals, so that columns of amounts line up and nothing is rounded.
fn alice(planck: u128) -> String {
    format!("{}.{:012}", planck / UNIT, planck % UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_should_be_exact() {
        assert_eq!(alice(0), "0.000000000000");
        assert_eq!(alice(1), "0.000000000001");
        assert_eq!(alice(12 * UNIT + 34 * UNIT / 100), "12.340000000000");
    }
}
