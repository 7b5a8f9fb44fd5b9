//! Which coordinates of each chunk are worth sending, best first.

use crate::error::EncodeError;
use crate::layout::Layout;
use crate::levels::{Levels, scale};

/// For each chunk its candidates, positions inside the chunk by descending magnitude, ties by ascending index.
pub(crate) struct Ranked {
    positions: Vec<u16>,
    /// Exclusive end of each chunk's candidates.
    ends: Vec<usize>,
}

impl Ranked {
    /// Ranks at most `k_max` coordinates of each chunk. Refuses values that are not finite.
    pub(crate) fn new(layout: &Layout, levels: Levels, k_max: usize, values: &[f32]) -> Result<Self, EncodeError> {
        let mut ranked = Self {
            positions: Vec::new(),
            ends: Vec::new(),
        };
        // (magnitude's bits, complement of the position): a larger key is a larger magnitude, then a lower index.
        // Non-negative floats order as their bits do.
        let mut keys: Vec<u64> = Vec::with_capacity(layout.chunk());
        for range in layout.chunks() {
            keys.clear();
            let start = range.start;
            for (position, value) in values.get(range).unwrap_or_default().iter().enumerate() {
                if !value.is_finite() {
                    return Err(EncodeError::NonFinite {
                        index: start + position,
                    });
                }
                let magnitude = value.abs().to_bits();
                if magnitude != 0 {
                    keys.push(u64::from(magnitude) << 32 | u64::from(!(position as u32)));
                }
            }
            if keys.len() > k_max {
                if k_max > 0 {
                    keys.select_nth_unstable_by(k_max - 1, |a, b| b.cmp(a));
                }
                keys.truncate(k_max);
            }
            keys.sort_unstable_by(|a, b| b.cmp(a));
            ranked.push_chunk(levels, &keys);
        }
        Ok(ranked)
    }

    fn push_chunk(&mut self, levels: Levels, keys: &[u64]) {
        let magnitude = |key: u64| f32::from_bits((key >> 32) as u32);
        let max = keys.first().map_or(0.0, |&key| magnitude(key));
        // Below half of the smallest scale even the largest value would be sent far too large.
        if max >= scale(0) / 2.0 {
            let mut sum = 0.0f64;
            for (before, &key) in keys.iter().enumerate() {
                sum += f64::from(magnitude(key));
                if !levels.worth_sending(magnitude(key), before + 1, sum, max) {
                    break;
                }
                self.positions.push(!(key as u32) as u16);
            }
        }
        self.ends.push(self.positions.len());
    }

    /// Whether no chunk has a candidate.
    pub(crate) fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Number of chunks.
    pub(crate) fn chunks(&self) -> usize {
        self.ends.len()
    }

    /// Candidates of a chunk, best first.
    pub(crate) fn chunk(&self, chunk: usize) -> &[u16] {
        let start = chunk
            .checked_sub(1)
            .and_then(|before| self.ends.get(before))
            .copied()
            .unwrap_or(0);
        let end = self.ends.get(chunk).copied().unwrap_or(start);
        self.positions.get(start..end).unwrap_or_default()
    }

    /// The best `count` candidates of a chunk in ascending order of position, into a reused buffer.
    pub(crate) fn best(&self, chunk: usize, count: usize, into: &mut Vec<u16>) {
        let candidates = self.chunk(chunk);
        into.clear();
        into.extend_from_slice(candidates.get(..count).unwrap_or(candidates));
        into.sort_unstable();
    }
}
