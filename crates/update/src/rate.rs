//! Rate control: the number of entries of each chunk, so that the update fills its byte budget and never exceeds it.
//!
//! One number, the *base count*, sets the density of the whole update: every full chunk gets that many entries, a
//! shorter one its share. The encoder finds the largest base count whose encoding fits, then gives one entry more to as
//! many chunks as still fit, evenly spread. The exact cost of a base count needs a walk over all candidates, so the
//! search starts from a guess that a sample of the chunks gives.
//!
//! Works on the candidates alone; the values of the gradient are gone by then.

use crate::candidates::Segment;
use crate::layout::Layout;
use crate::quantizer::Levels;
use crate::rice;
use crate::top_k::{Candidates, TopK};

/// Form of a chunk's number of entries, relative to the chunk's share of the update's base count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CountForm {
    /// The base share (one bit).
    Base,
    /// One more (two bits).
    BasePlusOne,
    /// Anything else: two bits and the number itself in this many bits.
    Explicit(u32),
}

impl CountForm {
    /// The form of `count` in a chunk whose share of the base count is `base` and which may have at most `cap` entries.
    pub(crate) fn of(count: u32, base: u32, cap: u32) -> Self {
        if count == base {
            Self::Base
        } else if base < cap && count == base + 1 {
            Self::BasePlusOne
        } else {
            Self::Explicit(explicit_bits(cap))
        }
    }

    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Base => 1,
            Self::BasePlusOne => 2,
            Self::Explicit(bits) => 2 + bits,
        }
    }
}

/// Bits of a count between 0 and `cap`.
pub(crate) fn explicit_bits(cap: u32) -> u32 {
    u32::BITS - cap.leading_zeros()
}

/// For each of `chunks` whether it is one of `extra` that are spread evenly over all (Bresenham's line).
fn spread(extra: u64, chunks: u64) -> impl Iterator<Item = bool> {
    let mut sum = 0;
    (0..chunks).map(move |_| {
        sum += extra;
        let has = sum >= chunks;
        sum -= if has { chunks } else { 0 };
        has
    })
}

/// Bit allocation of an update: the base count, and the chunks that have one entry more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BitAllocation {
    /// Maximum number of entries of a full chunk; a shorter one has its share.
    pub(crate) base: u32,
    /// Number of chunks with one entry more.
    extra: u64,
    chunks: u64,
}

impl BitAllocation {
    /// Maximum number of entries of each chunk in order, counted as for a full chunk.
    pub(crate) fn quotas(&self) -> impl Iterator<Item = u32> {
        let base = self.base;
        spread(self.extra, self.chunks).map(move |has| base + u32::from(has))
    }
}

/// Inputs of rate control.
pub(crate) struct RateControl<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) segments: &'a [Segment],
    pub(crate) chunks: u64,
    pub(crate) levels: Levels,
    pub(crate) k_max: u32,
}

/// A chunk's bits at the quotas `base` and `base + 1`, without the form of the count, which depends on the base.
#[derive(Clone, Copy)]
struct Cost {
    len: u32,
    counts: [u32; 2],
    bits: [u64; 2],
}

/// Minimum number of chunks from which the guess is made on a sample.
const SAMPLED_FROM: u64 = 4096;
/// One chunk of this many is in the sample, which then has at least 256.
const SAMPLED_EVERY: usize = 16;

impl RateControl<'_> {
    /// The largest base count whose encoding has at most `budget_bits`, and the largest number of chunks with one entry
    /// more. `None` if not even an empty update fits.
    pub(crate) fn allocate(&self, budget_bits: u64) -> Option<BitAllocation> {
        // An empty update has one bit for each chunk: the count is the base count, zero.
        if self.chunks > budget_bits {
            return None;
        }
        let chunks = self.chunks;
        // A generous budget holds all candidates, wherever they are: no search needed.
        let bits_max: u64 = self.chunks().map(|(len, all)| self.bits_max(len, all)).sum();
        if bits_max <= budget_bits {
            return Some(BitAllocation {
                base: self.k_max,
                extra: 0,
                chunks,
            });
        }
        let mut base = self.guess(budget_bits);
        // Exact costs, from the guess up while they fit, or down until one does.
        let costs = loop {
            let costs = self.costs(base);
            let total =
                |quota: u32, which: usize| -> u64 { costs.iter().map(|cost| self.bits(cost, quota, which)).sum() };
            if total(base, 0) > budget_bits {
                // Ends: base 0 fits, as was checked above.
                base = base.saturating_sub(1);
            } else if base < self.k_max && total(base + 1, 1) <= budget_bits {
                base += 1;
            } else {
                break costs;
            }
        };
        if base == self.k_max {
            return Some(BitAllocation { base, extra: 0, chunks });
        }
        let total = |extra: u64| -> u64 {
            let each = costs.iter().zip(spread(extra, chunks));
            each.map(|(cost, has)| self.bits(cost, base, usize::from(has))).sum()
        };
        // One more in every chunk has the entries of base + 1, which did not fit, and longer counts: `above` never
        // fits.
        let (mut extra, mut above) = (0, chunks);
        while above - extra > 1 {
            let middle = extra + (above - extra) / 2;
            if total(middle) <= budget_bits {
                extra = middle
            } else {
                above = middle
            }
        }
        Some(BitAllocation { base, extra, chunks })
    }

    /// Length and candidates of each chunk.
    fn chunks(&self) -> impl Iterator<Item = (u32, Candidates<'_>)> {
        let lens = self.layout.chunks().map(|range| range.len() as u32);
        lens.zip(self.segments.iter().flat_map(Segment::chunks))
    }

    /// A base count near the largest that fits, from a sample of the chunks, or from all of them if they are few.
    fn guess(&self, budget_bits: u64) -> u32 {
        let every = if self.chunks < SAMPLED_FROM { 1 } else { SAMPLED_EVERY };
        let sample: Vec<_> = self.chunks().step_by(every).collect();
        let goal = u128::from(budget_bits) * sample.len() as u128 / u128::from(self.chunks.max(1));
        let mut top_k = TopK::new();
        let mut fits = |base: u32| {
            let mut bits = 0u64;
            sample.iter().all(|&(len, candidates)| {
                let (share, cap) = (self.layout.share(base, len), self.layout.share(self.k_max, len));
                let best = top_k.best(candidates, share);
                bits += u64::from(CountForm::of(best.positions.len() as u32, share, cap).bits());
                bits += self.payload(len, best);
                u128::from(bits) <= goal
            })
        };
        let (mut base, mut above) = (0, self.k_max.saturating_add(1));
        while above - base > 1 {
            let middle = base + (above - base) / 2;
            if fits(middle) { base = middle } else { above = middle }
        }
        base
    }

    /// Bits of every chunk at the quotas `base` and one more.
    fn costs(&self, base: u32) -> Vec<Cost> {
        let mut costs = Vec::with_capacity(self.chunks as usize);
        let (mut top_k, mut fewer) = (TopK::new(), TopK::new());
        costs.extend(self.chunks().map(|(len, candidates)| {
            // A share grows by one at most from one base count to the next, so the smaller selection is one of the
            // larger.
            let more = self.layout.share(base.saturating_add(1).min(self.k_max), len);
            let two = top_k.best(candidates, more);
            let one = fewer.best(two, self.layout.share(base, len));
            let [first, second] = [one, two].map(|best| self.payload(len, best));
            Cost {
                len,
                counts: [one, two].map(|best| best.positions.len() as u32),
                bits: [first, second],
            }
        }));
        costs
    }

    /// All bits of a chunk at one of the two quotas, with the count's form for this base count.
    fn bits(&self, cost: &Cost, base: u32, which: usize) -> u64 {
        let share = |count| self.layout.share(count, cost.len);
        let [count, bits] = match which {
            0 => [u64::from(cost.counts[0]), cost.bits[0]],
            _ => [u64::from(cost.counts[1]), cost.bits[1]],
        };
        bits + u64::from(CountForm::of(count as u32, share(base), share(self.k_max)).bits())
    }

    /// Bits of a chunk's scale and entries; zero without entries.
    fn payload(&self, len: u32, best: Candidates<'_>) -> u64 {
        if best.positions.is_empty() {
            return 0;
        }
        let gaps = rice::gaps_bits(len, best.positions.iter().map(|position| u32::from(*position)));
        8 + gaps + best.positions.len() as u64 * u64::from(self.levels.bits())
    }

    /// Upper bound on a chunk's bits with all of its candidates, its count in the longest form.
    fn bits_max(&self, len: u32, all: Candidates<'_>) -> u64 {
        let count = all.positions.len() as u32;
        let form = 2 + explicit_bits(self.layout.share(self.k_max, len));
        let each = u64::from(count) * u64::from(self.levels.bits());
        u64::from(form) + 8 + rice::gaps_bits_max(len, count) + each
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn extras_should_be_as_many_as_asked_and_even(chunks in 1u64..500, extra in 0u64..500) {
            let extra = extra.min(chunks);
            let all: Vec<bool> = spread(extra, chunks).collect();
            prop_assert_eq!(all.iter().filter(|has| **has).count() as u64, extra);
            for (n, _) in all.iter().enumerate() {
                let so_far = all[..=n].iter().filter(|has| **has).count() as u64;
                prop_assert_eq!(so_far, (n as u64 + 1) * extra / chunks);
            }
        }
    }
}
