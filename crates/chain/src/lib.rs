//! Typed client of the Alice chain. The parameter server and the miner talk to this crate and see no chain types
//! (architecture invariant 1): it knows Substrate, they do not.
//!
//! * [`Chain::connect`] opens one WebSocket that restores itself; every question has a time limit ([`TIMEOUT`]).
//! * Heads and blocks: [`Chain::best`], [`Chain::finalized`], [`Chain::block_hash`], [`Chain::vrf_output`].
//! * State, read behind the best block: [`Chain::parameters`], [`Chain::epoch_status`], [`Chain::ledger`] and others.
//!   Names and types are looked up in the runtime's metadata, so a runtime upgrade that moves fields is survived, and
//!   one that removes them is an error that says so.
//! * Settlement: [`Chain::submit_attest`] and [`Chain::submit_payout`], unsigned feeless transactions that can be sent
//!   again at will: what the chain already knows is not an error.
#![forbid(unsafe_code)]

mod client;
mod digest;
mod error;
mod extensions;
mod layout;
#[cfg(feature = "proof")]
pub mod proof;
mod state;
mod submit;
mod types;

pub use alice_primitives::{Commitment, Hash, pages::Entry};
pub use client::{Chain, TIMEOUT};
pub use error::ChainError;
pub use types::{AttestationTerms, Block, ChainParameters, EpochStatus, Ledger, ParameterServers, SeedSource};
