//! Error feedback in two phases (protocol §4): what was sent leaves the residual at commit, but is kept aside until the
//! verdict; only *accepted* lets go of it.

use crate::error::FeedbackError;
use crate::sparse::{Update, add_scaled};
use alice_primitives::tagged_hash;

/// Updates that may wait for a verdict. When one more is committed, the oldest is treated as refused: no verdict is not
/// an acceptance.
pub const PENDING_MAX: usize = 64;

const MAGIC: &[u8; 4] = b"ALF1";
const TAG: &str = "alice/feedback/v1";

/// What a miner still owes the model: the part of its pseudo-gradients that no accepted update has carried.
#[derive(Clone, Debug, PartialEq)]
pub struct ErrorFeedback {
    residual: Vec<f32>,
    /// Oldest first.
    pending: Vec<Pending>,
}

#[derive(Clone, Debug, PartialEq)]
struct Pending {
    id: [u8; 32],
    indices: Vec<u32>,
    values: Vec<f32>,
}

impl ErrorFeedback {
    /// A zero residual for a model of `total` parameters.
    pub fn new(total: usize) -> Self {
        Self {
            residual: vec![0.0; total],
            pending: Vec::new(),
        }
    }

    /// The residual, one value for each parameter.
    pub fn residual(&self) -> &[f32] {
        &self.residual
    }

    /// d + residual: what to encode. Values of `d` beyond the residual's length are dropped, missing ones are zero.
    pub fn combine(&self, d: &[f32]) -> Vec<f32> {
        let d = d.iter().copied().chain(std::iter::repeat(0.0));
        self.residual.iter().zip(d).map(|(residual, d)| d + residual).collect()
    }

    /// After submission `id` was committed: residual = decay · (combined − sent), and what was sent waits, decaying
    /// like the residual, for its verdict. Committing the same id again replaces what waits under it.
    ///
    /// Values that are not finite leave a zero residual, so that one diverged task cannot poison all later ones.
    pub fn commit(&mut self, id: [u8; 32], combined: Vec<f32>, sent: &Update, decay: f32) {
        let total = self.residual.len();
        self.pending.retain(|pending| pending.id != id);
        for value in self.pending.iter_mut().flat_map(|pending| pending.values.iter_mut()) {
            *value *= decay;
        }
        self.residual = combined;
        self.residual.resize(total, 0.0);
        add_scaled(&sent.indices, &sent.values, &mut self.residual, -1.0);
        for value in &mut self.residual {
            *value *= decay;
            if !value.is_finite() {
                *value = 0.0;
            }
        }
        while self.pending.len() >= PENDING_MAX {
            let oldest = self.pending.remove(0);
            self.put_back(&oldest);
        }
        let values = sent.values.iter().map(|value| decay * value).collect();
        self.pending.push(Pending {
            id,
            indices: sent.indices.clone(),
            values,
        });
    }

    /// The verdict is *accepted*: what was sent is settled. Unknown ids are ignored.
    pub fn accepted(&mut self, id: [u8; 32]) {
        self.pending.retain(|pending| pending.id != id);
    }

    /// The verdict is another one, or there will be none: what was sent returns to the residual, which is then as if it
    /// had never been sent. Unknown ids are ignored.
    pub fn refused(&mut self, id: [u8; 32]) {
        if let Some(at) = self.pending.iter().position(|pending| pending.id == id) {
            let pending = self.pending.remove(at);
            self.put_back(&pending);
        }
    }

    /// Submissions that wait for a verdict, oldest first.
    pub fn pending(&self) -> Vec<[u8; 32]> {
        self.pending.iter().map(|pending| pending.id).collect()
    }

    fn put_back(&mut self, pending: &Pending) {
        add_scaled(&pending.indices, &pending.values, &mut self.residual, 1.0);
    }

    /// For the disk, with a checksum at the end.
    pub fn to_bytes(&self) -> Vec<u8> {
        let entries: usize = self.pending.iter().map(|pending| pending.indices.len()).sum();
        let mut bytes = Vec::with_capacity(48 + self.residual.len() * 4 + self.pending.len() * 40 + entries * 8);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&(self.residual.len() as u64).to_le_bytes());
        self.residual
            .iter()
            .for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
        bytes.extend_from_slice(&(self.pending.len() as u32).to_le_bytes());
        for pending in &self.pending {
            bytes.extend_from_slice(&pending.id);
            bytes.extend_from_slice(&(pending.indices.len() as u32).to_le_bytes());
            pending
                .indices
                .iter()
                .for_each(|index| bytes.extend_from_slice(&index.to_le_bytes()));
            pending
                .values
                .iter()
                .for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
        }
        let checksum = tagged_hash(TAG, &[&bytes]);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    /// Reads what [`ErrorFeedback::to_bytes`] wrote for a model of `total` parameters.
    pub fn from_bytes(bytes: &[u8], total: usize) -> Result<Self, FeedbackError> {
        let damaged = FeedbackError::Damaged;
        let (body, checksum) = bytes.split_last_chunk::<32>().ok_or(damaged("too short"))?;
        if !body.starts_with(MAGIC) {
            return Err(damaged("not a residual file, or another version"));
        }
        if tagged_hash(TAG, &[body]) != *checksum {
            return Err(damaged("checksum does not match"));
        }
        let mut reader = Reader {
            rest: body.get(MAGIC.len()..).unwrap_or_default(),
        };
        let found = u64::from_le_bytes(*reader.array()?);
        if found != total as u64 {
            return Err(FeedbackError::Length { expected: total, found });
        }
        let residual = reader.floats(total)?;
        let count = reader.u32()? as usize;
        if count > PENDING_MAX {
            return Err(damaged("too many pending updates"));
        }
        let mut pending = Vec::with_capacity(count);
        for _ in 0..count {
            let id = *reader.array()?;
            let entries = reader.u32()? as usize;
            let indices: Vec<u32> = reader.words(entries)?.map(u32::from_le_bytes).collect();
            let sorted = indices.windows(2).all(|pair| pair.first() < pair.last());
            if !sorted || indices.last().is_some_and(|&last| last as usize >= total) {
                return Err(damaged("pending indices are out of order"));
            }
            pending.push(Pending {
                id,
                indices,
                values: reader.floats(entries)?,
            });
        }
        if !reader.rest.is_empty() {
            return Err(damaged("too long"));
        }
        Ok(Self { residual, pending })
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], FeedbackError> {
        let (head, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(FeedbackError::Damaged("too short"))?;
        self.rest = rest;
        Ok(head)
    }

    fn u32(&mut self) -> Result<u32, FeedbackError> {
        Ok(u32::from_le_bytes(*self.array()?))
    }

    /// `count` words of four bytes; nothing is allocated before they are known to be there.
    fn words(&mut self, count: usize) -> Result<impl Iterator<Item = [u8; 4]> + 'a, FeedbackError> {
        let split = count.checked_mul(4).and_then(|bytes| self.rest.split_at_checked(bytes));
        let (head, rest) = split.ok_or(FeedbackError::Damaged("too short"))?;
        self.rest = rest;
        Ok(head.as_chunks::<4>().0.iter().copied())
    }

    fn floats(&mut self, count: usize) -> Result<Vec<f32>, FeedbackError> {
        let values: Vec<f32> = self.words(count)?.map(f32::from_le_bytes).collect();
        if values.iter().all(|value| value.is_finite()) {
            Ok(values)
        } else {
            Err(FeedbackError::Damaged("a value is not finite"))
        }
    }
}
