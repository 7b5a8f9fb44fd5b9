//! Mixture of experts as Hugging Face's `modeling_mixtral.py` computes it (Jiang et al. 2024): `MixtralSparseMoeBlock` and
//! `load_balancing_loss_func`.

use super::feed_forward::Mlp;
use super::linear;
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
    /// Tokens are sorted by expert, so that each expert sees its own as one matrix and the device waits once a block for
    /// their numbers. An expert without tokens computes on none: its gradient is zero then, and not missing.
    pub(super) fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let shape = x.size();
        let hidden = shape.last().copied().unwrap_or(0);
        let tokens = x.f_reshape([-1, hidden])?;
        let logits = linear(&tokens, &self.gate)?;
        let probabilities = logits.f_softmax(-1, Kind::Float)?;
        let (weights, experts) = probabilities.f_topk(self.top_k, -1, true, true)?;
        let weights = weights.f_div(&weights.f_sum_dim_intlist(-1, true, Kind::Float)?)?;
        // One entry for each token and each of its experts.
        let experts = experts.f_reshape([-1])?;
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

/// Load-balancing loss (Fedus et al. 2021, eq. 4 to 6) of the router's logits of all blocks, `[tokens, experts]` each: the
/// number of experts times Σ over experts of the share of tokens that chose it, summed over the `top_k` choices, times its
/// mean probability. Shares and means are over the tokens of all blocks together; `top_k` where all are chosen alike.
pub(super) fn load_balancing_loss(logits: &[Tensor], top_k: i64) -> Result<Tensor, TchError> {
    let probabilities = Tensor::f_cat(logits, 0)?.f_softmax(-1, Kind::Float)?;
    let (tokens, experts) = probabilities.size2()?;
    let (_, chosen) = probabilities.f_topk(top_k, -1, true, true)?;
    let shares = chosen
        .f_reshape([-1])?
        .f_bincount::<Tensor>(None, experts)?
        .f_to_kind(Kind::Float)?
        .f_div_scalar(tokens as f64)?;
    let means = probabilities.f_mean_dim(0, false, Kind::Float)?;
    shares.f_mul(&means)?.f_sum(Kind::Float)?.f_mul_scalar(experts as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// `load_balancing_loss_func` step by step: one-hot choices, means over all tokens of all blocks.
    fn by_hand(logits: &[Vec<[f64; 3]>], top_k: usize) -> f64 {
        let all: Vec<[f64; 3]> = logits.concat();
        let (mut shares, mut means) = ([0.0; 3], [0.0; 3]);
        for row in &all {
            let total: f64 = row.iter().map(|v| v.exp()).sum();
            let mut order = [0, 1, 2];
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            order[..top_k].iter().for_each(|e| shares[*e] += 1.0 / all.len() as f64);
            (0..3).for_each(|e| means[e] += row[e].exp() / total / all.len() as f64);
        }
        3.0 * (0..3).map(|e| shares[e] * means[e]).sum::<f64>()
    }

    #[test]
    fn load_balancing_should_agree_with_the_formula() {
        let logits = [
            vec![[0.3, -1.0, 2.0], [1.5, 0.2, -0.7], [0.0, 0.1, 0.2]],
            vec![[-0.3, 1.0, 0.9], [2.5, 0.1, 0.7], [0.5, 0.1, -0.2]],
        ];
        let tensors = logits.each_ref().map(|block| {
            Tensor::from_slice(&block.concat()).view([3, 3]).to_kind(Kind::Float)
        });
        for top_k in [1, 2] {
            let found = load_balancing_loss(&tensors, top_k).unwrap().double_value(&[]);
            let expected = by_hand(&logits, top_k as usize);
            assert!((found - expected).abs() < 1e-5, "{found} and {expected}");
        }
        // All tokens to the same experts is the worst that can be.
        let one = Tensor::from_slice(&[50.0f32, 0.0, -50.0]).repeat([4, 1]);
        let worst = load_balancing_loss(&[one], 1).unwrap().double_value(&[]);
        assert!((worst - 3.0).abs() < 1e-5, "{worst}");
    }

    #[test]
    fn an_expert_without_tokens_should_have_a_gradient_of_zero() {
        let matrix = |rows, columns| {
            Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)).set_requires_grad(true)
        };
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
}
