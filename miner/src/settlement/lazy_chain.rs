//! The connection to the chain, made when it is first needed.

use crate::MinerError;
use alice_api::Hex32;
use alice_chain::Chain;

/// The chain of the node that the user gave, if any: connected on first use, and again after the connection was lost.
pub struct LazyChain {
    url: Option<String>,
    chain: Option<Chain>,
}

impl LazyChain {
    /// The chain of the node at `url`; nothing connects yet.
    pub fn new(url: Option<String>) -> Self {
        Self { url, chain: None }
    }

    /// Whether the user gave a node.
    pub fn is_set(&self) -> bool {
        self.url.is_some()
    }

    /// The connected chain; `None` if the user gave no node.
    ///
    /// # Errors
    /// The node does not answer, or its block 0 does not have the hash `genesis`.
    pub async fn get(&mut self, genesis: &Hex32) -> Result<Option<Chain>, MinerError> {
        let Some(url) = &self.url else { return Ok(None) };
        let chain = match &self.chain {
            Some(chain) => chain.clone(),
            None => Chain::connect(url).await?,
        };
        // At every use, because a node behind the same address may have been replaced.
        let found = Hex32(chain.genesis_hash());
        if found != *genesis {
            return Err(MinerError::OtherChain {
                url: url.clone(),
                expected: *genesis,
                found,
            });
        }
        self.chain = Some(chain.clone());
        Ok(Some(chain))
    }
}
