//! Which coordinates of each chunk are worth sending, best first.

use crate::levels::{Levels, scale};
use pulp::{Arch, Simd, WithSimd};

/// Values are taken in groups of four rows; the largest of each column of a group is kept. Rows are long enough for any
/// vector, and columns need no exchange between the lanes of one.
const ROW: usize = 64;
const GROUP: usize = 4 * ROW;
/// Comparisons whose results are put into one word.
const WORD: usize = 32;
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
    /// Room for so many candidates.
    pub(crate) fn with_capacity(candidates: usize) -> Self {
        Self {
            positions: Vec::with_capacity(candidates),
            values: Vec::with_capacity(candidates),
            ends: Vec::new(),
        }
    }

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
    scratch: Scratch,
}

#[derive(Default)]
struct Scratch {
    /// Largest of each column of a group.
    fours: Vec<[i32; ROW]>,
    /// Largest of each of several disjoint sets of values.
    maxima: Vec<[i32; ROW]>,
    /// The first `count` are valid.
    keys: Vec<u64>,
    count: usize,
}

impl Selector {
    pub(crate) fn new(levels: Levels) -> Self {
        Self {
            levels,
            arch: Arch::new(),
            scratch: Scratch::default(),
        }
    }

    /// Appends the candidates of a chunk: at most its `cap` largest magnitudes, of which the list ends where sending is
    /// not worth it. The error is the position of the first value that is not finite.
    pub(crate) fn select(&mut self, values: &[f32], cap: u32, into: &mut Segment) -> Result<(), usize> {
        let (arch, cap) = (self.arch, cap as usize);
        let scratch = &mut self.scratch;
        if !arch.dispatch(Survivors { values, cap, scratch }) {
            return Err(values.iter().position(|value| !value.is_finite()).unwrap_or(0));
        }
        let count = self.scratch.count;
        let mut keys = self.scratch.keys.get_mut(..count).unwrap_or_default();
        // Few too many are sorted along faster than they are told apart.
        if keys.len() > 2 * cap && cap > 0 {
            keys.select_nth_unstable_by(cap - 1, |a, b| b.cmp(a));
            keys = keys.get_mut(..cap).unwrap_or_default();
        }
        keys.sort_unstable_by(|a, b| b.cmp(a));
        self.scratch.count = count.min(cap);
        self.append(values, into);
        Ok(())
    }

    fn append(&self, values: &[f32], into: &mut Segment) {
        let keys = self.scratch.keys.get(..self.scratch.count).unwrap_or_default();
        let magnitude = |key: u64| f32::from_bits((key >> 32) as u32);
        let max = keys.first().map_or(0.0, |&key| magnitude(key));
        // Below half of the smallest scale even the largest value would be sent far too large.
        if max >= scale(0) / 2.0 {
            let mut sum = 0.0f64;
            let worth = |(before, &key): (usize, &u64)| {
                sum += f64::from(magnitude(key));
                self.levels.worth_sending(magnitude(key), before + 1, sum, max)
            };
            let end = keys.iter().enumerate().map(worth).position(|worth| !worth);
            let kept = keys.get(..end.unwrap_or(keys.len())).unwrap_or_default();
            let positions = kept.iter().map(|&key| !(key as u32) as u16);
            into.positions.extend(positions.clone());
            into.values
                .extend(positions.map(|position| values.get(usize::from(position)).copied().unwrap_or(0.0)));
        }
        into.ends.push(into.positions.len() as u32);
    }
}

/// [`survivors`], compiled for each instruction set that pulp knows; the one that this machine has is called. A struct,
/// because its method can be told to be inlined there, which a closure cannot.
struct Survivors<'a> {
    values: &'a [f32],
    cap: usize,
    scratch: &'a mut Scratch,
}

impl WithSimd for Survivors<'_> {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> bool {
        survivors(self.values, self.cap, self.scratch)
    }
}

/// Leaves in `keys` the values that may be among the `cap` largest: (magnitude's bits, complement of the position), so
/// that a larger key is a larger magnitude, then a lower position. Few others are among them. False where a value is not
/// finite. Plain loops over arrays of one length: what an iterator does inside of itself might not be compiled for the
/// wider vectors.
#[inline(always)]
fn survivors(values: &[f32], cap: usize, scratch: &mut Scratch) -> bool {
    let (groups, tail) = values.as_chunks::<GROUP>();
    let all = groups.len() + usize::from(!tail.is_empty());
    let fours = &mut scratch.fours;
    fours.resize(all, [0; ROW]);
    for (of_group, group) in fours.iter_mut().zip(groups) {
        fold_group(group, of_group);
    }
    if let (Some(of_group), false) = (fours.last_mut(), tail.is_empty()) {
        let mut padded = [0.0f32; GROUP];
        padded.iter_mut().zip(tail).for_each(|(slot, value)| *slot = *value);
        fold_group(&padded, of_group);
    }
    // Three times as many maxima as there may be candidates make a threshold that few others reach.
    let rows = (3 * cap).div_ceil(ROW).clamp(1, all.max(1));
    let maxima = &mut scratch.maxima;
    maxima.clear();
    maxima.resize(rows, [0; ROW]);
    for part in fours.chunks(rows) {
        for (maxima, of_group) in maxima.iter_mut().zip(part) {
            for (max, four) in maxima.iter_mut().zip(of_group) {
                *max = (*max).max(*four);
            }
        }
    }
    let maxima = maxima.as_flattened();
    if lanes_max(maxima) >= NOT_FINITE {
        return false;
    }
    let threshold = threshold(maxima, cap);
    // Keys are written whether they count or not, and the next one goes over what does not: a branch could not be
    // foreseen. The last place is for those that do not count.
    if scratch.keys.len() <= values.len() {
        scratch.keys.resize(values.len() + 1, 0);
    }
    let keys = scratch.keys.as_mut_slice();
    let mut count = 0;
    for (number, part) in fours.as_flattened().as_chunks::<WORD>().0.iter().enumerate() {
        let mut found = at_least(part, threshold);
        while found != 0 {
            let at = number * WORD + found.trailing_zeros() as usize;
            found &= found - 1;
            let first = at / ROW * GROUP + at % ROW;
            for position in [first, first + ROW, first + 2 * ROW, first + 3 * ROW] {
                // What lies beyond the end was added as zero, which reaches no threshold.
                let magnitude = values.get(position).map_or(0, |value| magnitude_bits(*value));
                if let Some(slot) = keys.get_mut(count) {
                    *slot = (magnitude as u64) << 32 | u64::from(!(position as u32));
                }
                count += usize::from(magnitude >= threshold);
            }
        }
    }
    scratch.count = count;
    true
}

/// The largest magnitude in each column of four rows.
#[inline(always)]
fn fold_group(group: &[f32; GROUP], into: &mut [i32; ROW]) {
    let (rows, _) = group.as_chunks::<ROW>();
    if let [a, b, c, d] = rows {
        for lane in 0..ROW {
            let [a, b, c, d] = [a[lane], b[lane], c[lane], d[lane]].map(magnitude_bits);
            into[lane] = a.max(b).max(c.max(d));
        }
    }
}

#[inline(always)]
fn lanes_max(maxima: &[i32]) -> i32 {
    let mut max = 0;
    for value in maxima {
        max = max.max(*value);
    }
    max
}

/// Bit i: magnitude i reaches the threshold.
#[inline(always)]
fn at_least(magnitudes: &[i32; WORD], threshold: i32) -> u32 {
    let mut all = 0;
    for (number, magnitude) in magnitudes.iter().enumerate() {
        all |= u32::from(*magnitude >= threshold) << number;
    }
    all
}

/// A magnitude (bits, at least 1) that at least `cap` of these maxima of disjoint sets reach, so that the `cap` largest
/// values all reach it; most others do not. With fewer sets than `cap` it is 1 and only zeros are left out.
#[inline(always)]
fn threshold(maxima: &[i32], cap: usize) -> i32 {
    if cap == 0 {
        return i32::MAX;
    }
    let (mut low, mut above) = (1, lanes_max(maxima).saturating_add(1));
    if cap >= maxima.len() {
        return low;
    }
    let mut min = i32::MAX;
    for value in maxima {
        min = min.min(*value);
    }
    low = low.max(min);
    // So many reach `low`, or it is 1; fewer than `cap` reach `above`. Bisection ends early as a rule.
    while above - low > 1 {
        let middle = low + (above - low) / 2;
        let mut reached = 0;
        for max in maxima {
            reached += i32::from(*max >= middle);
        }
        let reached = reached as usize;
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

        /// The rule as it stands: by descending magnitude, up to the first that is not worth sending.
        #[test]
        fn lists_should_end_where_sending_is_not_worth_it(
            values in proptest::collection::vec(prop_oneof![-1.0f32..1.0, (-6.0f32..3.0).prop_map(f32::exp2), Just(1000.0f32)], 0..300),
            bits in prop::sample::select(vec![1u8, 2, 4, 8]),
            cap in 1u32..200,
        ) {
            let levels = Levels::new(bits).unwrap();
            let mut segment = Segment::default();
            Selector::new(levels).select(&values, cap, &mut segment).unwrap();
            let order = by_sorting(&values, cap as usize);
            let magnitude = |i: &u16| values[usize::from(*i)].abs();
            let (max, mut sum) = (order.first().map_or(0.0, magnitude), 0.0);
            let worth = |(before, i): &(usize, &u16)| {
                sum += f64::from(magnitude(i));
                levels.worth_sending(magnitude(i), before + 1, sum, max)
            };
            let expected: Vec<u16> = order.iter().enumerate().take_while(worth).map(|(_, i)| *i).collect();
            prop_assert_eq!(segment.chunks().next().unwrap().positions, &expected[..]);
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
