//! Shape and constants of a Llama or Mixtral: everything but its weights.

use crate::ModelError;
use alice_spec::{RMS_NORM_EPSILON, RunSpec, TensorShape};

/// Maximum of each size: far above every model, and small enough that no product of two overflows.
const SIZE_MAX: i64 = 1 << 24;
/// Maximum number of experts in a block.
const EXPERTS_MAX: i64 = 1 << 12;
/// Maximum number of blocks.
const LAYERS_MAX: i64 = 1 << 12;
/// Maximum number of experts in all blocks together: each has three tensors, which are listed before anything is read.
const EXPERTS_ALL_MAX: i64 = 1 << 16;

/// The shape of a Llama and its constants, with the meaning that `LlamaForCausalLM` of `transformers` gives them.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Number of ids in the vocabulary.
    pub vocab: i64,
    /// Width of the residual stream.
    pub hidden: i64,
    /// Number of blocks.
    pub layers: i64,
    /// Number of query heads.
    pub heads: i64,
    /// Number of key/value heads; it divides that of the query heads.
    pub kv_heads: i64,
    /// Width of a head, even; most often `hidden / heads`.
    pub head_dim: i64,
    /// Width of the feed-forward layer, or of each expert.
    pub ffn: i64,
    /// Experts. `None` in a dense model.
    pub experts: Option<Experts>,
    /// Maximum length of a text, tokens.
    pub context: i64,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// ε of the norms.
    pub rms_norm_eps: f64,
    /// Whether the head shares the embedding's weights.
    pub tied: bool,
}

/// Mixture of experts, with the meaning that `MixtralForCausalLM` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Number of experts in a block.
    pub count: i64,
    /// Number of experts for each token.
    pub top_k: i64,
}

impl From<&RunSpec> for DecoderConfig {
    fn from(spec: &RunSpec) -> Self {
        let m = &spec.model;
        Self {
            vocab: m.vocab.into(),
            hidden: m.hidden.into(),
            layers: m.layers.into(),
            heads: m.heads.into(),
            kv_heads: m.kv_heads.into(),
            head_dim: (m.hidden / m.heads.max(1)).into(),
            ffn: m.ffn.into(),
            experts: m.moe.as_ref().map(|moe| Experts {
                count: moe.experts.into(),
                top_k: moe.top_k.into(),
            }),
            context: m.context.into(),
            rope_theta: m.rope_theta.into(),
            rms_norm_eps: RMS_NORM_EPSILON,
            tied: false,
        }
    }
}

impl DecoderConfig {
    /// Refuses sizes and constants outside the bounds of any model.
    ///
    /// # Errors
    /// [`ModelError::Config`] with the first of them.
    pub fn check(&self) -> Result<(), ModelError> {
        let bad = |problem: String| Err(ModelError::Config(problem));
        for (name, value, max) in [
            ("vocabulary", self.vocab, SIZE_MAX),
            ("width", self.hidden, SIZE_MAX),
            ("number of blocks", self.layers, LAYERS_MAX),
            ("number of heads", self.heads, SIZE_MAX),
            ("number of key/value heads", self.kv_heads, SIZE_MAX),
            ("width of a head", self.head_dim, SIZE_MAX),
            ("feed-forward width", self.ffn, SIZE_MAX),
            ("context", self.context, SIZE_MAX),
        ] {
            if value < 1 || value > max {
                return bad(format!("the {name} is {value}; 1 to {max} are possible"));
            }
        }
        if let Some(Experts { count, top_k }) = self.experts
            && (!(1..=EXPERTS_MAX).contains(&count) || !(1..=count).contains(&top_k))
        {
            return bad(format!(
                "{top_k} of {count} experts for each token; 1 to {EXPERTS_MAX} experts are possible, and no more of them for \
                 a token"
            ));
        }
        if let Some(Experts { count, .. }) = self.experts
            // Both were bounded above: the product cannot overflow.
            && count * self.layers > EXPERTS_ALL_MAX
        {
            return bad(format!(
                "{count} experts in each of {} blocks; {EXPERTS_ALL_MAX} are possible",
                self.layers
            ));
        }
        if self.heads % self.kv_heads != 0 {
            let problem = format!("{} key/value heads do not divide {} heads", self.kv_heads, self.heads);
            return bad(problem);
        }
        if self.head_dim % 2 != 0 {
            let problem = format!("heads are {} wide; rotary embeddings need an even width", self.head_dim);
            return bad(problem);
        }
        if !self.rope_theta.is_finite() || self.rope_theta < 1.0 {
            return bad(format!("the rotary base is {}", self.rope_theta));
        }
        if !self.rms_norm_eps.is_finite() || self.rms_norm_eps < 0.0 {
            return bad(format!("the norms' epsilon is {}", self.rms_norm_eps));
        }
        Ok(())
    }

    /// Every tensor, with the names of Hugging Face: embedding, blocks from the first to the last, final norm, and the
    /// head unless it is tied. A block's experts are inside the block, each with its gate, up and down projection.
    pub fn tensors(&self) -> Vec<TensorShape> {
        let tensor = |name: String, shape: &[i64]| TensorShape {
            name: format!("{name}.weight"),
            shape: shape.iter().map(|n| *n as u64).collect(),
        };
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (hidden, ffn) = (self.hidden, self.ffn);
        let mut all = vec![tensor("model.embed_tokens".into(), &[self.vocab, hidden])];
        for layer in 0..self.layers {
            let parts: [(&str, &[i64]); 6] = [
                ("input_layernorm", &[hidden]),
                ("self_attn.q_proj", &[queries, hidden]),
                ("self_attn.k_proj", &[keys, hidden]),
                ("self_attn.v_proj", &[keys, hidden]),
                ("self_attn.o_proj", &[hidden, queries]),
                ("post_attention_layernorm", &[hidden]),
            ];
            let mut push = |part: &str, shape: &[i64]| all.push(tensor(format!("model.layers.{layer}.{part}"), shape));
            parts.into_iter().for_each(|(part, shape)| push(part, shape));
            let Some(experts) = self.experts else {
                push("mlp.gate_proj", &[ffn, hidden]);
                push("mlp.up_proj", &[ffn, hidden]);
                push("mlp.down_proj", &[hidden, ffn]);
                continue;
            };
            push("block_sparse_moe.gate", &[experts.count, hidden]);
            for expert in 0..experts.count {
                push(&format!("block_sparse_moe.experts.{expert}.w1"), &[ffn, hidden]);
                push(&format!("block_sparse_moe.experts.{expert}.w3"), &[ffn, hidden]);
                push(&format!("block_sparse_moe.experts.{expert}.w2"), &[hidden, ffn]);
            }
        }
        all.push(tensor("model.norm".into(), &[hidden]));
        if !self.tied {
            all.push(tensor("lm_head".into(), &[self.vocab, hidden]));
        }
        all
    }

    /// Number of weights.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(TensorShape::len).sum()
    }
}
