//! Quantisation of an update's values: a table of scales, and levels relative to a chunk's scale.
//!
//! **Architecture invariant:** nothing here calls a transcendental function. `exp2` of a C library differs in the last
//! bit between machines, so the table is built from eight constants by shifting exponents, which is exact.

use pulp::{Arch, Simd, WithSimd};

/// Number of scales, one for each 8-bit code.
pub const SCALES: usize = 256;

/// 2^(i/8), correctly rounded to f32, as bits.
const MANTISSAS: [u32; 8] = [
    0x3f80_0000, // 1.000000000
    0x3f8b_95c2, // 1.090507746
    0x3f98_37f0, // 1.189207077
    0x3fa5_fed7, // 1.296839595
    0x3fb5_04f3, // 1.414213538
    0x3fc5_672a, // 1.542210817
    0x3fd7_44fd, // 1.681792855
    0x3fea_c0c7, // 1.834008098
];

/// Exponent of code 0. 2^-28 is below the spacing of f32 weights near 0.03, so a smaller step could not move the model.
const EXPONENT_MIN: u32 = 28;

/// Scale of each code: 2^(code/8 − 28). Ascending, finite and positive, from 3.7e-9 to 14.7.
#[allow(
    clippy::indexing_slicing,
    reason = "evaluated by the compiler: an index out of bounds does not build"
)]
const TABLE: [f32; SCALES] = {
    let mut table = [0.0; SCALES];
    let mut code = 0;
    while code < SCALES {
        // The stored mantissas have exponent 0 (biased 127); shifting the exponent field multiplies exactly.
        table[code] = f32::from_bits(MANTISSAS[code % 8] - (EXPONENT_MIN << 23) + ((code as u32 / 8) << 23));
        code += 1;
    }
    table
};

/// Scale of a code: 2^(code/8 − 28), from a table.
#[allow(clippy::indexing_slicing, reason = "a table of 256 entries has one for every u8")]
pub fn scale(code: u8) -> f32 {
    TABLE[usize::from(code)]
}

/// Code of the scale nearest to `x`; the first or last code if `x` is beyond the table.
pub(crate) fn nearest_code(x: f32) -> u8 {
    let above = ceil_code(x);
    let below = above.saturating_sub(1);
    // A tie goes up: any rule would do, but it must be one.
    if x - scale(below) < scale(above) - x {
        below
    } else {
        above
    }
}

/// Code of the smallest scale that is at least `x`; the last code if there is none.
pub(crate) fn ceil_code(x: f32) -> u8 {
    TABLE.partition_point(|&s| s < x).min(SCALES - 1) as u8
}

/// Low magnitude of two-bit values relative to the high one. The largest few percent of a Laplace-like distribution are
/// best represented by two magnitudes with a ratio of 0.57 (density 1/8) to 0.7 (1/64); 5/8 is exact in f32.
const TWO_BIT_LOW: f32 = 0.625;

/// Code book of an update's values: sign and magnitude relative to the chunk's scale.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Levels {
    bits: u8,
}

impl Levels {
    /// Levels of 1, 2, 4 or 8 bits, sign included.
    pub(crate) fn new(bits: u8) -> Option<Self> {
        matches!(bits, 1 | 2 | 4 | 8).then_some(Self { bits })
    }

    /// Bits of one value.
    pub(crate) fn bits(self) -> u32 {
        u32::from(self.bits)
    }

    /// Magnitude of a level on scale 1, exact in f32.
    fn fraction(self, level: u32) -> f32 {
        match self.bits {
            1 => 1.0,
            2 if level == 0 => TWO_BIT_LOW,
            2 => 1.0,
            bits => (level + 1) as f32 / (1u32 << (bits - 1)) as f32,
        }
    }

    /// Value of a code: bit 0 is the sign, the rest the level.
    pub(crate) fn value(self, scale: f32, code: u32) -> f32 {
        let magnitude = scale * self.fraction(code >> 1);
        if code & 1 == 1 { -magnitude } else { magnitude }
    }

    /// Code of the nearest value that is not zero.
    pub(crate) fn code(self, scale: f32, value: f32) -> u32 {
        let magnitude = value.abs();
        let level = match self.bits {
            1 => 0,
            2 => u32::from(magnitude > scale * ((1.0 + TWO_BIT_LOW) / 2.0)),
            bits => {
                let levels = (1u32 << (bits - 1)) as f32;
                // Never level 0: a selected entry is sent with its sign, or it would cost bits for nothing.
                (magnitude / scale * levels).round().clamp(1.0, levels) as u32 - 1
            }
        };
        level << 1 | u32::from(value < 0.0)
    }

    /// Codes of all values of a chunk; replaces the contents of `codes`.
    pub(crate) fn code_all(self, scale: f32, values: &[f32], codes: &mut Vec<u8>) {
        codes.clear();
        codes.extend(values.iter().map(|value| self.code(scale, *value) as u8));
    }

    /// Scale code for a chunk's kept values: least squares for 1 and 2 bits, otherwise the smallest scale that reaches
    /// the largest magnitude, so that nothing is clipped.
    pub(crate) fn fit(self, arch: Arch, values: &[f32]) -> u8 {
        if self.bits > 2 {
            return ceil_code(values.iter().fold(0.0f32, |max, value| max.max(value.abs())));
        }
        let above = |border| arch.dispatch(SumAbove { values, border });
        // Every magnitude is above −1: count and sum of all.
        let (count, sum) = above(-1.0);
        let mean = sum / count.max(1.0);
        if self.bits == 1 {
            return nearest_code(mean as f32);
        }
        let low = f64::from(TWO_BIT_LOW);
        let mut s = mean / ((1.0 + low) / 2.0);
        // Lloyd's iteration with a fixed ratio of the two levels: assign values to levels, then solve for the scale.
        // The assignment is stable after a few iterations; the fixed maximum bounds the work on adversarial values.
        let mut before = -1.0;
        for _ in 0..4 {
            let (high, of_high) = above(s * ((1.0 + low) / 2.0));
            if high == before {
                break;
            }
            before = high;
            let product = of_high + low * (sum - of_high);
            let square = high + low * low * (count - high);
            if square > 0.0 {
                s = product / square;
            }
        }
        nearest_code(s as f32)
    }

    /// Whether sending a magnitude brings the receiver closer than leaving it at zero, given the number, sum and
    /// maximum of the magnitudes that are sent, itself included. Without this bound one outlier would raise every small
    /// value of its chunk to the scale's lowest level. Values that are not sent stay in the residual.
    pub(crate) fn worth_sending(self, magnitude: f32, count: usize, sum: f64, max: f32) -> bool {
        let magnitude = f64::from(magnitude);
        match self.bits {
            // Half of the lowest magnitude, which is the mean (1 bit) or about 0.8 of it (2 bits).
            1 => magnitude * count as f64 >= 0.5 * sum,
            2 => magnitude * count as f64 >= 0.4 * sum,
            bits => magnitude * f64::from(1u32 << bits) >= f64::from(max),
        }
    }
}

/// Number and sum of the magnitudes above a border. The lane count is part of the result: it fixes the order of
/// summation, so that every machine gets the same bits, whatever its vector width.
struct SumAbove<'a> {
    values: &'a [f32],
    border: f64,
}

impl WithSimd for SumAbove<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    #[allow(
        clippy::indexing_slicing,
        reason = "lanes and rows have the same constant length; iterators are not vectorised here"
    )]
    fn with_simd<S: Simd>(self, _: S) -> (f64, f64) {
        const LANES: usize = 8;
        let (mut counts, mut sums) = ([0.0; LANES], [0.0; LANES]);
        let (rows, rest) = self.values.as_chunks::<LANES>();
        for row in rows {
            for lane in 0..LANES {
                let magnitude = f64::from(row[lane].abs());
                let is_above = magnitude > self.border;
                counts[lane] += if is_above { 1.0 } else { 0.0 };
                sums[lane] += if is_above { magnitude } else { 0.0 };
            }
        }
        for (lane, value) in rest.iter().enumerate() {
            let magnitude = f64::from(value.abs());
            if magnitude > self.border {
                counts[lane] += 1.0;
                sums[lane] += magnitude;
            }
        }
        (counts.iter().sum(), sums.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_should_be_ascending_and_exact_at_powers_of_two() {
        assert!(TABLE.windows(2).all(|w| w[0] < w[1]));
        assert!(TABLE.iter().all(|s| s.is_finite() && *s > 0.0));
        assert_eq!(scale(0), 2f32.powi(-28));
        assert_eq!(scale(224), 1.0);
        assert_eq!(scale(255).to_bits(), 0x416a_c0c7);
        for code in 0..248u8 {
            assert_eq!(scale(code + 8), 2.0 * scale(code));
        }
    }

    #[test]
    fn codes_should_bracket() {
        for code in 0..=255u8 {
            assert_eq!(nearest_code(scale(code)), code);
            assert_eq!(ceil_code(scale(code)), code);
        }
        assert_eq!(
            (nearest_code(0.0), nearest_code(f32::MAX), ceil_code(f32::MAX)),
            (0, 255, 255)
        );
        assert_eq!(nearest_code(f32::MIN_POSITIVE / 4.0), 0);
    }

    #[test]
    fn values_should_survive_their_codes() {
        for bits in [1u8, 2, 4, 8] {
            let levels = Levels::new(bits).unwrap();
            for code in 0..1u32 << bits {
                let value = levels.value(0.37, code);
                assert!(value != 0.0);
                assert_eq!(levels.code(0.37, value), code, "{bits} bits, code {code}");
            }
        }
        assert!(Levels::new(3).is_none());
    }
}
