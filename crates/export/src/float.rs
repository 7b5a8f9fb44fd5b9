//! Rounding to the stored formats. All of it is integer arithmetic or single IEEE operations, so that the bytes are the
//! same on every machine.

/// Nearest bfloat16, ties to even. Values beyond the largest bfloat16 become infinite; NaN stays NaN.
pub fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        // Quiet, so that dropping low bits cannot make an infinity.
        return (bits >> 16) as u16 | 0x40;
    }
    // Adding just under half of the last place, and one more if the result would be odd, rounds ties to even; a carry
    // into the exponent is the right result as well.
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Nearest half-precision number, ties to even, with subnormals; values of 65520 and more become infinite.
pub fn f16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00;
    }
    let rounded = if magnitude >= 0x3880_0000 {
        // At least 2^−14: move the exponent's bias from 127 to 15 and round 13 bits away.
        let odd = magnitude >> 13 & 1;
        magnitude.saturating_sub(0x3800_0000).saturating_add(0xfff + odd) >> 13
    } else {
        // Subnormal: multiples of 2^−24. With the hidden bit the mantissa counts units of 2^(exponent − 150).
        let exponent = magnitude >> 23;
        let mantissa = (magnitude & 0x7f_ffff) | if exponent > 0 { 0x80_0000 } else { 0 };
        let shift = 126 - exponent.max(1);
        if shift > 25 {
            0
        } else {
            let (whole, rest, half) = (mantissa >> shift, mantissa & ((1 << shift) - 1), 1 << (shift - 1));
            whole + u32::from(rest > half || (rest == half && whole & 1 == 1))
        }
    };
    // Carries above the largest finite number end at infinity.
    sign | rounded.min(0x7c00) as u16
}

/// Values in one block of `q8_0`.
pub const Q8_0_VALUES: usize = 32;
/// Bytes of one block of `q8_0`: a half-precision scale and 32 signed bytes.
pub const Q8_0_BYTES: usize = 34;

/// One block of `q8_0` as ggml's `quantize_row_q8_0_ref` computes it: d = max|x| / 127, q = round(x · (1/d)), halves
/// away from zero; the scale is stored in half precision, the quotients are those of the scale before that rounding.
pub fn q8_0_block(values: &[f32; Q8_0_VALUES]) -> [u8; Q8_0_BYTES] {
    let largest = values.iter().fold(0f32, |max, v| max.max(v.abs()));
    let scale = largest / 127.0;
    // As ggml: a multiplication by the inverse, not a division, which rounds differently.
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut block = [0; Q8_0_BYTES];
    let (head, quotients) = block.split_at_mut(2);
    head.copy_from_slice(&f16_bits(scale).to_le_bytes());
    for (to, value) in quotients.iter_mut().zip(values) {
        *to = (value * inverse).round() as i8 as u8;
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The value of half-precision bits, by the definition of the format.
    fn f16_value(bits: u16) -> f64 {
        let sign = if bits & 0x8000 != 0 { -1.0 } else { 1.0 };
        let (exponent, mantissa) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
        match exponent {
            0 => sign * mantissa * 2f64.powi(-24),
            31 if mantissa == 0.0 => sign * f64::INFINITY,
            31 => f64::NAN,
            _ => sign * (1.0 + mantissa / 1024.0) * 2f64.powi(exponent - 15),
        }
    }

    #[test]
    fn bf16_should_round_to_nearest_even() {
        let cases = [
            (1.0, 0x3f80),
            (f32::from_bits(0x3f80_8000), 0x3f80),
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (-0.0, 0x8000),
            (f32::MAX, 0x7f80),
            (f32::from_bits(1), 0),
            (f32::NEG_INFINITY, 0xff80),
        ];
        for (value, bits) in cases {
            assert_eq!(bf16_bits(value), bits, "{value}");
        }
        assert!(f32::from_bits(u32::from(bf16_bits(f32::from_bits(0x7f80_0001))) << 16).is_nan());
    }

    #[test]
    fn every_f16_should_survive() {
        for bits in 0..=u16::MAX {
            let value = f16_value(bits);
            if value.is_nan() {
                assert_eq!(f16_bits(f32::NAN) & 0x7c00, 0x7c00);
            } else {
                assert_eq!(f16_bits(value as f32), bits, "{value}");
            }
        }
        assert_eq!((f16_bits(65519.9), f16_bits(65520.0)), (0x7bff, 0x7c00));
        assert_eq!((f16_bits(2f32.powi(-25)), f16_bits(2f32.powi(-25) * 1.0001)), (0, 1));
        assert_eq!(f16_bits(f32::INFINITY), 0x7c00);
    }

    proptest! {
        #[test]
        fn f16_should_be_the_nearest(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            prop_assume!(value.is_finite() && value.abs() < 65504.0);
            let found = f16_bits(value);
            let error = (f16_value(found) - f64::from(value)).abs();
            for neighbour in [found.wrapping_sub(1), found.wrapping_add(1)] {
                let other = (f16_value(neighbour) - f64::from(value)).abs();
                // Neighbours in bits are neighbours in value, except across zero and infinity.
                if other.is_finite() && neighbour & 0x7fff != 0x7fff {
                    prop_assert!(error < other || (error == other && found & 1 == 0), "{value} {found:#x}");
                }
            }
        }

        #[test]
        fn q8_0_should_stay_within_half_a_step(values in proptest::array::uniform32(-10f32..10.0)) {
            let block = q8_0_block(&values);
            let scale = values.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
            for (value, byte) in values.iter().zip(&block[2..]) {
                let back = f32::from(*byte as i8) * scale;
                prop_assert!((back - value).abs() <= scale * 0.5001, "{value} {back}");
            }
        }
    }

    #[test]
    fn q8_0_should_match_known_blocks() {
        // Golden: gguf 0.19.0, `gguf.quants.Q8_0.quantize`; checked for random blocks in tests/weights.py.
        assert_eq!(q8_0_block(&[0.0; 32]), [0; 34]);
        let mut values = [0f32; 32];
        values[0] = 127.0;
        values[1] = 0.5;
        values[2] = -0.5;
        values[3] = -1.49;
        let block = q8_0_block(&values);
        assert_eq!(block[..6], [0x00, 0x3c, 127, 1, 0xff, 0xff]);
    }
}
