//! The model's tensors in canonical order, from the specification alone.

use crate::RunSpec;
use serde::{Deserialize, Serialize};
use std::ops::Range;

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
    /// All tensors in canonical order: embedding, blocks from the first to the last, final norm, head, then the
    /// experts, where there are any: all blocks of the first, all of the second, so that a group of experts is one
    /// range. This order is the order of the master weights on disk, of the update's chunks and of the model root's
    /// leaves.
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
            match &m.moe {
                Some(moe) => push("block_sparse_moe.gate", vec![moe.experts.into(), hidden]),
                None => {
                    push("mlp.gate_proj", vec![ffn, hidden]);
                    push("mlp.up_proj", vec![ffn, hidden]);
                    push("mlp.down_proj", vec![hidden, ffn]);
                }
            }
        }
        all.push(tensor("model.norm.weight".into(), vec![hidden]));
        all.push(tensor("lm_head.weight".into(), vec![vocab, hidden]));
        // By expert, then by block: a fragment of whole experts is one range of coordinates.
        for expert in 0..m.moe.as_ref().map_or(0, |moe| moe.experts) {
            for layer in 0..m.layers {
                // Gate, down and up projection.
                for (name, shape) in [("w1", [ffn, hidden]), ("w2", [hidden, ffn]), ("w3", [ffn, hidden])] {
                    let name = format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight");
                    all.push(tensor(name, shape.to_vec()));
                }
            }
        }
        all
    }

    /// Tensors of fragment p of the run's P, as a range of [`RunSpec::tensors`]: blocks ⌊p·L/P⌋ to ⌊(p+1)·L/P⌋, the
    /// embedding with the first fragment, the final norm and the head with the last. In a model with experts this is so
    /// for the first fragments, and the others are groups of experts. Empty if p ≥ P.
    pub fn fragment_tensors(&self, p: u32) -> Range<usize> {
        let (count, all) = (self.task.fragments, self.tensor_count());
        match &self.model.moe {
            _ if p >= count => all..all,
            Some(_) if count > 1 => self.expert_fragment_tensors(p),
            Some(_) => 0..all,
            None => self.block_range(p, count),
        }
    }

    /// Part p < `count` of everything that is no expert, cut between blocks.
    pub(crate) fn block_range(&self, p: u32, count: u32) -> Range<usize> {
        let layers = u64::from(self.model.layers);
        // The embedding stands before the blocks.
        let first_of = |p: u32| 1 + self.block_tensors() * (u64::from(p) * layers / u64::from(count)) as usize;
        let start = if p == 0 { 0 } else { first_of(p) };
        let end = match p + 1 == count {
            true => self.shared_tensors(),
            false => first_of(p + 1),
        };
        start..end
    }

    /// Tensors of a block that are no expert's.
    fn block_tensors(&self) -> usize {
        // Two norms and four projections, then the router, or three feed-forward matrices.
        if self.model.moe.is_some() { 7 } else { 9 }
    }

    /// Tensors that are no expert's: embedding, blocks, final norm and head.
    pub(crate) fn shared_tensors(&self) -> usize {
        3 + self.block_tensors() * self.model.layers as usize
    }

    /// Length of [`RunSpec::tensors`], without making them.
    fn tensor_count(&self) -> usize {
        self.shared_tensors() + 3 * self.expert_units() as usize
    }

    /// Fragment that the task of a slice trains: (epoch + slice) mod P. It follows from what is public, so nobody
    /// chooses it, and every fragment has its turn however few miners there are.
    pub fn fragment_of(&self, epoch: u32, slice: u32) -> u32 {
        let count = u64::from(self.task.fragments.max(1));
        ((u64::from(epoch) + u64::from(slice)) % count) as u32
    }

    /// Parameters of fragment p.
    pub fn fragment_parameters(&self, p: u32) -> u64 {
        let all = self.tensors();
        all.get(self.fragment_tensors(p))
            .unwrap_or_default()
            .iter()
            .map(TensorShape::len)
            .sum()
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(TensorShape::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use crate::RunSpec;

    #[test]
    fn fragments_should_cover_every_tensor_once_and_cut_between_blocks() {
        let mut spec = RunSpec::parse(include_str!("../../../chain-spec/runs/dev.toml")).unwrap();
        spec.model.layers = 7;
        for count in 1..=7 {
            spec.task.fragments = count;
            let ranges: Vec<_> = (0..count).map(|p| spec.fragment_tensors(p)).collect();
            let covered: Vec<usize> = ranges.iter().cloned().flatten().collect();
            assert_eq!(covered, (0..spec.tensors().len()).collect::<Vec<_>>());
            let parameters: u64 = (0..count).map(|p| spec.fragment_parameters(p)).sum();
            assert_eq!(parameters, spec.parameters());
            for range in &ranges[1..] {
                assert!(spec.tensors()[range.start].name.ends_with("input_layernorm.weight"));
            }
            assert!(spec.fragment_tensors(count).is_empty());
        }
    }

    #[test]
    fn every_fragment_should_have_its_turn() {
        let mut spec = RunSpec::parse(include_str!("../../../chain-spec/runs/dev.toml")).unwrap();
        assert_eq!(spec.fragment_of(7, 9), 0);
        spec.task.fragments = 3;
        // One miner alone, epoch after epoch; three miners in one epoch.
        assert_eq!([5, 6, 7, 8].map(|epoch| spec.fragment_of(epoch, 0)), [2, 0, 1, 2]);
        assert_eq!([0, 1, 2].map(|slice| spec.fragment_of(5, slice)), [2, 0, 1]);
        assert_eq!(spec.fragment_of(u32::MAX, u32::MAX), 0);
    }
}
