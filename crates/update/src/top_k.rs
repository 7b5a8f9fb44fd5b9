//! Top-k selection among a chunk's candidates, usually without sorting: a chunk has few candidates, and counting how
//! many reach a threshold takes a handful of vector instructions.

use crate::quantizer::Levels;
use pulp::{Arch, Simd, WithSimd};

/// SIMD lane count of the counting loops; a multiple of every vector width, so that no loop has a remainder.
const LANES: usize = 32;
/// Value of the padding lanes: below every threshold.
const FILL: i32 = -1;
/// Maximum number of distinct magnitudes that [`TopK::count_worth_sending`] finds one by one before it sorts all.
const SCANS_MAX: usize = 16;

/// Bits of a magnitude. They order as the magnitudes do, infinities and NaN above all numbers, so integers can be
/// compared instead of floats. Signed, because SSE2 and AVX2 only compare signed integers.
#[inline(always)]
pub(crate) fn magnitude_bits(value: f32) -> i32 {
    (value.to_bits() & 0x7fff_ffff) as i32
}

/// Inverse of [`magnitude_bits`].
fn magnitude(bits: i32) -> f32 {
    f32::from_bits(bits as u32)
}

/// Candidates of one chunk, in ascending order of position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidates<'a> {
    pub(crate) positions: &'a [u16],
    pub(crate) values: &'a [f32],
}

/// Finds the largest candidates; holds scratch memory, so that a chunk allocates nothing.
pub(crate) struct TopK {
    arch: Arch,
    magnitudes: Vec<i32>,
    positions: Vec<u16>,
    values: Vec<f32>,
}

impl TopK {
    pub(crate) fn new() -> Self {
        Self::on(Arch::new())
    }

    pub(crate) fn on(arch: Arch) -> Self {
        Self {
            arch,
            magnitudes: Vec::new(),
            positions: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Fills `magnitudes`, padded to whole vectors.
    fn load(&mut self, values: &[f32]) {
        self.magnitudes.clear();
        self.magnitudes
            .extend(values.iter().map(|value| magnitude_bits(*value)));
        let padded = values.len().next_multiple_of(LANES);
        self.magnitudes.resize(padded, FILL);
    }

    /// The `count` candidates of largest magnitude; ties go to the lowest position, on every machine.
    pub(crate) fn best<'a>(&'a mut self, of: Candidates<'a>, count: u32) -> Candidates<'a> {
        let (all, count) = (of.positions.len(), count as usize);
        if count >= all {
            return of;
        }
        self.load(of.values);
        let cutoff = self.arch.dispatch(CutoffSearch {
            magnitudes: &self.magnitudes,
            count,
        });
        if self.positions.len() < all {
            self.positions.resize(all, 0);
            self.values.resize(all, 0.0);
        }
        let candidates = of.positions.iter().zip(of.values).zip(&self.magnitudes);
        let target = (self.positions.as_mut_slice(), self.values.as_mut_slice());
        let kept = if cutoff.ties == 0 {
            compact(candidates, target, |bits| bits >= cutoff.from)
        } else {
            let mut ties_left = cutoff.ties;
            compact(candidates, target, |bits| {
                let is_kept_tie = bits == cutoff.tie && ties_left > 0;
                ties_left -= usize::from(is_kept_tie);
                bits >= cutoff.from || is_kept_tie
            })
        };
        Candidates {
            positions: self.positions.get(..kept).unwrap_or_default(),
            values: self.values.get(..kept).unwrap_or_default(),
        }
    }

    /// Number of candidates that are worth sending, largest first: see [`Levels::worth_sending`].
    pub(crate) fn count_worth_sending(&mut self, levels: Levels, of: Candidates<'_>) -> u32 {
        self.load(of.values);
        let all = of.values.len();
        let mut scan = ExtremesBelow {
            magnitudes: &self.magnitudes,
            limit: i32::MAX,
        };
        let (mut count, mut sum, mut max) = (0, 0.0f64, 0.0f32);
        // Scans downwards from the largest magnitude, a distinct one at a time. Stops as soon as even the smallest is
        // worth sending next to the mean so far: that mean only falls, so then all are.
        for _ in 0..SCANS_MAX {
            let found = self.arch.dispatch(scan);
            let next = magnitude(found.largest);
            max = max.max(next);
            for _ in 0..found.equal {
                sum += f64::from(next);
                if !levels.worth_sending(next, count + 1, sum, max) {
                    return count as u32;
                }
                count += 1;
            }
            if count >= all || levels.worth_sending(magnitude(found.smallest), count, sum, max) {
                return all as u32;
            }
            scan.limit = found.largest;
        }
        // Rare: many distinct magnitudes and a smallest one far below them.
        self.magnitudes.truncate(all);
        self.magnitudes.sort_unstable_by(|a, b| b.cmp(a));
        sum = 0.0;
        let worth = |(before, bits): (usize, &i32)| {
            sum += f64::from(magnitude(*bits));
            levels.worth_sending(magnitude(*bits), before + 1, sum, max)
        };
        let end = self.magnitudes.iter().enumerate().map(worth).position(|worth| !worth);
        end.unwrap_or(all) as u32
    }
}

/// Copies the kept candidates to the front of the lists and returns their number. Branch-free: every candidate is
/// written, and a rejected one is overwritten by the next, because a branch on its magnitude would be unpredictable.
#[inline(always)]
fn compact<'a>(
    candidates: impl Iterator<Item = ((&'a u16, &'a f32), &'a i32)>,
    (positions, values): (&mut [u16], &mut [f32]),
    mut is_kept: impl FnMut(i32) -> bool,
) -> usize {
    let mut kept = 0;
    for ((position, value), bits) in candidates {
        if let (Some(to_position), Some(to_value)) = (positions.get_mut(kept), values.get_mut(kept)) {
            (*to_position, *to_value) = (*position, *value);
        }
        kept += usize::from(is_kept(*bits));
    }
    kept
}

/// Magnitude at which the top k end.
struct Cutoff {
    /// All magnitudes from here on are kept.
    from: i32,
    /// Of this magnitude, the next one below, the first `ties` are kept.
    tie: i32,
    ties: usize,
}

/// Bisection for the [`Cutoff`] of the `count` largest.
struct CutoffSearch<'a> {
    magnitudes: &'a [i32],
    count: usize,
}

impl WithSimd for CutoffSearch<'_> {
    type Output = Cutoff;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Cutoff {
        let (mut low, mut above) = extremes(self.magnitudes, i32::MAX);
        // Invariant: at least `count` reach `low`, fewer reach `above`. Bisection usually ends early, because
        // magnitudes that are neighbours in rank are rarely neighbours in value.
        let mut reach_above = 0;
        above = above.saturating_add(1);
        while above - low > 1 {
            let middle = low + (above - low) / 2;
            let reached = count_at_least(self.magnitudes, middle);
            if reached == self.count {
                return Cutoff {
                    from: middle,
                    tie: FILL,
                    ties: 0,
                };
            } else if reached > self.count {
                low = middle;
            } else {
                (above, reach_above) = (middle, reached);
            }
        }
        Cutoff {
            from: above,
            tie: low,
            ties: self.count.saturating_sub(reach_above),
        }
    }
}

/// The smallest magnitude of all, and the largest below a limit.
#[inline(always)]
fn extremes(magnitudes: &[i32], limit: i32) -> (i32, i32) {
    let (mut smallest, mut largest) = (i32::MAX, FILL);
    for magnitude in magnitudes {
        let valid = if *magnitude == FILL { i32::MAX } else { *magnitude };
        let below = if *magnitude < limit { *magnitude } else { FILL };
        (smallest, largest) = (smallest.min(valid), largest.max(below));
    }
    (smallest, largest)
}

/// Number of magnitudes that reach a threshold.
#[inline(always)]
fn count_at_least(magnitudes: &[i32], threshold: i32) -> usize {
    let mut lanes = [0i32; LANES];
    for row in magnitudes.as_chunks::<LANES>().0 {
        for (lane, magnitude) in lanes.iter_mut().zip(row) {
            *lane += i32::from(*magnitude >= threshold);
        }
    }
    let mut reached = 0;
    for lane in lanes {
        reached += lane;
    }
    reached as usize
}

/// Result of [`ExtremesBelow`].
struct Extremes {
    /// TopK magnitude below the limit.
    largest: i32,
    /// Number of magnitudes equal to it.
    equal: usize,
    /// Smallest magnitude of all.
    smallest: i32,
}

/// Scan for the largest magnitude below a limit.
#[derive(Clone, Copy)]
struct ExtremesBelow<'a> {
    magnitudes: &'a [i32],
    limit: i32,
}

impl WithSimd for ExtremesBelow<'_> {
    type Output = Extremes;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Extremes {
        let (smallest, largest) = extremes(self.magnitudes, self.limit);
        let mut equal = 0;
        for magnitude in self.magnitudes {
            equal += i32::from(*magnitude == largest);
        }
        Extremes {
            largest,
            equal: equal as usize,
            smallest,
        }
    }
}
