//! Wire format of the published aggregate D (docs/spec/protocol.md#published-aggregate, docs/spec/update.md): for each
//! chunk a count, a scale and signed levels, rounded stochastically.
//!
//! Rounding is unbiased: a value between two levels takes the upper one with the probability of its distance from the
//! lower one, so errors cancel over rounds instead of adding up. The draw for a coordinate is a word of a ChaCha20
//! stream at the coordinate's own index. It depends on the seed and the coordinate alone, so any part of D can be
//! checked by itself, in any order.

use crate::bits::{BitReader, BitWriter};
use crate::error::{DecodeError, Place};
use crate::layout::Layout;
use crate::quantizer::{ceil_code, scale};
use crate::rate::explicit_bits;
use crate::rice;
use crate::sparse::{Entries, Sparse};
use crate::walk::{Format, Walk};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use std::collections::BTreeMap;
use std::ops::Range;

/// First bytes: format and version.
const MAGIC: &[u8; 4] = b"ALD1";
/// Largest width of a level, bits, sign included.
const BITS_MAX: u8 = 8;

/// Scale of a published chunk: twice the table of an update's scales. Factors are at most 2, so a mean is at most twice
/// the largest scale of an update, and nothing that updates can produce is ever clipped.
fn published_scale(code: u8) -> f32 {
    2.0 * scale(code)
}

/// Encodes D. `bits` of a level (sign included) are brought into 1..=8; entries must ascend by index.
///
/// A value v on scale s lies at x = |v| · 2^(bits−1) / s (f64) between two levels. It takes the upper one with
/// probability x − ⌊x⌋, decided by the 32-bit word of the ChaCha20 stream keyed by `seed` at the coordinate's index.
/// Level 0 is left out, and so are entries that are zero, not finite or outside of the layout.
pub fn encode_aggregate(layout: &Layout, bits: u8, sparse: &impl Entries, seed: [u8; 32]) -> Vec<u8> {
    let bits = bits.clamp(1, BITS_MAX);
    let mut header = MAGIC.to_vec();
    header.push(bits);
    let mut writer = BitWriter::after(header);
    let mut words = Words::new(seed);
    let mut entries = sparse.entries().peekable();
    let mut chunk_entries: Vec<(u64, f32)> = Vec::new();
    let mut levels: Vec<(u32, u32)> = Vec::new();
    for range in layout.chunks() {
        chunk_entries.clear();
        while let Some((index, value)) = entries.next_if(|entry| (entry.0 as usize) < range.end) {
            if index as usize >= range.start && value.is_finite() {
                chunk_entries.push((index, value));
            }
        }
        let scale_code = round_chunk(&chunk_entries, &range, bits, &mut words, &mut levels);
        write_chunk(&mut writer, range.len() as u32, scale_code, bits, &levels);
    }
    writer.finish()
}

/// Rounds a chunk's entries to `levels` of (position in the chunk, level code); returns the code of their scale.
fn round_chunk(
    entries: &[(u64, f32)],
    range: &Range<usize>,
    bits: u8,
    words: &mut Words,
    levels: &mut Vec<(u32, u32)>,
) -> u8 {
    let levels_max = f64::from(1u32 << (bits - 1));
    let max = entries.iter().fold(0.0f32, |max, entry| max.max(entry.1.abs()));
    let scale_code = ceil_code(max / 2.0);
    let chunk_scale = f64::from(published_scale(scale_code));
    levels.clear();
    for &(index, value) in entries {
        let x = f64::from(value.abs()) * levels_max / chunk_scale;
        let floor = x.floor();
        // Word / 2^32 is uniform on [0, 1); both sides of the comparison are exact.
        let up = f64::from(words.at(index)) < (x - floor) * 4_294_967_296.0;
        let level = (floor + f64::from(u8::from(up))).min(levels_max) as u32;
        if level > 0 {
            let position = (index - range.start as u64) as u32;
            levels.push((position, (level - 1) << 1 | u32::from(value < 0.0)));
        }
    }
    scale_code
}

/// Writes a chunk of `len` coordinates: the count and, unless it is zero, the scale and the entries.
fn write_chunk(writer: &mut BitWriter, len: u32, scale_code: u8, bits: u8, levels: &[(u32, u32)]) {
    let count = levels.len() as u32;
    writer.write(count, explicit_bits(len));
    if count == 0 {
        return;
    }
    writer.write(u32::from(scale_code), 8);
    let parameter = rice::parameter(len, count);
    let mut next = 0u32;
    for &(position, level_code) in levels {
        rice::write_entry(writer, position - next, parameter, level_code, u32::from(bits));
        next = position + 1;
    }
}

/// Upper bound on the bytes of any D of a layout with levels of `bits`: a limit for whoever fetches one.
pub fn aggregate_bytes_max(layout: &Layout, bits: u8) -> u64 {
    let bits = u64::from(bits.clamp(1, BITS_MAX));
    let of_chunk = |len: u32| {
        let entries = (0..=len).map(|count| rice::gaps_bits_max(len, count) + u64::from(count) * bits);
        u64::from(explicit_bits(len)) + 8 + entries.max().unwrap_or(0)
    };
    // A layout has few different chunk lengths, and the maximum over all counts is slow.
    let mut known = BTreeMap::new();
    let chunks = layout.chunks().map(|range| {
        let len = range.len() as u32;
        *known.entry(len).or_insert_with(|| of_chunk(len))
    });
    MAGIC.len() as u64 + 1 + chunks.sum::<u64>().div_ceil(8)
}

/// Decodes D. Memory is bounded by the layout and by the length of the bytes.
pub fn decode_aggregate(layout: &Layout, bytes: &[u8]) -> Result<Sparse, DecodeError> {
    let (indices, values) = walk(layout, bytes)?.collect()?;
    Ok(Sparse { indices, values })
}

/// D as it is published, checked from end to end. Its entries are decoded as they are walked: decoded, D of a large
/// model takes several times the memory.
#[derive(Clone, Debug)]
pub struct EncodedAggregate {
    layout: Layout,
    bytes: Vec<u8>,
    entries: usize,
}

impl EncodedAggregate {
    /// Encodes like [`encode_aggregate`], and checks that the result decodes. An error is a bug of the encoder.
    pub fn encode(layout: &Layout, bits: u8, sparse: &impl Entries, seed: [u8; 32]) -> Result<Self, DecodeError> {
        Self::check(layout, encode_aggregate(layout, bits, sparse, seed))
    }

    /// Checks all of `bytes`; errors are those of [`decode_aggregate`].
    pub fn check(layout: &Layout, bytes: Vec<u8>) -> Result<Self, DecodeError> {
        let entries = walk(layout, &bytes)?.check()?;
        Ok(Self {
            layout: layout.clone(),
            bytes,
            entries,
        })
    }

    /// D, encoded.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Entries for EncodedAggregate {
    fn entries(&self) -> impl Iterator<Item = (u64, f32)> {
        // `check` has read the same header, so the error cannot occur.
        walk(&self.layout, &self.bytes).ok().into_iter().flat_map(Walk::checked)
    }

    fn count(&self) -> usize {
        self.entries
    }
}

/// The format of an encoded D.
#[derive(Clone, Copy)]
struct AggregateFormat {
    bits: u8,
    /// Largest level.
    levels: f32,
}

impl Format for AggregateFormat {
    fn count(self, _: &Layout, reader: &mut BitReader<'_>, len: u32, place: Place) -> Result<u32, DecodeError> {
        let count = reader.read(explicit_bits(len));
        match count.ok_or(DecodeError::Truncated { what: place })? {
            found if found > len => Err(DecodeError::Count { place, max: len, found }),
            count => Ok(count),
        }
    }

    fn scale(self, code: u8) -> f32 {
        published_scale(code)
    }

    #[inline]
    fn bits(self) -> u32 {
        self.bits.into()
    }

    #[inline]
    fn value(self, scale: f32, code: u32) -> f32 {
        // The fraction is exact; the product is the only rounding.
        let magnitude = scale * (((code >> 1) + 1) as f32 / self.levels);
        if code & 1 == 1 { -magnitude } else { magnitude }
    }
}

/// A walk over an encoded D.
fn walk<'a>(layout: &'a Layout, bytes: &'a [u8]) -> Result<Walk<'a, AggregateFormat>, DecodeError> {
    if !layout.is_addressable() {
        return Err(DecodeError::Parameters(layout.total()));
    }
    let body = bytes
        .strip_prefix(MAGIC.as_slice())
        .ok_or(DecodeError::Magic { expected: "ALD1" })?;
    let (&bits, body) = body
        .split_first()
        .ok_or(DecodeError::Truncated { what: Place::Header })?;
    if !(1..=BITS_MAX).contains(&bits) {
        return Err(DecodeError::ValueBits(bits));
    }
    let levels = (1u32 << (bits - 1)) as f32;
    Ok(Walk::new(AggregateFormat { bits, levels }, layout, body))
}

/// Words of a ChaCha20 stream by index. Four blocks are buffered, because coordinates ascend and the generator makes
/// four at once.
struct Words {
    stream: ChaCha20Rng,
    group: Option<u64>,
    words: [u32; WORDS],
}

/// Words of the buffer: four blocks of 16.
const WORDS: usize = 64;

impl Words {
    fn new(seed: [u8; 32]) -> Self {
        Self {
            stream: ChaCha20Rng::from_seed(seed),
            group: None,
            words: [0; WORDS],
        }
    }

    fn at(&mut self, index: u64) -> u32 {
        let group = index / WORDS as u64;
        if self.group != Some(group) {
            self.stream.set_word_pos(u128::from(group) * WORDS as u128);
            self.words.fill_with(|| self.stream.next_u32());
            self.group = Some(group);
        }
        self.words.get(index as usize % WORDS).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_should_be_the_stream_at_their_index() {
        let mut stream = ChaCha20Rng::from_seed([7; 32]);
        let all: Vec<u32> = (0..300).map(|_| stream.next_u32()).collect();
        let mut words = Words::new([7; 32]);
        for index in [299u64, 0, 1, 63, 64, 65, 17, 128, 298] {
            assert_eq!(words.at(index), all[index as usize]);
        }
    }

    #[test]
    fn stream_should_be_the_chacha20_of_the_specification() {
        // Zero key and nonce, blocks 0 and 1: RFC 8439, appendix A.1, test vectors 1 and 2.
        let mut words = Words::new([0; 32]);
        assert_eq!(
            [words.at(0), words.at(15), words.at(16)],
            [0xade0_b876, 0x8665_eeb2, 0xbee7_079f]
        );
    }
}
