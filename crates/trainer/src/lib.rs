//! Runs one task: H local AdamW steps from the network's weights θ on the task's sequences. The answer is the
//! pseudo-gradient d = θ_start − θ_end: **subtracting it from θ lowers the loss** (docs/spec/protocol.md#updates).
//!
//! # One task
//! A [`Task`] is a run specification, a fragment, θ, and `steps · batch_sequences` sequences of tokens. [`train`] loads
//! θ, makes the fragment's tensors learn and freezes the rest, and for each batch: computes the mean loss and its
//! gradients, clips them to the fragment's global norm, and makes one AdamW step. A task depends on nothing else, so
//! any machine can run it, and no machine has to be trusted with a state. A machine that has trained the fragment
//! before may continue with its optimiser's moments ([`Carry`]), which learns more and which nobody else sees.
//!
//! # Memory
//! Weights, gradients and moments take 16 bytes for each parameter that learns, activations come on top. Four options
//! trade time or digits for memory: micro-batches (halved when the device runs out), activation checkpointing, moments
//! of 8 bits, and bf16. [`plan`] computes the need beforehand, [`MemoryWatch`] measures it afterwards.
//!
//! # Precision
//! With [`Precision::Bf16`] products, activations and frozen weights are bf16; weights that learn, their gradients,
//! moments, norms' statistics and the loss stay f32 (mixed precision, Micikevicius et al. 2018). The update is f32 in
//! any case.
//!
//! # Classes of determinism
//! 1. *Same bits*: the same task on the same machine with the same options, libtorch and number of threads.
//! 2. *Last digits differ*: other devices, thread counts, micro-batches or checkpointing, which change the order of
//!    sums.
//! 3. *More digits differ*: 8-bit moments and bf16. Training gains the same loss within a fiftieth (tested).
//!
//! Nothing compares updates by hash: the server scores an update by the loss it gives, so all three classes earn alike.
//! The network's own step from updates to the next θ is exact arithmetic, and in another crate (`alice-update`).
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod adamw;
mod carry;
mod error;
mod memory;
mod micro_batches;
mod moments;
pub mod plan;
mod task;
mod train;

pub use adamw::AdamW;
pub use alice_model::Precision;
pub use carry::{Carry, CarryError};
pub use error::TrainError;
pub use memory::MemoryWatch;
pub use moments::Moments;
pub use task::{MomentsFrom, Options, Progress, Task, TaskResult};
pub use train::{train, train_carrying};
