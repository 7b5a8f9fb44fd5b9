//! Cache of keys and values: they do not change when tokens are appended, so each is computed once.

use super::{DecoderConfig, copy};
use crate::llama::rotary;
use crate::{ModelError, Precision};
use tch::{Device, Kind, TchError, Tensor};

/// Keys and values of every block for the text so far, with room for a fixed number of tokens, and the rotary tables.
#[derive(Debug)]
pub struct KvCache {
    /// Keys and values of each block, `[kv_heads, capacity, head_dim]`.
    blocks: Vec<(Tensor, Tensor)>,
    /// cos of the rotary angles, `[capacity, head_dim]`.
    cos: Tensor,
    /// sin of the rotary angles, the first half negated: then rotate-half needs no negation, only swapped halves.
    sin: Tensor,
    /// Half of a head's width.
    half: i64,
    len: i64,
    capacity: i64,
}

impl KvCache {
    pub(super) fn new(
        config: &DecoderConfig,
        tokens: usize,
        precision: Precision,
        device: Device,
    ) -> Result<Self, ModelError> {
        let capacity = i64::try_from(tokens).unwrap_or(i64::MAX);
        if capacity < 1 || capacity > config.context {
            let problem = format!("a cache for {tokens} tokens; 1 to {} are possible", config.context);
            return Err(ModelError::Batch(problem));
        }
        let _guard = tch::no_grad_guard();
        let shape = [config.kv_heads, capacity, config.head_dim];
        // All of it now: growing would copy every key at every step, and a text that cannot fit should not begin.
        let room = || Tensor::f_zeros(shape, (precision.kind(), device));
        let blocks = (0..config.layers)
            .map(|_| Ok((room()?, room()?)))
            .collect::<Result<_, TchError>>()?;
        let (cos, sin) = rotary(config.head_dim, capacity, config.rope_theta, (Kind::Float, device))?;
        let half = config.head_dim / 2;
        copy(sin.f_narrow(1, 0, half)?, &sin.f_narrow(1, 0, half)?.f_neg()?)?;
        Ok(Self {
            blocks,
            cos,
            sin,
            half,
            len: 0,
            capacity,
        })
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Maximum number of tokens.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Refuses tokens that cannot be appended.
    pub(super) fn reserve(&self, tokens: usize) -> Result<(), ModelError> {
        if tokens == 0 {
            return Err(ModelError::Batch("no tokens; at least one is needed".into()));
        }
        if tokens > self.capacity() - self.len() {
            return Err(ModelError::Batch(format!(
                "{tokens} tokens after {} do not fit a cache of {}",
                self.len, self.capacity
            )));
        }
        if tokens > 1 && self.len > 0 {
            let problem = format!("{tokens} tokens at once after {}; append them one by one", self.len);
            return Err(ModelError::Batch(problem));
        }
        Ok(())
    }

    /// Counts tokens whose keys and values are in every block. Only now: an error in a block leaves the cache as it
    /// was.
    pub(super) fn commit(&mut self, tokens: usize) {
        self.len += tokens as i64;
    }

    /// Rotary embeddings (Su et al. 2021, with halves as in `transformers`) of the next `n` positions, for any number
    /// of heads: `[heads, n, dim]` → the same in f32.
    pub(super) fn rotate(&self, x: &Tensor, n: i64) -> Result<Tensor, TchError> {
        let (cos, sin) = (self.cos.f_narrow(0, self.len, n)?, self.sin.f_narrow(0, self.len, n)?);
        x.f_mul(&cos)?.f_add(&x.f_roll(self.half, -1)?.f_mul(&sin)?)
    }

    /// Writes keys and values `[kv_heads, n, dim]` of a block; returns all of that block, `[kv_heads, len + n, dim]`.
    pub(super) fn extend(&mut self, layer: usize, key: &Tensor, value: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let Some((keys, values)) = self.blocks.get(layer) else {
            return Err(TchError::Shape(format!("the cache has no block {layer}")));
        };
        let n = key.size3()?.1;
        copy(keys.f_narrow(1, self.len, n)?, key)?;
        copy(values.f_narrow(1, self.len, n)?, value)?;
        let all = self.len + n;
        Ok((keys.f_narrow(1, 0, all)?, values.f_narrow(1, 0, all)?))
    }
}
