//! The values of a row that reach a threshold, as a bit mask. This is the one place where the encoder reads every value
//! of the gradient, so its speed is the encoder's speed.

use crate::top_k::magnitude_bits;

/// Values of a row: one bit each in a u64.
pub(crate) const ROW: usize = 64;
/// Values of a cache line of 64 bytes.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 16;

/// An implementation of the comparison; all of them give the same bits.
pub(crate) trait ThresholdMask: Copy {
    /// Mask in which bit i says that magnitude i of the row reaches the threshold, which is at least 1.
    fn at_least(self, row: &[f32; ROW], threshold: i32) -> u64;

    /// Prefetches a row that is read later. Hardware prefetchers follow a stream by themselves, but they stop at page
    /// boundaries and fall behind while the core is busy with the current chunk.
    fn prefetch(self, row: &[f32; ROW]);
}

/// Portable code, vectorised as far as the compiler does it.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl ThresholdMask for Portable {
    #[inline(always)]
    fn at_least(self, row: &[f32; ROW], threshold: i32) -> u64 {
        let mut flags = [0u8; ROW];
        for (flag, value) in flags.iter_mut().zip(row) {
            *flag = u8::from(magnitude_bits(*value) >= threshold);
        }
        let mut bits = 0;
        for (number, eight) in flags.as_chunks::<8>().0.iter().enumerate() {
            // Eight bytes of 0 or 1 to eight bits: the product moves the lowest bit of byte i to bit 56 + i, without
            // carries.
            let gathered = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
            bits |= gathered << (8 * number);
        }
        bits
    }

    #[inline(always)]
    fn prefetch(self, _: &[f32; ROW]) {}
}

#[cfg(target_arch = "x86_64")]
impl ThresholdMask for pulp::x86::V3 {
    /// AVX2 extracts the sign bits of a comparison in one instruction (`vmovmskps`), which the compiler does not find.
    #[inline(always)]
    fn at_least(self, row: &[f32; ROW], threshold: i32) -> u64 {
        let no_sign = self.avx._mm256_set1_epi32(0x7fff_ffff);
        let below = self.avx._mm256_set1_epi32(threshold - 1);
        let mut bits = 0;
        for (number, eight) in row.as_chunks::<8>().0.iter().enumerate() {
            let magnitudes = self.avx2._mm256_and_si256(pulp::cast(*eight), no_sign);
            let reached = self.avx2._mm256_cmpgt_epi32(magnitudes, below);
            let signs = self.avx._mm256_movemask_ps(pulp::cast(reached)) as u32;
            bits |= u64::from(signs) << (8 * number);
        }
        bits
    }

    #[inline(always)]
    fn prefetch(self, row: &[f32; ROW]) {
        for line in row.as_chunks::<LINE>().0 {
            self.sse
                ._mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn each(values: &[f32; ROW], threshold: i32) -> u64 {
        let reached = values
            .iter()
            .enumerate()
            .filter(|(_, value)| magnitude_bits(**value) >= threshold);
        reached.fold(0, |bits, (number, _)| bits | 1 << number)
    }

    proptest! {
        #[test]
        fn every_way_should_mark_the_same(
            values in prop::array::uniform32(any::<u32>().prop_map(f32::from_bits)),
            others in prop::array::uniform32(-1.0f32..1.0),
            threshold in prop_oneof![Just(1), Just(i32::MAX), Just(0x7f80_0000), 1i32..0x7f80_0000, 0x3d80_0000i32..0x3f80_0000],
        ) {
            let mut row = [0.0; ROW];
            row.iter_mut().zip(values.iter().chain(&others)).for_each(|(slot, value)| *slot = *value);
            prop_assert_eq!(Portable.at_least(&row, threshold), each(&row, threshold));
            #[cfg(target_arch = "x86_64")]
            if let Some(v3) = pulp::x86::V3::try_new() {
                prop_assert_eq!(v3.at_least(&row, threshold), each(&row, threshold));
            }
        }
    }
}
