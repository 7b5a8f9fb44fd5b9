//! Grouped-query attention over the cache.

use super::matrix::Matrix;
use super::{DecoderConfig, KvCache};
use tch::{Kind, TchError, Tensor};

#[derive(Debug)]
pub(super) struct Attention {
    /// Rows of query, key, value.
    qkv: Matrix,
    o_proj: Matrix,
    heads: i64,
    kv_heads: i64,
    dim: i64,
    kind: Kind,
}

impl Attention {
    pub fn new(config: &DecoderConfig, qkv: Matrix, o_proj: Matrix) -> Self {
        Self {
            kind: qkv.kind(),
            qkv,
            o_proj,
            heads: config.heads,
            kv_heads: config.kv_heads,
            dim: config.head_dim,
        }
    }

    /// `[n, hidden]` → `[n, hidden]`; the keys and values of these tokens are in the cache afterwards.
    pub fn forward(&self, x: &Tensor, layer: usize, cache: &mut KvCache) -> Result<Tensor, TchError> {
        let n = x.size2()?.0;
        let (heads, kv_heads) = (self.heads, self.kv_heads);
        // [n, heads, dim] → [heads, n, dim]
        let all = self
            .qkv
            .apply(x)?
            .f_view([n, heads + 2 * kv_heads, self.dim])?
            .f_transpose(0, 1)?;
        // Query and key heads are turned in one go: the tables have no dimension of heads.
        let turned = cache.rotate(&all.f_narrow(0, 0, heads + kv_heads)?, n)?;
        let query = turned.f_narrow(0, 0, heads)?.f_to_kind(self.kind)?;
        let key = turned.f_narrow(0, heads, kv_heads)?;
        let value = all.f_narrow(0, heads + kv_heads, kv_heads)?;
        let (keys, values) = cache.extend(layer, &key, &value)?;
        let mixed = match n {
            1 => self.one(&query, &keys, &values)?,
            _ => self.several(&query, &keys, &values)?,
        };
        self.o_proj.apply(&mixed)
    }

    /// One token sees everything. The query heads of a key/value head take the place of positions, so that no key is
    /// copied: `[heads, 1, dim]` over `[kv_heads, len, dim]` → `[1, heads · dim]`.
    fn one(&self, query: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor, TchError> {
        let query = query.f_reshape([1, self.kv_heads, self.heads / self.kv_heads, self.dim])?;
        attend(&query, &keys.f_unsqueeze(0)?, &values.f_unsqueeze(0)?, false)?.f_reshape([1, self.heads * self.dim])
    }

    /// The first tokens of a text, each sees itself and those before it: `[heads, n, dim]` → `[n, heads · dim]`.
    fn several(&self, query: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor, TchError> {
        let groups = self.heads / self.kv_heads;
        // Each key/value head serves `groups` query heads in a row.
        let repeat = |t: &Tensor| match groups {
            1 => t.f_unsqueeze(0),
            _ => t.f_repeat_interleave_self_int(groups, 0, None)?.f_unsqueeze(0),
        };
        let mixed = attend(&query.f_unsqueeze(0)?, &repeat(keys)?, &repeat(values)?, true)?;
        mixed
            .f_squeeze_dim(0)?
            .f_transpose(0, 1)?
            .f_reshape([-1, self.heads * self.dim])
    }
}

fn attend(query: &Tensor, keys: &Tensor, values: &Tensor, causal: bool) -> Result<Tensor, TchError> {
    Tensor::f_scaled_dot_product_attention::<Tensor>(query, keys, values, None, 0.0, causal, None, false)
}
