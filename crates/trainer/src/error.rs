//! Errors of a task, with advice where memory is short.

use crate::{Moments, Options, Precision};
use alice_model::ModelError;
use tch::TchError;

/// Why a task was not finished.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Not as many sequences as the run's tasks have, or not of its context.
    #[error(
        "the task has {found} sequences of {context} tokens' context, the run's tasks have {expected}; claim another task"
    )]
    Sequences {
        /// Sequences of the run's tasks.
        expected: u64,
        /// Sequences that were given and have the right length.
        found: u64,
        /// Tokens in a sequence.
        context: u32,
    },
    /// The run has fewer fragments.
    #[error("the run has no fragment {fragment}, its fragments are 0 to {last}; claim another task")]
    Fragment {
        /// Fragment asked for.
        fragment: u32,
        /// The run's last fragment.
        last: u32,
    },
    /// The task does not fit the device, even one sequence at a time.
    #[error(
        "the device has too little memory for this task{tried}; try {advice} (`alice-miner plan` lists what fits): {problem}"
    )]
    OutOfMemory {
        /// Saving options that were already on.
        tried: &'static str,
        /// The next option to try.
        advice: &'static str,
        /// The error of libtorch.
        problem: String,
    },
    /// Training went out of bounds, so there is no update: a fault of the run's settings or of the hardware.
    #[error(
        "the {what} is not a finite number after step {step}, so there is no update; check the device's memory and cooling"
    )]
    NotFinite {
        /// Step, from 1.
        step: u32,
        /// Quantity that is not finite: loss, gradient or update.
        what: &'static str,
    },
    /// The progress callback stopped the task.
    #[error("cancelled after step {step}")]
    Cancelled {
        /// Last finished step.
        step: u32,
    },
    /// The model could not be run.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl From<TchError> for TrainError {
    fn from(error: TchError) -> Self {
        Self::Model(error.into())
    }
}

/// Adds the next saving option to try to an error of exhausted memory. By then micro-batches are down to one sequence,
/// or not even the model fits.
///
/// Options are tried in the order of what they cost: checkpointing costs time alone, 8-bit moments change the last
/// digits, bf16 changes more of them.
pub(crate) fn advise(error: TrainError, options: Options) -> TrainError {
    let TrainError::Model(ModelError::OutOfMemory(problem)) = error else {
        return error;
    };
    let (tried, advice) = match (options.checkpoint, options.moments, options.precision) {
        (false, _, _) => ("", "--checkpoint on"),
        (true, Moments::F32, _) => (", even with checkpointing", "--moments 8bit"),
        (true, Moments::Bits8, Precision::F32) => (", even with checkpointing and 8-bit moments", "--precision bf16"),
        (true, Moments::Bits8, Precision::Bf16) => (
            " with every saving option on",
            "to close other programs, or a device with more memory",
        ),
    };
    TrainError::OutOfMemory { tried, advice, problem }
}
