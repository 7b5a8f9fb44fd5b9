//! Which coordinates of each chunk are worth sending, best first.

use crate::error::EncodeError;
use crate::layout::Layout;
use crate::levels::{Levels, scale};

/// Values whose largest magnitude is looked at together.
const BLOCK: usize = 32;

/// Bits of a magnitude; they order as the magnitudes do, infinities and NaN above all numbers.
fn magnitude_bits(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// A magnitude (bits, at least 1) that the `k_max` largest of a chunk all reach: the `k_max`-th largest of the blocks'
/// maxima, since so many blocks hold a value that large. Most values are below it and need not be looked at again; with
/// fewer blocks than `k_max` it is 1 and only zeros are left out. Leaves the blocks' maxima in `maxima`. The error is the
/// number of the first block with a value that is not finite.
fn threshold(values: &[f32], k_max: usize, maxima: &mut Vec<u32>) -> Result<u32, usize> {
    maxima.clear();
    maxima.extend(
        values
            .chunks(BLOCK)
            .map(|block| block.iter().fold(0, |max, value| max.max(magnitude_bits(*value)))),
    );
    if let Some(block) = maxima.iter().position(|max| *max >= f32::INFINITY.to_bits()) {
        return Err(block);
    }
    let Some(last) = k_max.checked_sub(1).filter(|last| *last < maxima.len()) else {
        return Ok(1);
    };
    let mut sorted = maxima.clone();
    let (_, bound, _) = sorted.select_nth_unstable_by(last, |a, b| b.cmp(a));
    Ok((*bound).max(1))
}

/// For each chunk its candidates, positions inside the chunk by descending magnitude, ties by ascending index.
pub(crate) struct Ranked {
    positions: Vec<u16>,
    /// Exclusive end of each chunk's candidates.
    ends: Vec<usize>,
}

impl Ranked {
    /// Ranks at most `k_max` coordinates of each full chunk, and of a shorter one its share. Refuses values that are not finite.
    pub(crate) fn new(layout: &Layout, levels: Levels, k_max: u32, values: &[f32]) -> Result<Self, EncodeError> {
        let mut ranked = Self {
            positions: Vec::new(),
            ends: Vec::new(),
        };
        // (magnitude's bits, complement of the position): a larger key is a larger magnitude, then a lower index.
        // Non-negative floats order as their bits do.
        let mut keys: Vec<u64> = Vec::with_capacity(layout.chunk());
        let mut maxima: Vec<u32> = Vec::with_capacity(layout.chunk().div_ceil(BLOCK));
        for range in layout.chunks() {
            let start = range.start;
            let k_max = layout.share(k_max, range.len() as u32) as usize;
            let of_chunk = values.get(range).unwrap_or_default();
            let threshold = threshold(of_chunk, k_max, &mut maxima).map_err(|block| {
                let at = of_chunk.iter().skip(block * BLOCK).position(|value| !value.is_finite());
                EncodeError::NonFinite {
                    index: start + block * BLOCK + at.unwrap_or(0),
                }
            })?;
            keys.clear();
            for ((block, of_block), &max) in of_chunk.chunks(BLOCK).enumerate().zip(&maxima) {
                if max < threshold {
                    continue;
                }
                for (position, value) in of_block.iter().enumerate() {
                    let magnitude = magnitude_bits(*value);
                    if magnitude >= threshold {
                        let position = (block * BLOCK + position) as u32;
                        keys.push(u64::from(magnitude) << 32 | u64::from(!position));
                    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same by sorting everything.
    fn by_sorting(values: &[f32], k_max: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..values.len() as u32).collect();
        order.sort_by(|a, b| {
            let of = |i: &u32| magnitude_bits(values[*i as usize]);
            of(b).cmp(&of(a)).then(a.cmp(b))
        });
        order.retain(|i| values[*i as usize] != 0.0);
        order.truncate(k_max);
        order
    }

    proptest! {
        /// Few different magnitudes, so that ties at the threshold are common.
        #[test]
        fn blocks_should_lead_to_the_largest(
            values in proptest::collection::vec(prop_oneof![Just(0.0f32), (-8i8..8).prop_map(f32::from), any::<i16>().prop_map(|v| f32::from(v) / 1e3)], 0..1200),
            k_max in 0u32..80,
        ) {
            let layout = Layout::new(&[values.len() as u64], 1024);
            let levels = Levels::new(8).unwrap();
            let ranked = Ranked::new(&layout, levels, k_max, &values).unwrap();
            for (chunk, range) in layout.chunks().enumerate() {
                let share = layout.share(k_max, range.len() as u32);
                let expected = by_sorting(&values[range], share as usize);
                let found: Vec<u32> = ranked.chunk(chunk).iter().map(|p| u32::from(*p)).collect();
                // The list may end early where a candidate is not worth sending; what is there is in order.
                prop_assert!(found.len() <= expected.len());
                prop_assert_eq!(&found[..], &expected[..found.len()]);
            }
        }

        #[test]
        fn what_is_not_finite_should_be_found_at_its_place(at in 0usize..3000, which in 0usize..3) {
            let mut values = vec![0.5f32; 3000];
            values[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][which];
            let layout = Layout::new(&[3000], 1024);
            let found = Ranked::new(&layout, Levels::new(2).unwrap(), 8, &values).err();
            prop_assert_eq!(found, Some(EncodeError::NonFinite { index: at }));
        }
    }
}
