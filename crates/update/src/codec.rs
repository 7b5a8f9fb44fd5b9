//! Wire format of an update (`docs/spec/update.md`): a header of 76 bytes, then a bit stream of chunks.
//!
//! **Architecture invariant:** the format is canonical. Exactly one sequence of bytes decodes to a given header, base
//! count and set of entries: counts have one shortest form, padding is zero, nothing follows the last entry. So the
//! hash of the bytes identifies the update, and nobody can submit the same update twice under two hashes.

use crate::bits::BitReader;
use crate::error::{DecodeError, Place};
use crate::layout::Layout;
use crate::quantizer::{Levels, scale};
use crate::rate::{CountForm, explicit_bits};
use crate::sparse::{Entries, Header, Update};
use crate::walk::{Format, Walk};
use alice_spec::UpdateSpec;

/// First bytes of an update: format and version.
pub const MAGIC: &[u8; 4] = b"ALU1";
/// Bytes before the chunks: magic, run hash, epoch, base root, base count.
pub const HEADER_BYTES: usize = 4 + 32 + 4 + 32 + 4;

/// Decodes an update. Memory is bounded by the layout and by the length of the bytes.
///
/// The caller checks whether run, epoch and base root are those of the round.
///
/// ```
/// use alice_spec::UpdateSpec;
/// use alice_update::{Header, Layout, decode, encode};
///
/// let spec = UpdateSpec {
///     chunk: 64,
///     budget_bytes: 100,
///     value_bits: 2,
///     k_max: 8,
///     feedback_decay: 0.95,
///     publish_bits: 8,
/// };
/// let layout = Layout::new(&[64], spec.chunk);
/// let mut values = vec![0.0f32; 64];
/// (values[3], values[40]) = (0.5, -0.25);
/// let encoded = encode(&layout, &spec, &Header::default(), &values)?;
///
/// let update = decode(&layout, &spec, &encoded.bytes).unwrap();
/// assert_eq!(update, encoded.sent);
/// assert_eq!(update.indices, [3, 40]);
/// assert!(decode(&layout, &spec, &encoded.bytes[1..]).is_err());
/// # Ok::<(), alice_update::EncodeError>(())
/// ```
pub fn decode(layout: &Layout, spec: &UpdateSpec, bytes: &[u8]) -> Result<Update, DecodeError> {
    let (header, format) = open(layout, spec, bytes)?;
    let (indices, values) = Walk::new(format, layout, body(bytes)).collect()?;
    Ok(Update {
        header,
        indices,
        values,
    })
}

/// An update as it was received, checked from end to end. Its entries are decoded as they are walked: whoever scores a
/// round holds all of its updates at once, and decoded they take seven to ten times the memory.
#[derive(Clone, Debug)]
pub struct EncodedUpdate {
    header: Header,
    format: UpdateFormat,
    layout: Layout,
    bytes: Vec<u8>,
    entries: usize,
}

impl EncodedUpdate {
    /// Checks all of `bytes`; errors are those of [`decode`].
    pub fn check(layout: &Layout, spec: &UpdateSpec, bytes: Vec<u8>) -> Result<Self, DecodeError> {
        let (header, format) = open(layout, spec, &bytes)?;
        let entries = Walk::new(format, layout, body(&bytes)).check()?;
        Ok(Self {
            header,
            format,
            layout: layout.clone(),
            bytes,
            entries,
        })
    }

    /// Header of the update.
    pub fn header(&self) -> &Header {
        &self.header
    }
}

impl Entries for EncodedUpdate {
    fn entries(&self) -> impl Iterator<Item = (u64, f32)> {
        Walk::new(self.format, &self.layout, body(&self.bytes)).checked()
    }

    fn count(&self) -> usize {
        self.entries
    }
}

/// The format of an encoded update.
#[derive(Clone, Copy, Debug)]
struct UpdateFormat {
    levels: Levels,
    base: u32,
    k_max: u32,
}

impl Format for UpdateFormat {
    fn count(self, layout: &Layout, reader: &mut BitReader<'_>, len: u32, place: Place) -> Result<u32, DecodeError> {
        read_count(
            reader,
            layout.share(self.base, len),
            layout.share(self.k_max, len),
            place,
        )
    }

    fn scale(self, code: u8) -> f32 {
        scale(code)
    }

    #[inline]
    fn bits(self) -> u32 {
        self.levels.bits()
    }

    #[inline]
    fn value(self, scale: f32, code: u32) -> f32 {
        self.levels.value(scale, code)
    }
}

/// Reads the header and checks everything before the chunks.
fn open(layout: &Layout, spec: &UpdateSpec, bytes: &[u8]) -> Result<(Header, UpdateFormat), DecodeError> {
    // First, because it needs no parsing and bounds the work of everything after it.
    if bytes.len() as u64 > spec.budget_bytes {
        return Err(DecodeError::TooLong {
            budget_bytes: spec.budget_bytes,
            found: bytes.len(),
        });
    }
    if !layout.is_addressable() {
        return Err(DecodeError::Parameters(layout.total()));
    }
    let levels = Levels::new(spec.value_bits).ok_or(DecodeError::ValueBits(spec.value_bits))?;
    let (header, base) = read_header(bytes)?;
    let k_max = spec.k_max;
    // The form of the base count is read without comparing it with a chunk's maximum, so it must be within it here.
    if base > k_max {
        return Err(DecodeError::BaseCount {
            max: k_max,
            found: base,
        });
    }
    Ok((header, UpdateFormat { levels, base, k_max }))
}

/// The bit stream after the header.
fn body(bytes: &[u8]) -> &[u8] {
    bytes.get(HEADER_BYTES..).unwrap_or_default()
}

/// Reads the count of a chunk whose share of the base count is `base` and of `k_max` is `cap`.
fn read_count(reader: &mut BitReader<'_>, base: u32, cap: u32, place: Place) -> Result<u32, DecodeError> {
    let truncated = || DecodeError::Truncated { what: place };
    if reader.read(1).ok_or_else(truncated)? == 0 {
        return Ok(base);
    }
    if reader.read(1).ok_or_else(truncated)? == 0 {
        // The form means base + 1, which must be possible.
        return if base < cap {
            Ok(base + 1)
        } else {
            Err(DecodeError::Count {
                place,
                max: cap,
                found: base + 1,
            })
        };
    }
    let count = reader.read(explicit_bits(cap)).ok_or_else(truncated)?;
    if count > cap {
        return Err(DecodeError::Count {
            place,
            max: cap,
            found: count,
        });
    }
    match CountForm::of(count, base, cap) {
        CountForm::Explicit(_) => Ok(count),
        // A shorter form exists: a second encoding of the same update.
        _ => Err(DecodeError::CountForm { place, found: count }),
    }
}

/// The header as bytes, with the base count at its end.
pub(crate) fn header_bytes(header: &Header, base: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&header.run_hash);
    bytes.extend_from_slice(&header.epoch.to_le_bytes());
    bytes.extend_from_slice(&header.base_root);
    bytes.extend_from_slice(&base.to_le_bytes());
    bytes
}

/// Reads [`header_bytes`].
fn read_header(bytes: &[u8]) -> Result<(Header, u32), DecodeError> {
    fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], DecodeError> {
        let (head, tail) = rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Truncated { what: Place::Header })?;
        *rest = tail;
        Ok(head)
    }
    let mut rest = bytes;
    if take::<4>(&mut rest)? != MAGIC {
        return Err(DecodeError::Magic { expected: "ALU1" });
    }
    let run_hash = *take::<32>(&mut rest)?;
    let epoch = u32::from_le_bytes(*take::<4>(&mut rest)?);
    let base_root = *take::<32>(&mut rest)?;
    let base = u32::from_le_bytes(*take::<4>(&mut rest)?);
    Ok((
        Header {
            run_hash,
            epoch,
            base_root,
        },
        base,
    ))
}
