//! Gradients of a batch: with every activation kept, or with only the input of each block kept and the rest computed
//! again (activation checkpointing, Chen et al. 2016).

use super::Llama;
use crate::ModelError;
use tch::{Kind, TchError, Tensor};

/// What is minimised: a number made of the token losses `[batch, tokens − 1]`.
pub type Objective<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor, TchError>;

impl Llama {
    /// Adds the gradients of `objective` to those of the parameters that learn, and returns its value.
    ///
    /// With `checkpoint` each block keeps its input alone, `[batch, tokens, hidden]`, and is computed a second time on the
    /// way back: a third more work, the same gradients.
    pub fn backward(&self, tokens: &Tensor, checkpoint: bool, objective: Objective) -> Result<f64, ModelError> {
        if checkpoint {
            return self.backward_by_block(tokens, objective);
        }
        let value = objective(&self.token_losses(tokens)?)?;
        value.f_backward()?;
        Ok(value.f_double_value(&[])?)
    }

    fn backward_by_block(&self, tokens: &Tensor, objective: Objective) -> Result<f64, ModelError> {
        let (cos, sin) = self.rotary_of(tokens)?;
        let rotary = (&cos, &sin);
        let first = self.learning.first_block;
        let (mut inputs, last) = tch::no_grad(|| {
            let (mut inputs, mut x) = (Vec::new(), self.embed(tokens)?);
            for (index, block) in self.blocks.iter().enumerate() {
                let output = block.forward(&x, rotary, self.heads)?;
                if index >= first {
                    inputs.push(x);
                }
                x = output;
            }
            Ok::<_, TchError>((inputs, x))
        })?;
        // The head: its own parameters where they learn, and the gradient of its input where a block does.
        let last = leaf(&last, !inputs.is_empty())?;
        let value = objective(&self.head_losses(&last, tokens)?)?;
        value.f_backward()?;
        let value = value.f_double_value(&[])?;
        let mut upstream = last;
        for (index, block) in self.blocks.iter().enumerate().skip(first).rev() {
            let Some(input) = inputs.pop() else { break };
            let input = leaf(&input, index > first || self.embed_tokens.requires_grad())?;
            let output = block.forward(&input, rotary, self.heads)?;
            backward_with(&output, &upstream.f_grad()?)?;
            upstream = input;
        }
        if first == 0 && self.embed_tokens.requires_grad() {
            backward_with(&self.embed(tokens)?, &upstream.f_grad()?)?;
        }
        Ok(value)
    }
}

/// The same values with a graph of its own.
fn leaf(x: &Tensor, requires_grad: bool) -> Result<Tensor, TchError> {
    x.f_detach()?.f_set_requires_grad(requires_grad)
}

/// Backward from `output` with the gradient of what comes after it: the gradient of Σ output · upstream.
fn backward_with(output: &Tensor, upstream: &Tensor) -> Result<(), TchError> {
    output.f_mul(upstream)?.f_sum(Kind::Float)?.f_backward()
}
