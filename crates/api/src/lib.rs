//! The parameter server's HTTP interface: types ([`types`]), signatures ([`sign`]), addresses ([`ss58`]),
//! key files ([`keyfile`]) and the typed client ([`client`]). The server and the miner share this crate, so they cannot disagree.
#![forbid(unsafe_code)]

pub mod client;
pub mod hex32;
pub mod nano;
pub mod keyfile;
pub mod sign;
pub mod ss58;
pub mod types;

pub use client::{Client, ClientError};
pub use hex32::{Hex32, Hex64};
pub use nano::nano_nats;
pub use keyfile::KeyFileError;
pub use sign::Key;
pub use types::*;
