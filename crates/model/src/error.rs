//! Errors of loading and running a model.

use tch::TchError;

/// Why the model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A flat vector of another model.
    #[error("the weights have {found} coordinates, the run's model has {expected}; fetch the model of this run")]
    Size {
        /// Coordinates of the run's model.
        expected: usize,
        /// Coordinates that were given.
        found: usize,
    },
    /// A batch that is empty, ragged, too long or holds an unknown token.
    #[error("the batch does not fit the model: {0}")]
    Batch(String),
    /// Sizes or constants outside the bounds of any model.
    #[error("the model's configuration is not possible: {0}")]
    Config(String),
    /// A tensor of another shape.
    #[error("tensor {tensor} has the shape {found:?}, {expected:?} is expected")]
    Shape {
        /// Name of the tensor.
        tensor: String,
        /// Shape that the configuration gives.
        expected: Vec<i64>,
        /// Shape that it has.
        found: Vec<i64>,
    },
    /// The device has too little memory for what was asked.
    #[error("out of memory on the device; use a smaller batch or close other programs ({0})")]
    OutOfMemory(String),
    /// libtorch refused.
    #[error("libtorch: {0}")]
    Torch(String),
    /// A reserve or corpus that cannot be read.
    #[error(transparent)]
    Data(#[from] alice_data::DataError),
}

impl From<TchError> for ModelError {
    fn from(error: TchError) -> Self {
        let text = error.to_string();
        // libtorch appends a C++ backtrace of many lines; the error is the first.
        let line = text.lines().next().unwrap_or_default().to_string();
        // CUDA and MPS say "out of memory", the CPU's allocator "can't allocate memory".
        if ["out of memory", "can't allocate memory", "not enough memory"]
            .iter()
            .any(|s| text.contains(s))
        {
            Self::OutOfMemory(line)
        } else {
            Self::Torch(line)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exhausted_memory_should_be_told_apart() {
        let cuda = TchError::Torch("CUDA out of memory. Tried to allocate 20 GiB\nframe #0: …".into());
        let message = ModelError::from(cuda).to_string();
        assert!(
            message.contains("out of memory on the device") && !message.contains("frame"),
            "{message}"
        );
        let cpu = TchError::Torch("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried".into());
        assert!(matches!(ModelError::from(cpu), ModelError::OutOfMemory(_)));
        assert!(matches!(
            ModelError::from(TchError::Shape("x".into())),
            ModelError::Torch(_)
        ));
    }
}
