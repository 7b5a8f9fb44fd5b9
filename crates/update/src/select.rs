//! Which coordinates of each chunk are worth sending, best first.

use crate::levels::{Levels, scale};
use pulp::Arch;

/// Values whose largest magnitude is looked at together.
const BLOCK: usize = 32;
/// Values that one vector instruction takes, at most; sums and maxima are kept in so many lanes.
const LANES: usize = 8;
/// Bits of infinity: magnitudes at or above are not numbers.
const NOT_FINITE: i32 = 0x7f80_0000;

/// Bits of a magnitude; they order as the magnitudes do, infinities and NaN above all numbers. Signed, because SSE2 and
/// AVX2 compare signed integers.
#[inline(always)]
fn magnitude_bits(value: f32) -> i32 {
    (value.to_bits() & 0x7fff_ffff) as i32
}

/// Candidates of consecutive chunks.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Segment {
    /// Positions inside their chunk, by descending magnitude, ties by ascending position.
    positions: Vec<u16>,
    /// The value at each position.
    values: Vec<f32>,
    /// Exclusive end of each chunk's candidates.
    ends: Vec<u32>,
}

/// Candidates of one chunk, best first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidates<'a> {
    pub(crate) positions: &'a [u16],
    pub(crate) values: &'a [f32],
}

impl Candidates<'_> {
    /// The best `count` of them.
    pub(crate) fn best(self, count: u32) -> Self {
        let count = (count as usize).min(self.positions.len());
        Self {
            positions: self.positions.get(..count).unwrap_or_default(),
            values: self.values.get(..count).unwrap_or_default(),
        }
    }
}

impl Segment {
    /// Candidates of each chunk in order.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = Candidates<'_>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| {
            let range = start as usize..end as usize;
            Candidates {
                positions: self.positions.get(range.clone()).unwrap_or_default(),
                values: self.values.get(range).unwrap_or_default(),
            }
        })
    }

    /// Whether no chunk has a candidate.
    pub(crate) fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Gives back memory that is not used.
    pub(crate) fn shrink(&mut self) {
        self.positions.shrink_to_fit();
        self.values.shrink_to_fit();
    }
}

/// Selects the candidates of chunks; holds scratch memory.
pub(crate) struct Selector {
    levels: Levels,
    arch: Arch,
    maxima: Vec<i32>,
    keys: Vec<u64>,
}

impl Selector {
    pub(crate) fn new(levels: Levels) -> Self {
        Self {
            levels,
            arch: Arch::new(),
            maxima: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// Appends the candidates of a chunk: at most its `cap` largest magnitudes, of which the list ends where sending is
    /// not worth it. The error is the position of the first value that is not finite.
    pub(crate) fn select(&mut self, values: &[f32], cap: u32, into: &mut Segment) -> Result<(), usize> {
        let (arch, cap) = (self.arch, cap as usize);
        let (maxima, keys) = (&mut self.maxima, &mut self.keys);
        // The closure is compiled for each instruction set that pulp knows, and the one this machine has is called.
        let finite = arch.dispatch(
            #[inline(always)]
            || survivors(values, cap, maxima, keys),
        );
        if !finite {
            return Err(values.iter().position(|value| !value.is_finite()).unwrap_or(0));
        }
        if keys.len() > cap {
            if cap > 0 {
                keys.select_nth_unstable_by(cap - 1, |a, b| b.cmp(a));
            }
            keys.truncate(cap);
        }
        keys.sort_unstable_by(|a, b| b.cmp(a));
        self.append(values, into);
        Ok(())
    }

    fn append(&self, values: &[f32], into: &mut Segment) {
        let magnitude = |key: u64| f32::from_bits((key >> 32) as u32);
        let max = self.keys.first().map_or(0.0, |&key| magnitude(key));
        // Below half of the smallest scale even the largest value would be sent far too large.
        if max >= scale(0) / 2.0 {
            let mut sum = 0.0f64;
            let worth = |(before, &key): (usize, &u64)| {
                sum += f64::from(magnitude(key));
                self.levels.worth_sending(magnitude(key), before + 1, sum, max)
            };
            let end = self.keys.iter().enumerate().map(worth).position(|worth| !worth);
            let kept = self.keys.get(..end.unwrap_or(self.keys.len())).unwrap_or_default();
            let positions = kept.iter().map(|&key| !(key as u32) as u16);
            into.positions.extend(positions.clone());
            into.values
                .extend(positions.map(|position| values.get(usize::from(position)).copied().unwrap_or(0.0)));
        }
        into.ends.push(into.positions.len() as u32);
    }
}

/// Leaves in `keys` the values that may be among the `cap` largest: (magnitude's bits, complement of the position), so
/// that a larger key is a larger magnitude, then a lower position. Few others are among them. False where a value is not
/// finite.
#[inline(always)]
fn survivors(values: &[f32], cap: usize, maxima: &mut Vec<i32>, keys: &mut Vec<u64>) -> bool {
    let (blocks, tail) = values.as_chunks::<BLOCK>();
    let mut last = [0.0f32; BLOCK];
    last.iter_mut().zip(tail).for_each(|(slot, value)| *slot = *value);
    let last = if tail.is_empty() {
        &[][..]
    } else {
        std::slice::from_ref(&last)
    };
    maxima.clear();
    maxima.extend(blocks.iter().chain(last).map(block_max));
    if lanes_max(maxima) >= NOT_FINITE {
        return false;
    }
    let threshold = threshold(maxima, cap);
    keys.clear();
    for (number, (block, &max)) in blocks.iter().chain(last).zip(maxima.iter()).enumerate() {
        if max < threshold {
            continue;
        }
        let mut found = at_least(block, threshold);
        while found != 0 {
            let at = found.trailing_zeros() as usize;
            found &= found - 1;
            let position = (number * BLOCK + at) as u32;
            let magnitude = magnitude_bits(block[at % BLOCK]) as u64;
            keys.push(magnitude << 32 | u64::from(!position));
        }
    }
    true
}

#[inline(always)]
fn block_max(block: &[f32; BLOCK]) -> i32 {
    let mut lanes = [0i32; LANES];
    for row in block.as_chunks::<LANES>().0 {
        for (lane, value) in lanes.iter_mut().zip(row) {
            *lane = (*lane).max(magnitude_bits(*value));
        }
    }
    lanes.into_iter().fold(0, i32::max)
}

#[inline(always)]
fn lanes_max(maxima: &[i32]) -> i32 {
    maxima.iter().fold(0, |max, value| max.max(*value))
}

/// Bit i: the magnitude of value i reaches the threshold.
#[inline(always)]
fn at_least(block: &[f32; BLOCK], threshold: i32) -> u32 {
    let mut bits = [0u32; LANES];
    for (number, row) in block.as_chunks::<LANES>().0.iter().enumerate() {
        for (lane, value) in row.iter().enumerate() {
            bits[lane] |= u32::from(magnitude_bits(*value) >= threshold) << (number * LANES + lane);
        }
    }
    bits.into_iter().fold(0, |all, lane| all | lane)
}

/// A magnitude (bits, at least 1) that at least `cap` blocks reach with their maximum, so that the `cap` largest values
/// all reach it; most others do not. With fewer blocks than `cap` it is 1 and only zeros are left out.
#[inline(always)]
fn threshold(maxima: &[i32], cap: usize) -> i32 {
    if cap == 0 {
        return i32::MAX;
    }
    let (mut low, mut above) = (1, lanes_max(maxima).saturating_add(1));
    if cap >= maxima.len() {
        return low;
    }
    low = low.max(maxima.iter().fold(i32::MAX, |min, value| min.min(*value)));
    // So many blocks reach `low`, or it is 1; fewer than `cap` reach `above`. Bisection ends early as a rule.
    while above - low > 1 {
        let middle = low + (above - low) / 2;
        let reached = maxima.iter().fold(0, |count, max| count + i32::from(*max >= middle)) as usize;
        if reached >= cap {
            low = middle;
            if reached == cap {
                break;
            }
        } else {
            above = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same by sorting everything.
    fn by_sorting(values: &[f32], cap: usize) -> Vec<u16> {
        let mut order: Vec<u16> = (0..values.len() as u16).collect();
        order.sort_by(|a, b| {
            let of = |i: &u16| magnitude_bits(values[usize::from(*i)]);
            of(b).cmp(&of(a)).then(a.cmp(b))
        });
        order.retain(|i| values[usize::from(*i)] != 0.0);
        order.truncate(cap);
        order
    }

    proptest! {
        /// Few different magnitudes, so that ties at the threshold are common.
        #[test]
        fn blocks_should_lead_to_the_largest(
            values in proptest::collection::vec(prop_oneof![Just(0.0f32), (-8i8..8).prop_map(f32::from), any::<i16>().prop_map(|v| f32::from(v) / 1e3)], 0..1200),
            cap in 0u32..80,
        ) {
            let mut selector = Selector::new(Levels::new(8).unwrap());
            let mut segment = Segment::default();
            // Twice, so that scratch of another chunk is there.
            selector.select(&[3.0; 777], 5, &mut segment).unwrap();
            selector.select(&values, cap, &mut segment).unwrap();
            let found = segment.chunks().nth(1).unwrap();
            let expected = by_sorting(&values, cap as usize);
            // What may be left out is below 2^-8 of the largest, and everything after it.
            let max = expected.first().map_or(0.0, |i| values[usize::from(*i)].abs());
            let worth = |i: &&u16| values[usize::from(**i)].abs() * 256.0 >= max;
            let expected: Vec<u16> = expected.iter().take_while(worth).copied().collect();
            prop_assert_eq!(found.positions, &expected[..]);
            for (position, value) in found.positions.iter().zip(found.values) {
                prop_assert_eq!(value.to_bits(), values[usize::from(*position)].to_bits());
            }
        }

        #[test]
        fn what_is_not_finite_should_be_found_at_its_place(at in 0usize..3000, which in 0usize..3) {
            let mut values = vec![0.5f32; 3000];
            values[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][which];
            let found = Selector::new(Levels::new(2).unwrap()).select(&values, 8, &mut Segment::default());
            prop_assert_eq!(found, Err(at));
        }
    }
}
