//! Candidates in the order of their positions.

use crate::select::Candidates;
use pulp::{Arch, Simd, WithSimd};

/// Up to so many are put in order by counting, which has no branch that cannot be foreseen; more are sorted.
const COUNTED_MAX: usize = 128;
/// Counts are made for so many at once.
const LANES: usize = 16;

/// Puts the candidates of a chunk in ascending order of position; holds scratch memory.
pub(crate) struct Ascending {
    arch: Arch,
    positions: [u16; COUNTED_MAX],
    /// For each candidate how many positions are below its own.
    below: [u16; COUNTED_MAX],
    sorted: Vec<u32>,
}

impl Ascending {
    pub(crate) fn new() -> Self {
        Self {
            arch: Arch::new(),
            positions: [0; COUNTED_MAX],
            below: [0; COUNTED_MAX],
            sorted: Vec::new(),
        }
    }

    /// The candidates' positions (upper 16 bits) with their places among the candidates (lower 16 bits), by ascending
    /// position.
    pub(crate) fn sort(&mut self, candidates: Candidates<'_>) -> &[u32] {
        let count = candidates.positions.len();
        // In 32 bits, since the number after the last place of 65,536 has 17.
        let placed = candidates.positions.iter().zip(0u32..);
        let entry = |(position, place): (&u16, u32)| u32::from(*position) << 16 | place;
        let to = count.next_multiple_of(LANES);
        let (positions, below) = (self.positions.get_mut(..to), self.below.get_mut(..to));
        let (Some(positions), Some(below)) = (positions, below) else {
            self.sorted.clear();
            self.sorted.extend(placed.map(entry));
            self.sorted.sort_unstable();
            return &self.sorted;
        };
        positions
            .iter_mut()
            .zip(candidates.positions)
            .for_each(|(slot, position)| *slot = *position);
        below.fill(0);
        let all = candidates.positions;
        self.arch.dispatch(Count { all, positions, below });
        self.sorted.resize(count, 0);
        for (candidate, below) in placed.zip(below) {
            if let Some(slot) = self.sorted.get_mut(usize::from(*below)) {
                *slot = entry(candidate);
            }
        }
        &self.sorted
    }
}

struct Count<'a> {
    all: &'a [u16],
    positions: &'a [u16],
    below: &'a mut [u16],
}

impl WithSimd for Count<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        // One addition for each pair: the inner loop runs over neighbours in memory.
        for other in self.all {
            for (below, position) in self.below.iter_mut().zip(self.positions) {
                *below += u16::from(*position > *other);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_of_the_largest_chunk_should_be_sorted() {
        let positions: Vec<u16> = (0..=u16::MAX).rev().collect();
        let candidates = Candidates {
            positions: &positions,
            values: &[],
        };
        let sorted = Ascending::new().sort(candidates).to_vec();
        assert_eq!(sorted.len(), 1 << 16);
        assert!((0u32..).zip(sorted).all(|(n, entry)| entry == n << 16 | (0xffff - n)));
    }

    proptest! {
        #[test]
        fn both_ways_should_sort(sets in prop::collection::vec(prop::collection::hash_set(any::<u16>(), 0..200), 1..4)) {
            let mut ascending = Ascending::new();
            for set in sets {
                let positions: Vec<u16> = set.into_iter().collect();
                let candidates = Candidates { positions: &positions, values: &[] };
                let sorted = ascending.sort(candidates);
                prop_assert_eq!(sorted.len(), positions.len());
                prop_assert!(sorted.is_sorted_by(|a, b| a < b));
                for entry in sorted {
                    prop_assert_eq!(u32::from(positions[(entry & 0xffff) as usize]), entry >> 16);
                }
            }
        }
    }
}
