//! Text from weights: reads a Hugging Face folder with a Llama or a Mixtral ([`Folder`]) and continues a text with it
//! ([`generate`]), choosing tokens greedily or by chance ([`Sampling`]) and streaming text that never ends inside a
//! character ([`TextStream`]).
//!
//! # Keys and values
//! Attention reads the keys and values of all earlier tokens, which do not change when tokens are appended. They are
//! computed once and kept in a cache with room for the prompt and the tokens asked for; so the prompt goes through the
//! model in one pass, and each further token costs one pass of a single position. The last token is chosen from the
//! logits of the one before it and never enters the cache.
//!
//! # Sampling
//! Repetition penalty, temperature, top-k and top-p in this order, as in `transformers`, so that greedy texts are the
//! same token by token. Chance comes from ChaCha20 with a seed: the same seed, weights, device and threads give the
//! same text.
//!
//! Nothing in the folder is trusted: sizes are bounded before anything is allocated, and every tensor's name, number
//! format and shape is checked against `config.json` before the first one is read.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod config;
mod error;
mod folder;
mod generate;
mod safetensors_shards;
mod sample;
mod text;

pub use config::{CONFIG_FILE, GENERATION_CONFIG_FILE};
pub use error::GenerateError;
pub use folder::Folder;
pub use generate::{Generated, Request, StopReason, generate};
pub use safetensors_shards::{INDEX_FILE, SINGLE_FILE, Stored};
pub use sample::{Sampler, Sampling};
pub use text::TextStream;
