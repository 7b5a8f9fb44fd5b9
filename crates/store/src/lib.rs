//! Content-addressed storage: blobs by their BLAKE3 ([`BlobStore`]), the model's root ([`model_root`]), snapshots in
//! verified chunks ([`snapshot`]), the format of weights on disk ([`theta`]) and the master weights in place
//! ([`Master`]).
//!
//! Whatever comes back from here has been checked against the hash that named it, except ranges of blobs
//! ([`BlobStore::get_range`]), which are for serving to peers that check the whole.
#![deny(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod blob;
mod error;
pub mod file;
mod map;
pub mod master;
pub mod merkle;
mod root;
pub mod snapshot;
pub mod theta;

pub use blob::BlobStore;
pub use error::StoreError;
pub use master::{Master, Opened};
pub use root::{model_root, root_of};
pub use snapshot::{Join, SNAPSHOT_CHUNK_BYTES, Snapshot};

/// BLAKE3 of a blob: its name.
pub fn blob_hash(bytes: &[u8]) -> alice_primitives::Hash {
    *blake3::hash(bytes).as_bytes()
}
