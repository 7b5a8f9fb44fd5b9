//! Rice codes for the gaps between the kept positions of a chunk: a quotient in unary, a remainder in `parameter` bits.

use crate::bits::{BitReader, BitWriter};

/// Rice parameter for `count` positions among `len`: the largest r with 2^r ≤ 0.96 · mean gap, which is optimal for
/// geometric gaps (Kiely, "Selecting the Golomb parameter in Rice coding", IPN report 42-159, 2004). Both sides derive
/// it, so it takes no bits.
pub(crate) fn parameter(len: u32, count: u32) -> u32 {
    let free = u64::from(len.saturating_sub(count));
    let ratio = 24 * free / (25 * (u64::from(count) + 1));
    ratio.checked_ilog2().unwrap_or(0)
}

/// Bits of the gaps before ascending positions of a chunk of `len`.
pub(crate) fn gaps_bits(len: u32, positions: impl ExactSizeIterator<Item = u32>) -> u64 {
    let count = positions.len() as u32;
    let parameter = parameter(len, count);
    let mut next = 0u32;
    let mut quotients = 0u64;
    for position in positions {
        quotients += u64::from((position - next) >> parameter);
        next = position + 1;
    }
    quotients + u64::from(count) * u64::from(1 + parameter)
}

/// Upper bound on the bits of `count` gaps in a chunk of `len`: the gaps add up to `len` at most.
pub(crate) fn gaps_bits_max(len: u32, count: u32) -> u64 {
    let parameter = parameter(len, count);
    u64::from(len >> parameter) + u64::from(count) * u64::from(1 + parameter)
}

/// Writes one gap, the quotient in unary, then the remainder; and `code` of `code_bits` ≤ 8 bits after it.
#[inline]
pub(crate) fn write_entry(writer: &mut BitWriter, gap: u32, parameter: u32, code: u32, code_bits: u32) {
    let quotient = gap >> parameter;
    let remainder = gap & ((1 << parameter) - 1);
    // Almost always everything fits one word: one write instead of three.
    if quotient + 1 + parameter + code_bits <= 32 {
        let tail = remainder | code << parameter;
        writer.write(
            ((1 << quotient) - 1) | (tail << quotient << 1),
            quotient + 1 + parameter + code_bits,
        );
    } else {
        writer.write_unary(quotient);
        writer.write(remainder, parameter);
        writer.write(code, code_bits);
    }
}

/// Result of reading a gap.
pub(crate) enum Gap {
    /// The bits end.
    Truncated,
    /// At or beyond the limit.
    TooLarge,
    /// A gap below the limit.
    Value(u32),
}

/// Reads one gap that must be below `limit` ≤ 65,536.
#[inline]
pub(crate) fn read_gap(reader: &mut BitReader<'_>, parameter: u32, limit: u32) -> Gap {
    // Outside data may have any number of ones: stop as soon as the gap is too large.
    let quotient_max = limit >> parameter;
    let Some(quotient) = reader.read_unary(quotient_max) else {
        return Gap::Truncated;
    };
    if quotient > quotient_max {
        return Gap::TooLarge;
    }
    let Some(remainder) = reader.read(parameter) else {
        return Gap::Truncated;
    };
    let gap = quotient << parameter | remainder;
    if gap < limit { Gap::Value(gap) } else { Gap::TooLarge }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_should_follow_the_mean_gap() {
        assert_eq!(parameter(4096, 4096), 0);
        assert_eq!(parameter(4096, 512), 2);
        assert_eq!(parameter(4096, 64), 5);
        assert_eq!(parameter(4096, 4), 9);
        assert_eq!(parameter(1, 1), 0);
        assert_eq!(parameter(65_536, 1), 14);
    }
}
