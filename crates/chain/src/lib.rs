//! Typed client of the Alice chain. Only this crate knows Substrate: the parameter server, the miner and the auditor
//! see its types and none of the chain's (architecture invariant 1).
//!
//! * [`Chain::connect`] opens one WebSocket that restores itself; every request has a time limit ([`TIMEOUT`]).
//! * Heads and blocks: [`Chain::best`], [`Chain::finalized`], [`Chain::block_hash`], [`Chain::vrf_output`].
//! * State, read behind the best block: [`Chain::parameters`], [`Chain::epoch_status`], [`Chain::ledger`] and others.
//!   Names and types are looked up in the runtime's metadata: a runtime upgrade may move fields, and one that removes
//!   them causes an error that names them.
//! * Settlement: [`Chain::submit_attest`] and [`Chain::submit_payout`], unsigned feeless transactions. Sending one
//!   again is no error.
//!
//! ```no_run
//! use alice_chain::{Chain, SettlementStatus};
//!
//! # async fn example(account: [u8; 32]) -> Result<(), alice_chain::ChainError> {
//! let chain = Chain::connect("ws://127.0.0.1:9944").await?;
//! let epoch_blocks = chain.parameters().await?.epoch_blocks;
//! let epoch = chain.best().await?.number / epoch_blocks;
//! if chain.epoch_status(epoch).await?.status() == SettlementStatus::Settled {
//!     println!("epoch {epoch} is paid; the account has {} planck", chain.balance(account).await?);
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

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

pub use alice_primitives::{Commitment, Hash, SettlementStatus, pages::Entry};
pub use client::{Chain, TIMEOUT, check_url};
pub use error::ChainError;
pub use types::{AttestationTerms, Block, ChainParameters, EpochStatus, Ledger, ParameterServers, SeedSource};
