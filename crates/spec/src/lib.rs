//! The run specification (docs/spec/run-specification.md): one TOML file fixes a training run. Its hash is in every
//! commitment.
//!
//! [`RunSpec::parse`] reads and validates; [`RunSpec::run_hash`] hashes the *meaning* (SCALE of the parsed fields in a
//! fixed order, floats by their bits), so that comments and layout of the file do not matter; [`RunSpec::cost`]
//! estimates what the run needs of disks, networks and devices. The layout of the model's tensors follows from the
//! specification alone ([`RunSpec::tensors`]).
//!
//! Fields have the names of their TOML keys, so that a search for one finds both.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod cost;
mod layout;
mod moe;
mod presets;
mod run_hash;
mod tokenizer;
mod validate;

pub use cost::{Cost, DEVICE_CLASSES, DeviceClass, DevicePlan, TaskMemory};
pub use layout::TensorShape;
pub use moe::{MoeSpec, StartSpec};
pub use presets::{preset, preset_names};
pub use tokenizer::BYTES;

use alice_primitives::Hash;
use serde::{Deserialize, Serialize};

/// Maximum file, bytes: a specification has about 2 KiB, and servers send it to everybody who asks.
pub const SPEC_BYTES_MAX: usize = 64 * 1024;
/// ε of every RMSNorm of the model: `rms_norm_eps` of the Llama configurations.
pub const RMS_NORM_EPSILON: f64 = 1e-5;

/// Why a run specification was refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file is larger than [`SPEC_BYTES_MAX`].
    #[error("run spec has {0} bytes, at most {SPEC_BYTES_MAX} are read")]
    TooLarge(usize),
    /// Not TOML, an unknown key, a missing key or a wrong type.
    #[error("run spec is not valid: {0}")]
    Toml(#[from] toml::de::Error),
    /// A value outside its bounds.
    #[error("run spec field {field}: {problem}")]
    Field {
        /// Path of the field, for example `model.heads`.
        field: &'static str,
        /// The problem, and the allowed values.
        problem: String,
    },
}

/// A run, as written in `chain-spec/runs/<name>.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// Name of the run.
    pub name: String,
    /// Version of this format.
    pub version: u32,
    /// Architecture.
    pub model: ModelSpec,
    /// Text.
    pub data: DataSpec,
    /// Tasks.
    pub task: TaskSpec,
    /// The miner's local optimiser.
    pub inner: InnerSpec,
    /// Compression of updates.
    pub update: UpdateSpec,
    /// The network's step.
    pub outer: OuterSpec,
    /// Scoring of submissions.
    pub score: ScoreSpec,
    /// Phases of an epoch, in blocks.
    pub round: RoundSpec,
    /// The first state; `None`: drawn from block 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartSpec>,
}

/// Llama architecture (RMSNorm, rotary embeddings with rotate-half, SwiGLU, no biases, untied head), or Mixtral's: the
/// same with several feed-forward layers in each block, see [`MoeSpec`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// `llama`, or `mixtral` with a table `[model.moe]`.
    pub architecture: String,
    /// Rows of the embedding.
    pub vocab: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Transformer blocks.
    pub layers: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of the feed-forward layer; with experts, of each expert's.
    pub ffn: u32,
    /// Tokens in a sequence.
    pub context: u32,
    /// Base of the rotary embedding.
    pub rope_theta: u32,
    /// Standard deviation of the initial weights, in millionths.
    pub init_std_millionths: u32,
    /// Mixture of experts; `None`: a dense model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moe: Option<MoeSpec>,
}

/// Text and tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// `bytes`: ids 0..3 are unknown, begin, end; byte b is id b + 3 (the order of SentencePiece's byte fallback). Or
    /// the BLAKE3 of a `tokenizer.model`, hex: the shards are encoded with that one.
    pub tokenizer: String,
    /// Root of the training shards, hex.
    pub corpus_root: String,
    /// Root of the validation reserve's shards, hex.
    pub reserve_root: String,
    /// Tokens in the training shards.
    pub corpus_tokens: u64,
    /// Tokens in the reserve.
    pub reserve_tokens: u64,
    /// Whether reserve sequences may be drawn again in later epochs (small runs only).
    pub reserve_reuse: bool,
}

/// Tasks (docs/spec/protocol.md#tasks).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// Fragments P that the model is cut into. 1: every task trains all parameters. More: a task goes forward through
    /// all layers and trains one fragment, see [`RunSpec::fragment_tensors`].
    pub fragments: u32,
}

/// Inner optimiser: AdamW with gradient clipping, a constant rate after a linear warm-up at the start of a task
/// (`warmup_steps`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InnerSpec {
    /// Local steps H of a task.
    pub steps: u32,
    /// Sequences in one step's batch.
    pub batch_sequences: u32,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up at the start of a task whose optimiser starts without moments. A task that starts with
    /// the moments of the fragment's last one has no warm-up.
    pub warmup_steps: u32,
    /// AdamW β₁.
    pub beta1: f64,
    /// AdamW β₂.
    pub beta2: f64,
    /// AdamW ε.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are clipped to this global norm.
    pub clip_norm: f64,
}

/// Codec and error feedback.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateSpec {
    /// Coordinates in a chunk.
    pub chunk: u32,
    /// Maximum encoded update, bytes.
    pub budget_bytes: u64,
    /// Bits of a value (sign and magnitude): 1, 2, 4 or 8.
    pub value_bits: u8,
    /// Maximum entries kept in a chunk (the density is at most `k_max / chunk`).
    pub k_max: u32,
    /// Residual decay β of the error feedback.
    pub feedback_decay: f64,
    /// Bits of the published aggregate's levels.
    pub publish_bits: u8,
}

/// The network's step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OuterSpec {
    /// Outer step size α (docs/spec/protocol.md#model-step).
    pub alpha: f64,
    /// Model steps between published snapshots.
    pub snapshot_every: u32,
    /// Influence bound c (docs/spec/protocol.md#mean): of R updates, one's entry weighs at most c / R in the mean,
    /// however few send its coordinate. 1, the default: the mean over all.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub entry_weight: u32,
}

const fn one() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
const fn is_one(value: &u32) -> bool {
    *value == 1
}

/// Scoring (docs/spec/scoring.md).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreSpec {
    /// Sequences in the scoring split.
    pub sequences: u32,
    /// Sequences in the guard split.
    pub guard_sequences: u32,
    /// Probe step κ.
    pub probe: f64,
    /// z of the gate and the guard.
    pub z: f64,
    /// Epochs over which evidence is pooled.
    pub pool_epochs: u32,
}

/// Phases of an epoch, in blocks from its first block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundSpec {
    /// Blocks in an epoch; the chain's own value must agree.
    pub epoch_blocks: u32,
    /// Commits are accepted before this block.
    pub deadline_block: u32,
    /// Finalised blocks after the deadline that make the validation seed.
    pub seed_blocks: u32,
    /// A round is opened late in an epoch only if this many blocks remain before the deadline.
    pub open_margin_blocks: u32,
    /// Life of a claim's lease, blocks.
    pub lease_blocks: u32,
    /// Staleness of the state that a round trains on: with 0, round e trains on θ(e); with 1, on θ(e−1).
    pub base_lag: u32,
    /// Maximum tasks handed out in one epoch.
    pub tasks_max: u32,
}

impl RunSpec {
    /// Reads and validates a specification.
    ///
    /// # Errors
    /// [`SpecError`]; nothing outside its bounds is ever returned.
    ///
    /// ```
    /// use alice_spec::{RunSpec, preset};
    /// let spec = RunSpec::parse(preset("dev").ok_or("no such preset")?)?;
    /// assert_eq!(spec.name, "dev");
    /// assert_eq!(spec.task_sequences(), 30 * 4);
    /// let bad = preset("dev").ok_or("no such preset")?.replace("layers = 4", "layers = 0");
    /// assert!(RunSpec::parse(&bad).unwrap_err().to_string().contains("model.layers"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        // Before it is parsed, which takes a multiple of its size.
        if text.len() > SPEC_BYTES_MAX {
            return Err(SpecError::TooLarge(text.len()));
        }
        // Unknown keys are refused by every table: a mistyped key would otherwise be a default that is hashed for good.
        let spec: Self = toml::from_str(text)?;
        spec.validate()?;
        Ok(spec)
    }

    /// Root of the training shards.
    pub fn corpus_root(&self) -> Hash {
        // `validate` has refused text that is not a hash.
        parse_hash(&self.data.corpus_root).unwrap_or_default()
    }

    /// Root of the validation reserve.
    pub fn reserve_root(&self) -> Hash {
        parse_hash(&self.data.reserve_root).unwrap_or_default()
    }

    /// Root of the first state that the run names; `None`: it follows from block 0.
    pub fn start_root(&self) -> Option<Hash> {
        self.start.as_ref().and_then(|start| parse_hash(&start.model_root))
    }

    /// Sequences in one task: H steps of a batch each.
    pub fn task_sequences(&self) -> u64 {
        u64::from(self.inner.steps) * u64::from(self.inner.batch_sequences)
    }

    /// First block of an epoch.
    pub fn epoch_start(&self, epoch: u32) -> u32 {
        // Saturating: an epoch from a hostile request must not wrap around to an early block.
        epoch.saturating_mul(self.round.epoch_blocks)
    }

    /// Commits to an epoch are accepted in blocks before this one.
    pub fn deadline(&self, epoch: u32) -> u32 {
        self.epoch_start(epoch).saturating_add(self.round.deadline_block)
    }
}

fn parse_hash(text: &str) -> Option<Hash> {
    let mut out = [0; 32];
    hex::decode_to_slice(text, &mut out).ok()?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = include_str!("../../../chain-spec/runs/dev.toml");
    const ALL: [&str; 8] = [
        DEV,
        include_str!("../../../chain-spec/runs/dev-fragments.toml"),
        include_str!("../../../chain-spec/runs/small.toml"),
        include_str!("../../../chain-spec/runs/genesis-7b.toml"),
        include_str!("../../../chain-spec/runs/dev-moe.toml"),
        include_str!("../../../chain-spec/runs/phase2-56b.toml"),
        include_str!("../../../chain-spec/runs/phase3-112b.toml"),
        include_str!("../../../chain-spec/runs/phase4-200b.toml"),
    ];

    #[test]
    fn presets_should_be_valid() {
        for text in ALL {
            let spec = RunSpec::parse(text).unwrap();
            assert!(spec.parameters() > 0);
        }
    }

    #[test]
    fn hash_should_ignore_comments_and_follow_values() {
        let spec = RunSpec::parse(DEV).unwrap();
        let commented = RunSpec::parse(&format!("# a comment\n{DEV}")).unwrap();
        assert_eq!(spec.run_hash(), commented.run_hash());
        let mut other = spec.clone();
        other.outer.alpha = 0.5;
        assert_ne!(spec.run_hash(), other.run_hash());
        // Without the key it is the mean over all, and the hash is that of runs from before the key existed.
        let with = |line: &str| {
            RunSpec::parse(&DEV.replace("entry_weight = 4\n", line))
                .unwrap()
                .run_hash()
        };
        assert_eq!(with("entry_weight = 1\n"), with(""));
        assert_ne!(with("entry_weight = 4\n"), with(""));
    }

    #[test]
    fn bad_values_should_name_their_field() {
        let spec = RunSpec::parse(DEV).unwrap();
        type Change = fn(&mut RunSpec);
        let cases: [(&str, Change); 9] = [
            ("model.heads", |s| s.model.heads = 6),
            ("model.architecture", |s| s.model.architecture = "gpt".into()),
            ("data.corpus_root", |s| s.data.corpus_root = "xyz".into()),
            ("inner.learning_rate", |s| s.inner.learning_rate = f64::NAN),
            ("update.value_bits", |s| s.update.value_bits = 3),
            ("outer.entry_weight", |s| s.outer.entry_weight = 65),
            ("score.probe", |s| s.score.probe = 0.0),
            ("round.deadline_block", |s| {
                s.round.deadline_block = s.round.epoch_blocks
            }),
            ("data.reserve_tokens", |s| s.data.reserve_tokens = 10),
        ];
        for (field, change) in cases {
            let mut bad = spec.clone();
            change(&mut bad);
            let message = bad.validate().unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
    }

    #[test]
    fn unknown_keys_and_large_files_should_be_refused() {
        assert!(matches!(
            RunSpec::parse(&format!("surprise = 1\n{DEV}")),
            Err(SpecError::Toml(_))
        ));
        assert!(matches!(
            RunSpec::parse(&" ".repeat(SPEC_BYTES_MAX + 1)),
            Err(SpecError::TooLarge(_))
        ));
    }
}
