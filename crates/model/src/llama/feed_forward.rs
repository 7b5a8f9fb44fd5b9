//! The feed-forward part of a block: one SwiGLU layer, or experts of which each token goes through a few.

use super::linear;
use super::moe::SparseMoe;
use crate::ModelError;
use alice_spec::RunSpec;
use tch::{TchError, Tensor};

/// The part of a block that computes each token by itself.
#[derive(Debug)]
pub(super) enum FeedForward {
    /// The same layer for every token.
    Dense(Mlp),
    /// Experts.
    Sparse(SparseMoe),
}

/// SwiGLU (Shazeer 2020): down(silu(gate(x)) · up(x)).
#[derive(Debug)]
pub(super) struct Mlp {
    pub(super) gate_proj: Tensor,
    pub(super) up_proj: Tensor,
    pub(super) down_proj: Tensor,
}

impl FeedForward {
    /// Takes the tensors of a block by their names within it, without `.weight`.
    pub(super) fn take(
        spec: &RunSpec,
        mut take: impl FnMut(&str) -> Result<Tensor, ModelError>,
    ) -> Result<Self, ModelError> {
        let Some(moe) = &spec.model.moe else {
            return Ok(Self::Dense(Mlp {
                gate_proj: take("mlp.gate_proj")?,
                up_proj: take("mlp.up_proj")?,
                down_proj: take("mlp.down_proj")?,
            }));
        };
        let experts = (0..moe.experts).map(|expert| {
            let mut take = |name: &str| take(&format!("block_sparse_moe.experts.{expert}.{name}"));
            Ok(Mlp {
                gate_proj: take("w1")?,
                up_proj: take("w3")?,
                down_proj: take("w2")?,
            })
        });
        let experts = experts.collect::<Result<_, ModelError>>()?;
        Ok(Self::Sparse(SparseMoe {
            gate: take("block_sparse_moe.gate")?,
            experts,
            top_k: moe.top_k.into(),
        }))
    }

    /// Output of the shape of `x`, `[batch, tokens, hidden]`, and the router's logits, `[batch · tokens, experts]`, if
    /// there is a router.
    pub(super) fn forward(&self, x: &Tensor) -> Result<(Tensor, Option<Tensor>), TchError> {
        match self {
            Self::Dense(mlp) => Ok((mlp.forward(x)?, None)),
            Self::Sparse(moe) => {
                let (y, logits) = moe.forward(x)?;
                Ok((y, Some(logits)))
            }
        }
    }
}

impl Mlp {
    /// `[…, hidden]` to `[…, hidden]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let gated = linear(x, &self.gate_proj)?
            .f_silu()?
            .f_mul(&linear(x, &self.up_proj)?)?;
        linear(&gated, &self.down_proj)
    }
}
