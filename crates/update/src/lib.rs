//! Updates of the model (protocol §4 and §6): what a miner sends, what it remembers of what it could not send, and how
//! the parameter server makes one step of many updates. No torch, no I/O, no clock: bytes and numbers in, bytes and
//! numbers out, the same on every machine.
//!
//! * [`Layout`]: how the flat vector of parameters is cut into chunks.
//! * [`encode`] / [`decode`]: chunked top-k with low-bit values within a budget of bytes (`docs/spec/update.md`);
//!   [`Encoder`] takes the values piece by piece, [`Received`] keeps an update as it was sent.
//! * [`Entries`]: what all sparse vectors have in common, decoded or not.
//! * [`Ledger`]: what was sent but has no verdict yet, beside a residual on disk that may be larger than memory;
//!   [`ErrorFeedback`]: both in memory.
//! * [`aggregate`]: the mean of the accepted updates, its published form, and the model's step.
//!
//! **Architecture invariant:** floating-point arithmetic that others must reproduce is + − × ÷ √ in a stated order; the
//! scales are a table; nothing here calls a transcendental function.
#![forbid(unsafe_code)]

pub mod aggregate;
mod bits;
mod codec;
mod encoder;
mod error;
mod feedback;
mod largest;
mod layout;
mod levels;
mod marks;
mod publish;
mod rate;
mod residual;
mod rice;
mod select;
mod sparse;
mod walk;

pub use codec::{HEADER_BYTES, MAGIC, Received, decode};
pub use encoder::{BitCount, Encoded, Encoder, encode};
pub use error::{DecodeError, EncodeError, FeedbackError, Place};
pub use feedback::{ErrorFeedback, Ledger, PENDING_ENTRIES_MAX, PENDING_MAX};
pub use layout::{CHUNK_MAX, Chunks, Layout, PARAMETERS_MAX};
pub use levels::{SCALES, scale};
pub use residual::{Precision, RESIDUAL_BLOCK, ResidualReader, ResidualWriter};
pub use sparse::{Entries, Header, Sparse, Update};

#[cfg(test)]
mod tests;
