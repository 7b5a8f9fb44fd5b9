//! Runs one task: H local AdamW steps from the network's weights θ on the task's sequences. The answer is the
//! pseudo-gradient d = θ_start − θ_end: **subtracting it from θ lowers the loss** (protocol §4).
//!
//! A task depends on θ and its sequences alone, so any machine can do it; a machine that has done the fragment before may let
//! the optimiser go on where it stopped ([`Carry`]), which learns more. A task trains all of the model or one fragment of it.
//! Memory is saved by micro-batches, which are halved when the device runs out of it, by activation checkpointing, by moments
//! of 8 bits and by bf16; [`plan`] says beforehand what is needed, [`MemoryWatch`] afterwards what was taken.
#![forbid(unsafe_code)]

mod adamw;
mod carry;
mod memory;
mod micro;
mod moments;
pub mod plan;
mod train;

pub use adamw::AdamW;
pub use alice_model::Precision;
pub use carry::{Carry, CarryError};
pub use memory::MemoryWatch;
pub use moments::Moments;
pub use train::{MomentsFrom, Options, Progress, Task, TaskResult, TrainError, train, train_carrying};
