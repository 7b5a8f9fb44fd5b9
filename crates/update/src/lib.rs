//! Updates of the model (docs/spec/protocol.md#updates): what a miner sends, what it remembers of what it could not
//! send, and how the parameter server makes one step of many updates. No torch, no I/O, no clock: bytes and numbers in,
//! bytes and numbers out, the same on every machine.
//!
//! * [`Layout`]: how the flat vector of parameters is cut into chunks.
//! * [`encode`] / [`decode`]: chunked top-k with low-bit values within a budget of bytes (`docs/spec/update.md`);
//!   [`Encoder`] takes the values piece by piece, [`EncodedUpdate`] keeps an update as it was sent.
//! * [`Entries`]: what all sparse vectors have in common, decoded or not.
//! * [`PendingUpdates`]: what was sent but has no verdict yet, beside a residual on disk that may be larger than memory;
//!   [`ErrorFeedback`]: both in memory.
//! * [`aggregate`]: the mean of the accepted updates, its published form, and the model's step.
//!
//! **Architecture invariant:** floating-point arithmetic that others must reproduce is + − × ÷ √ in a stated order; the
//! scales are a table; nothing here calls a transcendental function.
#![forbid(unsafe_code)]

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
