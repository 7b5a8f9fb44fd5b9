//! Losses on sequences of the validation reserve, for scoring.

use crate::{Llama, ModelError};
use alice_data::TokenSource;
use alice_score::{LossOracle, OracleError};
use alice_spec::RunSpec;
use tch::Device;

/// Default number of tokens evaluated at once: enough to keep a device busy, few enough for the memory of any.
const BATCH_TOKENS: u32 = 4096;

/// Evaluates weights on reserve sequences with libtorch, in f32, without gradients.
///
/// Losses depend in their last digits on batch size, threads and instruction set, so scores are compared with
/// tolerance, never by hash. Sequences are always evaluated in the order given, so that the differences between two
/// models are taken over the same batches.
#[derive(Debug)]
pub struct TorchOracle {
    model: Llama,
    reserve: TokenSource,
    batch_sequences: usize,
}

impl TorchOracle {
    /// An oracle over the reserve, which must have the run's context.
    pub fn new(spec: &RunSpec, reserve: TokenSource, device: Device) -> Result<Self, ModelError> {
        if reserve.context() != spec.model.context {
            let problem = format!(
                "reserve of {} tokens, context of {}",
                reserve.context(),
                spec.model.context
            );
            return Err(ModelError::Batch(problem));
        }
        let batch_sequences = (BATCH_TOKENS / spec.model.context).max(1) as usize;
        Ok(Self {
            model: Llama::new(spec, device)?,
            reserve,
            batch_sequences,
        })
    }

    /// Sets the number of sequences evaluated at once.
    pub fn with_batch_sequences(mut self, sequences: usize) -> Self {
        self.batch_sequences = sequences.max(1);
        self
    }

    /// Sequences in the reserve.
    pub fn sequences(&self) -> u64 {
        self.reserve.sequences()
    }

    /// Mean loss of each sequence under the weights θ, nats per token, `[sequences]` in the order given. A loss that is
    /// not a number is returned as infinite: weights that break the model are the worst possible, and no error of the
    /// server.
    ///
    /// # Errors
    /// θ of another model, a sequence that does not exist, or a device that fails.
    pub fn evaluate(&mut self, theta: &[f32], sequences: &[u32]) -> Result<Vec<f64>, ModelError> {
        self.model.load(theta)?;
        let mut losses = Vec::with_capacity(sequences.len());
        while let Some(rest) = sequences.get(losses.len()..).filter(|rest| !rest.is_empty()) {
            let part = rest.get(..self.batch_sequences).unwrap_or(rest);
            match self.evaluate_part(part) {
                Ok(part) => losses.extend(part),
                // The batch that fits is kept: the device will not grow.
                Err(ModelError::OutOfMemory(_)) if part.len() > 1 => self.batch_sequences = part.len() / 2,
                Err(error) => return Err(error),
            }
        }
        Ok(losses)
    }

    fn evaluate_part(&self, sequences: &[u32]) -> Result<Vec<f64>, ModelError> {
        let tokens = sequences
            .iter()
            .map(|s| self.reserve.sequence((*s).into()))
            .collect::<Result<Vec<_>, _>>()?;
        // Means in f64: scores are differences of losses that agree in most of their digits.
        let losses = tch::no_grad(|| self.model.sequence_losses(&self.model.batch(&tokens)?))?;
        let losses = Vec::<f64>::try_from(losses)?;
        Ok(losses
            .into_iter()
            .map(|loss| if loss.is_nan() { f64::INFINITY } else { loss })
            .collect())
    }
}

impl LossOracle for TorchOracle {
    fn losses(&mut self, theta: &[f32], sequences: &[u32]) -> Result<Vec<f64>, OracleError> {
        self.evaluate(theta, sequences).map_err(|error| OracleError {
            message: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alice_init::init_theta;
    use std::path::Path;

    const LICENSE: &str = include_str!("../../../LICENSE");

    fn reserve(dir: &Path, context: u32) -> TokenSource {
        let mut shards = alice_data::ShardWriter::new(dir);
        // Byte tokens: byte b is id b + 3.
        let tokens: Vec<u16> = LICENSE.bytes().map(|byte| u16::from(byte) + 3).collect();
        shards.push(&tokens).unwrap();
        TokenSource::open(shards.finish().unwrap(), dir, context).unwrap()
    }

    fn spec() -> RunSpec {
        let mut spec = RunSpec::parse(include_str!("../../../chain-spec/runs/dev.toml")).unwrap();
        spec.model.layers = 1;
        spec.model.context = 32;
        spec
    }

    #[test]
    fn losses_should_follow_the_order_and_not_the_batch() {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec();
        let theta = init_theta(&spec, &[1; 32]);
        let mut oracle = TorchOracle::new(&spec, reserve(dir.path(), 32), Device::Cpu).unwrap();
        let sequences = [5, 0, 17, 5, 3, 99];
        let losses = oracle.losses(&theta, &sequences).unwrap();
        assert_eq!(losses.len(), sequences.len());
        assert!((losses[0] - losses[3]).abs() < 1e-6 && losses[0] != losses[1]);
        let mut one_by_one = oracle.with_batch_sequences(1);
        for (a, b) in losses.iter().zip(one_by_one.losses(&theta, &sequences).unwrap()) {
            assert!((a - b).abs() < 1e-5, "{a} and {b}");
        }
        assert!(one_by_one.losses(&theta, &[]).unwrap().is_empty());
        let message = one_by_one.losses(&theta, &[1_000_000]).unwrap_err().message;
        assert!(message.contains("sequence 1000000 does not exist"), "{message}");
        assert!(one_by_one.losses(&theta[1..], &[0]).is_err());
    }

    #[test]
    fn weights_that_break_the_model_should_have_infinite_loss() {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec();
        let mut oracle = TorchOracle::new(&spec, reserve(dir.path(), 32), Device::Cpu).unwrap();
        let mut theta = init_theta(&spec, &[1; 32]);
        *theta.last_mut().unwrap() = f32::NAN;
        assert_eq!(oracle.losses(&theta, &[0, 1]).unwrap(), [f64::INFINITY; 2]);
        assert!(TorchOracle::new(&spec, reserve(dir.path(), 16), Device::Cpu).is_err());
    }
}
