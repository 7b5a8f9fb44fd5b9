//! Selection of each chunk's candidates: the coordinates that may be sent, before rate control decides how many are.
//!
//! The gradient is read once, in the order of the flat vector, and it is far larger than any cache. So the first step
//! is a threshold, not a sort: [`ThresholdSearch`] guesses one from the chunk before, marks the values that reach it,
//! and corrects the guess until enough do. The few marked values are compacted, and [`TopK`] selects exactly among
//! them. The threshold only decides how much work that is: the selected candidates are the same for every guess, on
//! every machine.

use crate::quantizer::{Levels, scale};
use crate::threshold_mask::{Portable, ROW, ThresholdMask};
use crate::top_k::{Candidates, TopK, magnitude_bits};
use pulp::{Arch, Simd, WithSimd};

/// Bits extracted per unconditional batch, even if the word has fewer set.
const BATCH: usize = 4;
/// Bits of infinity: magnitudes at or above are not finite.
const NOT_FINITE: i32 = 0x7f80_0000;
/// First step of a threshold that did not fit, in bits of a magnitude: an eighth of a factor of two.
const STEP: i32 = 1 << 20;
/// Maximum search passes; after that, extra candidates are accepted.
const PASSES_MAX: u32 = 12;

/// Candidates of consecutive chunks.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Segment {
    /// Positions inside their chunk, ascending.
    positions: Vec<u16>,
    /// The value at each position.
    values: Vec<f32>,
    /// Exclusive end of each chunk's candidates.
    ends: Vec<u32>,
}

impl Segment {
    /// Empty segment with room for `candidates`.
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

    /// Frees unused capacity: segments live until the update is written.
    pub(crate) fn shrink(&mut self) {
        self.positions.shrink_to_fit();
        self.values.shrink_to_fit();
    }
}

/// Selects the candidates of chunks; holds scratch memory and the threshold of the chunk before.
pub(crate) struct Selector {
    levels: Levels,
    arch: Arch,
    /// Threshold that fitted the chunk before.
    guess: i32,
    scratch: Scratch,
    top_k: TopK,
    kept: TopK,
}

#[derive(Default)]
struct Scratch {
    /// Bit i of word n: value 64 n + i reaches the threshold.
    marks: Vec<u64>,
    /// The first `count` are valid.
    positions: Vec<u16>,
    values: Vec<f32>,
    count: usize,
}

impl Selector {
    pub(crate) fn new(levels: Levels) -> Self {
        Self {
            levels,
            arch: Arch::new(),
            guess: magnitude_bits(1e-3),
            scratch: Scratch::default(),
            top_k: TopK::new(),
            kept: TopK::new(),
        }
    }

    /// Appends the candidates of a chunk: its `cap` largest magnitudes, or fewer if more are not worth sending. `next`
    /// is the chunk after it, for prefetching, or empty. The error is the position of the first value that is not
    /// finite.
    pub(crate) fn select(&mut self, values: &[f32], next: &[f32], cap: u32, into: &mut Segment) -> Result<(), usize> {
        let search = ThresholdSearch {
            values,
            next,
            cap: cap as usize,
            guess: self.guess,
            scratch: &mut self.scratch,
            mask: Portable,
        };
        self.guess = search.on(self.arch);
        let found = Candidates {
            positions: self.scratch.positions.get(..self.scratch.count).unwrap_or_default(),
            values: self.scratch.values.get(..self.scratch.count).unwrap_or_default(),
        };
        let max = found
            .values
            .iter()
            .fold(0, |max, value| magnitude_bits(*value).max(max));
        if max >= NOT_FINITE {
            return Err(values.iter().position(|value| !value.is_finite()).unwrap_or(0));
        }
        // Below half of the smallest scale even the largest value would be decoded at more than twice its size.
        if max >= magnitude_bits(scale(0) / 2.0) {
            let best = self.top_k.best(found, cap);
            let count = self.kept.count_worth_sending(self.levels, best);
            let kept = self.kept.best(best, count);
            into.positions.extend_from_slice(kept.positions);
            into.values.extend_from_slice(kept.values);
        }
        into.ends.push(into.positions.len() as u32);
        Ok(())
    }
}

/// Search for a threshold that at least `cap` values reach, and few others. Leaves these values in the scratch memory
/// in ascending order of position: all but zeros if fewer than `cap` are not zero, and always those that are not
/// finite. Returns a guess for the threshold of the next chunk. The guess changes the work, never the top `cap` of the
/// result.
///
/// Compiled for each instruction set that pulp knows, and dispatched to that of the machine. Plain loops over arrays of
/// constant length: code inside an iterator's closures may be left out of the wider compilation.
struct ThresholdSearch<'a, M> {
    values: &'a [f32],
    /// Prefetched while this chunk is read.
    next: &'a [f32],
    cap: usize,
    guess: i32,
    scratch: &'a mut Scratch,
    mask: M,
}

impl ThresholdSearch<'_, Portable> {
    /// Runs with the best instruction set of the machine.
    fn on(self, arch: Arch) -> i32 {
        #[cfg(target_arch = "x86_64")]
        if let Arch::V3(mask) = arch {
            let Self {
                values,
                next,
                cap,
                guess,
                scratch,
                ..
            } = self;
            let search = ThresholdSearch {
                values,
                next,
                cap,
                guess,
                scratch,
                mask,
            };
            return Simd::vectorize(mask, search);
        }
        arch.dispatch(self)
    }
}

impl<M: ThresholdMask> WithSimd for ThresholdSearch<'_, M> {
    type Output = i32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> i32 {
        let Scratch {
            marks,
            positions,
            values: found,
            count,
        } = self.scratch;
        // Neighbouring chunks are alike, and the number of values above a threshold varies by about its square root:
        // three of those more than needed are rarely too few.
        let target = self.cap + 3 * self.cap.isqrt() + 2;
        // Invariant: at least `cap` reach `low`, or it is 1; fewer reach `above`, or it is not finite. Until both
        // bounds have been measured the threshold moves away from the guess in growing steps, then it bisects.
        let (mut low, mut above, mut step) = (1, NOT_FINITE, STEP);
        let (mut seen_low, mut seen_above) = (false, false);
        let mut threshold = self.guess.clamp(low, above - 1);
        for pass in 1.. {
            *count = mark_chunk(self.mask, self.values, self.next, threshold, marks);
            if *count < self.cap && threshold > 1 {
                (above, seen_above) = (threshold, true);
                threshold = match seen_low {
                    // Only if very many values are alike. Too many candidates are slow, too few would be wrong.
                    true if pass >= PASSES_MAX => low,
                    true => low + (above - low) / 2,
                    false => (threshold - step).max(1),
                };
            } else {
                (low, seen_low) = (threshold, true);
                if *count <= 3 * target || above - low == 1 || pass >= PASSES_MAX {
                    break;
                }
                threshold = match seen_above {
                    true => low + (above - low) / 2,
                    false => threshold.saturating_add(step).min(above - 1),
                };
            }
            step = step.saturating_mul(4);
        }
        compact(self.values, marks, *count, positions, found);
        if *count < self.cap {
            return self.guess;
        }
        // Follows slow changes along the tensor: up if there were too many, down if there were too few.
        let overshoot = ((*count as f32 - target as f32) / target as f32).min(2.0);
        threshold.saturating_add((overshoot * STEP as f32) as i32)
    }
}

/// Marks the magnitudes that reach a threshold of at least 1, and returns their number.
#[inline(always)]
fn mark_chunk(mask: impl ThresholdMask, values: &[f32], ahead: &[f32], threshold: i32, marks: &mut Vec<u64>) -> usize {
    let (rows, tail) = values.as_chunks::<ROW>();
    marks.resize(values.len().div_ceil(ROW), 0);
    let mut count = 0;
    let ahead = ahead.as_chunks::<ROW>().0;
    for (number, (marks, row)) in marks.iter_mut().zip(rows).enumerate() {
        if let Some(row) = ahead.get(number) {
            mask.prefetch(row);
        }
        *marks = mask.at_least(row, threshold);
        count += marks.count_ones();
    }
    if let (Some(marks), false) = (marks.last_mut(), tail.is_empty()) {
        let mut row = [0.0; ROW];
        row.iter_mut().zip(tail).for_each(|(slot, value)| *slot = *value);
        *marks = mask.at_least(&row, threshold);
        count += marks.count_ones();
    }
    count as usize
}

/// Compacts the `count` marked values: their positions and values at the front of the lists.
#[inline(always)]
fn compact(values: &[f32], marks: &[u64], count: usize, positions: &mut Vec<u16>, found: &mut Vec<f32>) {
    if positions.len() < count + ROW {
        positions.resize(count + ROW, 0);
        found.resize(count + ROW, 0.0);
    }
    let mut next = 0;
    for (number, &marks) in marks.iter().enumerate() {
        let (start, mut rest, mut slot) = ((number * ROW) as u32, marks, next);
        // Branch-free: always writes BATCH slots; surplus slots are overwritten by the next row, because the popcount
        // is unpredictable.
        while {
            if let Some(slots) = positions.get_mut(slot..slot + BATCH) {
                for position in slots {
                    *position = (start + rest.trailing_zeros()) as u16;
                    rest &= rest.wrapping_sub(1);
                }
            }
            rest != 0
        } {
            slot += BATCH;
        }
        next += marks.count_ones() as usize;
    }
    for (value, position) in found.iter_mut().zip(positions.iter()).take(count) {
        *value = values.get(usize::from(*position)).copied().unwrap_or(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_largest_chunk_should_be_searched_whatever_is_in_it() {
        for value in [f32::MAX, -f32::MIN_POSITIVE, f32::from_bits(1), 1.0, 0.0] {
            let mut selector = Selector::new(Levels::new(8).unwrap());
            let mut segment = Segment::default();
            let same = vec![value; 1 << 16];
            let mut mixed = same.clone();
            mixed[40_000..40_010].fill(2.0);
            for chunk in [&same, &mixed, &same] {
                selector.select(chunk, chunk, 5, &mut segment).unwrap();
            }
            let found: Vec<Vec<u16>> = segment.chunks().map(|of| of.positions.to_vec()).collect();
            let is_sent = value.abs() >= scale(0) / 2.0;
            let first: Vec<u16> = if is_sent { (0..5).collect() } else { Vec::new() };
            let larger: Vec<u16> = if value.abs() > 2.0 {
                first.clone()
            } else {
                (40_000..40_005).collect()
            };
            assert_eq!(found, [first.clone(), larger, first]);
        }
        let mut broken = vec![f32::NAN; 1 << 16];
        broken[0] = 1.0;
        let found = Selector::new(Levels::new(2).unwrap()).select(&broken, &[], 5, &mut Segment::default());
        assert_eq!(found, Err(1));
    }

    /// Reference: the same by sorting everything.
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
        fn candidates_should_be_the_largest(
            values in proptest::collection::vec(prop_oneof![Just(0.0f32), (-8i8..8).prop_map(f32::from), any::<i16>().prop_map(|v| f32::from(v) / 1e3)], 0..1200),
            cap in 0u32..80,
        ) {
            let mut selector = Selector::new(Levels::new(8).unwrap());
            let mut segment = Segment::default();
            // Twice, so that scratch of another chunk is there.
            selector.select(&[3.0; 777], &[], 5, &mut segment).unwrap();
            selector.select(&values, &[], cap, &mut segment).unwrap();
            let found = segment.chunks().nth(1).unwrap();
            let expected = by_sorting(&values, cap as usize);
            // Left out are values below 2^-8 of the largest, and everything after them.
            let max = expected.first().map_or(0.0, |i| values[usize::from(*i)].abs());
            let worth = |i: &&u16| values[usize::from(**i)].abs() * 256.0 >= max;
            let expected: Vec<u16> = expected.iter().take_while(worth).copied().collect();
            let mut expected = expected;
            expected.sort_unstable();
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
            Selector::new(levels).select(&values, &[], cap, &mut segment).unwrap();
            let order = by_sorting(&values, cap as usize);
            let magnitude = |i: &u16| values[usize::from(*i)].abs();
            let (max, mut sum) = (order.first().map_or(0.0, magnitude), 0.0);
            let worth = |(before, i): &(usize, &u16)| {
                sum += f64::from(magnitude(i));
                levels.worth_sending(magnitude(i), before + 1, sum, max)
            };
            let mut expected: Vec<u16> = order.iter().enumerate().take_while(worth).map(|(_, i)| *i).collect();
            expected.sort_unstable();
            prop_assert_eq!(segment.chunks().next().unwrap().positions, &expected[..]);
        }

        /// A chunk's candidates are the same whatever came before it, whatever instructions the machine has, and
        /// however many values are equal or zero.
        #[test]
        fn candidates_should_depend_on_nothing_but_their_chunk(
            factors in prop::collection::vec(prop_oneof![4 => (-28i32..60).prop_map(|e| 2f32.powi(e)), 1 => Just(0.0f32)], 1..6),
            values in prop::collection::vec(prop_oneof![3 => -1.0f32..1.0, 1 => Just(0.5f32), 1 => Just(0.0f32)], 1..3000),
            cap in 1u32..2000,
        ) {
            let (mut one, mut other) = (Segment::default(), Segment::default());
            let mut selector = Selector::new(Levels::new(2).unwrap());
            for factor in &factors {
                let scaled: Vec<f32> = values.iter().map(|value| value * factor).collect();
                selector.select(&scaled, &values, cap, &mut one).unwrap();
                let mut plain = Selector::new(Levels::new(2).unwrap());
                (plain.arch, plain.top_k, plain.kept) = (Arch::Scalar, TopK::on(Arch::Scalar), TopK::on(Arch::Scalar));
                plain.select(&scaled, &[], cap, &mut other).unwrap();
            }
            prop_assert_eq!(one, other);
        }

        /// Any bits: what is not finite is found, everything else is selected.
        #[test]
        fn any_bits_should_have_a_defined_result(bits in prop::collection::vec(any::<u32>(), 1..400), cap in 1u32..50) {
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let mut segment = Segment::default();
            let result = Selector::new(Levels::new(8).unwrap()).select(&values, &[], cap, &mut segment);
            prop_assert_eq!(result.err(), values.iter().position(|value| !value.is_finite()));
        }

        #[test]
        fn what_is_not_finite_should_be_found_at_its_place(at in 0usize..3000, which in 0usize..3) {
            let mut values = vec![0.5f32; 3000];
            values[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][which];
            let found = Selector::new(Levels::new(2).unwrap()).select(&values, &[], 8, &mut Segment::default());
            prop_assert_eq!(found, Err(at));
        }
    }
}
