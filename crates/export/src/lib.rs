//! Weights that anyone can download, run, fine-tune and build on.
//!
//! * [`export_hf`]: a Hugging Face folder (`LlamaForCausalLM` or `MixtralForCausalLM`, safetensors shards, tokenizer
//!   files, model card) with `ALICE.json`, which lists every file and tensor and names the model root.
//! * [`export_gguf`]: a GGUF file for llama.cpp and the programs built on it.
//! * [`FolderWeights`]: the weights of such a folder.
//! * [`verify`]: whether a downloaded folder is what its `ALICE.json`, a run and a model root say.
//!
//! # Proof
//! The chain knows one hash for the model of an epoch: the model root, over the names, shapes and BLAKE3 hashes of the
//! f32 tensors. `ALICE.json` lists these hashes, so a root from the chain proves the list, and the list proves the
//! files, as far as they hold f32. Most folders hold bf16, which the root does not cover; three strengths of
//! [`Proof`] follow:
//!
//! * `Root`: the shards hold f32, and their hashes give the root.
//! * `Rounding`: the f32 weights were at hand, and rounding them gives the shards.
//! * `Listed`: the shards are the listed ones; whoever wrote the list is trusted for the rounding.
//!
//! Files that follow from the run alone (configuration, index, tokenizer) are written again and compared: a list by
//! itself would let its author change a rotary base or a token.
//!
//! # Formats
//! The same weights give the same bytes on every machine: rounding is integer arithmetic ([`float`]), JSON has a fixed
//! order, and nothing has a date. Rows of queries and keys are permuted for GGUF, because llama.cpp rotates other pairs
//! of coordinates than `transformers`. Formats in detail: `docs/spec/weights.md`.
//!
//! Weights come from [`Weights`] in blocks, so a model of any size takes a few MiB of memory. An output gets its name
//! only when it is complete and synced; an interrupted export leaves nothing under that name.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

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
