//! Updates of the model (docs/spec/protocol.md#updates): the compressed update that a miner sends, the error feedback
//! that keeps the rest, and the aggregate by which the parameter server makes one step of many updates. No torch, no
//! I/O, no clock: bytes and numbers in, bytes and numbers out, the same on every machine.
//!
//! * [`Layout`]: the flat vector of parameters in fragments and chunks.
//! * [`encode`] / [`decode`]: chunked top-k with low-bit values within a budget of bytes (`docs/spec/update.md`);
//!   [`Encoder`] takes the values piece by piece, [`EncodedUpdate`] keeps an update as it was received.
//! * [`Entries`]: the interface of all sparse vectors, decoded or not.
//! * [`PendingUpdates`]: sent updates without a verdict, next to a residual on disk that may be larger than memory;
//!   [`ErrorFeedback`]: both in memory.
//! * [`aggregate`]: the mean of the accepted updates, its published form, and the model's step.
//!
//! Inside: [`Encoder`] → candidates of each chunk (`candidates`, `threshold_mask`, `top_k`) → bit allocation (`rate`) →
//! scale and levels (`quantizer`) → bits (`rice`, `bits`). The way back is `walk`.
//!
//! **Architecture invariant:** floating-point arithmetic that others must reproduce is + − × ÷ √ in a stated order; the
//! scales are a table; nothing here calls a transcendental function.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod aggregate;
mod aggregate_codec;
mod bits;
mod candidates;
mod codec;
mod encoder;
mod error;
mod feedback;
mod layout;
mod quantizer;
mod rate;
mod residual;
mod rice;
mod sparse;
mod threshold_mask;
mod top_k;
mod walk;

pub use codec::{EncodedUpdate, HEADER_BYTES, MAGIC, decode};
pub use encoder::{BitCount, Encoder, EncoderOutput, encode};
pub use error::{DecodeError, EncodeError, FeedbackError, Place};
pub use feedback::{ErrorFeedback, PENDING_ENTRIES_MAX, PENDING_MAX, PendingUpdates};
pub use layout::{CHUNK_MAX, Chunks, Layout, PARAMETERS_MAX};
pub use quantizer::{SCALES, scale};
pub use residual::{RESIDUAL_BLOCK, ResidualDtype, ResidualReader, ResidualWriter};
pub use sparse::{Entries, Header, Sparse, Update};

#[cfg(test)]
mod tests;
