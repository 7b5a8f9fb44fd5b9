//! The largest of a chunk's candidates, as a rule without sorting them: a chunk has few, and counting how many reach a threshold
//! takes a handful of vector instructions.

use crate::quantizer::Levels;
use pulp::{Arch, Simd, WithSimd};

/// Magnitudes are counted so many at once; those that fill up the last ones are below every threshold.
const LANES: usize = 32;
const FILL: i32 = -1;
/// So many of the largest are looked at one by one before all are sorted.
const ONE_BY_ONE: usize = 16;

/// Bits of a magnitude; they order as the magnitudes do, infinities and NaN above all numbers. Signed, because SSE2 and
/// AVX2 compare signed integers.
#[inline(always)]
pub(crate) fn magnitude_bits(value: f32) -> i32 {
    (value.to_bits() & 0x7fff_ffff) as i32
}

fn magnitude(bits: i32) -> f32 {
    f32::from_bits(bits as u32)
}

/// Candidates of one chunk, by ascending position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidates<'a> {
    pub(crate) positions: &'a [u16],
    pub(crate) values: &'a [f32],
}

/// Finds the largest of candidates; holds scratch memory.
pub(crate) struct Largest {
    arch: Arch,
    magnitudes: Vec<i32>,
    positions: Vec<u16>,
    values: Vec<f32>,
}

impl Largest {
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

    fn load(&mut self, values: &[f32]) {
        self.magnitudes.clear();
        self.magnitudes
            .extend(values.iter().map(|value| magnitude_bits(*value)));
        let padded = values.len().next_multiple_of(LANES);
        self.magnitudes.resize(padded, FILL);
    }

    /// The `count` of largest magnitude, equal ones by ascending position.
    pub(crate) fn best<'a>(&'a mut self, of: Candidates<'a>, count: u32) -> Candidates<'a> {
        let (all, count) = (of.positions.len(), count as usize);
        if count >= all {
            return of;
        }
        self.load(of.values);
        let cut = self.arch.dispatch(Cut {
            magnitudes: &self.magnitudes,
            count,
        });
        if self.positions.len() < all {
            self.positions.resize(all, 0);
            self.values.resize(all, 0.0);
        }
        let candidates = of.positions.iter().zip(of.values).zip(&self.magnitudes);
        let to = (self.positions.as_mut_slice(), self.values.as_mut_slice());
        let taken = if cut.ties == 0 {
            keep(candidates, to, |bits| bits >= cut.from)
        } else {
            let mut ties = cut.ties;
            keep(candidates, to, |bits| {
                let tie = bits == cut.tie && ties > 0;
                ties -= usize::from(tie);
                bits >= cut.from || tie
            })
        };
        Candidates {
            positions: self.positions.get(..taken).unwrap_or_default(),
            values: self.values.get(..taken).unwrap_or_default(),
        }
    }

    /// How many of them are worth sending, best first: see [`Levels::worth_sending`].
    pub(crate) fn count_worth_sending(&mut self, levels: Levels, of: Candidates<'_>) -> u32 {
        self.load(of.values);
        let all = of.values.len();
        let mut below = Below {
            magnitudes: &self.magnitudes,
            limit: i32::MAX,
        };
        let (mut count, mut sum, mut max) = (0, 0.0f64, 0.0f32);
        // One after the other from the largest on, until even the smallest is worth sending beside the mean of those before it,
        // which only falls.
        for _ in 0..ONE_BY_ONE {
            let found = self.arch.dispatch(below);
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
            below.limit = found.largest;
        }
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

/// Copies the candidates that are to be kept and returns their number. What is not kept is gone over by what comes next: a
/// branch could not be foreseen.
#[inline(always)]
fn keep<'a>(
    candidates: impl Iterator<Item = ((&'a u16, &'a f32), &'a i32)>,
    (positions, values): (&mut [u16], &mut [f32]),
    mut is_kept: impl FnMut(i32) -> bool,
) -> usize {
    let mut kept = 0;
    for ((position, value), bits) in candidates {
        if let (Some(to), Some(to_value)) = (positions.get_mut(kept), values.get_mut(kept)) {
            (*to, *to_value) = (*position, *value);
        }
        kept += usize::from(is_kept(*bits));
    }
    kept
}

/// Where the largest end.
struct Ends {
    /// All from here on belong to them.
    from: i32,
    /// And the first so many of these.
    tie: i32,
    ties: usize,
}

struct Cut<'a> {
    magnitudes: &'a [i32],
    count: usize,
}

impl WithSimd for Cut<'_> {
    type Output = Ends;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Ends {
        let (mut low, mut above) = extremes(self.magnitudes, i32::MAX);
        // At least `count` reach `low`, fewer reach `above`. Bisection ends early as a rule: magnitudes next to each other in rank
        // are rarely next to each other in value.
        let mut reach_above = 0;
        above = above.saturating_add(1);
        while above - low > 1 {
            let middle = low + (above - low) / 2;
            let reached = reach(self.magnitudes, middle);
            if reached == self.count {
                return Ends {
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
        Ends {
            from: above,
            tie: low,
            ties: self.count.saturating_sub(reach_above),
        }
    }
}

/// The smallest of all, and the largest below a limit.
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

/// How many reach a threshold.
#[inline(always)]
fn reach(magnitudes: &[i32], threshold: i32) -> usize {
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

/// What is found below a limit.
struct Found {
    largest: i32,
    /// So many are as large.
    equal: usize,
    /// The smallest of all.
    smallest: i32,
}

#[derive(Clone, Copy)]
struct Below<'a> {
    magnitudes: &'a [i32],
    limit: i32,
}

impl WithSimd for Below<'_> {
    type Output = Found;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Found {
        let (smallest, largest) = extremes(self.magnitudes, self.limit);
        let mut equal = 0;
        for magnitude in self.magnitudes {
            equal += i32::from(*magnitude == largest);
        }
        Found {
            largest,
            equal: equal as usize,
            smallest,
        }
    }
}
