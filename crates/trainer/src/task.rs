//! A task, the options of the machine that runs it, and its result.

use crate::{Moments, Precision};
use alice_spec::RunSpec;

/// Choices of the machine, not of the run: they change speed and memory. With `precision` and `moments` at their
/// defaults they change losses in their last digits only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Sequences that go through the model at once; `None` for the whole batch.
    pub micro_batch: Option<u32>,
    /// Number format of the products and of the weights that do not learn.
    pub precision: Precision,
    /// Number format of the optimiser's moments.
    pub moments: Moments,
    /// Activation checkpointing: keep only the input of each block, and compute the rest again in the backward pass.
    pub checkpoint: bool,
}

/// The training of one fragment on given text: everything the answer depends on.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// The run.
    pub spec: &'a RunSpec,
    /// Fragment of the model that learns; 0 is all of it where the run has one.
    pub fragment: u32,
    /// The network's weights θ, of the whole model, in canonical order.
    pub theta: &'a [f32],
    /// The task's text: `steps · batch_sequences` sequences of the run's context, in their order.
    pub sequences: &'a [Vec<u16>],
}

/// Reported after each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Finished steps.
    pub step: u32,
    /// Steps of the task.
    pub steps: u32,
    /// Loss of the step's batch before the step, nats per token.
    pub loss: f64,
    /// Mean speed since the task began.
    pub tokens_per_second: f64,
    /// Sequences that go through the model at once.
    pub micro_batch: u32,
}

/// Result of a finished task.
#[derive(Clone, Debug)]
pub struct TaskResult {
    /// Pseudo-gradient θ_start − θ_end of the fragment's parameters, in canonical order.
    pub d: Vec<f32>,
    /// Loss of the first batch before any step, nats per token.
    pub loss_first: f64,
    /// Loss of the last batch before its step.
    pub loss_last: f64,
    /// Tokens that were trained on.
    pub tokens: u64,
    /// Time for the steps.
    pub seconds: f64,
    /// Micro-batch that fitted the device: a good start for the next task.
    pub micro_batch: u32,
    /// Origin of the optimiser's moments.
    pub moments: MomentsFrom,
    /// Why the moments could not be written for the next task. `None` if they were, or if nobody asked for them. The
    /// update does not depend on it.
    pub moments_lost: Option<String>,
}

/// Origin of the moments at a task's first step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MomentsFrom {
    /// Zero: none were given.
    Nothing,
    /// The task before.
    Carried {
        /// Steps that the optimiser had made before this task, over all tasks.
        steps: u32,
    },
    /// Zero, because the given ones could not be used, for this reason.
    Refused(String),
}
