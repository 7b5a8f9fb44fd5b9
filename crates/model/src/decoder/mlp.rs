//! The feed-forward part of a block: one SwiGLU layer, or experts of which each token goes through a few.

use super::matrix::Matrix;
use tch::{Kind, TchError, Tensor};

/// SwiGLU (Shazeer 2020): down(silu(gate(x)) · up(x)).
#[derive(Debug)]
pub(super) struct Mlp {
    /// Rows of gate, then of up.
    gate_up: Matrix,
    down: Matrix,
}

impl Mlp {
    pub fn new(gate_up: Matrix, down: Matrix) -> Self {
        Self { gate_up, down }
    }

    /// `[n, hidden]` → `[n, hidden]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let both = self.gate_up.apply(x)?.f_chunk(2, -1)?;
        let [gate, up] = &both[..] else {
            return Err(TchError::Shape("gate and up cannot be separated".into()));
        };
        self.down.apply(&gate.f_silu()?.f_mul(up)?)
    }
}

/// The part of a block that computes each token by itself.
#[derive(Debug)]
pub(super) enum FeedForward {
    /// The same layer for every token.
    Dense(Mlp),
    /// Experts.
    Sparse(Experts),
}

/// Experts and their router, as `MixtralSparseMoeBlock` of `transformers`.
#[derive(Debug)]
pub(super) struct Experts {
    /// The router, `[experts, hidden]`.
    pub gate: Matrix,
    pub experts: Vec<Mlp>,
    pub top_k: i64,
}

impl FeedForward {
    /// `[n, hidden]` → `[n, hidden]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Dense(mlp) => mlp.forward(x),
            Self::Sparse(experts) => experts.forward(x),
        }
    }
}

impl Experts {
    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let probabilities = self.gate.apply(x)?.f_softmax(-1, Kind::Float)?;
        let (weights, chosen) = probabilities.f_topk(self.top_k, -1, true, true)?;
        let weights = weights.f_div(&weights.f_sum_dim_intlist(-1, true, Kind::Float)?)?;
        // The host needs the entries of each expert: one transfer a block.
        let entries = Vec::<i64>::try_from(chosen.f_reshape([-1])?)?;
        let weights = weights.f_reshape([-1])?;
        let mut sum = Tensor::f_zeros(&x.size()[..], (Kind::Float, x.device()))?;
        for (expert, mlp) in (0i64..).zip(&self.experts) {
            let own: Vec<i64> = (0i64..)
                .zip(&entries)
                .filter(|(_, e)| **e == expert)
                .map(|(i, _)| i)
                .collect();
            if own.is_empty() {
                continue;
            }
            let own = Tensor::f_from_slice(&own)?.f_to_device(x.device())?;
            let tokens = own.f_div_scalar_mode(self.top_k, "floor")?;
            let output = mlp.forward(&x.f_index_select(0, &tokens)?)?.f_to_kind(Kind::Float)?;
            let weighted = output.f_mul(&weights.f_index_select(0, &own)?.f_unsqueeze(-1)?)?;
            let _ = sum.f_index_add_(0, &tokens, &weighted)?;
        }
        Ok(sum)
    }
}
