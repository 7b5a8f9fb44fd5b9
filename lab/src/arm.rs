//! Arms: the training set-ups that an experiment compares.

use serde::{Deserialize, Serialize};

/// A training set-up. Two arms of an experiment differ in the fields that it asks about and in nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// Workers M.
    pub workers: u32,
    /// Sequences in a worker's step.
    pub batch_sequences: u32,
    /// Local steps H between two steps of the network.
    pub steps: u32,
    /// Steps of the network.
    pub rounds: u32,
    /// Peak inner learning rate: warm-up over the first twentieth of all steps, then a cosine to a tenth.
    pub learning_rate: f64,
    /// Whether a worker's AdamW moments of a fragment are kept from task to task, as a miner's are by default.
    /// If not, each task has a warm-up of three steps.
    pub keep_moments: bool,
    /// The network's step.
    pub outer: Outer,
    /// Compression of a pseudo-gradient; `None` sends it as it is.
    pub codec: Option<Codec>,
    /// Contiguous layer groups P; a worker trains one of them in a round, in rotation. 1: all parameters.
    pub fragments: u32,
    /// Share of workers that miss a round, each by its own draw. At least one always takes part.
    pub churn: f64,
    /// 0: round e trains on θ(e); 1: on θ(e−1).
    pub base_lag: u32,
    /// Blocks of the model, if not those of the run.
    // Left out of the JSON when absent: the key of a result hashes that JSON, so the results of before the field was
    // added keep their keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<u32>,
}

/// The network's step from the mean pseudo-gradient g.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outer {
    /// Step size.
    pub alpha: f64,
    /// Nesterov momentum μ: v ← μv + g, θ ← θ − α(g + μv) (Douillard et al. 2023). 0: θ ← θ − αg.
    pub momentum: f64,
    /// Divide a coordinate's sum by the number of workers that sent it, not by the number of all.
    pub by_senders: bool,
    /// c ≥ 1: divide by the larger of the number of senders and of R / c, so that one worker's entry weighs at most c /
    /// R. Between the mean over all (c = 1) and the mean over senders (c = R).
    // As for `layers`: results without the field keep their keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry_weight: Option<u32>,
}

/// Compression of a pseudo-gradient.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Codec {
    /// Entries kept in a chunk of 4,096 coordinates, at most.
    pub k_max: u32,
    /// Bits of a value.
    pub value_bits: u8,
    /// Residual decay β; `None` for no error feedback at all.
    pub decay: Option<f64>,
    /// Budget of an update, bytes; `None` if only `k_max` bounds it.
    pub budget_bytes: Option<u64>,
    /// Bits of the published aggregate; `None` applies the f32 mean.
    pub publish_bits: Option<u8>,
    /// Whether a residual is reduced by the network's movement of a coordinate since, towards zero and not beyond: that
    /// part of the work has been done by others.
    // As for `layers`: results without the field keep their keys.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub settle: bool,
}

impl Arm {
    /// Key of a run's result: a hash of the arm, the model, the text's size and the seed, so that arms that experiments
    /// share run once.
    pub fn key(&self, model: &str, seed: u64) -> String {
        let text = serde_json::json!([self, model, seed]).to_string();
        // 64 bits: a few hundred results do not collide, and a line of runs.jsonl stays readable.
        blake3::hash(text.as_bytes()).to_hex()[..16].to_string()
    }

    /// Tokens that all workers train on, without churn.
    pub fn tokens(&self, context: u32) -> u64 {
        u64::from(self.workers)
            * u64::from(self.batch_sequences)
            * u64::from(self.steps)
            * u64::from(self.rounds)
            * u64::from(context)
    }
}
