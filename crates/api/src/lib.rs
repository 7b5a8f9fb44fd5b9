//! The parameter server's HTTP interface: types ([`types`]), signatures ([`sign`]), addresses ([`ss58`]), key files
//! ([`keyfile`]) and the typed client ([`client`]). The server and the miner share this crate, so they cannot disagree.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod client;
pub mod hex32;
pub mod keyfile;
pub mod nano;
pub mod sign;
pub mod ss58;
pub mod types;

pub use client::{Client, ClientError};
pub use hex32::{Hex32, Hex64};
pub use keyfile::KeyFileError;
pub use nano::nano_nats;
pub use sign::Key;
pub use types::*;
