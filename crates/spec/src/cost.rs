//! Needs of a run: disks, networks and devices, estimated from the specification by the formulas given here.

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
    /// 2-byte units after Korthikanti et al. 2022 section 4, plus the logits).
    pub activation_bytes: u64,
    /// The same with checkpointing: every block's input in 2-byte units, one block's activations, the logits.
    pub checkpointed_bytes: u64,
}

/// A kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceClass {
    /// Common name.
    pub name: &'static str,
    /// Its memory, bytes.
    pub memory_bytes: u64,
    /// Share of it that a task can use, percent: drivers and allocator take the rest of a card, and Metal gives a
    /// process about three quarters of a Mac's memory (`recommendedMaxWorkingSetSize`).
    pub usable_percent: u64,
}

impl DeviceClass {
    const fn gib(name: &'static str, gib: u64, usable_percent: u64) -> Self {
        Self {
            name,
            memory_bytes: gib << 30,
            usable_percent,
        }
    }
}

/// Machines for which a run's memory is compared.
pub const DEVICE_CLASSES: [DeviceClass; 4] = [
    DeviceClass::gib("24 GB card", 24, 92),
    DeviceClass::gib("80 GB card", 80, 92),
    DeviceClass::gib("64 GB Mac", 64, 75),
    DeviceClass::gib("512 GB Mac", 512, 75),
];

/// Weights, gradients and moments of a task in one way of holding them.
#[derive(Clone, Debug, Serialize)]
pub struct TaskMemory {
    /// The trained part and the precision of the weights.
    pub way: &'static str,
    /// Bytes, without activations.
    pub state_bytes: u64,
    /// Machines of [`DEVICE_CLASSES`] in which it fits together with the checkpointed activations of one sequence.
    pub fits: Vec<&'static str>,
}

/// Costs of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Parameters.
    pub parameters: u64,
    /// Parameters that one token goes through; all, unless there are experts.
    pub active_parameters: u64,
    /// Canonical f32 weights on disk, bytes.
    pub snapshot_bytes: u64,
    /// Weights in bfloat16, bytes.
    pub bf16_bytes: u64,
    /// Maximum update, bytes.
    pub update_bytes_max: u64,
    /// Bits of an update for each parameter of the largest fragment.
    pub update_bits_per_parameter: f64,
    /// Fragments of the model; a task trains one.
    pub fragments: u32,
    /// Parameters of the largest fragment.
    pub fragment_parameters_max: u64,
    /// Tokens in a task.
    pub task_tokens: u64,
    /// Tokens of an epoch with the maximum number of tasks.
    pub epoch_tokens_max: u64,
    /// Tokens of the training text.
    pub corpus_tokens: u64,
    /// Floating point operations of a task that trains everything: 6 · active parameters · tokens. A fragment's
    /// gradients take less: (4 · active + 2 · fragment) · tokens at most.
    pub task_flops: f64,
    /// Tokens scored for each submission.
    pub score_tokens: u64,
    /// Epochs until the reserve is used up; `None` if sequences may be drawn again.
    pub reserve_epochs: Option<u64>,
    /// Full task in f32.
    pub device: DevicePlan,
    /// Ways of holding a task, and where they fit.
    pub memory: Vec<TaskMemory>,
}

impl RunSpec {
    /// Estimates the run's needs.
    pub fn cost(&self) -> Cost {
        let parameters = self.parameters();
        let active_parameters = self.active_parameters();
        // The largest fragment decides: a miner cannot choose which one it trains.
        let fragment_parameters_max = (0..self.task.fragments).map(|p| self.fragment_parameters(p)).max();
        let fragment_parameters_max = fragment_parameters_max.unwrap_or(parameters);
        let m = &self.model;
        let task_tokens = self.task_sequences() * u64::from(m.context);
        let per_epoch = u64::from(self.score.sequences) + u64::from(self.score.guard_sequences);
        let context = u64::from(m.context);
        // Logits and their gradients in f32: 8 bytes for each id.
        let (layers, hidden, logits) = (u64::from(m.layers), u64::from(m.hidden), u64::from(m.vocab) * 8);
        let activations = context * (layers * 34 * hidden * 2 + logits);
        let checkpointed = context * ((layers + 34) * hidden * 2 + logits);
        Cost {
            parameters,
            active_parameters,
            snapshot_bytes: parameters * 4,
            bf16_bytes: parameters * 2,
            update_bytes_max: self.update.budget_bytes,
            update_bits_per_parameter: self.update.budget_bytes as f64 * 8.0 / fragment_parameters_max as f64,
            fragments: self.task.fragments,
            fragment_parameters_max,
            task_tokens,
            epoch_tokens_max: task_tokens * u64::from(self.round.tasks_max),
            corpus_tokens: self.data.corpus_tokens,
            task_flops: 6.0 * active_parameters as f64 * task_tokens as f64,
            score_tokens: u64::from(self.score.sequences) * context,
            reserve_epochs: (!self.data.reserve_reuse).then(|| self.data.reserve_tokens / context / per_epoch),
            device: DevicePlan {
                precision: "f32",
                state_bytes: parameters * 16,
                activation_bytes: activations,
                checkpointed_bytes: checkpointed,
            },
            memory: self.task_memory(fragment_parameters_max, checkpointed),
        }
    }

    /// A trained parameter takes 4 bytes each of f32 weight, gradient and two moments, which in 8 bits take a byte each
    /// and share an f32 scale among 256; a frozen one its weight only, which a bf16 task keeps in bfloat16. What a task
    /// takes beside these (`alice-miner plan` has all of it) depends on the machine's choices.
    fn task_memory(&self, fragment: u64, activations: u64) -> Vec<TaskMemory> {
        let (all, block) = (self.parameters(), self.block_parameters());
        // One byte for each of two moments, and an f32 scale for 256 of them.
        let bits8 = |parameters: u64| 2 * (parameters + 4 * parameters.div_ceil(256));
        let ways = [
            ("everything trained, f32", 16 * all),
            ("everything trained, 8-bit moments", 8 * all + bits8(all)),
            ("a fragment trained, all weights f32", 4 * all + 12 * fragment),
            (
                "a fragment trained, the others bf16",
                2 * (all - fragment) + 16 * fragment,
            ),
            (
                "a fragment trained, the others bf16, 8-bit moments",
                2 * (all - fragment) + 8 * fragment + bits8(fragment),
            ),
            // One block works while the next arrives.
            (
                "a fragment trained, bf16 fetched block by block (not built)",
                2 * 2 * block + 16 * fragment,
            ),
        ];
        let fits = |bytes: u64| {
            let room = |class: &DeviceClass| class.memory_bytes / 100 * class.usable_percent >= bytes + activations;
            DEVICE_CLASSES
                .iter()
                .filter(|class| room(class))
                .map(|class| class.name)
                .collect()
        };
        let ways = ways.into_iter().map(|(way, state_bytes)| TaskMemory {
            way,
            state_bytes,
            fits: fits(state_bytes),
        });
        ways.collect()
    }

    /// Parameters of the largest part that is needed at once: a block with all its experts, or the embedding.
    fn block_parameters(&self) -> u64 {
        let block: u64 = self
            .tensors()
            .iter()
            .filter(|t| t.name.starts_with("model.layers.0."))
            .map(|t| t.len())
            .sum();
        block.max(u64::from(self.model.vocab) * u64::from(self.model.hidden))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_should_follow_their_formulas() {
        let dense = RunSpec::parse(include_str!("../../../chain-spec/runs/genesis-7b.toml")).unwrap();
        let cost = dense.cost();
        assert_eq!(cost.parameters, 6_738_415_616);
        assert_eq!(cost.active_parameters, cost.parameters);
        assert_eq!(cost.memory[0].state_bytes, 16 * cost.parameters);
        assert!(cost.memory[0].fits == ["512 GB Mac"]);
        assert_eq!(
            cost.memory[2].state_bytes,
            4 * cost.parameters + 12 * cost.fragment_parameters_max
        );
        assert_eq!(cost.memory[1].fits, ["80 GB card", "512 GB Mac"]);
        assert_eq!(cost.memory[3].fits, ["80 GB card", "64 GB Mac", "512 GB Mac"]);
        // Both moments of 8 bits: 2 bytes, and 8 of scales for 256.
        assert_eq!(
            cost.memory[4].state_bytes,
            2 * cost.parameters + 8 * cost.fragment_parameters_max + cost.fragment_parameters_max / 32
        );
        assert_eq!(cost.memory[4].fits[0], "24 GB card");
        let moe = RunSpec::parse(include_str!("../../../chain-spec/runs/phase2-56b.toml")).unwrap();
        let cost = moe.cost();
        // Two experts of eight: 3·hidden·ffn each, in every block.
        let expert = 3 * 4096 * u64::from(moe.model.ffn) * 32;
        assert_eq!(cost.active_parameters, cost.parameters - 6 * expert);
        assert_eq!(
            cost.task_flops,
            6.0 * cost.active_parameters as f64 * cost.task_tokens as f64
        );
        // A block: four square projections, two norms, the router, eight experts.
        let block = 4 * 4096 * 4096 + 2 * 4096 + 8 * 4096 + expert / 32 * 8;
        assert_eq!(
            cost.memory[5].state_bytes,
            4 * block + 16 * cost.fragment_parameters_max
        );
        assert!(cost.memory[2].fits.len() <= 1 && cost.memory[5].fits.contains(&"24 GB card"));
    }
}
