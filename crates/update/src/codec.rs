//! The wire format of an update (`docs/spec/update.md`).

use crate::bits::BitReader;
use crate::error::{DecodeError, Place};
use crate::layout::Layout;
use crate::levels::{Levels, scale};
use crate::rate::{CountForm, explicit_bits};
use crate::rice::{self, Gap};
use crate::sparse::{Header, Update};
use alice_spec::UpdateSpec;

/// First bytes of an update: format and version.
pub const MAGIC: &[u8; 4] = b"ALU1";
/// Bytes before the chunks: magic, run hash, epoch, base root, base count.
pub const HEADER_BYTES: usize = 4 + 32 + 4 + 32 + 4;

/// Decodes an update, or says what is wrong with it. Memory is bounded by the layout and by the length of the bytes;
/// exactly one sequence of bytes decodes to a given header, base count and set of entries.
///
/// Whether run, epoch and base root are the round's is the caller's check.
pub fn decode(layout: &Layout, spec: &UpdateSpec, bytes: &[u8]) -> Result<Update, DecodeError> {
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
    let (header, base, body) = read_header(bytes)?;
    if base > spec.k_max {
        return Err(DecodeError::BaseCount {
            max: spec.k_max,
            found: base,
        });
    }
    // Each entry takes at least one bit for its gap besides its value.
    let entries_max = (body.len() * 8 / (1 + levels.bits() as usize)).min(layout.covered().len());
    let mut update = Update {
        header,
        indices: Vec::with_capacity(entries_max),
        values: Vec::with_capacity(entries_max),
    };
    let mut reader = BitReader::new(body);
    for (chunk, range) in layout.chunks().enumerate() {
        let place = Place::Chunk(chunk);
        let truncated = DecodeError::Truncated { what: place };
        let len = range.len() as u32;
        let count = read_count(
            &mut reader,
            layout.share(base, len),
            layout.share(spec.k_max, len),
            place,
        )?;
        if count == 0 {
            continue;
        }
        let chunk_scale = scale(reader.read(8).ok_or_else(|| truncated.clone())? as u8);
        let parameter = rice::parameter(len, count);
        let mut next = 0u32;
        for _ in 0..count {
            let position = match rice::read_gap(&mut reader, parameter, len - next) {
                Gap::Value(gap) => next + gap,
                Gap::TooLarge => return Err(DecodeError::Index { place, len }),
                Gap::Truncated => return Err(truncated),
            };
            let code = reader.read(levels.bits()).ok_or_else(|| truncated.clone())?;
            update.indices.push(range.start as u64 + u64::from(position));
            update.values.push(levels.value(chunk_scale, code));
            next = position + 1;
        }
    }
    reader.finish()?;
    Ok(update)
}

/// Reads the count of a chunk whose share of the base count is `base` and of `k_max` is `cap`.
fn read_count(reader: &mut BitReader<'_>, base: u32, cap: u32, place: Place) -> Result<u32, DecodeError> {
    let truncated = || DecodeError::Truncated { what: place };
    if reader.read(1).ok_or_else(truncated)? == 0 {
        return Ok(base);
    }
    if reader.read(1).ok_or_else(truncated)? == 0 {
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
        _ => Err(DecodeError::CountForm { place, found: count }),
    }
}

pub(crate) fn header_bytes(header: &Header, base: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&header.run_hash);
    bytes.extend_from_slice(&header.epoch.to_le_bytes());
    bytes.extend_from_slice(&header.base_root);
    bytes.extend_from_slice(&base.to_le_bytes());
    bytes
}

fn read_header(bytes: &[u8]) -> Result<(Header, u32, &[u8]), DecodeError> {
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
        rest,
    ))
}
