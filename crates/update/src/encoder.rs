//! The encoder: from a stream of values to an update within a byte budget.
//!
//! The values d + residual may be larger than memory, so they come in any pieces, in the order of the flat vector. Each
//! complete chunk is reduced to its candidates at once ([`Selector`]) and forgotten. When all have come, rate control
//! decides how many candidates of each chunk are sent ([`RateControl`]), and they are written.
//!
//! **Architecture invariant:** the bytes depend on layout, specification, header and values alone: not on the pieces,
//! the number of threads or the machine. Whoever repeats a task gets the same update.

use crate::bits::BitWriter;
use crate::candidates::{Segment, Selector};
use crate::codec::{HEADER_BYTES, header_bytes};
use crate::error::EncodeError;
use crate::layout::{Chunks, Layout};
use crate::quantizer::{Levels, scale};
use crate::rate::{BitAllocation, CountForm, RateControl};
use crate::rice;
use crate::sparse::{Header, Update};
use crate::top_k::TopK;
use alice_spec::UpdateSpec;
use pulp::Arch;
use std::ops::Range;

/// Chunks whose candidates share a [`Segment`]; also the least work that is worth a thread.
const SEGMENT_CHUNKS: usize = 256;

/// An encoded update.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderOutput {
    /// The update as it is sent, at most `budget_bytes`.
    pub bytes: Vec<u8>,
    /// The update as the receiver decodes it, bit for bit.
    pub sent: Update,
    /// Its bits by purpose.
    pub bits: BitCount,
}

/// Bits of an update by purpose. The header and the padding of the last byte are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BitCount {
    /// Numbers of entries.
    pub counts: u64,
    /// Scales.
    pub scales: u64,
    /// Positions.
    pub positions: u64,
    /// Signs and levels.
    pub values: u64,
}

/// Encodes as much of `values` as fits the budget. The same input gives the same bytes on every machine.
///
/// `values` is d + residual, one value for each coordinate that the layout covers.
pub fn encode(
    layout: &Layout,
    spec: &UpdateSpec,
    header: &Header,
    values: &[f32],
) -> Result<EncoderOutput, EncodeError> {
    let mut encoder = Encoder::new(layout, spec)?;
    if values.len() != layout.covered().len() {
        return Err(encoder.length(values.len()));
    }
    encoder.push(values)?;
    encoder.finish(header)
}

/// Encodes an update whose values come piece by piece, in the order of the flat vector. Memory: six bytes for each
/// candidate (at most `k_max` in a full chunk), and one chunk.
///
/// ```
/// # use alice_spec::UpdateSpec;
/// # use alice_update::{Encoder, Header, Layout, decode};
/// # let (value_bits, feedback_decay, publish_bits) = (2, 1.0, 8);
/// # let spec = UpdateSpec { chunk: 64, budget_bytes: 100, value_bits, k_max: 8, feedback_decay, publish_bits };
/// let layout = Layout::new(&[100, 28], spec.chunk);
/// let mut encoder = Encoder::new(&layout, &spec)?.threads(2);
/// for tensor in [vec![0.25f32; 100], vec![-0.5; 28]] {
///     encoder.push(&tensor)?;
/// }
/// let encoded = encoder.finish(&Header::default())?;
/// assert_eq!(decode(&layout, &spec, &encoded.bytes).unwrap(), encoded.sent);
/// # Ok::<(), alice_update::EncodeError>(())
/// ```
pub struct Encoder<'a> {
    layout: &'a Layout,
    spec: &'a UpdateSpec,
    levels: Levels,
    threads: usize,
    /// Chunks after the current one.
    ahead: Chunks<'a>,
    current: Option<Range<usize>>,
    /// Values of the current chunk received so far.
    partial: Vec<f32>,
    received: usize,
    /// Selector of the calling thread; its threshold follows from chunk to chunk.
    selector: Selector,
    segments: Vec<Segment>,
    /// Chunks selected so far.
    chunks: u64,
    failed: Option<EncodeError>,
}

impl<'a> Encoder<'a> {
    /// Encoder for the coordinates that `layout` covers.
    pub fn new(layout: &'a Layout, spec: &'a UpdateSpec) -> Result<Self, EncodeError> {
        if !layout.is_addressable() {
            return Err(EncodeError::Parameters(layout.total()));
        }
        let mut ahead = layout.chunks();
        let levels = Levels::new(spec.value_bits).ok_or(EncodeError::ValueBits(spec.value_bits))?;
        Ok(Self {
            layout,
            spec,
            levels,
            selector: Selector::new(levels),
            threads: 1,
            current: ahead.next(),
            ahead,
            partial: Vec::new(),
            received: 0,
            segments: Vec::new(),
            chunks: 0,
            failed: None,
        })
    }

    /// Sets the maximum number of threads, used for pieces that are long enough. The result does not depend on it.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Takes the next values of d + residual. An error poisons the encoder; later calls return the same error.
    pub fn push(&mut self, values: &[f32]) -> Result<(), EncodeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.take(values);
        self.failed = result.clone().err();
        result
    }

    fn take(&mut self, mut values: &[f32]) -> Result<(), EncodeError> {
        // Before anything is taken: an encoder for another layout must not start selecting.
        let received = self.received.saturating_add(values.len());
        if received > self.layout.covered().len() {
            return Err(self.length(received));
        }
        self.received = received;
        if let (Some(range), false) = (&self.current, self.partial.is_empty()) {
            let missing = range.len() - self.partial.len();
            let (head, tail) = values.split_at(missing.min(values.len()));
            self.partial.extend_from_slice(head);
            values = tail;
            if self.partial.len() < range.len() {
                return Ok(());
            }
            // Taken out, so that `select` may borrow the encoder; put back to keep its capacity.
            let (start, chunk) = (range.start, std::mem::take(&mut self.partial));
            self.select(&[(start, &chunk)])?;
            self.partial = chunk;
            self.partial.clear();
            self.current = self.ahead.next();
        }
        // Complete chunks are selected where they are, without a copy: they are almost all of the gradient.
        let mut whole = Vec::new();
        while let Some(range) = &self.current {
            let Some((chunk, rest)) = values.split_at_checked(range.len()) else {
                break;
            };
            whole.push((range.start, chunk));
            values = rest;
            self.current = self.ahead.next();
        }
        self.select(&whole)?;
        self.partial.extend_from_slice(values);
        Ok(())
    }

    /// Selects the candidates of complete chunks, each with its start in the flat vector.
    fn select(&mut self, chunks: &[(usize, &[f32])]) -> Result<(), EncodeError> {
        self.chunks += chunks.len() as u64;
        let threads = self.threads.min(chunks.len().div_ceil(SEGMENT_CHUNKS));
        if threads <= 1 {
            // With the encoder's own selector, whose threshold fits from piece to piece.
            return select_part(self.layout, self.spec, &mut self.selector, chunks, &mut self.segments);
        }
        let (layout, spec, levels) = (self.layout, self.spec, self.levels);
        let parts = chunks.chunks(chunks.len().div_ceil(threads));
        let results: Vec<_> = std::thread::scope(|scope| {
            let spawned: Vec<_> = parts
                .map(|part| {
                    scope.spawn(move || {
                        let mut segments = Vec::new();
                        select_part(layout, spec, &mut Selector::new(levels), part, &mut segments).map(|()| segments)
                    })
                })
                .collect();
            let joined = spawned.into_iter().map(|thread| thread.join());
            joined
                .map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        // In the order of the chunks, whichever thread was first.
        for segments in results {
            self.segments.extend(segments?);
        }
        Ok(())
    }

    fn length(&self, found: usize) -> EncodeError {
        EncodeError::Length {
            expected: self.layout.covered().len(),
            found,
        }
    }

    /// Allocates the budget and writes the update.
    pub fn finish(self, header: &Header) -> Result<EncoderOutput, EncodeError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.received != self.layout.covered().len() {
            return Err(self.length(self.received));
        }
        if self.segments.iter().all(Segment::is_empty) {
            return Err(EncodeError::Zero);
        }
        let too_small = || EncodeError::Budget {
            budget_bytes: self.spec.budget_bytes,
            chunks: self.chunks,
        };
        let rate = RateControl {
            layout: self.layout,
            segments: &self.segments,
            chunks: self.chunks,
            levels: self.levels,
            k_max: self.spec.k_max,
        };
        let budget_bytes = self.spec.budget_bytes.checked_sub(HEADER_BYTES as u64);
        let budget_bits = budget_bytes.ok_or_else(too_small)?.saturating_mul(8);
        let allocation = rate.allocate(budget_bits).ok_or_else(too_small)?;
        let encoded = self.write(header, &allocation);
        // The counts of all chunks fitted, an entry did not: nothing would be sent.
        if encoded.sent.indices.is_empty() {
            return Err(too_small());
        }
        debug_assert!(encoded.bytes.len() as u64 <= self.spec.budget_bytes);
        Ok(encoded)
    }

    fn write(&self, header: &Header, allocation: &BitAllocation) -> EncoderOutput {
        let (levels, layout) = (self.levels, self.layout);
        let candidates = || self.segments.iter().flat_map(Segment::chunks);
        let entries = candidates()
            .zip(allocation.quotas())
            .map(|(candidates, quota)| candidates.positions.len().min(quota as usize))
            .sum();
        let mut sent = Update {
            header: *header,
            indices: Vec::with_capacity(entries),
            values: Vec::with_capacity(entries),
        };
        let mut bits = BitCount::default();
        let mut writer = BitWriter::after(header_bytes(header, allocation.base));
        let (arch, mut top_k, mut codes) = (Arch::new(), TopK::new(), Vec::new());
        for ((range, quota), candidates) in layout.chunks().zip(allocation.quotas()).zip(candidates()) {
            let len = range.len() as u32;
            let share = |count| layout.share(count, len);
            let best = top_k.best(candidates, share(quota));
            let count = best.positions.len() as u32;
            let form = CountForm::of(count, share(allocation.base), share(self.spec.k_max));
            write_count(&mut writer, count, form);
            bits.counts += u64::from(form.bits());
            // No entries, no scale: a chunk of zeros takes the bits of its count only.
            if count == 0 {
                continue;
            }
            let scale_code = levels.fit(arch, best.values);
            let chunk_scale = scale(scale_code);
            writer.write(u32::from(scale_code), 8);
            let parameter = rice::parameter(len, count);
            let start = range.start as u64;
            let indices = best.positions.iter().map(|position| start + u64::from(*position));
            sent.indices.extend(indices);
            // The sent values are made from the codes, as the receiver will: error feedback must subtract these exact
            // bits.
            levels.code_all(chunk_scale, best.values, &mut codes);
            sent.values
                .extend(codes.iter().map(|code| levels.value(chunk_scale, u32::from(*code))));
            let quotients = write_entries(&mut writer, parameter, levels, best.positions, &codes);
            bits.scales += 8;
            bits.positions += quotients + u64::from(count) * u64::from(1 + parameter);
            bits.values += u64::from(count) * u64::from(levels.bits());
        }
        EncoderOutput {
            bytes: writer.finish(),
            sent,
            bits,
        }
    }
}

/// Writes a chunk's number of entries.
fn write_count(writer: &mut BitWriter, count: u32, form: CountForm) {
    match form {
        CountForm::Base => writer.write(0b0, 1),
        CountForm::BasePlusOne => writer.write(0b01, 2),
        CountForm::Explicit(bits) => {
            writer.write(0b11, 2);
            writer.write(count, bits);
        }
    }
}

/// Writes a chunk's entries and returns the sum of the quotients of their gaps.
#[inline(never)]
fn write_entries(writer: &mut BitWriter, parameter: u32, levels: Levels, positions: &[u16], codes: &[u8]) -> u64 {
    let (mut next, mut quotients) = (0u32, 0u64);
    for (position, code) in positions.iter().zip(codes) {
        let gap = u32::from(*position) - next;
        rice::write_entry(writer, gap, parameter, u32::from(*code), levels.bits());
        quotients += u64::from(gap >> parameter);
        next = u32::from(*position) + 1;
    }
    quotients
}

/// Selects the candidates of consecutive chunks, a segment for each [`SEGMENT_CHUNKS`] of them.
fn select_part(
    layout: &Layout,
    spec: &UpdateSpec,
    selector: &mut Selector,
    chunks: &[(usize, &[f32])],
    segments: &mut Vec<Segment>,
) -> Result<(), EncodeError> {
    let mut ahead = chunks.iter().skip(1).map(|(_, values)| *values);
    for part in chunks.chunks(SEGMENT_CHUNKS) {
        let caps = part
            .iter()
            .map(|(_, values)| layout.share(spec.k_max, values.len() as u32) as usize);
        let mut segment = Segment::with_capacity(caps.sum());
        for (start, values) in part {
            let cap = layout.share(spec.k_max, values.len() as u32);
            selector
                .select(values, ahead.next().unwrap_or_default(), cap, &mut segment)
                .map_err(|at| EncodeError::NonFinite { index: start + at })?;
        }
        segment.shrink();
        segments.push(segment);
    }
    Ok(())
}
