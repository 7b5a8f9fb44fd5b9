//! Error feedback in two phases (docs/spec/protocol.md#error-feedback): what was sent leaves the residual at commit,
//! but is kept aside until the verdict; only *accepted* lets go of it.
//!
//! The state has two parts. The [`PendingUpdates`] is small: the updates that wait. The residual has a value for each parameter
//! and may be larger than memory: it is read and written as a stream ([`ResidualReader`], [`ResidualWriter`]), once for
//! each commit and never for a verdict. The ledger names the generation of the residual that it belongs to. Whoever
//! stores them writes the new residual beside the old one, syncs it, and then replaces the ledger by renaming: that is
//! the instant at which the new state counts, and before it the old state is whole.

use crate::error::FeedbackError;
use crate::residual::{ResidualDtype, ResidualReader, ResidualWriter};
use crate::sparse::{Update, add_scaled};
use alice_primitives::tagged_hash;
use std::io::Read;
use std::ops::Range;

/// Updates that may wait for a verdict. When one more is committed, the oldest is treated as refused: no verdict is not
/// an acceptance.
pub const PENDING_MAX: usize = 64;
/// Entries that may wait in all updates together (12 bytes each); beyond it the oldest update is treated as refused. The
/// newest always waits.
pub const PENDING_ENTRIES_MAX: u64 = 1 << 27;

const MAGIC: &[u8; 4] = b"ALF2";
const TAG: &str = "alice/feedback/v2";

/// The small part of the state: what was sent and has no verdict, and what came back since the last commit.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingUpdates {
    covered: Range<u64>,
    generation: u64,
    /// Oldest first.
    pending: Vec<PendingUpdate>,
}

#[derive(Clone, Debug, PartialEq)]
struct PendingUpdate {
    id: [u8; 32],
    /// Whether it was refused: it belongs to the residual, into which the next commit folds it.
    returned: bool,
    indices: Vec<u64>,
    values: Vec<f32>,
}

/// Marks as come back what waits beyond so many updates or entries, counted from the newest, which always waits.
fn give_up_oldest(pending: &mut [PendingUpdate], updates_max: usize, entries_max: u64) {
    let (mut updates, mut entries) = (0, 0u64);
    for (age, pending) in pending.iter_mut().rev().enumerate() {
        updates += 1;
        entries = entries.saturating_add(pending.indices.len() as u64);
        pending.returned = age > 0 && (updates > updates_max || entries > entries_max);
    }
}

impl PendingUpdates {
    /// Nothing was sent, and the residual is zero. `covered` are the coordinates of the residual:
    /// [`Layout::covered`](crate::Layout::covered).
    pub fn new(covered: Range<usize>) -> Self {
        Self {
            covered: covered.start as u64..covered.end.max(covered.start) as u64,
            generation: 0,
            pending: Vec::new(),
        }
    }

    /// Coordinates of the residual in the model's flat vector.
    pub fn covered(&self) -> Range<u64> {
        self.covered.clone()
    }

    /// Number of commits since the residual was zero; the residual that belongs to this ledger has the same number. Residual
    /// 0 is zero and is stored nowhere.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Submissions that wait for a verdict, oldest first.
    pub fn pending(&self) -> Vec<[u8; 32]> {
        let waiting = self.pending.iter().filter(|pending| !pending.returned);
        waiting.map(|pending| pending.id).collect()
    }

    /// The verdict is *accepted*: what was sent is settled. Unknown ids are ignored.
    pub fn accepted(&mut self, id: [u8; 32]) {
        self.pending.retain(|pending| pending.id != id || pending.returned);
    }

    /// The verdict is another one, or there will be none: what was sent returns to the residual, which is then as if it
    /// had never been sent. Unknown ids are ignored.
    pub fn refused(&mut self, id: [u8; 32]) {
        let waiting = self.pending.iter_mut().filter(|pending| pending.id == id);
        waiting.for_each(|pending| pending.returned = true);
    }

    /// The same updates wait, but the residual is lost: it is zero from here on.
    pub fn without_residual(&self) -> Self {
        Self {
            generation: 0,
            ..self.clone()
        }
    }

    /// `residual += what came back`, for the coordinates from `start` on.
    fn fold(&self, start: u64, residual: &mut [f32]) {
        for pending in self.pending.iter().filter(|pending| pending.returned) {
            add_scaled(&pending.indices, &pending.values, start, residual, 1.0);
        }
    }

    /// The ledger after submission `id` was committed, which sent `sent`: what waits decays like the residual, what came
    /// back is in the residual now. Committing the same id again replaces what waits under it.
    pub fn committed(&self, id: [u8; 32], sent: &Update, decay: f32) -> Self {
        let waiting = |pending: &&PendingUpdate| !pending.returned && pending.id != id;
        let mut pending: Vec<PendingUpdate> = self.pending.iter().filter(waiting).cloned().collect();
        pending.push(PendingUpdate {
            id,
            returned: false,
            indices: sent.indices.clone(),
            values: sent.values.clone(),
        });
        for value in pending.iter_mut().flat_map(|pending| pending.values.iter_mut()) {
            *value *= decay;
        }
        give_up_oldest(&mut pending, PENDING_MAX, PENDING_ENTRIES_MAX);
        Self {
            covered: self.covered.clone(),
            generation: self.generation.saturating_add(1),
            pending,
        }
    }

    /// Streams d + residual block by block. `stored` is the residual of this ledger's generation (none: zero, which only
    /// generation 0 may have). `d` fills a block with the pseudo-gradient from the given coordinate on; `take` gets the
    /// sums.
    pub fn combine<R: Read, E: From<FeedbackError>>(
        &self,
        stored: Option<R>,
        mut d: impl FnMut(u64, &mut [f32]) -> Result<(), E>,
        mut take: impl FnMut(u64, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut reader = ResidualReader::open(stored, self.covered(), self.generation)?;
        let (mut sum, mut residual) = (Vec::new(), Vec::new());
        while let Some(start) = reader.next_block(&mut residual)? {
            self.fold(start, &mut residual);
            sum.clear();
            sum.resize(residual.len(), 0.0);
            d(start, &mut sum)?;
            add(&mut sum, &residual);
            take(start, &mut sum)?;
        }
        Ok(())
    }

    /// Writes the residual after the commit of `sent`, which was encoded from what [`PendingUpdates::combine`] gave with the same
    /// `stored` and the same `d`; `next` is what [`PendingUpdates::committed`] gave. On any error the old state is the valid one,
    /// and what was written is to be thrown away.
    pub fn store<R: Read, W: std::io::Write, E: From<FeedbackError>>(
        &self,
        next: &PendingUpdates,
        stored: Option<R>,
        d: impl FnMut(u64, &mut [f32]) -> Result<(), E>,
        (sent, decay): (&Update, f32),
        precision: ResidualDtype,
        target: W,
    ) -> Result<W, E> {
        let mut writer = ResidualWriter::create(target, next.covered(), next.generation, precision)?;
        self.combine(stored, d, |start, combined| {
            remainder(start, combined, sent, decay);
            Ok(writer.push(combined)?)
        })?;
        Ok(writer.finish()?)
    }

    /// For the disk, with a checksum at the end.
    pub fn to_bytes(&self) -> Vec<u8> {
        let entries: usize = self.pending.iter().map(|pending| pending.indices.len()).sum();
        let mut bytes = Vec::with_capacity(64 + self.pending.len() * 41 + entries * 12);
        bytes.extend_from_slice(MAGIC);
        for number in [self.covered.start, self.covered.end, self.generation] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&(self.pending.len() as u32).to_le_bytes());
        for pending in &self.pending {
            bytes.extend_from_slice(&pending.id);
            bytes.push(u8::from(pending.returned));
            bytes.extend_from_slice(&(pending.indices.len() as u64).to_le_bytes());
            bytes.extend(pending.indices.iter().flat_map(|index| index.to_le_bytes()));
            bytes.extend(pending.values.iter().flat_map(|value| value.to_le_bytes()));
        }
        let checksum = tagged_hash(TAG, &[&bytes]);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    /// Reads what [`PendingUpdates::to_bytes`] wrote for a residual of these coordinates.
    pub fn from_bytes(bytes: &[u8], covered: Range<usize>) -> Result<Self, FeedbackError> {
        let damaged = FeedbackError::Damaged;
        let mut reader = Fields { rest: bytes };
        if reader.array::<4>()? != MAGIC {
            return Err(damaged("not of this program, or of another version"));
        }
        let found = reader.u64()?..reader.u64()?;
        let generation = reader.u64()?;
        let count = u32::from_le_bytes(*reader.array()?) as usize;
        // What waits, and what was pushed out of it.
        if count > PENDING_MAX + 1 {
            return Err(damaged("too many pending updates"));
        }
        let mut pending = Vec::with_capacity(count);
        for _ in 0..count {
            let id = *reader.array()?;
            let [returned] = *reader.array::<1>()?;
            let entries = usize::try_from(reader.u64()?).map_err(|_| damaged("too short"))?;
            let indices: Vec<u64> = reader
                .words::<8>(entries)?
                .iter()
                .map(|w| u64::from_le_bytes(*w))
                .collect();
            let values: Vec<f32> = reader
                .words::<4>(entries)?
                .iter()
                .map(|w| f32::from_le_bytes(*w))
                .collect();
            let inside = indices.first().is_none_or(|first| *first >= found.start)
                && indices.last().is_none_or(|last| *last < found.end);
            if !indices.is_sorted_by(|a, b| a < b) || !inside || returned > 1 {
                return Err(damaged("pending entries are out of order"));
            }
            if !values.iter().all(|value| value.is_finite()) {
                return Err(damaged("a value is not finite"));
            }
            pending.push(PendingUpdate {
                id,
                returned: returned == 1,
                indices,
                values,
            });
        }
        let body = bytes.len() - reader.rest.len();
        let checksum = reader.array::<32>()?;
        if tagged_hash(TAG, &[bytes.get(..body).unwrap_or_default()]) != *checksum {
            return Err(damaged("checksum does not match"));
        }
        if !reader.rest.is_empty() {
            return Err(damaged("too long"));
        }
        let expected = covered.start as u64..covered.end as u64;
        if found != expected {
            return Err(FeedbackError::Length { expected, found });
        }
        Ok(Self {
            covered: found,
            generation,
            pending,
        })
    }
}

/// `sum += residual`.
fn add(sum: &mut [f32], residual: &[f32]) {
    for (sum, residual) in sum.iter_mut().zip(residual) {
        *sum += residual;
    }
}

/// `combined = decay · (combined − sent)` for the coordinates from `start` on. Values that are not finite become zero,
/// so that one diverged task cannot poison all later ones.
fn remainder(start: u64, combined: &mut [f32], sent: &Update, decay: f32) {
    sent.add_scaled_at(start, combined, -1.0);
    for value in combined {
        *value *= decay;
        if !value.is_finite() {
            *value = 0.0;
        }
    }
}

/// The whole state in memory, where many miners live in one process (the simulation, the lab): what a miner still owes the
/// model, the part of its pseudo-gradients that no accepted update has carried. On a disk it is a [`PendingUpdates`] and a stream.
#[derive(Clone, Debug)]
pub struct ErrorFeedback {
    ledger: PendingUpdates,
    residual: Vec<f32>,
}

impl ErrorFeedback {
    /// A zero residual for the coordinates `covered` of the model: [`Layout::covered`](crate::Layout::covered) of the
    /// whole model or of a fragment.
    pub fn new(covered: Range<usize>) -> Self {
        Self {
            residual: vec![0.0; covered.len()],
            ledger: PendingUpdates::new(covered),
        }
    }

    /// The residual, one value for each covered coordinate.
    pub fn residual(&self) -> &[f32] {
        &self.residual
    }

    /// d + residual: what to encode. `d` has a value for each covered coordinate; values beyond the residual's length are
    /// dropped, missing ones are zero.
    pub fn combine(&self, d: &[f32]) -> Vec<f32> {
        let mut sum = d.to_vec();
        sum.resize(self.residual.len(), 0.0);
        add(&mut sum, &self.residual);
        sum
    }

    /// After submission `id` was committed: residual = decay · (combined − sent), and what was sent waits, decaying
    /// like the residual, for its verdict. Committing the same id again replaces what waits under it.
    ///
    /// Values that are not finite leave a zero residual, so that one diverged task cannot poison all later ones.
    pub fn commit(&mut self, id: [u8; 32], combined: Vec<f32>, sent: &Update, decay: f32) {
        let total = self.residual.len();
        self.residual = combined;
        self.residual.resize(total, 0.0);
        remainder(self.ledger.covered.start, &mut self.residual, sent, decay);
        self.ledger = self.ledger.committed(id, sent, decay);
        self.fold();
    }

    /// The verdict is *accepted*: what was sent is settled. Unknown ids are ignored.
    pub fn accepted(&mut self, id: [u8; 32]) {
        self.ledger.accepted(id);
    }

    /// The verdict is another one, or there will be none: what was sent returns to the residual, which is then as if it
    /// had never been sent. Unknown ids are ignored.
    pub fn refused(&mut self, id: [u8; 32]) {
        self.ledger.refused(id);
        self.fold();
    }

    /// Submissions that wait for a verdict, oldest first.
    pub fn pending(&self) -> Vec<[u8; 32]> {
        self.ledger.pending()
    }

    fn fold(&mut self) {
        self.ledger.fold(self.ledger.covered.start, &mut self.residual);
        self.ledger.pending.retain(|pending| !pending.returned);
    }
}

struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], FeedbackError> {
        let split = self.rest.split_first_chunk();
        let (head, rest) = split.ok_or(FeedbackError::Damaged("too short"))?;
        self.rest = rest;
        Ok(head)
    }

    fn u64(&mut self) -> Result<u64, FeedbackError> {
        Ok(u64::from_le_bytes(*self.array()?))
    }

    /// `count` words of N bytes; nothing is allocated before they are known to be there.
    fn words<const N: usize>(&mut self, count: usize) -> Result<&'a [[u8; N]], FeedbackError> {
        let split = count.checked_mul(N).and_then(|bytes| self.rest.split_at_checked(bytes));
        let (head, rest) = split.ok_or(FeedbackError::Damaged("too short"))?;
        self.rest = rest;
        Ok(head.as_chunks().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_should_be_given_up_beyond_so_many_updates_or_entries() {
        let waiting = |entries: &[usize], updates_max, entries_max| -> Vec<bool> {
            let of = |n: &usize| PendingUpdate {
                id: [0; 32],
                returned: false,
                indices: vec![0; *n],
                values: vec![0.0; *n],
            };
            let mut pending: Vec<PendingUpdate> = entries.iter().map(of).collect();
            give_up_oldest(&mut pending, updates_max, entries_max);
            pending.iter().map(|pending| !pending.returned).collect()
        };
        assert_eq!(waiting(&[3, 3, 3], 3, 9), [true, true, true]);
        assert_eq!(waiting(&[3, 3, 3], 2, 9), [false, true, true]);
        assert_eq!(waiting(&[3, 3, 3], 3, 8), [false, true, true]);
        assert_eq!(waiting(&[1, 8, 3], 3, 10), [false, false, true]);
        // The newest waits, however large it is.
        assert_eq!(waiting(&[3, 20], 3, 10), [false, true]);
    }
}
