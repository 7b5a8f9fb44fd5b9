//! Gradients of a batch: with every activation kept, or with only the input of each block kept and the rest computed
//! again (activation checkpointing, Chen et al. 2016).

use super::Llama;
use crate::ModelError;
use tch::{Kind, TchError, Tensor};

/// The minimised function of the token losses `[batch, tokens − 1]`: a weighted mean, or their share of one.
pub type Objective<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor, TchError>;

impl Llama {
    /// Adds the gradients of `objective` to those of the parameters that learn, and returns its value. Where there are
    /// experts, the gradients are those of the objective plus the weighted load-balancing loss of this batch, with the
    /// share that the objective gives to the batch; the value is without it.
    ///
    /// With `checkpoint` each block keeps its input alone, `[batch, tokens, hidden]`, and is computed a second time in
    /// the backward pass: a third more work, the same gradients.
    ///
    /// # Errors
    /// The device has too little memory, or refuses an operation.
    pub fn backward(&self, tokens: &Tensor, checkpoint: bool, objective: Objective) -> Result<f64, ModelError> {
        if checkpoint {
            return self.backward_by_block(tokens, objective);
        }
        let (x, routes) = self.stream_routed(tokens)?;
        let losses = self.head_losses(&x, tokens)?;
        let value = objective(&losses)?;
        match self.balance_loss(&routes, &losses, objective)? {
            Some(balance) => value.f_add(&balance)?.f_backward()?,
            None => value.f_backward()?,
        }
        Ok(value.f_double_value(&[])?)
    }

    fn backward_by_block(&self, tokens: &Tensor, objective: Objective) -> Result<f64, ModelError> {
        let (cos, sin) = self.rotary_of(tokens)?;
        let rotary = (&cos, &sin);
        let first = self.learning.first_block;
        let (mut inputs, last, routes) = tch::no_grad(|| {
            let (mut inputs, mut x, mut routes) = (Vec::new(), self.embed(tokens)?, Vec::new());
            for (index, block) in self.blocks.iter().enumerate() {
                let (output, logits) = block.forward(&x, rotary, self.heads)?;
                routes.extend(logits);
                if index >= first {
                    inputs.push(x);
                }
                x = output;
            }
            Ok::<_, TchError>((inputs, x, routes))
        })?;
        // The head: its own parameters where they learn, and the gradient of its input where a block does.
        let last = leaf(&last, !inputs.is_empty())?;
        let losses = self.head_losses(&last, tokens)?;
        let value = objective(&losses)?;
        value.f_backward()?;
        let value = value.f_double_value(&[])?;
        // The load-balancing loss is of all blocks together: its gradients of their routers' logits come first.
        let routes = routes
            .iter()
            .map(|logits| leaf(logits, true))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(balance) = self.balance_loss(&routes, &losses, objective)? {
            balance.f_backward()?;
        }
        let mut upstream = last;
        // Blocks before the first that learns have no gradients to compute.
        for (index, block) in self.blocks.iter().enumerate().skip(first).rev() {
            let Some(input) = inputs.pop() else { break };
            let input = leaf(&input, index > first || self.embed_tokens.requires_grad())?;
            let (output, logits) = block.forward(&input, rotary, self.heads)?;
            let mut sum = product(&output, &upstream.f_grad()?)?;
            if let Some((logits, leaf)) = logits.as_ref().zip(routes.get(index))
                && leaf.f_grad()?.defined()
                && logits.requires_grad()
            {
                sum = sum.f_add(&product(logits, &leaf.f_grad()?)?)?;
            }
            sum.f_backward()?;
            upstream = input;
        }
        if first == 0 && self.embed_tokens.requires_grad() {
            product(&self.embed(tokens)?, &upstream.f_grad()?)?.f_backward()?;
        }
        Ok(value)
    }

    /// The weighted load-balancing loss times the share that the objective gives to this batch. `None` without experts.
    fn balance_loss(
        &self,
        routes: &[Tensor],
        losses: &Tensor,
        objective: Objective,
    ) -> Result<Option<Tensor>, TchError> {
        let Some(balance) = self.balance.as_ref().filter(|balance| balance.weight > 0.0) else {
            return Ok(None);
        };
        // The objective is linear in the losses, so its value for losses of one is the share.
        let share = tch::no_grad(|| objective(&losses.f_ones_like()?))?;
        let loss = balance.loss(routes)?.f_mul_scalar(balance.weight)?;
        Ok(Some(loss.f_mul(&share)?))
    }
}

/// A tensor of the same values with a graph of its own, so that a backward pass ends there.
fn leaf(x: &Tensor, requires_grad: bool) -> Result<Tensor, TchError> {
    x.f_detach()?.f_set_requires_grad(requires_grad)
}

/// Σ output · upstream, a scalar. Its gradients are those of the function whose gradient for `output` is `upstream`:
/// the chain rule, block by block.
fn product(output: &Tensor, upstream: &Tensor) -> Result<Tensor, TchError> {
    output.f_mul(upstream)?.f_sum(Kind::Float)
}
