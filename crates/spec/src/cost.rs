//! What a run asks of disks, networks and devices: estimates from the specification, stated with their formulas.

use crate::RunSpec;
use serde::Serialize;

/// Memory that a full task takes on a device, bytes.
#[derive(Clone, Debug, Serialize)]
pub struct DevicePlan {
    /// Precision of weights and gradients.
    pub precision: &'static str,
    /// Weights, gradients and two AdamW moments in f32.
    pub state_bytes: u64,
    /// Activations of a micro-batch of one sequence with every block's inputs kept (estimate: 34·s·h per block in
    /// 2-byte units after Korthikanti et al. 2022 §4, plus the logits).
    pub activation_bytes: u64,
}

/// Costs of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Parameters.
    pub parameters: u64,
    /// Canonical f32 weights on disk, bytes.
    pub snapshot_bytes: u64,
    /// One update at most, bytes.
    pub update_bytes_max: u64,
    /// Bits of an update for each parameter.
    pub update_bits_per_parameter: f64,
    /// Tokens in a task.
    pub task_tokens: u64,
    /// Floating point operations of a task: 6 · parameters · tokens.
    pub task_flops: f64,
    /// Tokens scored for each submission.
    pub score_tokens: u64,
    /// Epochs until the reserve is used up; none where sequences may be drawn again.
    pub reserve_epochs: Option<u64>,
    /// Full task in f32.
    pub device: DevicePlan,
}

impl RunSpec {
    /// Prices the run.
    pub fn cost(&self) -> Cost {
        let parameters = self.parameters();
        let m = &self.model;
        let task_tokens = self.task_sequences() * u64::from(m.context);
        let per_epoch = u64::from(self.score.sequences) + u64::from(self.score.guard_sequences);
        let context = u64::from(m.context);
        let activations = context * (u64::from(m.layers) * 34 * u64::from(m.hidden) * 2 + u64::from(m.vocab) * 8);
        Cost {
            parameters,
            snapshot_bytes: parameters * 4,
            update_bytes_max: self.update.budget_bytes,
            update_bits_per_parameter: self.update.budget_bytes as f64 * 8.0 / parameters as f64,
            task_tokens,
            task_flops: 6.0 * parameters as f64 * task_tokens as f64,
            score_tokens: u64::from(self.score.sequences) * context,
            reserve_epochs: (!self.data.reserve_reuse).then(|| self.data.reserve_tokens / context / per_epoch),
            device: DevicePlan {
                precision: "f32",
                state_bytes: parameters * 16,
                activation_bytes: activations,
            },
        }
    }
}
