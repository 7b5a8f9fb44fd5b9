//! Layout of the flat vector of parameters: tensors, fragments, chunks.

use alice_spec::{RunSpec, TensorShape};
use std::ops::Range;

/// Largest chunk, coordinates (the run specification's own bound): a position inside a chunk fits 16 bits.
pub const CHUNK_MAX: u32 = 65_536;
/// An update covers at most this many parameters (flat indices are u64; the bound keeps every sum of lengths and bits
/// far from overflow).
pub const PARAMETERS_MAX: u64 = 1 << 40;

/// Tensors in canonical order, each cut into chunks of equal length, the last one of a tensor possibly shorter. A chunk
/// never crosses from one tensor into the next, because their scales differ.
///
/// A layout covers the whole model or, as a [fragment](Layout::fragment), some neighbouring tensors of it. Indices are
/// those of the whole model's flat vector in both cases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Exclusive end of each tensor of the model in the flat vector.
    ends: Vec<usize>,
    /// Tensors that this layout covers.
    tensors: Range<usize>,
    chunk: usize,
}

impl Layout {
    /// Layout of tensors of these lengths. `chunk` is brought into `1..=CHUNK_MAX`.
    pub fn new(tensor_lens: &[u64], chunk: u32) -> Self {
        let mut end = 0usize;
        let ends = tensor_lens
            .iter()
            .map(|&len| {
                // Saturates instead of wrapping; `is_addressable` refuses such a model later.
                end = end.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
                end
            })
            .collect();
        Self {
            ends,
            tensors: 0..tensor_lens.len(),
            chunk: chunk.clamp(1, CHUNK_MAX) as usize,
        }
    }

    /// Layout of a run's model.
    pub fn from_spec(spec: &RunSpec) -> Self {
        let lens: Vec<u64> = spec.tensors().iter().map(TensorShape::len).collect();
        Self::new(&lens, spec.update.chunk)
    }

    /// Layout of the same model that covers only these tensors, by their number in canonical order. Tensors that `self`
    /// does not cover are left out.
    pub fn fragment(&self, tensors: Range<usize>) -> Self {
        let start = tensors.start.clamp(self.tensors.start, self.tensors.end);
        Self {
            ends: self.ends.clone(),
            tensors: start..tensors.end.clamp(start, self.tensors.end),
            chunk: self.chunk,
        }
    }

    /// Number of parameters of the whole model.
    pub fn total(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Covered coordinates: 0..total for a whole model.
    pub fn covered(&self) -> Range<usize> {
        let end_of = |tensors: usize| {
            let last = tensors.checked_sub(1).and_then(|last| self.ends.get(last));
            last.copied().unwrap_or(0)
        };
        end_of(self.tensors.start)..end_of(self.tensors.end)
    }

    /// Coordinates in a full chunk.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// Covered chunks in ascending order, as ranges of the whole model's flat vector. None is empty.
    pub fn chunks(&self) -> Chunks<'_> {
        Chunks {
            ends: self.ends.get(self.tensors.clone()).unwrap_or_default(),
            position: self.covered().start,
            chunk: self.chunk,
        }
    }

    /// Share of a chunk of `len` coordinates if a full chunk gets `count`: ⌈count · len / chunk⌉, at most `len`. So the
    /// density is the same in a short tensor as in a large matrix, and no chunk is left without entries.
    pub(crate) fn share(&self, count: u32, len: u32) -> u32 {
        // The common case, without a division.
        if len as usize == self.chunk {
            return count.min(len);
        }
        let share = (u64::from(count) * u64::from(len)).div_ceil(self.chunk as u64);
        share.min(u64::from(len)) as u32
    }

    /// Whether the model is small enough for sums of lengths and bits not to overflow.
    pub(crate) fn is_addressable(&self) -> bool {
        self.total() as u64 <= PARAMETERS_MAX
    }
}

/// Chunks of a layout; see [`Layout::chunks`].
#[derive(Clone, Debug)]
pub struct Chunks<'a> {
    /// Ends of the remaining tensors, the current one first.
    ends: &'a [usize],
    /// Start of the next chunk.
    position: usize,
    chunk: usize,
}

impl Iterator for Chunks<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        loop {
            let (&end, rest) = self.ends.split_first()?;
            if self.position < end {
                let start = self.position;
                self.position = end.min(start.saturating_add(self.chunk));
                return Some(start..self.position);
            }
            // The tensor is used up, or empty.
            self.ends = rest;
        }
    }
}
