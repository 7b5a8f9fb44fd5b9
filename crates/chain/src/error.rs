//! Errors of requests to the chain.

use alice_primitives::history::HISTORY_EPOCHS;

/// Error of a request to the chain or of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Not an address of a node.
    #[error(
        "'{url}' is not the address of a chain node: {problem}; it looks like ws://127.0.0.1:9944 or wss://host:443"
    )]
    BadUrl {
        /// The text, shortened.
        url: String,
        /// The mistake in it.
        problem: &'static str,
    },
    /// No answer in time, or the connection was lost.
    #[error(
        "the chain node at {url} does not answer ({what}: {detail}); check that alice-node runs there and serves RPC on that port"
    )]
    Unreachable {
        /// Address of the node.
        url: String,
        /// The request.
        what: &'static str,
        /// Cause, from the connection.
        detail: String,
    },
    /// The node answered that it cannot or will not.
    #[error(
        "the chain node refused to answer ({what}: {detail}); it may be starting or have pruned that state, try again"
    )]
    Refused {
        /// The request.
        what: &'static str,
        /// The node's message.
        detail: String,
    },
    /// The answer does not have the shape that this program expects.
    #[error(
        "the chain's answer is not understood ({what}: {detail}); this program and the chain's runtime are of different versions, update it"
    )]
    Decode {
        /// The request.
        what: &'static str,
        /// The first difference.
        detail: String,
    },
    /// The node serves another chain than at the start.
    #[error(
        "the node at {url} now serves another chain (genesis 0x{found}, expected 0x{expected}); restart with the right node"
    )]
    OtherChain {
        /// Address of the node.
        url: String,
        /// Genesis hash at the start.
        expected: String,
        /// Genesis hash now.
        found: String,
    },
    /// A block that does not exist (yet).
    #[error("the chain has no block {number} yet; wait for it")]
    NoBlock {
        /// Its number.
        number: u32,
    },
    /// A block that could still be replaced.
    #[error("block {number} is not finalised (the last finalised is {finalized}); wait for it")]
    NotFinalized {
        /// Its number.
        number: u32,
        /// The last finalised block.
        finalized: u32,
    },
    /// A block without a VRF output in its header.
    #[error("block {number} carries no VRF output ({problem}); the chain must run BABE with VRF slots")]
    NoVrf {
        /// Its number.
        number: u32,
        /// The state of its digest.
        problem: &'static str,
    },
    /// An epoch that the chain keeps nothing about any more.
    #[error(
        "the chain has forgotten epoch {epoch}: it keeps the last {HISTORY_EPOCHS}; the epoch's manifest shows its outcome"
    )]
    Forgotten {
        /// The epoch.
        epoch: u32,
    },
    /// A transaction was refused.
    #[error("the chain refused {call}: {reason}")]
    Rejected {
        /// Name of the call.
        call: &'static str,
        /// The node's reason and what to do about it.
        reason: String,
        /// Whether the same transaction may be accepted later.
        retry: bool,
    },
}

impl ChainError {
    /// Whether trying again later can help without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Refused { .. } | Self::NoBlock { .. } | Self::NotFinalized { .. } => true,
            Self::Rejected { retry, .. } => *retry,
            Self::BadUrl { .. }
            | Self::Decode { .. }
            | Self::OtherChain { .. }
            | Self::Forgotten { .. }
            | Self::NoVrf { .. } => false,
        }
    }
}
