//! The tokenizer that Alice's models are published with: byte-pair encoding (Sennrich et al. 2016) over Unicode
//! characters with byte fallback, in the formats of SentencePiece (`tokenizer.model`) and Hugging Face
//! (`tokenizer.json`), so that stock tools load it unchanged. Formats: `docs/spec/weights.md`.
//!
//! * [`train`] and [`Trainer`]: a vocabulary from documents, in bounded memory; the same text gives the same files.
//! * [`Tokenizer`]: encodes and decodes; [`Tokenizer::bytes`] is the trivial one that run `dev` uses.
//! * [`Tokenizer::model_bytes`], [`Tokenizer::parse_model`], [`Tokenizer::write_files`]: the files.
//!
//! Ids: 0 unknown, 1 begin, 2 end, then the 256 bytes, then merges in the order in which they were learned, then
//! single characters by falling count.
#![forbid(unsafe_code)]

mod encode;
mod error;
mod hash;
mod hf;
mod model;
mod proto;
mod train;

#[cfg(test)]
mod tests;

pub use encode::{Encoder, Tokenizer};
pub use error::TokenizerError;
pub use hf::{SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_JSON_FILE, TOKENIZER_MODEL_FILE};
pub use model::{BEGIN, BYTE_FIRST, END, FIRST_LEARNED, Piece, PieceKind, SPACE, UNKNOWN, VOCABULARY_MAX};
pub use proto::MODEL_BYTES_MAX;
pub use train::{Progress, TrainOptions, Trainer, train};
