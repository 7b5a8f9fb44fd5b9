//! Mixture of experts as Hugging Face's `modeling_mixtral.py` computes it (Jiang et al. 2024): `MixtralSparseMoeBlock`
//! and `load_balancing_loss_func`.

use super::feed_forward::Mlp;
use super::linear;
use alice_spec::MoeSpec;
use tch::{Kind, TchError, Tensor};

/// The experts of a block and their router.
#[derive(Debug)]
pub(super) struct SparseMoe {
    /// The router, `[experts, hidden]`.
    pub(super) gate: Tensor,
    pub(super) experts: Vec<Mlp>,
    pub(super) top_k: i64,
}

impl SparseMoe {
    /// Output of the shape of `x`, `[batch, tokens, hidden]`, and the router's logits, `[batch · tokens, experts]`.
    ///
    /// Tokens are sorted by expert, so that each expert sees its own as one matrix and the host waits for the device
    /// once a block, for their numbers. An expert without tokens computes on an empty matrix: its gradient is zero
    /// then, and not missing.
    pub(super) fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let shape = x.size();
        let hidden = shape.last().copied().unwrap_or(0);
        let tokens = x.f_reshape([-1, hidden])?;
        let logits = linear(&tokens, &self.gate)?;
        let probabilities = logits.f_softmax(-1, Kind::Float)?;
        let (weights, experts) = probabilities.f_topk(self.top_k, -1, true, true)?;
        // The softmax over the chosen experts alone (Jiang et al. 2024, section 2.1).
        let weights = weights.f_div(&weights.f_sum_dim_intlist(-1, true, Kind::Float)?)?;
        // One entry for each token and each of its experts.
        let experts = experts.f_reshape([-1])?;
        // Stable, so that the order of sums, and with it every bit, is the same each time.
        let order = experts.f_argsort_stable(true, 0, false)?;
        let token_of_entry = order.f_div_scalar_mode(self.top_k, "floor")?;
        let counts = Vec::<i64>::try_from(experts.f_bincount::<Tensor>(None, self.experts.len() as i64)?)?;
        let entries = tokens.f_index_select(0, &token_of_entry)?;
        let mut start = 0;
        let mut outputs = Vec::with_capacity(self.experts.len());
        for (expert, count) in self.experts.iter().zip(counts) {
            outputs.push(expert.forward(&entries.f_narrow(0, start, count)?)?);
            start += count;
        }
        let weights = weights
            .f_reshape([-1])?
            .f_index_select(0, &order)?
            .f_to_kind(x.kind())?;
        let outputs = Tensor::f_cat(&outputs, 0)?.f_mul(&weights.f_unsqueeze(-1)?)?;
        let sum = tokens.f_zeros_like()?.f_index_add(0, &token_of_entry, &outputs)?;
        Ok((sum.f_view(&shape[..])?, logits))
    }
}

/// Load balancing while training.
#[derive(Clone, Copy, Debug)]
pub(super) struct Balance {
    pub(super) weight: f64,
    top_k: i64,
}

impl Balance {
    pub(super) fn new(moe: &MoeSpec) -> Self {
        Self {
            weight: moe.router_aux_loss,
            top_k: moe.top_k.into(),
        }
    }

    /// Load-balancing loss (Fedus et al. 2021, eq. 4 to 6) of the router's logits of all blocks, `[tokens, experts]`
    /// each, a scalar: the number of experts times Σ over experts of the share of tokens that chose it, summed over the
    /// `top_k` choices, times its mean probability. Shares and means are over the tokens of all blocks together;
    /// `top_k` where all are chosen alike.
    pub(super) fn loss(&self, logits: &[Tensor]) -> Result<Tensor, TchError> {
        let probabilities = Tensor::f_cat(logits, 0)?.f_softmax(-1, Kind::Float)?;
        let (tokens, experts) = probabilities.size2()?;
        let (_, chosen) = probabilities.f_topk(self.top_k, -1, true, true)?;
        let shares = chosen
            .f_reshape([-1])?
            .f_bincount::<Tensor>(None, experts)?
            .f_to_kind(Kind::Float)?
            .f_div_scalar(tokens as f64)?;
        let means = probabilities.f_mean_dim(0, false, Kind::Float)?;
        shares.f_mul(&means)?.f_sum(Kind::Float)?.f_mul_scalar(experts as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Llama, Precision};
    use alice_init::init_theta;
    use alice_spec::RunSpec;
    use tch::Device;

    fn balance(top_k: u32, router_aux_loss: f64) -> Balance {
        Balance::new(&MoeSpec {
            experts: 3,
            top_k,
            router_aux_loss,
        })
    }

    #[test]
    fn load_balancing_should_be_that_of_transformers() {
        let blocks: [[f32; 9]; 2] = [
            [0.3, -1.0, 2.0, 1.5, 0.2, -0.7, 0.0, 0.1, 0.2],
            [-0.3, 1.0, 0.9, 2.5, 0.1, 0.7, 0.5, -0.3, -0.2],
        ];
        let logits = blocks.map(|block| Tensor::from_slice(&block).view([3, 3]));
        // Golden: `load_balancing_loss_func((block 0, block 1), 3, top_k)` of transformers 5.24.0.
        for (top_k, expected) in [(1, 1.106243371963501), (2, 2.0607473850250244)] {
            let found = balance(top_k, 1.0).loss(&logits).unwrap().double_value(&[]);
            assert!((found - expected).abs() < 1e-6, "{found} and {expected}");
        }
        // All tokens to the same experts is the worst that can be.
        let one = Tensor::from_slice(&[50.0f32, 0.0, -50.0]).repeat([4, 1]);
        let worst = balance(1, 1.0).loss(&[one]).unwrap().double_value(&[]);
        assert!((worst - 3.0).abs() < 1e-5, "{worst}");
    }

    #[test]
    fn an_expert_without_tokens_should_have_a_gradient_of_zero() {
        let matrix = |rows, columns| Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let expert = || Mlp {
            gate_proj: matrix(6, 4),
            up_proj: matrix(6, 4),
            down_proj: matrix(4, 6),
        };
        // Every token's logits are 1, 0.5 and −1 times the same positive number.
        let gate = Tensor::from_slice(&[1.0f32, 0.5, -1.0]).view([3, 1]).repeat([1, 4]);
        let moe = SparseMoe {
            gate,
            experts: vec![expert(), expert(), expert()],
            top_k: 2,
        };
        let x = Tensor::rand([2, 5, 4], (Kind::Float, Device::Cpu)) + 0.1;
        let (y, logits) = moe.forward(&x).unwrap();
        assert_eq!((y.size(), logits.size()), (vec![2, 5, 4], vec![10, 3]));
        y.square().sum(Kind::Float).backward();
        let size = |mlp: &Mlp| {
            let largest = [&mlp.gate_proj, &mlp.up_proj, &mlp.down_proj].map(|w| {
                assert!(w.grad().defined());
                w.grad().abs().max().double_value(&[])
            });
            largest.into_iter().fold(0f64, f64::max)
        };
        assert!(size(&moe.experts[0]) > 0.0 && size(&moe.experts[1]) > 0.0);
        assert_eq!(size(&moe.experts[2]), 0.0);
    }

    /// Run `dev-moe` with fewer and smaller blocks.
    fn spec(router_aux_loss: f64) -> RunSpec {
        let mut spec = RunSpec::parse(include_str!("../../../../chain-spec/runs/dev-moe.toml")).unwrap();
        spec.model.hidden = 32;
        spec.model.layers = 3;
        spec.model.kv_heads = 2;
        spec.model.ffn = 48;
        spec.model.context = 24;
        spec.model.moe.as_mut().unwrap().router_aux_loss = router_aux_loss;
        spec.validate().unwrap();
        spec
    }

    /// The same whatever the weight of the loss is: draws follow the hash of a run.
    fn theta() -> Vec<f32> {
        let draws = init_theta(&spec(0.5), &[3; 32]);
        draws.iter().map(|v| if *v == 1.0 { 1.1 } else { v * 6.0 }).collect()
    }

    /// Value and gradients of half the mean loss of three sequences, for what the fragment trains.
    fn gradients(spec: &RunSpec, fragment: u32, checkpoint: bool) -> (f64, Vec<Tensor>) {
        let learning = spec.fragment_tensors(fragment);
        let mut model = Llama::with_learning(spec, Device::Cpu, learning, Precision::F32).unwrap();
        model.load(&theta()).unwrap();
        let text = (0..3u16).map(|s| (0..24).map(|t| (s * 83 + t * 31) % 259).collect());
        let tokens = model.batch(&text.collect::<Vec<_>>()).unwrap();
        let half = |losses: &Tensor| losses.f_mean(Kind::Float)?.f_mul_scalar(0.5);
        let value = model.backward(&tokens, checkpoint, &half).unwrap();
        (value, model.learning().iter().map(Tensor::grad).collect())
    }

    fn size(tensors: &[Tensor]) -> f64 {
        tensors
            .iter()
            .map(|t| t.square().sum(Kind::Double).double_value(&[]))
            .sum::<f64>()
            .sqrt()
    }

    fn difference(a: &[Tensor], b: &[Tensor]) -> Vec<Tensor> {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| a - b).collect()
    }

    #[test]
    fn checkpointing_should_give_the_same_gradients_in_every_fragment() {
        let spec = spec(0.5);
        for fragment in 0..spec.task.fragments {
            let (value, kept) = gradients(&spec, fragment, false);
            let (again, computed) = gradients(&spec, fragment, true);
            assert!((value - again).abs() < 1e-6);
            assert!(
                kept.iter()
                    .all(|g| g.defined() && g.abs().max().double_value(&[]) > 0.0)
            );
            let apart = size(&difference(&kept, &computed)) / size(&kept);
            assert!(apart < 1e-5, "fragment {fragment}: {apart}");
        }
    }

    #[test]
    fn load_balancing_should_be_in_the_gradients_and_not_in_the_value() {
        let (with, without, double) = (spec(0.5), spec(0.0), spec(1.0));
        let (value, gradients_with) = gradients(&with, 0, false);
        let (plain, gradients_without) = gradients(&without, 0, false);
        assert_eq!(value, plain);
        let (_, gradients_double) = gradients(&double, 0, false);
        let once = difference(&gradients_with, &gradients_without);
        let twice = difference(&gradients_double, &gradients_without);
        assert!(size(&once) > 1e-3 * size(&gradients_without));
        let halves: Vec<Tensor> = twice.iter().map(|t| t * 0.5).collect();
        assert!(size(&difference(&once, &halves)) < 1e-4 * size(&once));

        // The loss by itself: half (the objective's share) of the weight 0.5 of its gradients is what was added.
        let learning = with.fragment_tensors(0);
        let mut model = Llama::with_learning(&with, Device::Cpu, learning, Precision::F32).unwrap();
        model.load(&theta()).unwrap();
        let text = (0..3u16).map(|s| (0..24).map(|t| (s * 83 + t * 31) % 259).collect());
        let tokens = model.batch(&text.collect::<Vec<_>>()).unwrap();
        let (_, routes) = model.stream_routed(&tokens).unwrap();
        (model.balance.unwrap().loss(&routes).unwrap() * 0.25).backward();
        // Not all: what follows the last router does not reach its loss.
        let mut reached = 0;
        for (parameter, once) in model.learning().iter().zip(&once) {
            let gradient = parameter.grad();
            if gradient.defined() {
                reached += 1;
                let apart = size(&[&gradient - once]);
                assert!(apart < 1e-3 * size(&[gradient]) + 1e-5, "{apart}");
            }
        }
        assert!(reached > once.len() - 5, "{reached} of {}", once.len());
    }
}
