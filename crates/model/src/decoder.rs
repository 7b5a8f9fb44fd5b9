//! The transformer for generating text: the same Llama or Mixtral as [`crate::Llama`], without gradients, with a cache
//! of keys and values, and with weights of the same input joined in one matrix (query, key and value; gate and up):
//! fewer and larger products, which is where the time goes with one token at a time.
//!
//! The prompt goes in at once ([`Decoder::forward`] on an empty [`KvCache`]), then token by token. Each call returns
//! the logits after its last token.

mod attention;
mod cache;
mod config;
mod matrix;
mod mlp;

pub use cache::KvCache;
pub use config::{DecoderConfig, Experts};

use crate::{ModelError, Precision};
use alice_spec::TensorShape;
use attention::Attention;
use matrix::Matrix;
use mlp::{FeedForward, Mlp};
use tch::{Device, Kind, TchError, Tensor};

/// Weights for generating text, on one device.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    /// `[vocab, hidden]`.
    embed_tokens: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    lm_head: Matrix,
    precision: Precision,
    device: Device,
}

#[derive(Debug)]
struct Block {
    input_layernorm: Tensor,
    attention: Attention,
    post_attention_layernorm: Tensor,
    feed_forward: FeedForward,
}

impl Decoder {
    /// Takes every tensor of [`DecoderConfig::tensors`] from `fetch`, in that order and one at a time, so that one
    /// tensor is in memory in addition to the finished weights. `fetch` may return any floating-point kind on any
    /// device.
    ///
    /// # Errors
    /// Those of `fetch`, and those of a configuration or a shape that is not possible.
    pub fn load<E: From<ModelError>>(
        config: DecoderConfig,
        precision: Precision,
        device: Device,
        fetch: &mut dyn FnMut(&TensorShape) -> Result<Tensor, E>,
    ) -> Result<Self, E> {
        config.check()?;
        let _guard = tch::no_grad_guard();
        let mut loader = Loader {
            all: config.tensors().into_iter(),
            precision,
            device,
            fetch,
        };
        // The embedding is only looked up in: for tied weights it is the head's matrix as well.
        let embed_tokens = loader.matrix(1)?;
        let mut blocks = Vec::new();
        for _ in 0..config.layers {
            blocks.push(Block {
                input_layernorm: loader.vector()?,
                attention: Attention::new(&config, loader.matrix(3)?, loader.matrix(1)?),
                post_attention_layernorm: loader.vector()?,
                feed_forward: loader.feed_forward(config.experts)?,
            });
        }
        let norm = loader.vector()?;
        let lm_head = match config.tied {
            true => embed_tokens.share(),
            false => loader.matrix(1)?,
        };
        Ok(Self {
            config,
            embed_tokens: embed_tokens.into_tensor(),
            blocks,
            norm,
            lm_head,
            precision,
            device,
        })
    }

    /// Shape and constants of the model.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Device of the weights.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Number format of the matrices.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// An empty cache for at most `tokens` tokens.
    ///
    /// # Errors
    /// More tokens than the context, none, or too little memory.
    pub fn cache(&self, tokens: usize) -> Result<KvCache, ModelError> {
        KvCache::new(&self.config, tokens, self.precision, self.device)
    }

    /// Appends tokens to the text in the cache and returns the logits after the last one, `[vocab]`. Several tokens at
    /// once are possible only at the start of a text.
    ///
    /// # Errors
    /// A token outside the vocabulary, more tokens than the cache has room for, or several in the middle of a text.
    pub fn forward(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Vec<f32>, ModelError> {
        let vocab = self.config.vocab;
        if let Some(token) = tokens.iter().find(|token| i64::from(**token) >= vocab) {
            return Err(ModelError::Batch(format!("token {token}; the vocabulary has {vocab}")));
        }
        // Checked before the first block writes, so that an error leaves the cache as it was.
        cache.reserve(tokens.len())?;
        let _guard = tch::no_grad_guard();
        let ids: Vec<i64> = tokens.iter().map(|token| i64::from(*token)).collect();
        let ids = Tensor::f_from_slice(&ids)?.f_to_device(self.device)?;
        let logits = self.logits(&ids, cache)?;
        cache.commit(tokens.len());
        let mut out = vec![0f32; vocab as usize];
        logits.f_to_device(Device::Cpu)?.f_copy_data(&mut out, vocab as usize)?;
        Ok(out)
    }

    /// Logits after the last of tokens `[n]`, `[1, vocab]` in f32.
    fn logits(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor, TchError> {
        let eps = self.config.rms_norm_eps;
        let n = ids.size1()?;
        // The residual stream is f32 in every precision: it is small, and every block adds to it.
        let mut x = Tensor::f_embedding(&self.embed_tokens, ids, -1, false, false)?.f_to_kind(Kind::Float)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let normed = rms_norm(&x, &block.input_layernorm, eps)?;
            let _ = x.f_add_(&block.attention.forward(&normed, layer, cache)?)?;
            let normed = rms_norm(&x, &block.post_attention_layernorm, eps)?;
            let _ = x.f_add_(&block.feed_forward.forward(&normed)?)?;
        }
        // The head is the largest product of a small model, and only the last position is asked for.
        let last = x.f_narrow(0, n - 1, 1)?;
        self.lm_head
            .apply(&rms_norm(&last, &self.norm, eps)?)?
            .f_to_kind(Kind::Float)?
            .f_contiguous()
    }
}

/// x / √(mean(x²) + ε) · weight over the last dimension (Zhang and Sennrich 2019).
fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor, TchError> {
    x.f_rms_norm(&weight.size()[..], Some(weight), eps)
}

/// Fetches the tensors in their order.
struct Loader<'a, E> {
    all: std::vec::IntoIter<TensorShape>,
    precision: Precision,
    device: Device,
    fetch: &'a mut dyn FnMut(&TensorShape) -> Result<Tensor, E>,
}

impl<E: From<ModelError>> Loader<'_, E> {
    fn next(&mut self) -> Result<Tensor, E> {
        let missing = || ModelError::Torch("the model's layout ends too early".into());
        let tensor = self.all.next().ok_or_else(missing)?;
        let found = (self.fetch)(&tensor)?;
        let expected: Vec<i64> = tensor.shape.iter().map(|n| *n as i64).collect();
        if found.size() != expected {
            return Err(ModelError::Shape {
                tensor: tensor.name,
                expected,
                found: found.size(),
            }
            .into());
        }
        Ok(found)
    }

    /// A norm's weights, `[hidden]`: f32 in every precision, because they are few.
    fn vector(&mut self) -> Result<Tensor, E> {
        let found = self.next()?;
        let moved = || found.f_to_device(self.device)?.f_to_kind(Kind::Float);
        Ok(moved().map_err(ModelError::from)?)
    }

    fn mlp(&mut self) -> Result<Mlp, E> {
        Ok(Mlp::new(self.matrix(2)?, self.matrix(1)?))
    }

    fn feed_forward(&mut self, experts: Option<Experts>) -> Result<FeedForward, E> {
        let Some(Experts { count, top_k }) = experts else {
            return Ok(FeedForward::Dense(self.mlp()?));
        };
        Ok(FeedForward::Sparse(mlp::Experts {
            gate: self.matrix(1)?,
            experts: (0..count).map(|_| self.mlp()).collect::<Result<_, E>>()?,
            top_k,
        }))
    }

    /// The next `count` matrices joined by rows, `[sum of rows, columns]`.
    fn matrix(&mut self, count: usize) -> Result<Matrix, E> {
        let shapes = self.all.as_slice().get(..count).unwrap_or_default();
        let sizes = |dim: usize| {
            shapes
                .iter()
                .map(move |t| t.shape.get(dim).copied().unwrap_or_default())
        };
        let (rows, columns) = (sizes(0).sum::<u64>(), sizes(1).max().unwrap_or_default());
        let options = (self.precision.kind(), self.device);
        let joined = Tensor::f_empty([rows as i64, columns as i64], options).map_err(ModelError::from)?;
        let mut row = 0;
        for _ in 0..count {
            let part = self.next()?;
            let rows = part.size().first().copied().unwrap_or_default();
            let place = joined.f_narrow(0, row, rows).map_err(ModelError::from)?;
            // Copying converts kind and device.
            copy(place, &part).map_err(ModelError::from)?;
            row += rows;
        }
        Ok(Matrix::new(joined))
    }
}

/// Overwrites the values of a view.
fn copy(mut place: Tensor, values: &Tensor) -> Result<(), TchError> {
    place.f_copy_(values)
}
