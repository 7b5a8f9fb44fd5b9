//! The model: the transformer in libtorch, dense or with experts ([`Llama`] to train it, [`Decoder`] to generate text
//! with it), the devices it runs on ([`device`]), and the losses on the validation reserve ([`TorchOracle`]). Its first
//! state needs no libtorch and is in `alice-init`.
//!
//! libtorch trains and evaluates; it never decides what the model is. Weights come in and go out as the flat f32 vector
//! θ in the canonical order of [`alice_spec::RunSpec::tensors`], and steps of θ are plain Rust in `alice-update`.
//!
//! # Architecture
//! Llama and Mixtral as Hugging Face computes them, so that published weights load everywhere; fields have the names of
//! the checkpoint format (`q_proj`, `input_layernorm`, …). A block is
//!
//! ```text
//! x ← x + o_proj(attention(q_proj(n), k_proj(n), v_proj(n)))      n = input_layernorm(x)
//! x ← x + down_proj(silu(gate_proj(n)) · up_proj(n))              n = post_attention_layernorm(x)
//! ```
//!
//! * Norm (RMSNorm): x / √(mean(x²) + ε) · w. Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
//! * Positions (RoPE): coordinates i and i + d/2 of a head turn by position · base^(−2i/d). Su et al. 2021,
//!   arXiv:2104.09864, eq. 34; with halves in place of neighbours, as in `transformers`.
//! * Attention: softmax(q·kᵀ/√d) v, causal. Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
//! * Shared keys and values (GQA): heads / kv_heads query heads for each key/value head. Ainslie et al. 2023,
//!   arXiv:2305.13245.
//! * Feed-forward (SwiGLU): down(silu(gate(x)) · up(x)). Shazeer 2020, arXiv:2002.05202, eq. 6.
//! * Experts: the `top_k` best experts for each token, weighted by the softmax over them. Jiang et al. 2024,
//!   arXiv:2401.04088, section 2.1.
//! * Load balancing while training: Fedus et al. 2021, arXiv:2101.03961, eq. 4 to 6.
//!
//! There are no biases, and the head is not tied to the embedding ([`Decoder`] also reads tied weights).
//!
//! # Threads
//! Set `OMP_WAIT_POLICY=passive` in the environment of a program that uses this crate before it starts (setting it in
//! `main` is too late: libgomp reads it when it is loaded): spinning threads make training several times slower on
//! cores that others use too.
#![deny(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod decoder;
pub mod device;
mod error;
mod llama;
mod oracle;

pub use decoder::{Decoder, DecoderConfig, Experts, KvCache};
pub use device::{
    Bf16, DeviceChoice, DeviceError, DeviceInfo, DeviceMemory, bf16, devices, memory, set_threads, threads,
};
pub use error::ModelError;
pub use llama::{Llama, Objective, Precision};
pub use oracle::TorchOracle;
pub use tch::Device;
