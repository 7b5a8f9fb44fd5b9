//! Error feedback in two phases (docs/spec/protocol.md#error-feedback).
//!
//! Compression leaves something out of every update. The *residual* remembers it, one value for each parameter, and
//! adds it to the next update, so that nothing is lost, only late. But an update may be refused, and then the network
//! has none of it. So error feedback has two phases:
//!
//! 1. **Commit**: `residual = β · (d + residual − sent)`. The sent entries leave the residual and become *pending*.
//! 2. **Verdict**: *accepted* drops the pending update; anything else, and no verdict at all, returns it to the
//!    residual, which is then as if the update had never been sent.
//!
//! Pending values decay by β at each commit, as they would have in the residual.
//!
//! **Format.** The state has two parts. [`PendingUpdates`], the *ledger*, is small: the updates without a verdict, in
//! one file with a checksum (`ALF2`). The residual may be larger than memory: it is read and written as a stream
//! ([`ResidualReader`], [`ResidualWriter`]), once for each commit and never for a verdict. Returned updates stay in the
//! ledger, marked, until the next commit adds them to the residual on its way.
//!
//! **Invariant.** The ledger names the generation of the residual that it belongs to; a residual of another generation
//! is refused. Whoever stores them writes the new residual next to the old one, syncs it, and then replaces the ledger
//! by renaming. The rename is the instant at which the new state counts; until then the old state is complete.
//!
//! **Bounds.** Pending updates are bounded in number and in entries ([`PENDING_MAX`], [`PENDING_ENTRIES_MAX`]): a
//! server that never answers must not fill a miner's memory. Values that are not finite become zero, so one diverged
//! task cannot poison all later ones.
//!
//! [`ErrorFeedback`] is the same state in memory, for many miners in one process.

use crate::error::FeedbackError;
use crate::residual::{ResidualDtype, ResidualReader, ResidualWriter};
use crate::sparse::{Update, add_scaled};
use alice_primitives::tagged_hash;
use std::io::Read;
use std::ops::Range;

/// Maximum number of pending updates. When one more is committed, the oldest is treated as refused: no verdict is not
/// an acceptance.
pub const PENDING_MAX: usize = 64;
/// Maximum number of entries of all pending updates together: 1.5 GiB at 12 bytes each. Beyond it the oldest updates
/// are treated as refused; the newest always stays pending.
pub const PENDING_ENTRIES_MAX: u64 = 1 << 27;

/// First bytes of a ledger: format and version.
const MAGIC: &[u8; 4] = b"ALF2";
const TAG: &str = "alice/feedback/v2";

/// Updates without a verdict, and those that were returned since the last commit: the ledger of a residual.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingUpdates {
    covered: Range<u64>,
    generation: u64,
    /// Oldest first.
    pending: Vec<PendingUpdate>,
}

/// A sent update, decayed like the residual.
#[derive(Clone, Debug, PartialEq)]
struct PendingUpdate {
    id: [u8; 32],
    /// Whether it was refused: it belongs to the residual, to which the next commit adds it.
    returned: bool,
    indices: Vec<u64>,
    values: Vec<f32>,
}

/// Returns the oldest pending updates to the residual until both limits hold; the newest always stays pending.
fn return_oldest(pending: &mut [PendingUpdate], updates_max: usize, entries_max: u64) {
    let (mut updates, mut entries) = (0, 0u64);
    for (age, pending) in pending.iter_mut().rev().enumerate() {
        updates += 1;
        entries = entries.saturating_add(pending.indices.len() as u64);
        pending.returned = age > 0 && (updates > updates_max || entries > entries_max);
    }
}

impl PendingUpdates {
    /// No pending updates, and a residual of zeros. `covered` are the coordinates of the residual:
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

    /// Number of commits since the residual was zero. The residual that belongs to this ledger has the same number.
    /// Generation 0 is all zeros and is stored nowhere.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Submissions without a verdict, oldest first.
    pub fn pending(&self) -> Vec<[u8; 32]> {
        let pending = self.pending.iter().filter(|pending| !pending.returned);
        pending.map(|pending| pending.id).collect()
    }

    /// Records the verdict *accepted*: the update is dropped. Unknown ids are ignored.
    pub fn accepted(&mut self, id: [u8; 32]) {
        // A returned update stays: it may be part of a later update already, which was encoded with it.
        self.pending.retain(|pending| pending.id != id || pending.returned);
    }

    /// Records any other verdict, or that there will be none: the update returns to the residual, which is then as if
    /// it had never been sent. Unknown ids are ignored.
    pub fn refused(&mut self, id: [u8; 32]) {
        let pending = self.pending.iter_mut().filter(|pending| pending.id == id);
        pending.for_each(|pending| pending.returned = true);
    }

    /// The ledger after the residual was lost: the same pending updates, and a residual of zeros.
    pub fn without_residual(&self) -> Self {
        Self {
            generation: 0,
            ..self.clone()
        }
    }

    /// `residual += returned updates`, for the coordinates from `start` on.
    fn add_returned(&self, start: u64, residual: &mut [f32]) {
        for pending in self.pending.iter().filter(|pending| pending.returned) {
            add_scaled(&pending.indices, &pending.values, start, residual, 1.0);
        }
    }

    /// The ledger after submission `id` was committed with the update `sent`. Pending updates decay like the residual;
    /// returned ones are gone, because the commit has added them to the residual. Committing the same id again replaces
    /// its update.
    pub fn committed(&self, id: [u8; 32], sent: &Update, decay: f32) -> Self {
        let stays = |pending: &&PendingUpdate| !pending.returned && pending.id != id;
        let mut pending: Vec<PendingUpdate> = self.pending.iter().filter(stays).cloned().collect();
        pending.push(PendingUpdate {
            id,
            returned: false,
            indices: sent.indices.clone(),
            values: sent.values.clone(),
        });
        // The new one too: its values were taken out of a residual that decays in the same commit.
        for value in pending.iter_mut().flat_map(|pending| pending.values.iter_mut()) {
            *value *= decay;
        }
        return_oldest(&mut pending, PENDING_MAX, PENDING_ENTRIES_MAX);
        Self {
            covered: self.covered.clone(),
            generation: self.generation.saturating_add(1),
            pending,
        }
    }

    /// Streams d + residual block by block. `stored` is the residual of this ledger's generation; `None` stands for
    /// zeros and is allowed for generation 0 only. `d` fills a block with the pseudo-gradient from the given coordinate
    /// on; `take` gets the sums.
    pub fn combine<R: Read, E: From<FeedbackError>>(
        &self,
        stored: Option<R>,
        mut d: impl FnMut(u64, &mut [f32]) -> Result<(), E>,
        mut take: impl FnMut(u64, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut reader = ResidualReader::open(stored, self.covered(), self.generation)?;
        let (mut sum, mut residual) = (Vec::new(), Vec::new());
        while let Some(start) = reader.next_block(&mut residual)? {
            self.add_returned(start, &mut residual);
            sum.clear();
            sum.resize(residual.len(), 0.0);
            d(start, &mut sum)?;
            add(&mut sum, &residual);
            take(start, &mut sum)?;
        }
        Ok(())
    }

    /// Writes the residual after the commit of `sent`, which was encoded from the sums of [`PendingUpdates::combine`]
    /// with the same `stored` and the same `d`. `next` is the result of [`PendingUpdates::committed`]. On any error the
    /// old state stays valid, and the partly written target has to be deleted.
    pub fn store<R: Read, W: std::io::Write, E: From<FeedbackError>>(
        &self,
        next: &PendingUpdates,
        stored: Option<R>,
        d: impl FnMut(u64, &mut [f32]) -> Result<(), E>,
        (sent, decay): (&Update, f32),
        dtype: ResidualDtype,
        target: W,
    ) -> Result<W, E> {
        let mut writer = ResidualWriter::create(target, next.covered(), next.generation, dtype)?;
        // The sums are made a second time rather than kept: they are as large as the residual.
        self.combine(stored, d, |start, combined| {
            remainder(start, combined, sent, decay);
            Ok(writer.push(combined)?)
        })?;
        Ok(writer.finish()?)
    }

    /// Bytes for the disk, a checksum at the end.
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

    /// Reads the bytes of [`PendingUpdates::to_bytes`] for a residual of these coordinates.
    pub fn from_bytes(bytes: &[u8], covered: Range<usize>) -> Result<Self, FeedbackError> {
        let damaged = FeedbackError::Damaged;
        let mut reader = Fields { rest: bytes };
        if reader.array::<4>()? != MAGIC {
            return Err(damaged("not of this program, or of another version"));
        }
        let found = reader.u64()?..reader.u64()?;
        let generation = reader.u64()?;
        let count = u32::from_le_bytes(*reader.array()?) as usize;
        // The pending updates, and one that was just returned by the limit.
        if count > PENDING_MAX + 1 {
            return Err(damaged("too many pending updates"));
        }
        let mut pending = Vec::with_capacity(count);
        for _ in 0..count {
            pending.push(reader.pending_update(&found)?);
        }
        let body = bytes.len() - reader.rest.len();
        let checksum = reader.array::<32>()?;
        if tagged_hash(TAG, &[bytes.get(..body).unwrap_or_default()]) != *checksum {
            return Err(damaged("checksum does not match"));
        }
        if !reader.rest.is_empty() {
            return Err(damaged("too long"));
        }
        // After the checksum: a damaged range is damage, an intact one belongs to another run.
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

/// `sum += residual`, coordinate by coordinate.
fn add(sum: &mut [f32], residual: &[f32]) {
    for (sum, residual) in sum.iter_mut().zip(residual) {
        *sum += residual;
    }
}

/// `combined = decay · (combined − sent)` for the coordinates from `start` on; values that are not finite become zero.
fn remainder(start: u64, combined: &mut [f32], sent: &Update, decay: f32) {
    sent.add_scaled_at(start, combined, -1.0);
    // Values that were sent exactly leave zero, quantised ones their rounding error.
    for value in combined {
        *value *= decay;
        if !value.is_finite() {
            *value = 0.0;
        }
    }
}

/// Error feedback in memory, for many miners in one process (the simulation, the lab): the part of a miner's
/// pseudo-gradients that no accepted update has carried. On a disk it is [`PendingUpdates`] and a stream.
///
/// ```
/// use alice_spec::UpdateSpec;
/// use alice_update::{ErrorFeedback, Header, Layout, encode};
///
/// # let (value_bits, feedback_decay, publish_bits) = (8, 0.5, 8);
/// # let spec = UpdateSpec { chunk: 8, budget_bytes: 100, value_bits, k_max: 1, feedback_decay, publish_bits };
/// // One entry in a chunk of eight: the rest waits in the residual.
/// let layout = Layout::new(&[8], spec.chunk);
/// let mut feedback = ErrorFeedback::new(layout.covered());
/// let d = [0.0, 0.5, 0.0, 0.25, 0.0, 0.0, 0.0, 0.0];
///
/// let combined = feedback.combine(&d);
/// let sent = encode(&layout, &spec, &Header::default(), &combined)?.sent;
/// assert_eq!(sent.indices, [1]);
/// feedback.commit([1; 32], combined, &sent, 0.5);
/// assert_eq!(feedback.residual()[3], 0.125, "decayed");
///
/// // Refused: the update returns, as if it had never been sent.
/// feedback.refused([1; 32]);
/// assert_eq!(feedback.residual()[1], 0.25);
/// assert!(feedback.pending().is_empty());
/// # Ok::<(), alice_update::EncodeError>(())
/// ```
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

    /// d + residual, the vector to encode. `d` has a value for each covered coordinate; values beyond the residual's
    /// length are dropped, missing ones are zero.
    pub fn combine(&self, d: &[f32]) -> Vec<f32> {
        let mut sum = d.to_vec();
        sum.resize(self.residual.len(), 0.0);
        add(&mut sum, &self.residual);
        sum
    }

    /// Commits submission `id`: residual = decay · (combined − sent), and the update is pending. Committing the same id
    /// again replaces its update. Values that are not finite leave a zero in the residual.
    pub fn commit(&mut self, id: [u8; 32], combined: Vec<f32>, sent: &Update, decay: f32) {
        let total = self.residual.len();
        self.residual = combined;
        self.residual.resize(total, 0.0);
        remainder(self.ledger.covered.start, &mut self.residual, sent, decay);
        self.ledger = self.ledger.committed(id, sent, decay);
        self.take_returned();
    }

    /// Records the verdict *accepted*: the update is dropped. Unknown ids are ignored.
    pub fn accepted(&mut self, id: [u8; 32]) {
        self.ledger.accepted(id);
    }

    /// Records any other verdict, or that there will be none: the update returns to the residual, which is then as if
    /// it had never been sent. Unknown ids are ignored.
    pub fn refused(&mut self, id: [u8; 32]) {
        self.ledger.refused(id);
        self.take_returned();
    }

    /// Submissions without a verdict, oldest first.
    pub fn pending(&self) -> Vec<[u8; 32]> {
        self.ledger.pending()
    }

    /// Adds returned updates to the residual at once: in memory that costs no stream.
    fn take_returned(&mut self) {
        self.ledger.add_returned(self.ledger.covered.start, &mut self.residual);
        self.ledger.pending.retain(|pending| !pending.returned);
    }
}

/// Cursor over the fields of a ledger.
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

    /// A pending update whose entries lie in `covered`.
    fn pending_update(&mut self, covered: &Range<u64>) -> Result<PendingUpdate, FeedbackError> {
        let damaged = FeedbackError::Damaged;
        let id = *self.array()?;
        let [returned] = *self.array::<1>()?;
        let entries = usize::try_from(self.u64()?).map_err(|_| damaged("too short"))?;
        let indices = self.words::<8>(entries)?.iter();
        let indices: Vec<u64> = indices.map(|word| u64::from_le_bytes(*word)).collect();
        let values = self.words::<4>(entries)?.iter();
        let values: Vec<f32> = values.map(|word| f32::from_le_bytes(*word)).collect();
        // Sorted and inside is what every reader of entries relies on, so it is checked once, here.
        let inside = indices.first().is_none_or(|first| *first >= covered.start)
            && indices.last().is_none_or(|last| *last < covered.end);
        if !indices.is_sorted_by(|a, b| a < b) || !inside || returned > 1 {
            return Err(damaged("pending entries are out of order"));
        }
        if !values.iter().all(|value| value.is_finite()) {
            return Err(damaged("a value is not finite"));
        }
        Ok(PendingUpdate {
            id,
            returned: returned == 1,
            indices,
            values,
        })
    }

    /// `count` words of N bytes. They are checked to be there before anything is allocated: the count is outside data.
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
    fn the_oldest_should_be_returned_when_updates_or_entries_exceed_their_maximum() {
        let pending_after = |entries: &[usize], updates_max, entries_max| -> Vec<bool> {
            let of = |n: &usize| PendingUpdate {
                id: [0; 32],
                returned: false,
                indices: vec![0; *n],
                values: vec![0.0; *n],
            };
            let mut pending: Vec<PendingUpdate> = entries.iter().map(of).collect();
            return_oldest(&mut pending, updates_max, entries_max);
            pending.iter().map(|pending| !pending.returned).collect()
        };
        assert_eq!(pending_after(&[3, 3, 3], 3, 9), [true, true, true]);
        assert_eq!(pending_after(&[3, 3, 3], 2, 9), [false, true, true]);
        assert_eq!(pending_after(&[3, 3, 3], 3, 8), [false, true, true]);
        assert_eq!(pending_after(&[1, 8, 3], 3, 10), [false, false, true]);
        // The newest stays pending, however large it is.
        assert_eq!(pending_after(&[3, 20], 3, 10), [false, true]);
    }
}
