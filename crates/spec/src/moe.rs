//! Mixture of experts in a run: its table, its bounds, and how its tensors are grouped into fragments
//! (`docs/decisions/0011-experts.md`).

use crate::{RunSpec, SpecError};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Maximum experts in a block.
const EXPERTS_MAX: u32 = 256;
/// Maximum fragments of a model with experts: each has a residual of its own at every miner.
const FRAGMENTS_MAX: u32 = 4096;
/// Maximum fragments of a dense model, which has at most one for each layer anyway.
const DENSE_FRAGMENTS_MAX: u32 = 256;

/// Mixture of experts as in Mixtral (Jiang et al. 2024): in every block a router, a linear layer with a softmax over
/// all experts, picks `top_k` feed-forward layers for each token; their outputs are added, weighted by the router's
/// probabilities divided by their sum over the picked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeSpec {
    /// Feed-forward layers in a block.
    pub experts: u32,
    /// Experts that a token goes through.
    pub top_k: u32,
    /// Weight of the load-balancing loss (Fedus et al. 2021, section 2.2) while training. The balanced router has a
    /// loss of
    /// `top_k`. Scores never include it.
    pub router_aux_loss: f64,
}

/// A first state that was not drawn from block 0: a trained model, or one made of it by `alice-ps upcycle`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartSpec {
    /// Root of θ(0), 64 hexadecimal digits.
    pub model_root: String,
}

fn refuse(field: &'static str, problem: String) -> Result<(), SpecError> {
    Err(SpecError::Field { field, problem })
}

impl RunSpec {
    /// Whether the architecture is known and its table is there.
    pub(crate) fn check_architecture(&self) -> Result<(), SpecError> {
        let m = &self.model;
        match (m.architecture.as_str(), &m.moe) {
            ("llama", None) => Ok(()),
            ("llama", Some(_)) => refuse(
                "model.architecture",
                "is 'llama', which has no experts; write 'mixtral', or remove the table [model.moe]".into(),
            ),
            ("mixtral", None) => refuse(
                "model.moe",
                "is missing; 'mixtral' needs [model.moe] with experts, top_k and router_aux_loss".into(),
            ),
            ("mixtral", Some(moe)) => {
                if !(2..=EXPERTS_MAX).contains(&moe.experts) {
                    let problem = format!("{} must be between 2 and {EXPERTS_MAX}", moe.experts);
                    return refuse("model.moe.experts", problem);
                }
                if !(1..=moe.experts).contains(&moe.top_k) {
                    let problem = format!("{} must be between 1 and the {} experts", moe.top_k, moe.experts);
                    return refuse("model.moe.top_k", problem);
                }
                if !(0.0..=1.0).contains(&moe.router_aux_loss) {
                    let problem = format!("{} must be between 0 and 1", moe.router_aux_loss);
                    return refuse("model.moe.router_aux_loss", problem);
                }
                Ok(())
            }
            (other, _) => refuse(
                "model.architecture",
                format!("'{other}' is not known; 'llama' or 'mixtral'"),
            ),
        }
    }

    /// Checks that the model can be cut into the run's number of fragments.
    pub(crate) fn check_fragments(&self) -> Result<(), SpecError> {
        let (count, layers) = (self.task.fragments, self.model.layers);
        let Some(moe) = &self.model.moe else {
            let max = layers.min(DENSE_FRAGMENTS_MAX);
            return match (1..=max).contains(&count) {
                true => Ok(()),
                false => refuse("task.fragments", format!("{count} must be between 1 and {max}")),
            };
        };
        if self.expert_fragments_fit(count) {
            return Ok(());
        }
        let max = FRAGMENTS_MAX.min(layers.saturating_add(moe.experts.saturating_mul(layers)));
        // Which counts fit is hard to see from the rule, so the error names the nearest ones.
        let below = (1..count.min(max)).rev().find(|n| self.expert_fragments_fit(*n));
        let above = (count.saturating_add(1)..=max).find(|n| self.expert_fragments_fit(*n));
        let near: Vec<String> = below.into_iter().chain(above).map(|n| n.to_string()).collect();
        refuse(
            "task.fragments",
            format!(
                "{count} does not cut the {} experts into groups of equal size, nor each expert into bands of its {layers} \
                 layers; possible nearby: {}",
                moe.experts,
                near.join(", ")
            ),
        )
    }

    fn expert_fragments_fit(&self, count: u32) -> bool {
        let Some(moe) = &self.model.moe else {
            return false;
        };
        // The whole model in one fragment needs no rule for its experts.
        if count == 1 {
            return true;
        }
        let of_experts = count.saturating_sub(self.shared_fragments(count));
        let whole_experts = of_experts > 0 && moe.experts.is_multiple_of(of_experts);
        let bands = of_experts.is_multiple_of(moe.experts) && of_experts / moe.experts <= self.model.layers;
        (2..=FRAGMENTS_MAX).contains(&count) && of_experts > 0 && (whole_experts || bands)
    }

    /// Parameters of one expert in one block.
    pub(crate) fn expert_parameters(&self) -> u64 {
        3 * u64::from(self.model.hidden) * u64::from(self.model.ffn)
    }

    /// (expert, block) pairs; zero in a dense model.
    pub(crate) fn expert_units(&self) -> u64 {
        let experts = self.model.moe.as_ref().map_or(0, |moe| moe.experts);
        u64::from(experts) * u64::from(self.model.layers)
    }

    /// Parameters of a model with experts that are no expert's.
    fn shared_parameters(&self) -> u64 {
        let m = &self.model;
        let [vocab, hidden, layers] = [m.vocab, m.hidden, m.layers].map(u64::from);
        let kv = hidden / u64::from(m.heads) * u64::from(m.kv_heads);
        let experts = m.moe.as_ref().map_or(0, |moe| u64::from(moe.experts));
        // Embedding, head and last norm; projections, norms and router of each block.
        (2 * vocab + 1) * hidden + layers * hidden * (2 * hidden + 2 * kv + 2 + experts)
    }

    /// Number of fragments, of `count`, that hold the tensors outside the experts: their share of all parameters,
    /// rounded, at least one and at most one a block. So all fragments are of about the same size.
    fn shared_fragments(&self, count: u32) -> u32 {
        let shared = u128::from(self.shared_parameters());
        let total = shared + u128::from(self.expert_units()) * u128::from(self.expert_parameters());
        let rounded = (2 * u128::from(count) * shared + total) / (2 * total).max(1);
        let max = count.saturating_sub(1).min(self.model.layers).max(1);
        (u32::try_from(rounded).unwrap_or(u32::MAX)).clamp(1, max)
    }

    /// Tensors of fragment p < P of a model with experts, where P > 1: first the fragments of what all tokens go
    /// through, cut between blocks, then those of experts. Each of the X fragments of experts holds the (expert, block)
    /// pairs ⌊q·E·L/X⌋ to ⌊(q+1)·E·L/X⌋: whole experts, or a band of one expert's blocks.
    pub(crate) fn expert_fragment_tensors(&self, p: u32) -> Range<usize> {
        let shared = self.shared_fragments(self.task.fragments);
        if p < shared {
            return self.block_range(p, shared);
        }
        let (q, of_experts) = (u64::from(p - shared), u64::from(self.task.fragments - shared));
        let (units, first) = (self.expert_units(), self.shared_tensors());
        let unit = |q: u64| first + 3 * (q * units / of_experts) as usize;
        unit(q)..unit(q + 1)
    }

    /// Parameters that one token goes through: all but the experts that the router does not pick.
    pub fn active_parameters(&self) -> u64 {
        let idle = self
            .model
            .moe
            .as_ref()
            .map_or(0, |moe| moe.experts.saturating_sub(moe.top_k));
        self.parameters() - u64::from(idle) * u64::from(self.model.layers) * self.expert_parameters()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> RunSpec {
        RunSpec::parse(include_str!("../../../chain-spec/runs/dev-moe.toml")).unwrap()
    }

    #[test]
    fn layout_should_have_the_names_of_the_checkpoint_format_and_experts_side_by_side() {
        let spec = spec();
        let tensors = spec.tensors();
        let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names[7], "model.layers.0.block_sparse_moe.gate.weight");
        assert_eq!(tensors[7].shape, [4, 128]);
        let first = names.iter().position(|n| n.contains(".experts.")).unwrap();
        assert_eq!(names[first - 1], "lm_head.weight");
        let (hidden, ffn) = (u64::from(spec.model.hidden), u64::from(spec.model.ffn));
        let mut expected = Vec::new();
        for expert in 0..4 {
            for layer in 0..4 {
                for (w, shape) in [("w1", [ffn, hidden]), ("w2", [hidden, ffn]), ("w3", [ffn, hidden])] {
                    let name = format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.{w}.weight");
                    expected.push((name, shape.to_vec()));
                }
            }
        }
        let found: Vec<_> = tensors[first..]
            .iter()
            .map(|t| (t.name.clone(), t.shape.clone()))
            .collect();
        assert_eq!(found, expected);
        let experts: u64 = tensors[first..].iter().map(|t| t.len()).sum();
        assert_eq!(spec.shared_tensors(), first);
        assert_eq!(spec.shared_parameters(), spec.parameters() - experts);
        assert_eq!(spec.active_parameters(), spec.parameters() - experts / 2);
        let mut dense = spec;
        (dense.model.moe, dense.model.architecture) = (None, "llama".into());
        dense.task.fragments = 1;
        dense.validate().unwrap();
        assert_eq!(dense.active_parameters(), dense.parameters());
    }

    #[test]
    fn fragments_should_be_groups_of_experts_and_cover_every_tensor_once() {
        let mut spec = spec();
        for (count, experts_each) in [(2, 4), (3, 2), (5, 1)] {
            spec.task.fragments = count;
            spec.validate().unwrap();
            let names: Vec<String> = spec.tensors().into_iter().map(|t| t.name).collect();
            let ranges: Vec<_> = (0..count).map(|p| spec.fragment_tensors(p)).collect();
            let covered: Vec<usize> = ranges.iter().cloned().flatten().collect();
            assert_eq!(covered, (0..names.len()).collect::<Vec<_>>());
            assert!(names[ranges[0].clone()].iter().all(|n| !n.contains(".experts.")));
            for (group, range) in (0..).zip(&ranges[1..]) {
                let own = |n: &String| {
                    let expert = n.split(".experts.").nth(1).and_then(|rest| rest.split('.').next());
                    expert.unwrap().parse::<u32>().unwrap() / experts_each == group
                };
                assert!(names[range.clone()].iter().all(own), "group {group}");
            }
            assert!(spec.fragment_tensors(count).is_empty());
        }
        // Bands of one expert's blocks.
        spec.task.fragments = 9;
        spec.validate().unwrap();
        let names: Vec<String> = spec.tensors().into_iter().map(|t| t.name).collect();
        let last = &names[spec.fragment_tensors(8)];
        assert!(
            last.iter()
                .all(|n| n.contains(".experts.3.") && (n.contains("layers.2.") || n.contains("layers.3.")))
        );
        assert_eq!(last.len(), 6);
        spec.task.fragments = 1;
        assert_eq!(spec.fragment_tensors(0), 0..names.len());
    }

    #[test]
    fn bad_tables_should_say_what_is_possible() {
        type Change = fn(&mut RunSpec);
        let cases: [(&str, Change); 9] = [
            ("model.architecture: is 'llama'", |s| {
                s.model.architecture = "llama".into()
            }),
            ("model.moe: is missing", |s| s.model.moe = None),
            ("model.moe.experts", |s| s.model.moe.as_mut().unwrap().experts = 1),
            ("model.moe.experts", |s| {
                s.model.moe.as_mut().unwrap().experts = u32::MAX
            }),
            ("model.moe.top_k", |s| s.model.moe.as_mut().unwrap().top_k = 5),
            ("model.moe.top_k", |s| s.model.moe.as_mut().unwrap().top_k = 0),
            ("model.moe.router_aux_loss", |s| {
                s.model.moe.as_mut().unwrap().router_aux_loss = f64::NAN
            }),
            ("possible nearby: 3, 5", |s| s.task.fragments = 4),
            ("task.fragments: 0", |s| s.task.fragments = 0),
        ];
        for (expected, change) in cases {
            let mut bad = spec();
            change(&mut bad);
            let message = bad.validate().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        let mut bad = spec();
        bad.start = Some(StartSpec {
            model_root: "abc".into(),
        });
        assert!(bad.validate().unwrap_err().to_string().contains("start.model_root"));
    }

    #[test]
    fn hash_should_follow_experts_and_start() {
        let spec = spec();
        let mut hashes = vec![spec.run_hash()];
        for change in [
            (|s: &mut RunSpec| s.model.moe.as_mut().unwrap().experts = 8) as fn(&mut RunSpec),
            |s| s.model.moe.as_mut().unwrap().top_k = 1,
            |s| s.model.moe.as_mut().unwrap().router_aux_loss = 0.5,
            |s| {
                s.start = Some(StartSpec {
                    model_root: "11".repeat(32),
                })
            },
        ] {
            let mut other = spec.clone();
            change(&mut other);
            hashes.push(other.run_hash());
        }
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 5);
    }

    #[test]
    fn phases_should_have_the_sizes_of_their_names_and_fragments_of_equal_size() {
        for (text, billions) in [
            (include_str!("../../../chain-spec/runs/phase2-56b.toml"), 56.0),
            (include_str!("../../../chain-spec/runs/phase3-112b.toml"), 112.0),
            (include_str!("../../../chain-spec/runs/phase4-200b.toml"), 200.0),
        ] {
            let spec = RunSpec::parse(text).unwrap();
            let found = spec.parameters() as f64 / 1e9;
            assert!((found / billions - 1.0).abs() < 0.01, "{}: {found}", spec.name);
            assert!(spec.active_parameters() * 3 < spec.parameters());
            let sizes: Vec<u64> = (0..spec.task.fragments).map(|p| spec.fragment_parameters(p)).collect();
            assert_eq!(sizes.iter().sum::<u64>(), spec.parameters());
            let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
            assert!(*most < least * 4 / 3, "{}: {least} to {most}", spec.name);
        }
    }
}
