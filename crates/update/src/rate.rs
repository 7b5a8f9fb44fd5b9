//! Rate control: how many entries each chunk may have, so that the update fills its budget and never exceeds it. Works
//! on the candidates alone.

use crate::candidates::Segment;
use crate::layout::Layout;
use crate::quantizer::Levels;
use crate::rice;
use crate::top_k::{Candidates, Largest};

/// How a chunk's number of entries is written, relative to the chunk's share of the update's base count.
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

/// Yields `chunks` times whether the chunk is one of `extra` that are spread evenly over all.
fn spread(extra: u64, chunks: u64) -> impl Iterator<Item = bool> {
    let mut sum = 0;
    (0..chunks).map(move |_| {
        sum += extra;
        let has = sum >= chunks;
        sum -= if has { chunks } else { 0 };
        has
    })
}

/// The base count and the chunks that have one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BitAllocation {
    /// Entries of a full chunk, where it has as many candidates; a shorter one has its share.
    pub(crate) base: u32,
    extra: u64,
    chunks: u64,
}

impl BitAllocation {
    /// For each chunk in order the entries it may have, counted as for a full chunk.
    pub(crate) fn quotas(&self) -> impl Iterator<Item = u32> {
        let base = self.base;
        spread(self.extra, self.chunks).map(move |has| base + u32::from(has))
    }
}

/// What rate control needs to know of an update.
pub(crate) struct RateControl<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) segments: &'a [Segment],
    pub(crate) chunks: u64,
    pub(crate) levels: Levels,
    pub(crate) k_max: u32,
}

/// A chunk's bits at two neighbouring quotas, forms of the counts left out.
#[derive(Clone, Copy)]
struct Cost {
    len: u32,
    counts: [u32; 2],
    bits: [u64; 2],
}

/// Where rate control looks at samples first: so many chunks at least, one of so many.
const SAMPLED_FROM: u64 = 4096;
const SAMPLED_EVERY: usize = 16;

impl RateControl<'_> {
    /// The largest base count whose encoding has at most `budget_bits`, then as many chunks with one more as fit. None
    /// where not even an empty update fits.
    pub(crate) fn plan(&self, budget_bits: u64) -> Option<BitAllocation> {
        // One bit says that a chunk has its share of nothing.
        if self.chunks > budget_bits {
            return None;
        }
        let chunks = self.chunks;
        // A generous budget holds whatever the positions are.
        let at_most: u64 = self.chunks().map(|(len, all)| self.bits_max(len, all)).sum();
        if at_most <= budget_bits {
            return Some(BitAllocation {
                base: self.k_max,
                extra: 0,
                chunks,
            });
        }
        let mut base = self.guess(budget_bits);
        // From the guess to the neighbours, up while they fit or down until one does.
        let costs = loop {
            let costs = self.costs(base);
            let at = |quota: u32, which: usize| -> u64 { costs.iter().map(|cost| self.bits(cost, quota, which)).sum() };
            if at(base, 0) > budget_bits {
                // Base 0 fits, as was checked above.
                base = base.saturating_sub(1);
            } else if base < self.k_max && at(base + 1, 1) <= budget_bits {
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
        // One more in every chunk is base + 1 in a longer form, which did not fit.
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

    fn chunks(&self) -> impl Iterator<Item = (u32, Candidates<'_>)> {
        let lens = self.layout.chunks().map(|range| range.len() as u32);
        lens.zip(self.segments.iter().flat_map(Segment::chunks))
    }

    /// A base count near the largest that fits, from a sample of the chunks (from all of them where they are few).
    fn guess(&self, budget_bits: u64) -> u32 {
        let every = if self.chunks < SAMPLED_FROM { 1 } else { SAMPLED_EVERY };
        let sample: Vec<_> = self.chunks().step_by(every).collect();
        let goal = u128::from(budget_bits) * sample.len() as u128 / u128::from(self.chunks.max(1));
        let mut largest = Largest::new();
        let mut fits = |base: u32| {
            let mut bits = 0u64;
            sample.iter().all(|&(len, candidates)| {
                let (share, cap) = (self.layout.share(base, len), self.layout.share(self.k_max, len));
                let best = largest.best(candidates, share);
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
        let (mut largest, mut fewer) = (Largest::new(), Largest::new());
        costs.extend(self.chunks().map(|(len, candidates)| {
            // A share grows by one at most.
            let more = self.layout.share(base.saturating_add(1).min(self.k_max), len);
            let two = largest.best(candidates, more);
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
        let count = cost.counts[which];
        cost.bits[which] + u64::from(CountForm::of(count, share(base), share(self.k_max)).bits())
    }

    /// Bits of these entries of a chunk.
    fn payload(&self, len: u32, best: Candidates<'_>) -> u64 {
        if best.positions.is_empty() {
            return 0;
        }
        let gaps = rice::gaps_bits(len, best.positions.iter().map(|position| u32::from(*position)));
        8 + gaps + best.positions.len() as u64 * u64::from(self.levels.bits())
    }

    /// At least as many bits as all candidates of a chunk take, its count in the longest form.
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
