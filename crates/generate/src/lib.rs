//! Text from weights: reads a Hugging Face folder with a Llama or a Mixtral ([`Folder`]), and continues a text with it
//! ([`generate`]), choosing tokens greedily or by chance ([`Sampling`]) and handing out text that never ends inside a
//! character ([`TextStream`]).
//!
//! Nothing of the folder is trusted: sizes are bounded before anything is allocated, and every tensor's name, kind and
//! shape is checked against `config.json` before the first one is read.
#![forbid(unsafe_code)]

mod config;
mod error;
mod folder;
mod generate;
mod sample;
mod shards;
mod text;

pub use config::{CONFIG_FILE, GENERATION_CONFIG_FILE};
pub use error::GenerateError;
pub use folder::Folder;
pub use generate::{Generated, Request, StopReason, generate};
pub use sample::{Sampler, Sampling};
pub use shards::{INDEX_FILE, SINGLE_FILE, Stored};
pub use text::TextStream;
