//! The tokenizer that Alice's models are published with: byte-pair encoding (Sennrich et al. 2016) over Unicode
//! characters with byte fallback, in the formats of SentencePiece (`tokenizer.model`) and Hugging Face
//! (`tokenizer.json`), so that stock tools load it unchanged. Formats: `docs/spec/weights.md`.
//!
//! * [`train`] and [`Trainer`]: a vocabulary from documents, in bounded memory.
//! * [`Tokenizer`]: encodes and decodes; [`Tokenizer::bytes`] is the trivial one that run `dev` uses.
//! * [`Tokenizer::model_bytes`], [`Tokenizer::parse_model`], [`Tokenizer::write_files`]: the files.
//!
//! ```
//! use alice_tokenizer::{Tokenizer, TrainOptions, train};
//!
//! let text = "the people of the union. ".repeat(500);
//! let tokenizer = train([Ok(text.as_bytes())], &TrainOptions::new(285), &mut |_| ())?;
//! let ids = tokenizer.encode(b"the people");
//! assert!(ids.len() < "the people".len());
//! assert_eq!(tokenizer.decode(&ids), "the people");
//!
//! // The file brings back the same tokenizer, and its BLAKE3 is how a run names it.
//! let read = Tokenizer::parse_model(&tokenizer.model_bytes())?;
//! assert_eq!(read.encode(b"the people"), ids);
//! assert_eq!(read.hash(), tokenizer.hash());
//! # Ok::<(), alice_tokenizer::TokenizerError>(())
//! ```
//!
//! # Vocabulary
//! Ids of a trained vocabulary: 0 unknown, 1 begin, 2 end, then the 256 bytes, then merges in the order in which they
//! were learned, then single characters by falling count. Models of other trainers may have the bytes and further
//! control pieces elsewhere: bytes are found by their names (`<0x41>`), as in SentencePiece.
//!
//! # Determinism
//! A run names its tokenizer by the hash of a file, so the same text must give the same file on every machine and in
//! every order of threads. Three rules give that:
//!
//! * Counts are integer sums over words; how a document is cut into reads does not matter.
//! * Every tie of the training has a rule: the pair with the higher count is merged, then the one whose text is
//!   shorter in characters, then the lesser text (by code points), then the shorter left part. Hash maps are iterated
//!   only where the order cannot show.
//! * A shortage of memory forgets words by their counts alone, never by their place in a table.
//!
//! Encoding has no choice at all: the pair with the highest score is merged, the leftmost first. Training refuses the
//! pieces on which SentencePiece and Hugging Face would choose differently.
//!
//! # Control pieces
//! Text never becomes a control piece: `</s>` in a document is encoded as its characters, as SentencePiece does, so
//! that no text can end a document for the model. Hugging Face's programs are different by default
//! (`docs/spec/weights.md`).
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod encode;
mod error;
mod hash;
mod hf_files;
mod lfs;
mod merger;
mod model_proto;
mod tokenizer;
mod train;
mod vocabulary;

#[cfg(test)]
mod tests;

pub use encode::Encoder;
pub use error::{ModelProblem, TokenizerError};
pub use hf_files::{SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_JSON_FILE, TOKENIZER_MODEL_FILE};
pub use lfs::{LFS_POINTER_ADVICE, is_lfs_pointer, is_lfs_pointer_file};
pub use model_proto::MODEL_BYTES_MAX;
pub use tokenizer::Tokenizer;
pub use train::{Progress, TrainOptions, Trainer, train};
pub use vocabulary::{BEGIN, BYTE_FIRST, END, FIRST_LEARNED, Piece, PieceKind, SPACE, UNKNOWN, VOCABULARY_MAX};
