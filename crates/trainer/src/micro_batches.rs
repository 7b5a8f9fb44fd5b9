//! Micro-batches: a batch in parts that fit the device. Gradients add up over the parts, so the update is the same up
//! to the order of sums.

use alice_model::ModelError;

/// Runs `part` over the batch in parts of at most `size` and returns the sum of its results. When the device runs out
/// of memory, `reset` discards the work of the earlier parts, `size` is halved for good, and the batch starts again.
///
/// # Errors
/// Those of `part`; exhausted memory only if a part of one does not fit.
pub fn in_micro_batches<T>(
    batch: &[T],
    size: &mut usize,
    mut reset: impl FnMut(),
    mut part: impl FnMut(&[T]) -> Result<f64, ModelError>,
) -> Result<f64, ModelError> {
    *size = (*size).clamp(1, batch.len().max(1));
    loop {
        reset();
        match batch.chunks(*size).map(&mut part).sum() {
            // Halving keeps the number of retries small, and what did not fit once will not fit in the next batch.
            Err(ModelError::OutOfMemory(_)) if *size > 1 => *size /= 2,
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn exhausted_memory_should_halve_the_parts_and_start_again() {
        let batch: Vec<u32> = (1..=10).collect();
        let (sum, resets) = (Cell::new(0), Cell::new(0));
        let mut size = 10;
        let loss = in_micro_batches(
            &batch,
            &mut size,
            || {
                resets.set(resets.get() + 1);
                sum.set(0);
            },
            |part| {
                sum.set(sum.get() + part.iter().sum::<u32>());
                // The first part of five fits, the second does not: its work must not be counted twice.
                if part.len() > 5 || part.contains(&10) && part.len() > 2 {
                    return Err(ModelError::OutOfMemory("test".into()));
                }
                Ok(part.len() as f64)
            },
        );
        assert_eq!(loss.unwrap(), 10.0);
        assert_eq!((size, sum.get(), resets.get()), (2, 55, 3));
    }

    #[test]
    fn a_single_sequence_that_does_not_fit_should_be_an_error() {
        let mut size = 4;
        let result = in_micro_batches(
            &[1, 2, 3, 4],
            &mut size,
            || (),
            |_| Err(ModelError::OutOfMemory("test".into())),
        );
        assert!(matches!(result, Err(ModelError::OutOfMemory(_))));
        assert_eq!(size, 1);
        let result = in_micro_batches(&[1], &mut size, || (), |_| Err(ModelError::Torch("other".into())));
        assert!(matches!(result, Err(ModelError::Torch(_))));
    }
}
