//! Bounds of a run specification's fields (docs/spec/run-specification.md), a function for each table.

use crate::{DataSpec, InnerSpec, ModelSpec, OuterSpec, RoundSpec, RunSpec, ScoreSpec, SpecError, UpdateSpec};
use crate::{parse_hash, tokenizer};

/// Version of the format that this program reads.
const VERSION: u32 = 1;
/// Maximum length of a run's name: it is in file names and log lines.
const NAME_BYTES_MAX: usize = 32;
/// Minimum vocabulary: the byte tokenizer's 3 special ids and 256 bytes, with which every vocabulary begins.
const VOCAB_MIN: u64 = 259;
/// Bounds of the shape: far above every published model, and low enough that products of sizes stay within 64 bits.
const VOCAB_MAX: u64 = 1 << 20;
const HIDDEN_MAX: u64 = 1 << 16;
const LAYERS_MAX: u64 = 512;
const HEADS_MAX: u64 = 1024;
const FFN_MAX: u64 = 1 << 18;
const CONTEXT_MAX: u64 = 1 << 20;
const ROPE_THETA_MAX: u64 = 1 << 30;
/// Standard deviation 1, in millionths: weights of that size do not train.
const INIT_STD_MILLIONTHS_MAX: u64 = 1_000_000;
/// Maximum inner steps and sequences of a step: a task must end within an epoch.
const STEPS_MAX: u64 = 10_000;
const BATCH_SEQUENCES_MAX: u64 = 65_536;
/// Maximum of β₁ and β₂: at 1 the moments would never move.
const BETA_MAX: f64 = 0.99999;
/// Maximum ε: above it AdamW is a scaled gradient descent.
const EPSILON_MAX: f64 = 1e-2;
const CLIP_NORM_MAX: f64 = 1e6;
/// Bounds of a chunk: positions in it are coded in at most 16 bits, and below 64 the scales outweigh the values.
const CHUNK_MIN: u64 = 64;
const CHUNK_MAX: u64 = 65_536;
/// Minimum update: the header and a few chunks.
const BUDGET_BYTES_MIN: u64 = 1024;
/// Maximum update, 1 GiB: the server holds a round's updates.
const BUDGET_BYTES_MAX: u64 = 1 << 30;
const ALPHA_MAX: f64 = 10.0;
/// Maximum model steps between snapshots: one who joins applies as many deltas.
const SNAPSHOT_EVERY_MAX: u64 = 10_000;
/// Maximum influence bound (docs/decisions/0012-entry-weight.md).
const ENTRY_WEIGHT_MAX: u64 = 64;
/// Minimum split: a standard error needs two sequences.
const SPLIT_SEQUENCES_MIN: u64 = 2;
const SPLIT_SEQUENCES_MAX: u64 = 1 << 20;
const Z_MAX: f64 = 10.0;
/// Evidence is pooled over one round's submissions of a key; more epochs are not built yet.
const POOL_EPOCHS_MAX: u64 = 1;
/// Minimum epoch: the phases need a block each.
const EPOCH_BLOCKS_MIN: u64 = 10;
const EPOCH_BLOCKS_MAX: u64 = 100_000;
const SEED_BLOCKS_MAX: u64 = 100;
/// Training on an older state is not built yet.
const BASE_LAG_MAX: u64 = 0;
/// Maximum tasks of an epoch: the server holds a slot for each.
const TASKS_MAX: u64 = 100_000;

impl RunSpec {
    /// Checks every bound. A specification from [`RunSpec::parse`] has passed.
    ///
    /// # Errors
    /// [`SpecError::Field`] with the first field that is outside its bounds.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.check_header()?;
        // First, since the other fields of the model depend on it.
        self.check_architecture()?;
        check_model(&self.model)?;
        check_data(&self.data, &self.model)?;
        self.check_fragments()?;
        if let Some(start) = &self.start {
            hash_field(&start.model_root, "start.model_root")?;
        }
        check_inner(&self.inner)?;
        check_update(&self.update)?;
        check_outer(&self.outer)?;
        check_score(&self.score)?;
        // After the model's bounds: the context is divided by.
        self.check_reserve_size()?;
        check_round(&self.round)?;
        self.check_corpus_size()
    }

    fn check_header(&self) -> Result<(), SpecError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let name_ok = (1..=NAME_BYTES_MAX).contains(&self.name.len()) && self.name.bytes().all(plain);
        check(name_ok, "name", "1 to 32 of a-z, 0-9 and '-'")?;
        check(
            self.version == VERSION,
            "version",
            format!("{} is not known; this program reads version {VERSION}", self.version),
        )
    }

    /// The reserve must hold at least one draw.
    fn check_reserve_size(&self) -> Result<(), SpecError> {
        let held = self.data.reserve_tokens / u64::from(self.model.context);
        let drawn = self.score.sequences + self.score.guard_sequences;
        check(
            held >= u64::from(drawn),
            "data.reserve_tokens",
            format!("the reserve holds {held} sequences, scoring draws {drawn}"),
        )
    }

    /// The training text must hold at least one task.
    fn check_corpus_size(&self) -> Result<(), SpecError> {
        let task = self.task_sequences();
        check(
            self.data.corpus_tokens / u64::from(self.model.context) >= task,
            "data.corpus_tokens",
            format!("the corpus is smaller than one task ({task} sequences)"),
        )
    }
}

fn check_model(model: &ModelSpec) -> Result<(), SpecError> {
    range(model.vocab, VOCAB_MIN, VOCAB_MAX, "model.vocab")?;
    range(model.hidden, 8, HIDDEN_MAX, "model.hidden")?;
    range(model.layers, 1, LAYERS_MAX, "model.layers")?;
    range(model.heads, 1, HEADS_MAX, "model.heads")?;
    range(model.kv_heads, 1, model.heads.into(), "model.kv_heads")?;
    range(model.ffn, 8, FFN_MAX, "model.ffn")?;
    range(model.context, 2, CONTEXT_MAX, "model.context")?;
    range(model.rope_theta, 1, ROPE_THETA_MAX, "model.rope_theta")?;
    range(
        model.init_std_millionths,
        1,
        INIT_STD_MILLIONTHS_MAX,
        "model.init_std_millionths",
    )?;
    // Even, since rotary embeddings rotate pairs of a head's coordinates.
    check(
        model.hidden.is_multiple_of(model.heads) && (model.hidden / model.heads).is_multiple_of(2),
        "model.heads",
        "hidden / heads must be an even whole number",
    )?;
    check(
        model.heads.is_multiple_of(model.kv_heads),
        "model.kv_heads",
        "must divide model.heads",
    )
}

fn check_data(data: &DataSpec, model: &ModelSpec) -> Result<(), SpecError> {
    tokenizer::check(data, model.vocab)?;
    hash_field(&data.corpus_root, "data.corpus_root")?;
    hash_field(&data.reserve_root, "data.reserve_root")
}

fn check_inner(inner: &InnerSpec) -> Result<(), SpecError> {
    range(inner.steps, 1, STEPS_MAX, "inner.steps")?;
    range(inner.batch_sequences, 1, BATCH_SEQUENCES_MAX, "inner.batch_sequences")?;
    positive(inner.learning_rate, 1.0, "inner.learning_rate")?;
    range(inner.warmup_steps, 0, inner.steps.into(), "inner.warmup_steps")?;
    positive(inner.beta1, BETA_MAX, "inner.beta1")?;
    positive(inner.beta2, BETA_MAX, "inner.beta2")?;
    positive(inner.epsilon, EPSILON_MAX, "inner.epsilon")?;
    fraction(inner.weight_decay, "inner.weight_decay")?;
    positive(inner.clip_norm, CLIP_NORM_MAX, "inner.clip_norm")
}

fn check_update(update: &UpdateSpec) -> Result<(), SpecError> {
    // A power of two, so that positions in a chunk are whole numbers of bits.
    check(update.chunk.is_power_of_two(), "update.chunk", "must be a power of two")?;
    range(update.chunk, CHUNK_MIN, CHUNK_MAX, "update.chunk")?;
    range(
        update.budget_bytes,
        BUDGET_BYTES_MIN,
        BUDGET_BYTES_MAX,
        "update.budget_bytes",
    )?;
    check(
        matches!(update.value_bits, 1 | 2 | 4 | 8),
        "update.value_bits",
        "must be 1, 2, 4 or 8",
    )?;
    // One bit would be a sign without a magnitude: the mean's sizes would be lost.
    check(
        matches!(update.publish_bits, 2 | 4 | 8),
        "update.publish_bits",
        "must be 2, 4 or 8",
    )?;
    range(update.k_max, 1, update.chunk.into(), "update.k_max")?;
    fraction(update.feedback_decay, "update.feedback_decay")
}

fn check_outer(outer: &OuterSpec) -> Result<(), SpecError> {
    positive(outer.alpha, ALPHA_MAX, "outer.alpha")?;
    range(outer.snapshot_every, 1, SNAPSHOT_EVERY_MAX, "outer.snapshot_every")?;
    range(outer.entry_weight, 1, ENTRY_WEIGHT_MAX, "outer.entry_weight")
}

fn check_score(score: &ScoreSpec) -> Result<(), SpecError> {
    range(
        score.sequences,
        SPLIT_SEQUENCES_MIN,
        SPLIT_SEQUENCES_MAX,
        "score.sequences",
    )?;
    range(
        score.guard_sequences,
        SPLIT_SEQUENCES_MIN,
        SPLIT_SEQUENCES_MAX,
        "score.guard_sequences",
    )?;
    positive(score.probe, 1.0, "score.probe")?;
    positive(score.z, Z_MAX, "score.z")?;
    range(score.pool_epochs, 1, POOL_EPOCHS_MAX, "score.pool_epochs")
}

fn check_round(round: &RoundSpec) -> Result<(), SpecError> {
    range(
        round.epoch_blocks,
        EPOCH_BLOCKS_MIN,
        EPOCH_BLOCKS_MAX,
        "round.epoch_blocks",
    )?;
    range(round.seed_blocks, 1, SEED_BLOCKS_MAX, "round.seed_blocks")?;
    // The seed's blocks and one more must fit between the deadline and the epoch's end.
    let deadline_max = round.epoch_blocks.saturating_sub(round.seed_blocks + 1);
    range(round.deadline_block, 2, deadline_max.into(), "round.deadline_block")?;
    range(
        round.open_margin_blocks,
        1,
        round.deadline_block.into(),
        "round.open_margin_blocks",
    )?;
    range(round.lease_blocks, 1, round.epoch_blocks.into(), "round.lease_blocks")?;
    range(round.base_lag, 0, BASE_LAG_MAX, "round.base_lag")?;
    range(round.tasks_max, 1, TASKS_MAX, "round.tasks_max")
}

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

fn range(value: impl Into<u64>, min: u64, max: u64, field: &'static str) -> Result<(), SpecError> {
    let value = value.into();
    check(
        (min..=max).contains(&value),
        field,
        format!("{value} must be between {min} and {max}"),
    )
}

/// Above 0 and at most `max`. NaN is outside.
fn positive(value: f64, max: f64, field: &'static str) -> Result<(), SpecError> {
    check(
        value.is_finite() && value > 0.0 && value <= max,
        field,
        format!("{value} must be above 0 and at most {max}"),
    )
}

fn fraction(value: f64, field: &'static str) -> Result<(), SpecError> {
    check((0.0..=1.0).contains(&value), field, "must be between 0 and 1")
}

fn hash_field(text: &str, field: &'static str) -> Result<(), SpecError> {
    check(parse_hash(text).is_some(), field, "must be 64 hexadecimal digits")
}
