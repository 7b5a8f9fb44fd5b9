//! Answers of the chain.

use alice_primitives::{Hash, SettlementStatus};

/// A block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Number.
    pub number: u32,
    /// Hash of its header.
    pub hash: Hash,
}

/// A finalised block that goes into a validation seed (docs/spec/protocol.md#validation-draw).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeedSource {
    /// Number.
    pub number: u32,
    /// Hash of its header.
    pub hash: Hash,
    /// VRF output of its author's slot claim.
    pub vrf_output: Hash,
}

/// Parameters that genesis fixes, and the run that the chain currently pays for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainParameters {
    /// Blocks in an epoch.
    pub epoch_blocks: u32,
    /// Blocks from an epoch's acceptance until it can be paid.
    pub window_blocks: u32,
    /// Epochs after its end during which an epoch can still be attested.
    pub late_window_epochs: u32,
    /// Time between blocks, milliseconds.
    pub slot_ms: u64,
    /// Hash of the run specification; zero if the chain pays for any run, as a development chain does.
    pub run_hash: Hash,
}

/// The parameter servers whose signatures count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterServers {
    /// Number of the set, which every commitment names.
    pub set_id: u32,
    /// Their sr25519 keys; a server's position is its `ps_index`.
    pub keys: Vec<Hash>,
}

/// Values of the chain that an attestation is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttestationTerms {
    /// Number of the current set.
    pub set_id: u32,
    /// Position of the key in the set; `None` if it is not one of the parameter servers.
    pub ps_index: Option<u32>,
    /// Round of attestation.
    pub round: u32,
    /// Epoch and hash of the last accepted commitment.
    pub latest: Option<(u32, Hash)>,
}

/// Settlement of an epoch on the chain, with what is known in each status (docs/spec/protocol.md#settlement).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpochStatus {
    /// Not attested by a quorum (yet).
    Open,
    /// A quorum attested it; the dispute window is open.
    Accepted {
        /// Hash of the commitment.
        hash: Hash,
        /// Block in which it was accepted.
        at_block: u32,
        /// Round of attestation: how often it was reopened before.
        round: u32,
    },
    /// The window has passed; its pages can be paid.
    Final {
        /// Hash of the commitment.
        hash: Hash,
        /// Block in which it was accepted.
        at_block: u32,
    },
    /// Every page is paid.
    Settled {
        /// Block in which the last page was paid. If the node has pruned the states around it, the oldest block whose
        /// state still shows it.
        block: u32,
    },
    /// A later epoch was accepted first, or the late window ended: nothing is ever minted for it.
    Forfeited,
}

impl EpochStatus {
    /// The status without its details.
    pub fn status(&self) -> SettlementStatus {
        match self {
            Self::Open => SettlementStatus::Open,
            Self::Accepted { .. } => SettlementStatus::Accepted,
            Self::Final { .. } => SettlementStatus::Final,
            Self::Settled { .. } => SettlementStatus::Settled,
            Self::Forfeited => SettlementStatus::Forfeited,
        }
    }
}

/// Payout of an epoch so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// Budget of the epoch, planck.
    pub budget: u128,
    /// Sum of all scores, billionths.
    pub total_score: u128,
    /// Paid so far, planck.
    pub paid: u128,
    /// Number of pages.
    pub pages: u32,
    /// Pages that are paid.
    pub pages_paid: u32,
}
