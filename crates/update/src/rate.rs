//! Rate control: how many entries each chunk may have, so that the update fills its budget and never exceeds it.

use crate::layout::Layout;
use crate::levels::Levels;
use crate::rice;
use crate::select::Ranked;

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

    fn bits(self) -> u32 {
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

/// Whether chunk `chunk` is one of `extra` among `chunks` that are spread evenly over the model.
fn has_extra(chunk: usize, extra: usize, chunks: usize) -> bool {
    let upto = |n: usize| n as u128 * extra as u128 / chunks.max(1) as u128;
    upto(chunk + 1) > upto(chunk)
}

/// The base count and the chunks that have one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Entries of a full chunk, where it has as many candidates; a shorter one has its share.
    pub(crate) base: u32,
    extra: usize,
    chunks: usize,
}

impl Plan {
    /// Entries a chunk may have, for each full chunk of coordinates.
    pub(crate) fn quota(&self, chunk: usize) -> u32 {
        self.base + u32::from(has_extra(chunk, self.extra, self.chunks))
    }
}

/// What rate control needs to know of an update.
pub(crate) struct Rate<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) ranked: &'a Ranked,
    pub(crate) lens: &'a [u32],
    pub(crate) levels: Levels,
    pub(crate) k_max: u32,
}

impl Rate<'_> {
    /// The largest base count whose encoding has at most `budget_bits`, then as many chunks with one more as fit. None
    /// where not even an empty update fits.
    pub(crate) fn plan(&self, budget_bits: u64) -> Option<Plan> {
        let chunks = self.ranked.chunks();
        let mut scratch = Vec::new();
        let mut fits = |base: u32| {
            let mut bits = 0u64;
            (0..chunks).all(|chunk| {
                bits += self.chunk_bits(chunk, base, base, &mut scratch);
                bits <= budget_bits
            })
        };
        if !fits(0) {
            return None;
        }
        if fits(self.k_max) {
            return Some(Plan {
                base: self.k_max,
                extra: 0,
                chunks,
            });
        }
        let (mut base, mut above) = (0, self.k_max);
        while above - base > 1 {
            let middle = base + (above - base) / 2;
            if fits(middle) { base = middle } else { above = middle }
        }
        let costs: Vec<(u64, u64)> = (0..chunks)
            .map(|chunk| {
                let with = |quota: u32, scratch: &mut Vec<u16>| self.chunk_bits(chunk, quota, base, scratch);
                (with(base, &mut scratch), with(base + 1, &mut scratch))
            })
            .collect();
        let total = |extra: usize| -> u64 {
            let pick = |(chunk, cost): (usize, &(u64, u64))| {
                if has_extra(chunk, extra, chunks) {
                    cost.1
                } else {
                    cost.0
                }
            };
            costs.iter().enumerate().map(pick).sum()
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
        Some(Plan { base, extra, chunks })
    }

    /// Bits of a chunk that may have `quota` entries for each full chunk of coordinates.
    fn chunk_bits(&self, chunk: usize, quota: u32, base: u32, scratch: &mut Vec<u16>) -> u64 {
        let len = self.lens.get(chunk).copied().unwrap_or(0);
        let share = |count| self.layout.share(count, len);
        self.ranked.best(chunk, share(quota) as usize, scratch);
        let count = scratch.len() as u32;
        let form = u64::from(CountForm::of(count, share(base), share(self.k_max)).bits());
        if count == 0 {
            return form;
        }
        let parameter = rice::parameter(len, count);
        let mut next = 0u32;
        let mut gaps = 0u64;
        for &position in scratch.iter() {
            gaps += u64::from(rice::gap_bits(u32::from(position) - next, parameter));
            next = u32::from(position) + 1;
        }
        form + 8 + gaps + u64::from(count) * u64::from(self.levels.bits())
    }
}
