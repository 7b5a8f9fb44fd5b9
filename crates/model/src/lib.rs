//! The model: the transformer in libtorch, dense or with experts ([`Llama`] to train it, [`Decoder`] to generate text with
//! it), the devices it runs on ([`device`]), and the losses on the validation reserve ([`TorchOracle`]). Its first state
//! needs no libtorch and is in `alice-init`.
//!
//! libtorch trains and evaluates; it never decides what the model is. Weights come in and go out as the flat f32 vector
//! θ in the canonical order of [`alice_spec::RunSpec::tensors`], and steps of θ are plain Rust in `alice-update`.
//!
//! Set `OMP_WAIT_POLICY=passive` in the environment of a program that uses this crate before it starts (setting it in
//! `main` is too late: libgomp reads it when it is loaded): spinning threads make training several times slower on
//! cores that others use too.
#![deny(unsafe_code)]

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
