//! Memory plan: what a task needs on the device and on the host, computed from the run specification before it is
//! tried.
//!
//! Let e be the bytes of a number in the chosen precision, T the tokens of a micro-batch, h, f, V the model's widths,
//! and k = h · key/value heads / heads. On the device there are, in bytes:
//!
//! * weights: 4 for each parameter that learns, e for each other;
//! * gradients: 4 for each parameter that learns;
//! * moments: 8 for each of them, or 2 + 8/256;
//! * copies: in bf16, 2 for each matrix that learns while its block's activations are kept;
//! * activations of a block that learns: T·e·(10h + 4f), of a block behind the fragment: T·e·(6h + 3f); a block before
//!   the fragment has none. (Kept are: the block's input, both norms' normalised values and outputs, q, k, v and the
//!   output of attention, the sum after it; gate, its SiLU, up, and their product. What a product's weight gradient
//!   needs falls away where the weight does not learn.) In bf16 norms keep two more values in f32. With checkpointing:
//!   T·e·h for the input of each block from the fragment's first on, and the activations of one block;
//! * working: the larger of 12·T·V for logits, their logarithms and gradient, in f32, with the last norm, and of what
//!   one block's way back takes, T·e·(2h + 4f) and the gradient of its largest matrix; or what the optimiser's step
//!   takes.
//!
//! With experts, f counts once for each expert of a token, and the gathered inputs and weighted outputs of each add 3h:
//! an estimate, not measured.
//!
//! These are the needs of tensors. The measured peak agrees within 10 % on the CPU if the C library gives freed memory
//! back at once (docs/measurements.md); by default glibc keeps part of it for speed, see [`CPU_SHARE`]. On a GPU its
//! driver and libraries need [`DEVICE_RESERVE`] more, and libtorch's allocator has gaps, see [`usable_on_gpu`].

use crate::{Moments, Options, adamw, moments};
use alice_model::{Device, Precision};
use alice_spec::{RunSpec, UpdateSpec};
use serde::Serialize;

/// Memory of a GPU that its context takes as soon as it is used, bytes: 0.5 GiB were seen (docs/measurements.md).
const CONTEXT: u64 = 1 << 29;

/// Memory kept free on a GPU besides its context, bytes: kernels and the libraries' workspaces took 0.32 GiB once a
/// small task had run, and gaps that do not grow with the task up to 0.25 GiB (docs/measurements.md).
pub const DEVICE_RESERVE: u64 = 3 << 28;

/// Share of the remainder that tensors may take on a GPU, as a fraction: libtorch's allocator was seen to take up to 6
/// % more than they need.
const GPU_SHARE: (u64, u64) = (100, 106);

/// Memory that a task's tensors may take on a GPU with this much memory in all, bytes.
pub fn usable_on_gpu(bytes: u64) -> u64 {
    usable_of_free(bytes.saturating_sub(CONTEXT))
}

/// Memory that a task's tensors may take of this much free memory, bytes, if this process has its context already.
pub fn usable_of_free(bytes: u64) -> u64 {
    bytes.saturating_sub(DEVICE_RESERVE) / GPU_SHARE.1 * GPU_SHARE.0
}

/// Share of the CPU's memory that tensors may take, as a fraction: glibc's allocator was seen to hold 23 to 65 % more
/// than they need.
pub const CPU_SHARE: (u64, u64) = (3, 5);

/// Memory that libtorch and its kernels may keep on the CPU besides tensors, bytes: 38 MiB more than planned were seen
/// in run `dev`, whose tasks need as much.
const CPU_LIBRARIES: u64 = 1 << 28;

/// Maximum memory that a process is expected to take of the device for tensors of `need` bytes, by the shares above.
pub fn taken_at_most(device: Device, need: u64) -> u64 {
    match device {
        Device::Cpu => (need / CPU_SHARE.0 * CPU_SHARE.1).saturating_add(CPU_LIBRARIES),
        _ => (need / GPU_SHARE.0 * GPU_SHARE.1).saturating_add(DEVICE_RESERVE),
    }
}

/// Bytes on the device at the peak of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Need {
    /// Weights of the whole model.
    pub weights: u64,
    /// Gradients of what learns.
    pub gradients: u64,
    /// Both moments of what learns.
    pub moments: u64,
    /// Copies in bf16 of weights that learn.
    pub copies: u64,
    /// Activations that blocks keep for the backward pass.
    pub activations: u64,
    /// Temporaries at the peak.
    pub working: u64,
}

impl Need {
    /// All of it.
    pub fn total(&self) -> u64 {
        let Self {
            weights,
            gradients,
            moments,
            copies,
            activations,
            working,
        } = self;
        [weights, gradients, moments, copies, activations, working]
            .into_iter()
            .sum()
    }
}

/// Bytes in the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HostNeed {
    /// θ, mapped from its file: the system may drop what is not in use.
    pub mapped_theta: u64,
    /// Largest tensor, on its way to the device.
    pub loading: u64,
    /// The pseudo-gradient d; the residual is streamed from its file and back.
    pub update: u64,
    /// The encoder's candidates of d + residual, six bytes each.
    pub encoder: u64,
    /// The entries of the update three times: as they are, among the pending updates, and encoded; 12 bytes each.
    pub sent: u64,
}

impl HostNeed {
    /// Memory for an update once the device is done. Updates that wait for a verdict come on top, 12 bytes an entry.
    pub fn total(&self) -> u64 {
        self.update + self.encoder + self.sent
    }
}

/// A fragment's tasks, with one choice of options.
struct Shape {
    /// Bytes of a number.
    e: u64,
    /// Tokens of a micro-batch.
    tokens: u64,
    hidden: u64,
    /// Width of all feed-forward layers that a token goes through.
    ffn: u64,
    /// Experts that a token goes through; 0 without experts.
    experts: u64,
    vocab: u64,
    kv_shared: bool,
    parameters: u64,
    learning: u64,
    /// Largest tensor that learns, and the largest matrix of a block, parameters.
    largest: u64,
    largest_of_block: u64,
    /// Parameters of a block.
    block: u64,
    /// Blocks that learn, and blocks behind them.
    blocks: u64,
    behind: u64,
    embedding_learns: bool,
    head_learns: bool,
}

/// Memory that a task of `fragment` needs on the device with these options. A micro-batch that is not set is the whole
/// batch. The peak is the largest of four moments of a step: the backward passes of the head, of one block and of the
/// embedding, and the optimiser's step.
pub fn need(spec: &RunSpec, fragment: u32, options: Options, device: Device) -> Need {
    let shape = Shape::new(spec, fragment, options);
    let step = shape.step(options.moments, device);
    let fixed = Need {
        weights: 4 * shape.learning + shape.e * (shape.parameters - shape.learning),
        gradients: 4 * shape.learning,
        moments: match options.moments {
            Moments::F32 => 8 * shape.learning,
            Moments::Bits8 => 2 * shape.learning + 8 * shape.learning.div_ceil(moments::BLOCK as u64),
        },
        ..Need::default()
    };
    let passes = if options.checkpoint {
        [
            shape.head_of_checkpointed(),
            shape.block_of_checkpointed(),
            shape.embedding(),
        ]
    } else {
        [shape.head(), shape.last_block(), shape.embedding()]
    };
    let passes = passes.into_iter().chain([Pass {
        working: step,
        ..Pass::default()
    }]);
    // These moments of a step follow one another, so the largest is the peak.
    let peak = passes.max_by_key(Pass::total).unwrap_or_default();
    Need {
        copies: peak.copies,
        activations: peak.activations,
        working: peak.working,
        ..fixed
    }
}

/// One moment of a step.
#[derive(Clone, Copy, Debug, Default)]
struct Pass {
    copies: u64,
    activations: u64,
    working: u64,
}

impl Pass {
    fn total(&self) -> u64 {
        self.copies + self.activations + self.working
    }
}

impl Shape {
    fn new(spec: &RunSpec, fragment: u32, options: Options) -> Self {
        let m = &spec.model;
        let tensors = spec.tensors();
        let learning = tensors.get(spec.fragment_tensors(fragment)).unwrap_or_default();
        let layer = |name: &str| -> Option<u64> { name.strip_prefix("model.layers.")?.split_once('.')?.0.parse().ok() };
        let layers: Vec<u64> = learning.iter().filter_map(|t| layer(&t.name)).collect();
        // A fragment is a run of neighbouring blocks, so its ends say everything.
        let first = layers.iter().min().copied().unwrap_or(m.layers.into());
        let end = layers.iter().max().map_or(first, |last| last + 1);
        let largest = |of: &mut dyn Iterator<Item = u64>| of.max().unwrap_or(0);
        let of_block = || tensors.iter().filter(|t| layer(&t.name) == Some(0)).map(|t| t.len());
        let micro_batch = options.micro_batch.unwrap_or(spec.inner.batch_sequences).max(1);
        Self {
            e: options.precision.bytes(),
            tokens: u64::from(micro_batch) * u64::from(m.context),
            hidden: m.hidden.into(),
            ffn: u64::from(m.ffn) * u64::from(m.moe.as_ref().map_or(1, |moe| moe.top_k)),
            experts: m.moe.as_ref().map_or(0, |moe| moe.top_k.into()),
            vocab: m.vocab.into(),
            kv_shared: m.kv_heads < m.heads,
            parameters: spec.parameters(),
            learning: learning.iter().map(|t| t.len()).sum(),
            largest: largest(&mut learning.iter().map(|t| t.len())),
            largest_of_block: largest(&mut of_block()),
            block: of_block().sum(),
            blocks: end - first,
            behind: u64::from(m.layers) - end,
            embedding_learns: learning.iter().any(|t| t.name == "model.embed_tokens.weight"),
            head_learns: learning.iter().any(|t| t.name == "lm_head.weight"),
        }
    }

    fn bf16(&self) -> bool {
        self.e == 2
    }

    /// Values that both norms of a block keep in f32 in addition to bf16: input and normalised values.
    fn norms_f32(&self, learns: bool) -> u64 {
        match (self.bf16(), learns) {
            (false, _) => 0,
            (true, true) => 4 * 4 * self.hidden,
            (true, false) => 2 * 4 * self.hidden,
        }
    }

    /// Activations of a block that learns, or of one behind the fragment.
    fn kept(&self, learns: bool) -> u64 {
        let values = if learns {
            10 * self.hidden + 4 * self.ffn
        } else {
            6 * self.hidden + 3 * self.ffn
        };
        let experts = 3 * self.hidden * self.experts;
        self.tokens * (self.e * (values + experts) + self.norms_f32(learns))
    }

    /// Temporaries of a block's backward pass.
    fn backward(&self, learns: bool) -> u64 {
        let gradient = if learns { 4 * self.largest_of_block } else { 0 };
        // Keys and values of shared heads have their gradients summed up.
        let shared = if self.kv_shared { 2 * self.hidden } else { 0 };
        self.tokens * self.e * (2 * self.hidden + 4 * self.ffn + shared) + gradient
    }

    /// Input of a block.
    fn stream(&self) -> u64 {
        self.tokens * self.e * self.hidden
    }

    fn any_learns(&self) -> bool {
        self.blocks > 0
    }

    /// Logits, their logarithms and gradient; the last norm's output; the gradient of the head's input or weight.
    fn logits(&self) -> u64 {
        let norm = self.tokens * 3 * 4 * self.hidden;
        self.tokens * 12 * self.vocab + norm
    }

    /// Without checkpointing: the head's backward pass, while every block's activations are kept.
    fn head(&self) -> Pass {
        Pass {
            copies: self.copies(),
            activations: self.blocks * self.kept(true) + self.behind * self.kept(false) + self.stream(),
            working: self.logits(),
        }
    }

    /// Without checkpointing: the last block's backward pass.
    fn last_block(&self) -> Pass {
        Pass {
            working: self.backward(self.behind == 0) + self.stream(),
            ..self.head()
        }
    }

    /// Copies that the whole graph keeps: of every matrix that learns except the embedding, which is gathered first.
    fn copies(&self) -> u64 {
        let head = if self.head_learns { self.vocab * self.hidden } else { 0 };
        if self.bf16() {
            2 * (self.blocks * self.block + head)
        } else {
            0
        }
    }

    /// With checkpointing: inputs of the blocks from the first that learns, and of the head.
    fn inputs(&self) -> u64 {
        (self.blocks + self.behind + 1) * self.stream()
    }

    fn head_of_checkpointed(&self) -> Pass {
        Pass {
            copies: if self.bf16() && self.head_learns {
                2 * self.vocab * self.hidden
            } else {
                0
            },
            activations: self.inputs(),
            working: self.logits(),
        }
    }

    fn block_of_checkpointed(&self) -> Pass {
        let learns = self.any_learns() && self.behind == 0;
        let of = |learns: bool, inputs: u64| Pass {
            copies: if self.bf16() && learns { 2 * self.block } else { 0 },
            activations: inputs * self.stream() + self.kept(learns),
            working: self.backward(learns) + 2 * self.stream(),
        };
        let last = of(learns, self.blocks + self.behind);
        let last_that_learns = of(true, self.blocks);
        if last.total() > last_that_learns.total() {
            last
        } else {
            last_that_learns
        }
    }

    /// The gradient of the embedding is made whole before it is added to the others.
    fn embedding(&self) -> Pass {
        let working = if self.embedding_learns {
            4 * self.vocab * self.hidden + 2 * self.stream()
        } else {
            0
        };
        Pass {
            working,
            ..Pass::default()
        }
    }

    /// Temporaries of a part of a tensor: a square and a denominator; with 8 bits also both moments, their codes and
    /// shares.
    fn step(&self, moments: Moments, device: Device) -> u64 {
        let part = (adamw::part_of(device) as u64).min(self.largest);
        let values = match moments {
            Moments::F32 => 3,
            Moments::Bits8 => 7,
        };
        4 * part * values
    }
}

/// Memory that a task needs on the host, whatever the device.
pub fn host_need(spec: &RunSpec, fragment: u32) -> HostNeed {
    let (learning, update) = (spec.fragment_parameters(fragment), &spec.update);
    let candidates = learning.saturating_mul(update.k_max.into()) / u64::from(update.chunk.max(1));
    HostNeed {
        mapped_theta: 4 * spec.parameters(),
        loading: 4 * spec.tensors().iter().map(|t| t.len()).max().unwrap_or(0),
        update: 4 * learning,
        encoder: 6 * candidates,
        sent: 3 * 12 * entries_max(update).min(candidates),
    }
}

/// Maximum number of entries of an update of full chunks: each takes its value's bits, and of its gap at least the end
/// of the quotient and the remainder, which is shortest in the densest chunk (`docs/spec/update.md`). Chunks of short
/// tensors may be denser; they are few.
fn entries_max(update: &UpdateSpec) -> u64 {
    let (chunk, k_max) = (u64::from(update.chunk), u64::from(update.k_max));
    let gap = 24 * chunk.saturating_sub(k_max) / (25 * (k_max + 1));
    let remainder = u64::from(gap.checked_ilog2().unwrap_or(0));
    update.budget_bytes.saturating_mul(8) / (u64::from(update.value_bits) + remainder + 1)
}

/// The fragment that needs the most memory with these options, and its need.
pub fn worst(spec: &RunSpec, options: Options, device: Device) -> (u32, Need) {
    let needs = (0..spec.task.fragments.max(1)).map(|p| (p, need(spec, p, options, device)));
    // `max_by_key` takes the last of equals: reversed, the lowest fragment.
    needs.rev().max_by_key(|(_, need)| need.total()).unwrap_or_default()
}

/// The largest micro-batch, halved from the whole batch, with which tasks of a fragment stay within `bytes`; of all
/// fragments if `fragment` is `None`. `None` if not even one sequence fits.
pub fn micro_batch(spec: &RunSpec, fragment: Option<u32>, options: Options, device: Device, bytes: u64) -> Option<u32> {
    let batch = spec.inner.batch_sequences;
    let mut size = options.micro_batch.unwrap_or(batch).clamp(1, batch.max(1));
    loop {
        let options = Options {
            micro_batch: Some(size),
            ..options
        };
        let need = match fragment {
            Some(p) => need(spec, p, options, device),
            None => worst(spec, options, device).1,
        };
        if need.total() <= bytes {
            return Some(size);
        }
        if size == 1 {
            return None;
        }
        // As the trainer does when the device runs out of memory, so that both arrive at the same size.
        size /= 2;
    }
}

/// All combinations of moments and checkpointing in one precision; the fastest one, which changes the fewest digits,
/// first.
pub fn combinations(precision: Precision) -> [Options; 4] {
    let of = |moments, checkpoint| Options {
        micro_batch: None,
        precision,
        moments,
        checkpoint,
    };
    [
        of(Moments::F32, false),
        of(Moments::F32, true),
        of(Moments::Bits8, false),
        of(Moments::Bits8, true),
    ]
}

#[cfg(test)]
mod tests;
