//! Llama for training, as Hugging Face's `modeling_llama.py` computes it: RMSNorm (Zhang and Sennrich 2019), rotary
//! embeddings with rotate-half (Su et al. 2021), grouped-query attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020),
//! no biases, head not tied; and Mixtral, which differs in the feed-forward part of a block alone.
//!
//! Every operation is the fallible one (`f_…`): a device that runs out of memory must be an error that the caller can
//! answer with a smaller batch, not the end of a process that has trained for hours.

use crate::ModelError;
use alice_spec::{RMS_NORM_EPSILON, RunSpec};
use std::collections::HashMap;
use std::ops::Range;
use tch::{Device, Kind, Reduction, TchError, Tensor};

mod backward;
mod feed_forward;
mod moe;

pub use backward::Objective;

use feed_forward::FeedForward;
use moe::Balance;

/// Compute dtype: number format of a model's products, of the weights that do not learn, and of a cache of keys and
/// values. (Weights that learn are f32 in any case.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// IEEE single precision.
    #[default]
    F32,
    /// bfloat16: half the memory, and up to twice as fast where memory is the limit. In training, activations and the
    /// copies of weights that products are made of; weights that learn, their gradients and the loss stay in f32 (mixed
    /// precision, Micikevicius et al. 2018; no loss scaling, since the exponent is f32's). In generating, the inputs
    /// of a product; norms, rotary embeddings and the stream between the blocks stay f32.
    Bf16,
}

impl Precision {
    /// Bytes of a number.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

/// The transformer on one device.
#[derive(Debug)]
pub struct Llama {
    embed_tokens: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    lm_head: Tensor,
    /// cos and sin of the rotary angles, `[context, head_dim]`.
    rotary: (Tensor, Tensor),
    /// Every parameter in canonical order: the same tensors as above.
    parameters: Vec<Tensor>,
    /// Position of each parameter in θ.
    ranges: Vec<Range<usize>>,
    learning: Learning,
    /// Load balancing of the routers. `None` without experts.
    balance: Option<Balance>,
    heads: Heads,
    context: i64,
    vocab: i64,
    device: Device,
}

/// The part of the model that learns, and the compute dtype.
#[derive(Debug)]
struct Learning {
    /// Tensors that learn, as a range of the parameters.
    tensors: Range<usize>,
    /// First block that needs gradients of its own parameters or of its input.
    first_block: usize,
    precision: Precision,
}

#[derive(Debug)]
struct Block {
    input_layernorm: Tensor,
    q_proj: Tensor,
    k_proj: Tensor,
    v_proj: Tensor,
    o_proj: Tensor,
    post_attention_layernorm: Tensor,
    feed_forward: FeedForward,
}

#[derive(Clone, Copy, Debug)]
struct Heads {
    query: i64,
    key_value: i64,
    dim: i64,
}

impl Llama {
    /// A model of the run's shape in f32 with all parameters zero, until [`Llama::load`]. All of it learns.
    ///
    /// # Errors
    /// The device has too little memory.
    pub fn new(spec: &RunSpec, device: Device) -> Result<Self, ModelError> {
        let all = 0..spec.tensors().len();
        Self::with_learning(spec, device, all, Precision::F32)
    }

    /// [`Llama::new`], but only the tensors `learning` (a range of [`RunSpec::tensors`], such as a fragment's) are
    /// leaves that collect gradients. They are in f32 in any case; the others, and all products, are in `precision`.
    ///
    /// Blocks before the first tensor that learns keep no activations, blocks after the last one only those that the
    /// gradient of their input needs.
    pub fn with_learning(
        spec: &RunSpec,
        device: Device,
        learning: Range<usize>,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let m = &spec.model;
        let heads = Heads {
            query: m.heads.into(),
            key_value: m.kv_heads.into(),
            dim: (m.hidden / m.heads).into(),
        };
        let (mut parameters, mut ranges, mut by_name) = (Vec::new(), Vec::new(), HashMap::new());
        let mut start = 0;
        for (index, tensor) in spec.tensors().into_iter().enumerate() {
            let shape: Vec<i64> = tensor.shape.iter().map(|n| *n as i64).collect();
            let learns = learning.contains(&index);
            // Steps of the optimiser are far below the resolution of bf16: they would be rounded away.
            let kind = if learns { Kind::Float } else { precision.kind() };
            let parameter = Tensor::f_zeros(&shape[..], (kind, device))?.f_set_requires_grad(learns)?;
            ranges.push(start..start + tensor.len() as usize);
            start += tensor.len() as usize;
            by_name.insert(tensor.name, parameter.shallow_clone());
            parameters.push(parameter);
        }
        let mut take = |name: &str| {
            let missing = || ModelError::Torch(format!("the run's layout has no tensor {name}"));
            by_name.remove(name).ok_or_else(missing)
        };
        let embed_tokens = take("model.embed_tokens.weight")?;
        let blocks = (0..m.layers)
            .map(|layer| {
                let mut take = |name: &str| take(&format!("model.layers.{layer}.{name}.weight"));
                Ok(Block {
                    input_layernorm: take("input_layernorm")?,
                    q_proj: take("self_attn.q_proj")?,
                    k_proj: take("self_attn.k_proj")?,
                    v_proj: take("self_attn.v_proj")?,
                    o_proj: take("self_attn.o_proj")?,
                    post_attention_layernorm: take("post_attention_layernorm")?,
                    feed_forward: FeedForward::take(spec, take)?,
                })
            })
            .collect::<Result<_, ModelError>>()?;
        Ok(Self {
            embed_tokens,
            blocks,
            norm: take("model.norm.weight")?,
            lm_head: take("lm_head.weight")?,
            rotary: rotary(
                heads.dim,
                m.context.into(),
                m.rope_theta.into(),
                (precision.kind(), device),
            )?,
            parameters,
            ranges,
            learning: Learning {
                first_block: first_block(spec, &learning),
                tensors: learning,
                precision,
            },
            balance: m.moe.as_ref().map(Balance::new),
            heads,
            context: m.context.into(),
            vocab: m.vocab.into(),
            device,
        })
    }

    /// Device of the model.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Parameters in canonical order.
    pub fn parameters(&self) -> &[Tensor] {
        &self.parameters
    }

    /// The parameters that learn, in canonical order: leaves that collect gradients.
    pub fn learning(&self) -> &[Tensor] {
        self.parameters.get(self.learning.tensors.clone()).unwrap_or_default()
    }

    /// Range of θ with the parameters that learn.
    pub fn learning_range(&self) -> Range<usize> {
        match self.ranges.get(self.learning.tensors.clone()).unwrap_or_default() {
            [] => 0..0,
            [only] => only.clone(),
            [first, .., last] => first.start..last.end,
        }
    }

    /// Sets all parameters from θ, `[parameters]`.
    ///
    /// # Errors
    /// θ has another length; nothing is changed then.
    pub fn load(&mut self, theta: &[f32]) -> Result<(), ModelError> {
        let expected = self.ranges.last().map_or(0, |range| range.end);
        let size = ModelError::Size {
            expected,
            found: theta.len(),
        };
        if theta.len() != expected {
            return Err(size);
        }
        tch::no_grad(|| {
            for (parameter, range) in self.parameters.iter_mut().zip(&self.ranges) {
                let values = theta.get(range.clone()).unwrap_or_default();
                let values = Tensor::f_from_slice(values)?.f_view(&parameter.size()[..])?;
                parameter.f_copy_(&values)?;
            }
            Ok(())
        })
    }

    /// All parameters as θ, `[parameters]`.
    pub fn store(&self) -> Result<Vec<f32>, ModelError> {
        self.store_tensors(0..self.parameters.len())
    }

    /// The parameters that learn, as the part [`Llama::learning_range`] of θ.
    pub fn store_learning(&self) -> Result<Vec<f32>, ModelError> {
        self.store_tensors(self.learning.tensors.clone())
    }

    fn store_tensors(&self, tensors: Range<usize>) -> Result<Vec<f32>, ModelError> {
        let ranges = self.ranges.get(tensors.clone()).unwrap_or_default();
        let mut values = vec![0f32; ranges.iter().map(Range::len).sum()];
        let mut rest = values.as_mut_slice();
        for parameter in self.parameters.get(tensors).unwrap_or_default() {
            let (target, after) = rest.split_at_mut(parameter.numel());
            let source = parameter.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
            source.f_contiguous()?.f_copy_data(target, target.len())?;
            rest = after;
        }
        Ok(values)
    }

    /// Sequences of equal length as `[batch, tokens]` i64 on the model's device. Tokens are checked here, because an
    /// index that is too large ends the whole process on CUDA.
    ///
    /// # Errors
    /// No sequence, unequal lengths, more tokens than the context, or a token outside the vocabulary.
    pub fn batch(&self, sequences: &[Vec<u16>]) -> Result<Tensor, ModelError> {
        let len = sequences.first().map_or(0, Vec::len);
        if len < 2 || len as i64 > self.context {
            let problem = format!("sequences of {len} tokens; 2 to {} are possible", self.context);
            return Err(ModelError::Batch(problem));
        }
        let mut ids: Vec<i64> = Vec::with_capacity(sequences.len() * len);
        for sequence in sequences {
            if sequence.len() != len {
                let problem = format!("sequences of {len} and of {} tokens in one batch", sequence.len());
                return Err(ModelError::Batch(problem));
            }
            if let Some(token) = sequence.iter().find(|token| i64::from(**token) >= self.vocab) {
                let problem = format!("token {token}; the vocabulary has {}", self.vocab);
                return Err(ModelError::Batch(problem));
            }
            ids.extend(sequence.iter().map(|token| i64::from(*token)));
        }
        Ok(Tensor::f_from_slice(&ids)?
            .f_view([sequences.len() as i64, len as i64])?
            .f_to_device(self.device)?)
    }

    /// Logits `[batch, tokens, vocab]` of tokens `[batch, tokens]` (i64), in the precision of the model.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor, ModelError> {
        Ok(linear(&self.hidden(tokens)?, &self.lm_head)?)
    }

    /// Negative log likelihood of every next token, nats, `[batch, tokens − 1]` in f32.
    pub fn token_losses(&self, tokens: &Tensor) -> Result<Tensor, ModelError> {
        self.head_losses(&self.stream(tokens)?, tokens)
    }

    /// [`Llama::token_losses`] from the residual stream after the last block, `[batch, tokens, hidden]`.
    fn head_losses(&self, x: &Tensor, tokens: &Tensor) -> Result<Tensor, ModelError> {
        let (batch, len) = tokens.size2()?;
        // The last position has no target: leave it out before the head, the largest product of a small model.
        let hidden = rms_norm(&x.f_narrow(1, 0, len - 1)?, &self.norm)?;
        let logits = linear(&hidden, &self.lm_head)?
            .f_reshape([batch * (len - 1), self.vocab])?
            // In bf16 the softmax over a large vocabulary would lose what distinguishes two good models.
            .f_to_kind(Kind::Float)?;
        let targets = tokens.f_narrow(1, 1, len - 1)?.f_reshape([batch * (len - 1)])?;
        let losses = logits.f_cross_entropy_loss::<Tensor>(&targets, None, Reduction::None, -100, 0.0)?;
        Ok(losses.f_view([batch, len - 1])?)
    }

    /// Mean loss of each sequence over its `tokens − 1` targets, nats per token, `[batch]` in f64 on the CPU (not every
    /// device has f64).
    pub fn sequence_losses(&self, tokens: &Tensor) -> Result<Tensor, ModelError> {
        let losses = self
            .token_losses(tokens)?
            .f_to_device(Device::Cpu)?
            .f_to_kind(Kind::Double)?;
        Ok(losses.f_mean_dim(1, false, Kind::Double)?)
    }

    /// Output of the last norm, `[batch, tokens, hidden]`.
    fn hidden(&self, tokens: &Tensor) -> Result<Tensor, ModelError> {
        Ok(rms_norm(&self.stream(tokens)?, &self.norm)?)
    }

    /// The residual stream after the last block, `[batch, tokens, hidden]`.
    fn stream(&self, tokens: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.stream_routed(tokens)?.0)
    }

    /// [`Llama::stream`], and the router's logits of each block that has one, `[batch · tokens, experts]`.
    fn stream_routed(&self, tokens: &Tensor) -> Result<(Tensor, Vec<Tensor>), ModelError> {
        let (cos, sin) = self.rotary_of(tokens)?;
        let (mut x, mut routes) = (self.embed(tokens)?, Vec::new());
        for block in &self.blocks {
            let (output, logits) = block.forward(&x, (&cos, &sin), self.heads)?;
            routes.extend(logits);
            x = output;
        }
        Ok((x, routes))
    }

    /// The residual stream before the first block, `[batch, tokens, hidden]`.
    fn embed(&self, tokens: &Tensor) -> Result<Tensor, TchError> {
        // Gather before the cast: a cast copy of the whole table would be larger.
        Tensor::f_embedding(&self.embed_tokens, tokens, -1, false, false)?.f_to_kind(self.learning.precision.kind())
    }

    /// cos and sin of the positions of `tokens`, `[tokens, head_dim]` each.
    fn rotary_of(&self, tokens: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
        let (_, len) = tokens.size2()?;
        if len > self.context {
            let problem = format!("{len} tokens; the context is {}", self.context);
            return Err(ModelError::Batch(problem));
        }
        Ok((self.rotary.0.f_narrow(0, 0, len)?, self.rotary.1.f_narrow(0, 0, len)?))
    }
}

/// First block that the gradient of a tensor in `learning` goes through; the number of blocks if only norm or head
/// learn. The embedding comes first in canonical order, and its gradient goes through all blocks.
fn first_block(spec: &RunSpec, learning: &Range<usize>) -> usize {
    let all = spec.tensors();
    let block_of = |name: &str| name.strip_prefix("model.layers.")?.split_once('.')?.0.parse().ok();
    match learning.start {
        0 => 0,
        _ => all
            .get(learning.clone())
            .unwrap_or_default()
            .iter()
            .filter_map(|tensor| block_of(&tensor.name))
            .min()
            .unwrap_or(spec.model.layers as usize),
    }
}

impl Block {
    /// The residual stream after the block, `[batch, tokens, hidden]`, and the router's logits if it has experts.
    fn forward(
        &self,
        x: &Tensor,
        rotary: (&Tensor, &Tensor),
        heads: Heads,
    ) -> Result<(Tensor, Option<Tensor>), TchError> {
        let x = x.f_add(&self.attention(&rms_norm(x, &self.input_layernorm)?, rotary, heads)?)?;
        let normed = rms_norm(&x, &self.post_attention_layernorm)?;
        let (change, routes) = self.feed_forward.forward(&normed)?;
        Ok((x.f_add(&change)?, routes))
    }

    /// Causal grouped-query attention of normalised `x`, `[batch, tokens, hidden]` to the same shape.
    fn attention(&self, x: &Tensor, rotary: (&Tensor, &Tensor), heads: Heads) -> Result<Tensor, TchError> {
        let (batch, len, _) = x.size3()?;
        // [batch, tokens, heads · dim] → [batch, heads, tokens, dim]
        let split = |weight, count| {
            linear(x, weight)?
                .f_view([batch, len, count, heads.dim])?
                .f_transpose(1, 2)
        };
        let query = rotate(&split(&self.q_proj, heads.query)?, rotary)?;
        let key = rotate(&split(&self.k_proj, heads.key_value)?, rotary)?;
        let value = split(&self.v_proj, heads.key_value)?;
        // Each key/value head serves `query / key_value` query heads in a row (`repeat_kv`).
        let groups = heads.query / heads.key_value;
        let repeat = |t: Tensor| match groups {
            1 => Ok(t),
            _ => t.f_repeat_interleave_self_int(groups, 1, None),
        };
        let (key, value) = (repeat(key)?, repeat(value)?);
        // libtorch takes a fused kernel where it has one, which does not hold the whole matrix of scores.
        let mixed =
            Tensor::f_scaled_dot_product_attention::<Tensor>(&query, &key, &value, None, 0.0, true, None, false)?;
        linear(
            &mixed
                .f_transpose(1, 2)?
                .f_reshape([batch, len, heads.query * heads.dim])?,
            &self.o_proj,
        )
    }
}

/// x · weightᵀ in the precision of x.
fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
    x.f_linear::<Tensor>(&weight.f_to_kind(x.kind())?, None)
}

/// RMSNorm (Zhang and Sennrich 2019): x / √(mean(x²) + ε) · weight over the last dimension.
fn rms_norm(x: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
    x.f_rms_norm(&weight.size()[..], Some(&weight.f_to_kind(x.kind())?), RMS_NORM_EPSILON)
}

/// Rotary embedding (Su et al. 2021): `x · cos + rotate_half(x) · sin`, where rotate_half is (−second half, first half)
/// of the last dimension.
fn rotate(x: &Tensor, (cos, sin): (&Tensor, &Tensor)) -> Result<Tensor, TchError> {
    let halves = x.f_chunk(2, -1)?;
    let [first, second] = &halves[..] else {
        return Err(TchError::Shape("rotary embedding of an odd head".into()));
    };
    x.f_mul(cos)?
        .f_add(&Tensor::f_cat(&[second.f_neg()?, first.shallow_clone()], -1)?.f_mul(sin)?)
}

/// cos and sin of the angles position · base^(−2i/dim), `[context, dim]` each: every angle once for each half.
pub(crate) fn rotary(dim: i64, context: i64, base: f64, target: (Kind, Device)) -> Result<(Tensor, Tensor), TchError> {
    // Powers in f64, rounded once: an error here would be multiplied by the position.
    let frequencies: Vec<f32> = (0..dim / 2)
        .map(|i| base.powf(-2.0 * i as f64 / dim as f64) as f32)
        .collect();
    let frequencies = Tensor::f_from_slice(&frequencies)?;
    let angles = Tensor::f_arange(context, (Kind::Float, Device::Cpu))?.f_outer(&frequencies)?;
    let angles = Tensor::f_cat(&[&angles, &angles], -1)?;
    let (kind, device) = target;
    Ok((
        angles.f_cos()?.f_to_kind(kind)?.f_to_device(device)?,
        angles.f_sin()?.f_to_kind(kind)?.f_to_device(device)?,
    ))
}

#[cfg(test)]
mod tests;
