//! The error-feedback residual (what compression left out) as a stream: it may be larger than memory. No files here:
//! whoever stores it passes readers and writers.
//!
//! **Format.** A head of 29 bytes (`ALR1`, number format, first and last coordinate, generation), then blocks of
//! [`RESIDUAL_BLOCK`] values, the last one shorter, each followed by its BLAKE3 checksum. The checksum binds the head
//! and the block's coordinate, so a block of another residual or from another place is refused.
//!
//! **Invariant.** A block is checked before any of its values is handed out. A file that was cut off, or written by
//! another version, is an error and never a residual with gaps.

use crate::error::FeedbackError;
use alice_primitives::tagged_hash;
use std::io::{Read, Write};
use std::ops::Range;

const MAGIC: &[u8; 4] = b"ALR1";
/// Domain of the checksums.
const TAG: &str = "alice/residual/v1";
/// Magic, number format, first and last coordinate, generation.
const HEAD_BYTES: usize = 4 + 1 + 8 + 8 + 8;

/// Values of a block: 1 MiB in f32, so that checksums cost little and memory stays small.
pub const RESIDUAL_BLOCK: usize = 1 << 18;

/// Number format of a stored residual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResidualDtype {
    /// The values themselves.
    F32,
    /// Rounded to bfloat16 stochastically: a value between two neighbours becomes the one farther from zero with the
    /// probability of its distance from the nearer one. So the error is zero on average; rounding to nearest would lose
    /// every value that is small next to the residual. The draw depends on generation and coordinate alone.
    Bf16,
}

impl ResidualDtype {
    fn code(self) -> u8 {
        match self {
            Self::F32 => 0,
            Self::Bf16 => 1,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::F32),
            1 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Rounds a finite value to bfloat16 (its upper 16 bits): up in magnitude with probability fraction / 2^16, as `word`
/// is uniform.
fn round(value: f32, word: u16) -> u16 {
    // A carry out of the lower half is the step to the next bfloat16, subnormal numbers included.
    let rounded = ((u64::from(value.to_bits()) + u64::from(word)) >> 16) as u16;
    // One step above the largest finite number is infinity, which is not a residual: stay below.
    if rounded & 0x7f80 == 0x7f80 {
        rounded - 1
    } else {
        rounded
    }
}

/// 16 bits for a coordinate, from a counter: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014). Only the
/// machine that stores the residual uses it, so it need not be unpredictable.
fn word(generation: u64, index: u64) -> u16 {
    let mut z = index
        .wrapping_add(generation.wrapping_mul(0xd1b5_4a32_d192_ed03))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 48) as u16
}

/// First bytes of a stored residual.
fn head(covered: &Range<u64>, generation: u64, dtype: ResidualDtype) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    let fields = [
        MAGIC.as_slice(),
        &[dtype.code()],
        &covered.start.to_le_bytes(),
        &covered.end.to_le_bytes(),
        &generation.to_le_bytes(),
    ];
    let bytes = fields.into_iter().flatten();
    head.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = *byte);
    head
}

/// Checksum of the block that begins at coordinate `start`.
fn checksum(head: &[u8; HEAD_BYTES], start: u64, block: &[u8]) -> [u8; 32] {
    tagged_hash(TAG, &[head, &start.to_le_bytes(), block])
}

/// Writes a residual from values in any pieces, in the order of the flat vector. Memory: one block.
pub struct ResidualWriter<W> {
    target: W,
    head: [u8; HEAD_BYTES],
    generation: u64,
    dtype: ResidualDtype,
    end: u64,
    /// Coordinate of the next value.
    position: u64,
    block_start: u64,
    block: Vec<u8>,
}

impl<W: Write> ResidualWriter<W> {
    /// Starts a residual for these coordinates: writes its head.
    pub fn create(
        mut target: W,
        covered: Range<u64>,
        generation: u64,
        dtype: ResidualDtype,
    ) -> Result<Self, FeedbackError> {
        let head = head(&covered, generation, dtype);
        target.write_all(&head).map_err(FeedbackError::storing)?;
        Ok(Self {
            target,
            head,
            generation,
            dtype,
            end: covered.end,
            position: covered.start,
            block_start: covered.start,
            block: Vec::new(),
        })
    }

    /// Appends values; those that are not finite are stored as zero.
    pub fn push(&mut self, values: &[f32]) -> Result<(), FeedbackError> {
        if values.len() as u64 > self.end - self.position {
            return Err(self.wrong_length(values.len() as u64));
        }
        let mut rest = values;
        while !rest.is_empty() {
            let free = RESIDUAL_BLOCK - (self.position - self.block_start) as usize;
            let (now, later) = rest.split_at(free.min(rest.len()));
            // Copies, because the closure below may not borrow the writer.
            let (generation, position) = (self.generation, self.position);
            let finite = now.iter().map(|value| if value.is_finite() { *value } else { 0.0 });
            match self.dtype {
                ResidualDtype::F32 => self.block.extend(finite.flat_map(f32::to_le_bytes)),
                ResidualDtype::Bf16 => self.block.extend(
                    finite
                        .zip(position..)
                        .flat_map(|(value, index)| round(value, word(generation, index)).to_le_bytes()),
                ),
            }
            self.position += now.len() as u64;
            rest = later;
            if (self.position - self.block_start) as usize == RESIDUAL_BLOCK {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes the current block and its checksum.
    fn flush(&mut self) -> Result<(), FeedbackError> {
        let checksum = checksum(&self.head, self.block_start, &self.block);
        self.target.write_all(&self.block).map_err(FeedbackError::storing)?;
        self.target.write_all(&checksum).map_err(FeedbackError::storing)?;
        self.block.clear();
        self.block_start = self.position;
        Ok(())
    }

    /// Writes the last block and returns the target. The caller syncs it to the disk.
    pub fn finish(mut self) -> Result<W, FeedbackError> {
        // A residual with missing values would be read as a damaged one: refuse to finish it.
        if self.position != self.end {
            return Err(self.wrong_length(0));
        }
        if self.position > self.block_start {
            self.flush()?;
        }
        self.target.flush().map_err(FeedbackError::storing)?;
        Ok(self.target)
    }

    fn wrong_length(&self, more: u64) -> FeedbackError {
        FeedbackError::Values {
            expected: self.end,
            found: self.position.saturating_add(more),
        }
    }
}

/// Reads a residual block by block; every block is checked before it is handed out. Memory: one block.
pub struct ResidualReader<R> {
    /// `None` for a residual of zeros.
    source: Option<R>,
    head: [u8; HEAD_BYTES],
    dtype: ResidualDtype,
    end: u64,
    position: u64,
    block: Vec<u8>,
}

impl<R: Read> ResidualReader<R> {
    /// Opens the residual of these coordinates and this generation. Without a source all values are zero, which is
    /// allowed for generation 0 only.
    pub fn open(source: Option<R>, covered: Range<u64>, generation: u64) -> Result<Self, FeedbackError> {
        let mut reader = Self {
            source,
            head: [0; HEAD_BYTES],
            dtype: ResidualDtype::F32,
            end: covered.end,
            position: covered.start,
            block: Vec::new(),
        };
        let Some(source) = &mut reader.source else {
            return if generation == 0 {
                Ok(reader)
            } else {
                Err(FeedbackError::Missing { generation })
            };
        };
        read_exact(source, &mut reader.head)?;
        let [_, _, _, _, code, ..] = reader.head;
        reader.dtype = ResidualDtype::from_code(code).ok_or(FeedbackError::Damaged("its precision is not known"))?;
        if !reader.head.starts_with(MAGIC) {
            return Err(FeedbackError::Damaged("not of this program, or of another version"));
        }
        // Compared as a whole: coordinates or generation of another residual.
        if reader.head != head(&covered, generation, reader.dtype) {
            return Err(FeedbackError::Damaged(
                "the residual is not the one that the ledger names",
            ));
        }
        Ok(reader)
    }

    /// Reads the next block into `values` and returns its first coordinate; `None` after the last block.
    pub fn next_block(&mut self, values: &mut Vec<f32>) -> Result<Option<u64>, FeedbackError> {
        values.clear();
        let start = self.position;
        let len = self.end.saturating_sub(start).min(RESIDUAL_BLOCK as u64) as usize;
        let Some(source) = &mut self.source else {
            values.resize(len, 0.0);
            self.position += len as u64;
            return Ok((len > 0).then_some(start));
        };
        if len == 0 {
            // The last block was read: the stream must end here.
            return match source.read(&mut [0]) {
                Ok(0) => Ok(None),
                Ok(_) => Err(FeedbackError::Damaged("too long")),
                Err(error) => Err(FeedbackError::reading(error)),
            };
        }
        self.block.resize(len * self.dtype.bytes(), 0);
        read_exact(source, &mut self.block)?;
        let mut expected = [0; 32];
        read_exact(source, &mut expected)?;
        if checksum(&self.head, start, &self.block) != expected {
            return Err(FeedbackError::Damaged("checksum does not match"));
        }
        match self.dtype {
            ResidualDtype::F32 => values.extend(self.block.as_chunks::<4>().0.iter().map(|w| f32::from_le_bytes(*w))),
            ResidualDtype::Bf16 => values.extend(
                self.block
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|w| f32::from_bits(u32::from(u16::from_le_bytes(*w)) << 16)),
            ),
        }
        // The writer stores none, so a checksum over one was made by another program.
        if !values.iter().all(|value| value.is_finite()) {
            return Err(FeedbackError::Damaged("a value is not finite"));
        }
        self.position += len as u64;
        Ok(Some(start))
    }
}

fn read_exact(source: &mut impl Read, into: &mut [u8]) -> Result<(), FeedbackError> {
    source.read_exact(into).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => FeedbackError::Damaged("too short"),
        _ => FeedbackError::reading(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rounding_should_go_to_a_neighbour(value in any::<f32>().prop_filter("finite", |v| v.is_finite()), word in any::<u16>()) {
            let rounded = f32::from_bits(u32::from(round(value, word)) << 16);
            prop_assert!(rounded.is_finite());
            prop_assert_eq!(rounded.is_sign_negative(), value.is_sign_negative());
            let below = f32::from_bits(value.to_bits() & 0xffff_0000);
            prop_assert!(rounded == below || rounded.to_bits() == below.to_bits() + 0x1_0000);
            prop_assert_eq!(f32::from_bits(u32::from(round(below, word)) << 16), below, "what fits is not moved");
        }
    }

    #[test]
    fn rounding_should_be_unbiased() {
        // 1 + 1/512 lies a quarter of the way from 1 to the next bfloat16, 1 + 1/128.
        for (value, fraction) in [(1.0f32 + 1.0 / 512.0, 0.25), (-(1.0f32 + 3.0 / 512.0), 0.75)] {
            let draws = 100_000u64;
            let moved = (0..draws)
                .filter(|index| round(value, word(3, *index)) & 1 == 1)
                .count();
            // Standard error: √(0.25 · 0.75 / 100,000) = 0.0014.
            assert!((moved as f64 / draws as f64 - fraction).abs() < 0.007, "{moved}");
        }
        assert_eq!(round(f32::MAX, u16::MAX), 0x7f7f);
        assert_eq!(round(f32::MIN, u16::MAX), 0xff7f);
    }
}
