//! How the flat vector of parameters is cut into chunks.

use alice_spec::{RunSpec, TensorShape};
use std::ops::Range;

/// Largest chunk, coordinates (the run specification's own bound): a position inside a chunk fits 16 bits.
pub const CHUNK_MAX: u32 = 65_536;
/// Flat indices are u32: an update covers at most this many parameters. A larger model is trained in fragments.
pub const PARAMETERS_MAX: u64 = 1 << 32;

/// Tensors in canonical order, each cut into chunks of equal length, the last one of a tensor possibly shorter. A chunk
/// never crosses from one tensor into the next, because their scales differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Exclusive end of each tensor in the flat vector.
    ends: Vec<usize>,
    chunk: usize,
}

impl Layout {
    /// Layout of tensors of these lengths. `chunk` is brought into `1..=CHUNK_MAX`.
    pub fn new(tensor_lens: &[u64], chunk: u32) -> Self {
        let mut end = 0usize;
        let ends = tensor_lens
            .iter()
            .map(|&len| {
                end = end.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
                end
            })
            .collect();
        Self {
            ends,
            chunk: chunk.clamp(1, CHUNK_MAX) as usize,
        }
    }

    /// Layout of a run's model.
    pub fn from_spec(spec: &RunSpec) -> Self {
        let lens: Vec<u64> = spec.tensors().iter().map(TensorShape::len).collect();
        Self::new(&lens, spec.update.chunk)
    }

    /// Number of parameters.
    pub fn total(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Coordinates in a full chunk.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// Chunks in ascending order, as ranges of the flat vector. None is empty.
    pub fn chunks(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(self.ends.iter().copied()).flat_map(move |(start, end)| {
            (start..end)
                .step_by(self.chunk)
                .map(move |from| from..end.min(from.saturating_add(self.chunk)))
        })
    }

    /// What a chunk of `len` coordinates gets of `count` for each full chunk: ⌈count · len / chunk⌉, at most `len`. So
    /// the density is the same in a norm's short tensor as in a large matrix, and no chunk is left without any.
    pub(crate) fn share(&self, count: u32, len: u32) -> u32 {
        let share = (u64::from(count) * u64::from(len)).div_ceil(self.chunk as u64);
        share.min(u64::from(len)) as u32
    }

    /// Whether every flat index fits a u32.
    pub(crate) fn is_addressable(&self) -> bool {
        self.total() as u64 <= PARAMETERS_MAX
    }
}
