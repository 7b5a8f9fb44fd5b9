//! The run specification (protocol §1): one TOML file fixes a training run. Its hash is in every commitment.
//!
//! [`RunSpec::parse`] reads and validates; [`RunSpec::run_hash`] hashes the *meaning* (SCALE of the parsed fields in a
//! fixed order, floats by their bits), so that comments and layout of the file do not matter; [`RunSpec::cost`] says
//! what the run asks of disks, networks and devices. The layout of the model's tensors follows from the spec alone
//! ([`RunSpec::tensors`]).
#![forbid(unsafe_code)]

mod cost;
mod layout;
mod moe;
mod presets;
mod tokenizer;

pub use cost::{Cost, DEVICE_CLASSES, DeviceClass, DevicePlan, TaskMemory};
pub use layout::TensorShape;
pub use moe::{MoeSpec, StartSpec};
pub use presets::{preset, preset_names};
pub use tokenizer::BYTES;

use alice_primitives::{Hash, tagged_hash, tags};
use codec::Encode;
use serde::{Deserialize, Serialize};

/// Longest accepted file, bytes.
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
        /// What is wrong and what is allowed.
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
    /// What a task trains.
    pub task: TaskSpec,
    /// What a miner does locally.
    pub inner: InnerSpec,
    /// How an update is compressed.
    pub update: UpdateSpec,
    /// How the network steps.
    pub outer: OuterSpec,
    /// How submissions are scored.
    pub score: ScoreSpec,
    /// When, in blocks.
    pub round: RoundSpec,
    /// The first state, where it is not drawn from block 0.
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
    /// Width of the feed-forward layer; of each expert's, where there are experts.
    pub ffn: u32,
    /// Tokens in a sequence.
    pub context: u32,
    /// Base of the rotary embedding.
    pub rope_theta: u32,
    /// Standard deviation of the initial weights, in millionths.
    pub init_std_millionths: u32,
    /// Mixture of experts; none: a dense model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moe: Option<MoeSpec>,
}

/// Text and tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// `bytes`: ids 0..3 are unknown, begin, end; byte b is id b + 3 (the order of SentencePiece's byte fallback). Or the
    /// BLAKE3 of a `tokenizer.model`, hex: the shards are encoded with that one.
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

/// Tasks (protocol §3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// Fragments P that the model is cut into. 1: every task trains all parameters. More: a task goes forward through all
    /// layers and trains one fragment, see [`RunSpec::fragment_tensors`].
    pub fragments: u32,
}

/// Inner optimiser: AdamW with gradient clipping, a constant rate after a warm-up over the first epochs' steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InnerSpec {
    /// Local steps H of a task.
    pub steps: u32,
    /// Sequences in one step's batch.
    pub batch_sequences: u32,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up at the start of a task whose optimiser starts from nothing. One that goes on from the moments
    /// of the fragment's last task has none.
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
    /// An encoded update never exceeds this, bytes.
    pub budget_bytes: u64,
    /// Bits of a value (sign and magnitude): 1, 2, 4 or 8.
    pub value_bits: u8,
    /// Largest number of kept entries in a chunk (the density is at most `k_max / chunk`).
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
    /// α of protocol §6.
    pub alpha: f64,
    /// A snapshot is published every so many model steps.
    pub snapshot_every: u32,
    /// c of protocol §6.2: of R updates, one's entry weighs at most c / R in the mean, however few send its coordinate. 1 (also
    /// where it is not given): the mean over all.
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

/// Scoring (protocol §5).
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
    /// 0: round e trains on θ(e); 1: on θ(e−1).
    pub base_lag: u32,
    /// Tasks handed out in one epoch, at most.
    pub tasks_max: u32,
}

impl RunSpec {
    /// Reads and validates a specification.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        if text.len() > SPEC_BYTES_MAX {
            return Err(SpecError::TooLarge(text.len()));
        }
        let spec: Self = toml::from_str(text)?;
        spec.validate()?;
        Ok(spec)
    }

    /// Checks every bound. What [`RunSpec::parse`] returns has passed.
    pub fn validate(&self) -> Result<(), SpecError> {
        fn check(ok: bool, field: &'static str, problem: impl Into<String>) -> Result<(), SpecError> {
            if ok {
                Ok(())
            } else {
                Err(SpecError::Field {
                    field,
                    problem: problem.into(),
                })
            }
        }
        fn positive(v: f64, max: f64, field: &'static str) -> Result<(), SpecError> {
            check(
                v.is_finite() && v > 0.0 && v <= max,
                field,
                format!("{v} must be above 0 and at most {max}"),
            )
        }
        let range = |v: u64, min: u64, max: u64, field| {
            check(
                (min..=max).contains(&v),
                field,
                format!("{v} must be between {min} and {max}"),
            )
        };
        let name_ok = !self.name.is_empty()
            && self.name.len() <= 32
            && self
                .name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        check(name_ok, "name", "1 to 32 of a-z, 0-9 and '-'")?;
        check(
            self.version == 1,
            "version",
            format!("{} is not known; this program reads version 1", self.version),
        )?;
        let m = &self.model;
        self.check_architecture()?;
        range(m.vocab.into(), 259, 1 << 20, "model.vocab")?;
        range(m.hidden.into(), 8, 1 << 16, "model.hidden")?;
        range(m.layers.into(), 1, 512, "model.layers")?;
        range(m.heads.into(), 1, 1024, "model.heads")?;
        range(m.kv_heads.into(), 1, m.heads.into(), "model.kv_heads")?;
        range(m.ffn.into(), 8, 1 << 18, "model.ffn")?;
        range(m.context.into(), 2, 1 << 20, "model.context")?;
        range(m.rope_theta.into(), 1, 1 << 30, "model.rope_theta")?;
        range(m.init_std_millionths.into(), 1, 1_000_000, "model.init_std_millionths")?;
        check(
            m.hidden.is_multiple_of(m.heads) && (m.hidden / m.heads).is_multiple_of(2),
            "model.heads",
            "hidden / heads must be an even whole number",
        )?;
        check(
            m.heads.is_multiple_of(m.kv_heads),
            "model.kv_heads",
            "must divide model.heads",
        )?;
        let d = &self.data;
        tokenizer::check(d, m.vocab)?;
        hash_field(&d.corpus_root, "data.corpus_root")?;
        hash_field(&d.reserve_root, "data.reserve_root")?;
        self.check_fragments()?;
        if let Some(start) = &self.start {
            hash_field(&start.model_root, "start.model_root")?;
        }
        let i = &self.inner;
        range(i.steps.into(), 1, 10_000, "inner.steps")?;
        range(i.batch_sequences.into(), 1, 65_536, "inner.batch_sequences")?;
        positive(i.learning_rate, 1.0, "inner.learning_rate")?;
        range(i.warmup_steps.into(), 0, i.steps.into(), "inner.warmup_steps")?;
        positive(i.beta1, 0.99999, "inner.beta1")?;
        positive(i.beta2, 0.99999, "inner.beta2")?;
        positive(i.epsilon, 1e-2, "inner.epsilon")?;
        check(
            (0.0..=1.0).contains(&i.weight_decay),
            "inner.weight_decay",
            "must be between 0 and 1",
        )?;
        positive(i.clip_norm, 1e6, "inner.clip_norm")?;
        let u = &self.update;
        check(u.chunk.is_power_of_two(), "update.chunk", "must be a power of two")?;
        range(u.chunk.into(), 64, 65_536, "update.chunk")?;
        range(u.budget_bytes, 1024, 1 << 30, "update.budget_bytes")?;
        check(
            matches!(u.value_bits, 1 | 2 | 4 | 8),
            "update.value_bits",
            "must be 1, 2, 4 or 8",
        )?;
        check(
            matches!(u.publish_bits, 2 | 4 | 8),
            "update.publish_bits",
            "must be 2, 4 or 8",
        )?;
        range(u.k_max.into(), 1, u.chunk.into(), "update.k_max")?;
        check(
            (0.0..=1.0).contains(&u.feedback_decay),
            "update.feedback_decay",
            "must be between 0 and 1",
        )?;
        positive(self.outer.alpha, 10.0, "outer.alpha")?;
        range(self.outer.snapshot_every.into(), 1, 10_000, "outer.snapshot_every")?;
        range(self.outer.entry_weight.into(), 1, 64, "outer.entry_weight")?;
        let s = &self.score;
        range(s.sequences.into(), 2, 1 << 20, "score.sequences")?;
        range(s.guard_sequences.into(), 2, 1 << 20, "score.guard_sequences")?;
        positive(s.probe, 1.0, "score.probe")?;
        positive(s.z, 10.0, "score.z")?;
        // Evidence is pooled over one round's submissions of a key; more epochs are not built yet.
        range(s.pool_epochs.into(), 1, 1, "score.pool_epochs")?;
        let reserve_sequences = d.reserve_tokens / u64::from(m.context);
        check(
            reserve_sequences >= u64::from(s.sequences) + u64::from(s.guard_sequences),
            "data.reserve_tokens",
            format!(
                "the reserve holds {reserve_sequences} sequences, scoring draws {}",
                s.sequences + s.guard_sequences
            ),
        )?;
        let r = &self.round;
        range(r.epoch_blocks.into(), 10, 100_000, "round.epoch_blocks")?;
        range(r.seed_blocks.into(), 1, 100, "round.seed_blocks")?;
        range(
            r.deadline_block.into(),
            2,
            u64::from(r.epoch_blocks.saturating_sub(r.seed_blocks + 1)),
            "round.deadline_block",
        )?;
        range(
            r.open_margin_blocks.into(),
            1,
            r.deadline_block.into(),
            "round.open_margin_blocks",
        )?;
        range(r.lease_blocks.into(), 1, r.epoch_blocks.into(), "round.lease_blocks")?;
        range(r.base_lag.into(), 0, 0, "round.base_lag")?;
        range(r.tasks_max.into(), 1, 100_000, "round.tasks_max")?;
        let task = self.task_sequences();
        check(
            d.corpus_tokens / u64::from(m.context) >= task,
            "data.corpus_tokens",
            format!("the corpus is smaller than one task ({task} sequences)"),
        )?;
        Ok(())
    }

    /// Hash of the specification's meaning. Two files that differ only in comments or layout have the same hash.
    pub fn run_hash(&self) -> Hash {
        let m = &self.model;
        let (d, i, u, s, r) = (&self.data, &self.inner, &self.update, &self.score, &self.round);
        let model = (
            &m.architecture,
            (
                m.vocab,
                m.hidden,
                m.layers,
                m.heads,
                m.kv_heads,
                m.ffn,
                m.context,
                m.rope_theta,
                m.init_std_millionths,
            ),
        );
        let data = (
            &d.tokenizer,
            &d.corpus_root,
            &d.reserve_root,
            d.corpus_tokens,
            d.reserve_tokens,
            d.reserve_reuse,
        );
        let inner = (
            (i.steps, i.batch_sequences, i.warmup_steps),
            [
                i.learning_rate,
                i.beta1,
                i.beta2,
                i.epsilon,
                i.weight_decay,
                i.clip_norm,
            ]
            .map(f64::to_bits),
        );
        let update = (
            u.chunk,
            u.budget_bytes,
            u.value_bits,
            u.k_max,
            u.feedback_decay.to_bits(),
            u.publish_bits,
        );
        let outer = (self.outer.alpha.to_bits(), self.outer.snapshot_every);
        let score = (
            s.sequences,
            s.guard_sequences,
            s.probe.to_bits(),
            s.z.to_bits(),
            s.pool_epochs,
        );
        let round = (
            (r.epoch_blocks, r.deadline_block, r.seed_blocks, r.open_margin_blocks),
            (r.lease_blocks, r.base_lag, r.tasks_max),
        );
        let mut bytes = (
            &self.name,
            self.version,
            model,
            data,
            self.task.fragments,
            inner,
            update,
            outer,
            score,
            round,
        )
            .encode();
        // Each of these begins with its own name, and nothing stands here where it is absent: the hashes of runs without
        // it are those of before it existed.
        if let Some(moe) = &m.moe {
            ("moe", moe.experts, moe.top_k, moe.router_aux_loss.to_bits()).encode_to(&mut bytes);
        }
        if let Some(root) = self.start_root() {
            ("start", root).encode_to(&mut bytes);
        }
        if self.outer.entry_weight != 1 {
            ("entry_weight", self.outer.entry_weight).encode_to(&mut bytes);
        }
        tagged_hash(tags::RUN, &[&bytes])
    }

    /// Root of the training shards.
    pub fn corpus_root(&self) -> Hash {
        parse_hash(&self.data.corpus_root).unwrap_or_default()
    }

    /// Root of the validation reserve.
    pub fn reserve_root(&self) -> Hash {
        parse_hash(&self.data.reserve_root).unwrap_or_default()
    }

    /// Root of the first state, where the run names one; otherwise it follows from block 0.
    pub fn start_root(&self) -> Option<Hash> {
        self.start.as_ref().and_then(|start| parse_hash(&start.model_root))
    }

    /// Sequences in one task: H steps of a batch each.
    pub fn task_sequences(&self) -> u64 {
        u64::from(self.inner.steps) * u64::from(self.inner.batch_sequences)
    }

    /// First block of an epoch.
    pub fn epoch_start(&self, epoch: u32) -> u32 {
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

fn hash_field(text: &str, field: &'static str) -> Result<(), SpecError> {
    match parse_hash(text) {
        Some(_) => Ok(()),
        None => Err(SpecError::Field {
            field,
            problem: "must be 64 hexadecimal digits".into(),
        }),
    }
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
        // What is left out is the mean over all, and the hash of runs that say nothing is what it always was.
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
