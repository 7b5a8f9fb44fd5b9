//! A walk over the entries of an encoded vector, chunk by chunk: the part that updates and published aggregates share.
//!
//! The bytes are outside data. A walk allocates nothing by itself, never reads beyond the end, and checks every count
//! and position against the layout before it uses it. [`Walk::check`] goes through all of them once; after that
//! [`Walk::checked`] may be used without errors.

use crate::bits::BitReader;
use crate::error::{DecodeError, Place};
use crate::layout::{Chunks, Layout};
use crate::rice::{self, Gap};

/// The parts in which the two formats differ.
pub(crate) trait Format: Copy {
    /// Reads the number of entries of a chunk of `len` coordinates.
    fn count(self, layout: &Layout, reader: &mut BitReader<'_>, len: u32, place: Place) -> Result<u32, DecodeError>;

    /// Scale of a code.
    fn scale(self, code: u8) -> f32;

    /// Bits of a value's code.
    fn bits(self) -> u32;

    /// Value of a code.
    fn value(self, scale: f32, code: u32) -> f32;
}

pub(crate) struct Walk<'a, F> {
    format: F,
    layout: &'a Layout,
    chunks: std::iter::Enumerate<Chunks<'a>>,
    reader: BitReader<'a>,
    chunk: Open,
}

/// Position of a walk inside a chunk.
#[derive(Clone, Copy, Default)]
struct Open {
    number: usize,
    start: u64,
    len: u32,
    /// Entries that have not been read.
    remaining: u32,
    scale: f32,
    /// Rice parameter of its gaps.
    parameter: u32,
    /// Position after the last entry.
    next: u32,
}

impl<'a, F: Format> Walk<'a, F> {
    /// A walk over the bit stream after the header.
    pub(crate) fn new(format: F, layout: &'a Layout, body: &'a [u8]) -> Self {
        Self {
            format,
            layout,
            chunks: layout.chunks().enumerate(),
            reader: BitReader::new(body),
            chunk: Open::default(),
        }
    }

    /// The next entry, (index in the whole model's flat vector, value); `None` after the last one.
    #[inline]
    pub(crate) fn entry(&mut self) -> Result<Option<(u64, f32)>, DecodeError> {
        while self.chunk.remaining == 0 {
            if !self.open()? {
                return Ok(None);
            }
        }
        let Self { reader, chunk, .. } = self;
        let place = Place::Chunk(chunk.number);
        // The gap is bounded by the rest of the chunk, so positions ascend and stay inside of it.
        let position = match rice::read_gap(reader, chunk.parameter, chunk.len - chunk.next) {
            Gap::Value(gap) => chunk.next + gap,
            Gap::TooLarge => return Err(DecodeError::Index { place, len: chunk.len }),
            Gap::Truncated => return Err(DecodeError::Truncated { what: place }),
        };
        let bits = self.format.bits();
        let code = reader.read(bits).ok_or(DecodeError::Truncated { what: place })?;
        chunk.next = position + 1;
        chunk.remaining -= 1;
        Ok(Some((
            chunk.start + u64::from(position),
            self.format.value(chunk.scale, code),
        )))
    }

    /// Opens the next chunk; false after the last one.
    fn open(&mut self) -> Result<bool, DecodeError> {
        let Some((number, range)) = self.chunks.next() else {
            return Ok(false);
        };
        let (place, len) = (Place::Chunk(number), range.len() as u32);
        let count = self.format.count(self.layout, &mut self.reader, len, place)?;
        self.chunk = Open {
            number,
            start: range.start as u64,
            len,
            remaining: count,
            ..Open::default()
        };
        // Chunks without entries have no scale.
        if count > 0 {
            let code = self.reader.read(8).ok_or(DecodeError::Truncated { what: place })?;
            self.chunk.scale = self.format.scale(code as u8);
            self.chunk.parameter = rice::parameter(len, count);
        }
        Ok(true)
    }

    /// Walks to the end, checks everything and returns the number of entries.
    pub(crate) fn check(mut self) -> Result<usize, DecodeError> {
        let mut entries = 0;
        while self.entry()?.is_some() {
            entries += 1;
        }
        self.reader.finish()?;
        Ok(entries)
    }

    /// All entries, (indices, values).
    pub(crate) fn collect(mut self) -> Result<(Vec<u64>, Vec<f32>), DecodeError> {
        // An entry takes at least its value's bits and one for its gap, so the bytes bound what is allocated.
        let by_bits = self.reader.bits_left() / (1 + self.format.bits() as usize);
        let entries_max = by_bits.min(self.layout.covered().len());
        let (mut indices, mut values) = (Vec::with_capacity(entries_max), Vec::with_capacity(entries_max));
        while let Some((index, value)) = self.entry()? {
            indices.push(index);
            values.push(value);
        }
        self.reader.finish()?;
        Ok((indices, values))
    }

    /// Entries of bytes that [`Walk::check`] has passed. A defect cannot occur; it would end the iterator.
    pub(crate) fn checked(mut self) -> impl Iterator<Item = (u64, f32)> + use<'a, F> {
        std::iter::from_fn(move || self.entry().ok().flatten())
    }
}
