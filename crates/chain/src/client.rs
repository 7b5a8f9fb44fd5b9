//! Connection to a node: one WebSocket that reconnects by itself, a time limit for every request, and the chain's
//! heads.

use crate::{Block, ChainError, SeedSource, digest};
use alice_primitives::Hash;
use std::{future::Future, sync::Arc, time::Duration};
use subxt::{
    OnlineClient, OnlineClientAtBlock, SubstrateConfig,
    backend::LegacyBackend,
    config::{
        Hasher, RpcConfigFor,
        substrate::{BlakeTwo256, H256, SubstrateHeader},
    },
    error::OnlineClientAtBlockError,
    ext::codec::Encode,
    rpcs::{
        Error as RpcError, LegacyRpcMethods, RpcClient,
        client::reconnecting_rpc_client::{ExponentialBackoff, RpcClient as ReconnectingClient},
    },
};

/// Maximum wait for an answer, connecting included.
pub const TIMEOUT: Duration = Duration::from_secs(15);
/// First and longest pause between attempts to reconnect: a restarted node is found at once, a dead one costs little.
const RECONNECT_MS_MIN: u64 = 100;
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(5);
/// Maximum size of an answer, bytes. The largest, the runtime's metadata, has less than 1 MiB.
const RESPONSE_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// Maximum size of a request, bytes. The largest, a full payout page, has about 11 kB.
const REQUEST_BYTES_MAX: u32 = 1024 * 1024;

/// A connection to a node of an Alice chain. Clones share it.
#[derive(Clone)]
pub struct Chain {
    pub(crate) url: Arc<str>,
    /// For methods that have no name in `rpc`.
    #[cfg(feature = "proof")]
    pub(crate) raw: RpcClient,
    pub(crate) rpc: LegacyRpcMethods<RpcConfigFor<SubstrateConfig>>,
    client: OnlineClient<SubstrateConfig>,
    genesis: Hash,
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Chain {
    /// Connects to a node's WebSocket RPC (`ws://` or `wss://`). The connection is kept up and restored by itself
    /// until the last clone is dropped.
    pub async fn connect(url: &str) -> Result<Self, ChainError> {
        Self::connect_within(url, TIMEOUT).await
    }

    async fn connect_within(url: &str, limit: Duration) -> Result<Self, ChainError> {
        check_url(url)?;
        let shared: Arc<str> = url.into();
        let unreachable = |detail: String| ChainError::Unreachable {
            url: url.into(),
            what: "connecting",
            detail,
        };
        let connecting = async {
            let socket = ReconnectingClient::builder()
                .retry_policy(ExponentialBackoff::from_millis(RECONNECT_MS_MIN).max_delay(RECONNECT_DELAY_MAX))
                .request_timeout(TIMEOUT)
                .connection_timeout(TIMEOUT)
                .max_response_size(RESPONSE_BYTES_MAX)
                .max_request_size(REQUEST_BYTES_MAX)
                .build(url)
                .await
                .map_err(|e| unreachable(e.to_string()))?;
            let rpc = RpcClient::new(socket);
            let backend = LegacyBackend::builder().build(rpc.clone());
            let client = OnlineClient::from_backend_with_config(SubstrateConfig::new(), Arc::new(backend))
                .await
                .map_err(|e| unreachable(chained(&e)))?;
            let genesis = client.genesis_hash().0;
            Ok(Self {
                url: shared,
                #[cfg(feature = "proof")]
                raw: rpc.clone(),
                rpc: LegacyRpcMethods::new(rpc),
                client,
                genesis,
            })
        };
        // The client tries to connect for ever; the caller wants an answer.
        match tokio::time::timeout(limit, connecting).await {
            Ok(done) => done,
            Err(_) => Err(unreachable(format!("nothing within {} s", limit.as_secs()))),
        }
    }

    /// Hash of block 0, which identifies the network.
    pub fn genesis_hash(&self) -> Hash {
        self.genesis
    }

    /// Address of the node.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The best block: the newest, which a fork may still replace.
    pub async fn best(&self) -> Result<Block, ChainError> {
        // First the hash, then its header: two requests for "the best" could be answered with different blocks.
        let what = "best block";
        let (hash, genesis) = tokio::try_join!(
            self.ask(what, || self.rpc.chain_get_block_hash(None)),
            self.ask(what, || self.rpc.chain_get_block_hash(Some(0u32.into()))),
        )?;
        // The connection restores itself, possibly to a node that was restarted with another chain.
        if let Some(found) = genesis.filter(|found| found.0 != self.genesis) {
            let (expected, found) = (hex::encode(self.genesis), hex::encode(found));
            return Err(ChainError::OtherChain {
                url: self.url.to_string(),
                expected,
                found,
            });
        }
        let hash = hash.ok_or_else(|| self.refused(what, "no best block"))?;
        self.block(what, hash).await
    }

    /// The last finalised block.
    pub async fn finalized(&self) -> Result<Block, ChainError> {
        let what = "finalised block";
        let hash = self.ask(what, || self.rpc.chain_get_finalized_head()).await?;
        self.block(what, hash).await
    }

    /// Hash of block `number` of the best chain; `None` if the chain is shorter.
    pub async fn block_hash(&self, number: u32) -> Result<Option<Hash>, ChainError> {
        let hash = self
            .ask("block hash", || self.rpc.chain_get_block_hash(Some(number.into())))
            .await?;
        Ok(hash.map(|h| h.0))
    }

    /// VRF output of block `number`.
    ///
    /// # Errors
    /// The block is not finalised: until then a fork could replace it, and with it the randomness.
    pub async fn vrf_output(&self, number: u32) -> Result<SeedSource, ChainError> {
        // First, because a block that is finalised now stays: its hash cannot change before the next request.
        let finalized = self.finalized().await?.number;
        if number > finalized {
            return Err(ChainError::NotFinalized { number, finalized });
        }
        let hash = self.block_hash(number).await?.ok_or(ChainError::NoBlock { number })?;
        let header = self.header("VRF output", H256(hash)).await?;
        let vrf_output = digest::vrf_output(&header.digest).map_err(|problem| ChainError::NoVrf { number, problem })?;
        Ok(SeedSource {
            number,
            hash,
            vrf_output,
        })
    }

    async fn block(&self, what: &'static str, hash: H256) -> Result<Block, ChainError> {
        let header = self.header(what, hash).await?;
        // The runtime's block numbers have 32 bits.
        let number = u32::try_from(header.number).map_err(|_| self.refused(what, "a block number above 2^32"))?;
        Ok(Block { number, hash: hash.0 })
    }

    /// The header with this hash, checked against it: a node's answer is not trusted.
    pub(crate) async fn header(&self, what: &'static str, hash: H256) -> Result<SubstrateHeader<H256>, ChainError> {
        let header = self.ask(what, || self.rpc.chain_get_header(Some(hash))).await?;
        let header = header.ok_or_else(|| self.refused(what, "no such header"))?;
        if BlakeTwo256.hash(&header.encode()) != hash {
            return Err(ChainError::Decode {
                what,
                detail: format!("a header that does not hash to {hash:?}"),
            });
        }
        Ok(header)
    }

    /// The state behind the best block.
    pub(crate) async fn at_best(&self, what: &'static str) -> Result<OnlineClientAtBlock<SubstrateConfig>, ChainError> {
        let best = self.best().await?;
        self.at(what, best).await
    }

    /// The state behind a block.
    pub(crate) async fn at(
        &self,
        what: &'static str,
        block: Block,
    ) -> Result<OnlineClientAtBlock<SubstrateConfig>, ChainError> {
        let reading = self
            .client
            .at_block_hash_and_number(H256(block.hash), u64::from(block.number));
        self.within(what, async {
            reading.await.map_err(|e| match e {
                // The node's answer: it is behind, or has pruned the state.
                OnlineClientAtBlockError::CannotGetSpecVersion { .. }
                | OnlineClientAtBlockError::CannotGetMetadata { .. } => self.refused(what, &chained(&e)),
                _ => ChainError::Decode {
                    what,
                    detail: chained(&e),
                },
            })
        })
        .await
    }

    /// Sends a request, again after each loss of the connection, until the time limit.
    pub(crate) async fn ask<T, F, Fut>(&self, what: &'static str, question: F) -> Result<T, ChainError>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, RpcError>>,
    {
        let asking = async {
            loop {
                match question().await {
                    // The client holds new requests back until it has reconnected, so this does not spin.
                    Err(RpcError::DisconnectedWillReconnect(_)) => continue,
                    Err(RpcError::User(e)) => return Err(self.refused(what, &e.to_string())),
                    Err(e @ (RpcError::Deserialization(_) | RpcError::Decode(_))) => {
                        return Err(ChainError::Decode {
                            what,
                            detail: e.to_string(),
                        });
                    }
                    Err(e) => return Err(self.unreachable(what, chained(&e))),
                    Ok(answer) => return Ok(answer),
                }
            }
        };
        self.within(what, asking).await
    }

    /// Puts the time limit on a request.
    pub(crate) async fn within<T>(
        &self,
        what: &'static str,
        question: impl Future<Output = Result<T, ChainError>>,
    ) -> Result<T, ChainError> {
        match tokio::time::timeout(TIMEOUT, question).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unreachable(what, format!("nothing within {} s", TIMEOUT.as_secs()))),
        }
    }

    fn unreachable(&self, what: &'static str, detail: String) -> ChainError {
        ChainError::Unreachable {
            url: self.url.to_string(),
            what,
            detail,
        }
    }

    pub(crate) fn refused(&self, what: &'static str, detail: &str) -> ChainError {
        ChainError::Refused {
            what,
            detail: detail.to_owned(),
        }
    }
}

/// An error with its causes: many of subxt's name the failure only in their source.
pub(crate) fn chained(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Checks the form of a node's address, without connecting to it.
///
/// # Errors
/// [`ChainError::BadUrl`] if the address does not begin with `ws://` or `wss://` or names no host.
pub fn check_url(url: &str) -> Result<(), ChainError> {
    let bad = |problem| ChainError::BadUrl {
        // A file pasted by mistake must not fill the log.
        url: url.chars().take(200).collect(),
        problem,
    };
    let rest = url.strip_prefix("ws://").or_else(|| url.strip_prefix("wss://"));
    match rest {
        None if url.starts_with("http") => Err(bad(
            "the chain is followed over a WebSocket, so write ws:// for http://",
        )),
        None => Err(bad("it must start with ws:// or wss://")),
        Some(host) if host.is_empty() || host.starts_with([':', '/']) => Err(bad("the host is missing")),
        Some(host) if host.contains(char::is_whitespace) => Err(bad("it contains white space")),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_should_be_checked_before_connecting() {
        for url in ["ws://127.0.0.1:9944", "wss://chain.example.org/rpc"] {
            assert_eq!(check_url(url), Ok(()));
        }
        for url in [
            "",
            "127.0.0.1:9944",
            "http://127.0.0.1:9944",
            "ws://",
            "ws://:9944",
            "ws://a b:1",
        ] {
            let message = check_url(url).unwrap_err().to_string();
            assert!(message.contains("ws://127.0.0.1:9944"), "{message}");
        }
    }

    #[tokio::test]
    async fn connect_should_give_up_after_the_time_limit() {
        // Port 1 of loopback refuses; the client would try again for ever.
        let error = Chain::connect_within("ws://127.0.0.1:1", Duration::from_millis(300))
            .await
            .unwrap_err();
        assert!(matches!(error, ChainError::Unreachable { .. }), "{error}");
        assert!(error.is_transient());
    }
}
