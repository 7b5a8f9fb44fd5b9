//! What can go wrong between a program and the chain.

/// Why a question to the chain has no answer, or a transaction was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Not an address of a node.
    #[error(
        "'{url}' is not the address of a chain node: {problem}; it looks like ws://127.0.0.1:9944 or wss://host:443"
    )]
    BadUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// No answer in time, or the connection was lost.
    #[error(
        "the chain node at {url} does not answer ({what}: {detail}); check that alice-node runs there and serves RPC on that port"
    )]
    Unreachable {
        /// Address of the node.
        url: String,
        /// What was asked.
        what: &'static str,
        /// What was heard instead.
        detail: String,
    },
    /// The node answered that it cannot or will not.
    #[error(
        "the chain node refused to answer ({what}: {detail}); it may be starting or have pruned that state, try again"
    )]
    Refused {
        /// What was asked.
        what: &'static str,
        /// The node's words.
        detail: String,
    },
    /// The answer has another shape than this program knows.
    #[error(
        "the chain's answer is not understood ({what}: {detail}); this program and the chain's runtime are of different versions, update it"
    )]
    Decode {
        /// What was asked.
        what: &'static str,
        /// What did not fit.
        detail: String,
    },
    /// The chain is another one than at the start.
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
        /// What was found instead.
        problem: &'static str,
    },
    /// An epoch that the chain keeps nothing about any more.
    #[error(
        "the chain has forgotten epoch {epoch}: it keeps the last 720; the epoch's manifest tells what became of it"
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
