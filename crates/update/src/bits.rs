//! Bit streams, least significant bit of the first byte first. Both ends keep up to 64 bits in an accumulator, because
//! one access to memory per bit or byte would be the slowest part of the codec.

use crate::error::DecodeError;

/// Appends bits to bytes.
pub(crate) struct BitWriter {
    /// Buffer; the first `len` bytes are written, the rest is room.
    bytes: Vec<u8>,
    len: usize,
    acc: u64,
    /// Bits in `acc`, below 8 between calls.
    have: u32,
}

impl BitWriter {
    /// Continues after whole bytes.
    pub(crate) fn after(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        Self {
            bytes,
            len,
            acc: 0,
            have: 0,
        }
    }

    /// Appends the low `bits` ≤ 32 bits of `value`, lowest first. Always writes eight bytes, also the incomplete
    /// last one, which the next write repeats; a branch on whole bytes would be unpredictable.
    #[inline]
    pub(crate) fn write(&mut self, value: u32, bits: u32) {
        debug_assert!(bits <= 32 && (bits == 32 || value >> bits == 0));
        self.acc |= u64::from(value) << self.have;
        self.have += bits;
        if self.len + 8 > self.bytes.len() {
            self.grow();
        }
        if let Some(word) = self.bytes.get_mut(self.len..self.len + 8) {
            word.copy_from_slice(&self.acc.to_le_bytes());
        }
        self.len += (self.have / 8) as usize;
        self.acc >>= self.have & !7;
        self.have &= 7;
    }

    #[cold]
    fn grow(&mut self) {
        self.bytes.resize(self.bytes.len() + self.bytes.len() / 4 + 4096, 0);
    }

    /// Appends `ones` one bits and a zero bit.
    #[inline]
    pub(crate) fn write_unary(&mut self, mut ones: u32) {
        while ones >= 31 {
            self.write((1 << 31) - 1, 31);
            ones -= 31;
        }
        self.write((1 << ones) - 1, ones + 1);
    }

    /// Fills the last byte with zero bits and returns all bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.truncate(self.len + usize::from(self.have > 0));
        // The bytes may be kept for long; the room for more is not needed any more.
        self.bytes.shrink_to_fit();
        self.bytes
    }
}

/// Reads bits from bytes; never beyond their end.
pub(crate) struct BitReader<'a> {
    rest: &'a [u8],
    /// The next `have` bits. The bits above them are zero or the first bits of `rest`, which are then read again.
    acc: u64,
    have: u32,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            acc: 0,
            have: 0,
        }
    }

    /// Number of unread bits.
    pub(crate) fn bits_left(&self) -> usize {
        self.rest.len().saturating_mul(8).saturating_add(self.have as usize)
    }

    #[inline]
    fn refill(&mut self) {
        if let Some(word) = self.rest.first_chunk::<8>() {
            self.acc |= u64::from_le_bytes(*word) << self.have;
            let taken = (63 - self.have) / 8;
            self.rest = self.rest.get(taken as usize..).unwrap_or_default();
            self.have += 8 * taken;
            return;
        }
        while self.have <= 56 {
            let Some((&byte, rest)) = self.rest.split_first() else {
                return;
            };
            self.acc |= u64::from(byte) << self.have;
            self.have += 8;
            self.rest = rest;
        }
    }

    /// The next `bits` ≤ 32 bits; `None` if fewer are left.
    #[inline]
    pub(crate) fn read(&mut self, bits: u32) -> Option<u32> {
        if self.have < bits {
            self.refill();
            if self.have < bits {
                return None;
            }
        }
        let value = self.acc & ((1u64 << bits) - 1);
        self.acc >>= bits;
        self.have -= bits;
        Some(value as u32)
    }

    /// Counts one bits up to the next zero bit. Stops with `limit + 1` as soon as the count exceeds `limit`; `None` if
    /// the bits end first.
    #[inline]
    pub(crate) fn read_unary(&mut self, limit: u32) -> Option<u32> {
        let mut ones = 0u32;
        loop {
            if self.have == 0 {
                self.refill();
            }
            if self.have == 0 {
                return None;
            }
            let run = self.acc.trailing_ones().min(self.have);
            ones = ones.saturating_add(run);
            if ones > limit {
                return Some(limit.saturating_add(1));
            }
            if run < self.have {
                // In two shifts: 63 ones and the zero are 64 bits, and a shift by 64 is not defined.
                self.acc = self.acc >> run >> 1;
                self.have -= run + 1;
                return Some(ones);
            }
            self.acc = 0;
            self.have = 0;
        }
    }

    /// Checks that less than a byte is left and that its bits are zero.
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        let bytes = self.rest.len() + (self.have / 8) as usize;
        if bytes > 0 {
            return Err(DecodeError::Trailing(bytes));
        }
        // Fewer than 8 bits are left and no byte follows them.
        if self.acc & ((1 << self.have) - 1) != 0 {
            Err(DecodeError::Padding)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bits_should_come_back(items in prop::collection::vec((any::<u32>(), 0u32..=32, any::<bool>()), 0..200)) {
            let mut writer = BitWriter::after(Vec::new());
            for &(value, bits, unary) in &items {
                if unary { writer.write_unary(value % 300) } else { writer.write((u64::from(value) & ((1 << bits) - 1)) as u32, bits) }
            }
            let bytes = writer.finish();
            let mut reader = BitReader::new(&bytes);
            for &(value, bits, unary) in &items {
                if unary {
                    prop_assert_eq!(reader.read_unary(300), Some(value % 300));
                } else {
                    prop_assert_eq!(reader.read(bits), Some((u64::from(value) & ((1 << bits) - 1)) as u32));
                }
            }
            prop_assert_eq!(reader.finish(), Ok(()));
        }
    }

    #[test]
    fn reader_should_refuse_what_is_not_there() {
        assert_eq!(BitReader::new(&[0xff]).read(9), None);
        assert_eq!(BitReader::new(&[0xff]).read_unary(100), None);
        assert_eq!(BitReader::new(&[0xff; 20]).read_unary(100), Some(101));
        assert_eq!(BitReader::new(&[0, 0]).finish(), Err(DecodeError::Trailing(2)));
        let mut reader = BitReader::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        assert_eq!(reader.read_unary(100), Some(63));
        assert_eq!(reader.finish(), Ok(()));
        let mut reader = BitReader::new(&[0x80]);
        reader.read(3);
        assert_eq!(reader.finish(), Err(DecodeError::Padding));
    }
}
