//! Weights that anyone can download, run, fine-tune and build on.
//!
//! * [`export_hf`]: a Hugging Face folder (`LlamaForCausalLM` or `MixtralForCausalLM`, safetensors shards, tokenizer files, model card) that
//!   says in `ALICE.json` what it is and what can be checked.
//! * [`export_gguf`]: a GGUF file for llama.cpp and what is built on it.
//! * [`FolderWeights`]: the weights of such a folder.
//! * [`verify`]: whether a downloaded folder is what its `ALICE.json`, a run and a model root say.
//!
//! Weights come from [`Weights`] in blocks, so a model of any size takes a few MiB of memory. The same weights give the
//! same bytes on every machine. What is not complete never has the name that was asked for. Formats, and what
//! `ALICE.json` proves: `docs/spec/weights.md`.
#![forbid(unsafe_code)]

mod about;
mod error;
pub mod float;
mod folder;
mod gguf;
mod hf;
mod safetensors;
mod target;
mod verify;
mod weights;

pub use about::{
    ALICE_FILE, About, AliceFile, ChainProof, Dtype, FORMAT, FileEntry, HexBytes, LossRow, RunRef, TensorEntry,
    config_json, generation_config_json,
};
pub use error::ExportError;
pub use folder::FolderWeights;
pub use gguf::{GgufExport, GgufOptions, GgufType, export_gguf};
pub use hf::{HfExport, HfOptions, INDEX_FILE, SHARD_BYTES, export_hf};
pub use safetensors::{TensorPlace, safetensors_layout};
pub use verify::{Proof, VerifyOptions, VerifyReport, read_alice_file, verify};
pub use weights::{Progress, TensorFn, ThetaFile, ThetaSlice, Weights};
