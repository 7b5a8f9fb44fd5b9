//! What the chain is asked for and what it answers.

use alice_primitives::Hash;

/// A block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Number.
    pub number: u32,
    /// Hash of its header.
    pub hash: Hash,
}

/// A finalised block that goes into a validation seed (protocol §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeedSource {
    /// Number.
    pub number: u32,
    /// Hash of its header.
    pub hash: Hash,
    /// VRF output of its author's slot claim.
    pub vrf_output: Hash,
}

/// What is fixed for a chain at genesis, and the run that it currently pays for.
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
    /// Hash of the run specification; zero where the chain pays for any run (a development chain).
    pub run_hash: Hash,
}

/// The parameter servers whose signatures count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterServers {
    /// Number of the set; it is in every commitment.
    pub set_id: u32,
    /// Their keys; a server's place is its `ps_index`.
    pub keys: Vec<Hash>,
}

/// What a parameter server signs an epoch's commitment by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttestationTerms {
    /// Number of the current set.
    pub set_id: u32,
    /// The key's place in it; none where it is not one of the parameter servers.
    pub ps_index: Option<u32>,
    /// Round of attestation.
    pub round: u32,
    /// Epoch and hash of the last accepted commitment.
    pub latest: Option<(u32, Hash)>,
}

/// How far an epoch has come on the chain (protocol §7).
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
        /// Block in which the last page was paid; where the node has pruned the states that would tell, the oldest
        /// block that still says so.
        block: u32,
    },
    /// A later epoch was accepted first, or it came too late: nothing is ever minted for it.
    Forfeited,
}

/// What has been paid for an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// What the schedule allows for the epoch, planck.
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
