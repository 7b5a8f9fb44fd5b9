//! The model's tensors in canonical order, from the specification alone.

use crate::RunSpec;
use serde::{Deserialize, Serialize};

/// One tensor: its name as in the checkpoint format of the Llama family, and its shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorShape {
    /// For example `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Rows and columns of a matrix, or the length of a vector.
    pub shape: Vec<u64>,
}

impl TensorShape {
    /// Number of coordinates.
    pub fn len(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Whether it has no coordinate (never so in a valid run).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl RunSpec {
    /// All tensors in canonical order: embedding, blocks from the first to the last, final norm, head. This order is
    /// the order of the master weights on disk, of the update's chunks and of the model root's leaves.
    pub fn tensors(&self) -> Vec<TensorShape> {
        let m = &self.model;
        let [vocab, hidden, ffn] = [m.vocab, m.hidden, m.ffn].map(u64::from);
        let kv = hidden / u64::from(m.heads) * u64::from(m.kv_heads);
        let tensor = |name: String, shape: Vec<u64>| TensorShape { name, shape };
        let mut all = vec![tensor("model.embed_tokens.weight".into(), vec![vocab, hidden])];
        for layer in 0..m.layers {
            let mut push = |name: &str, shape| all.push(tensor(format!("model.layers.{layer}.{name}.weight"), shape));
            push("input_layernorm", vec![hidden]);
            push("self_attn.q_proj", vec![hidden, hidden]);
            push("self_attn.k_proj", vec![kv, hidden]);
            push("self_attn.v_proj", vec![kv, hidden]);
            push("self_attn.o_proj", vec![hidden, hidden]);
            push("post_attention_layernorm", vec![hidden]);
            push("mlp.gate_proj", vec![ffn, hidden]);
            push("mlp.up_proj", vec![ffn, hidden]);
            push("mlp.down_proj", vec![hidden, ffn]);
        }
        all.push(tensor("model.norm.weight".into(), vec![hidden]));
        all.push(tensor("lm_head.weight".into(), vec![vocab, hidden]));
        all
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(TensorShape::len).sum()
    }
}
