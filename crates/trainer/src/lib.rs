//! Runs one task: H local AdamW steps from the network's weights θ on the task's sequences. The answer is the
//! pseudo-gradient d = θ_start − θ_end: **subtracting it from θ lowers the loss** (protocol §4).
//!
//! The optimiser starts from nothing in each task, so a task depends on θ and its sequences alone and any machine can
//! do it. Batches are cut into micro-batches, which are halved when the device runs out of memory.
#![forbid(unsafe_code)]

mod adamw;
mod micro;
mod train;

pub use adamw::AdamW;
pub use train::{Options, Progress, TaskResult, TrainError, train, train_with};
