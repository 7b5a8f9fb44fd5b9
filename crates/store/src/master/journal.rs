//! The undo journal of a model step: the old bits of every coordinate that the step changes, on disk before the first
//! of them changes.
//!
//! ```text
//! "ALJ1" | groups id 32 | root before 32 | entries u64 | bytes of the entries u64
//! entries: gap from the coordinate after the last one, LEB128 | old bits u32
//! BLAKE3 of all of that 32
//! [ root after 32 | BLAKE3 of (the BLAKE3 above, root after) 32 ]     once the step is finished
//! ```
//! Integers are little endian. A journal without its seal (the last part) is of a step that was not finished.
//!
//! States: written and synced before the first coordinate changes ([`Journal::write`]); sealed, synced, once weights
//! and sidecar are on disk ([`Journal::finish`]); unsealed, synced, before a revert changes the first coordinate back
//! ([`Journal::reopen`]); removed when the revert is complete. In each of them a kill leaves either the state before or
//! the state after: a torn seal is no seal, and a journal gets its name only when it is complete. An entry takes 4
//! bytes of old bits and 1 byte of gap up to 127, 2 up to 16,383.

use crate::{StoreError, file::write_atomic};
use alice_primitives::Hash;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 4] = b"ALJ1";
const HEADER_BYTES: u64 = 4 + 32 + 32 + 8 + 8;
/// Bytes hashed and written at a time.
const BLOCK: usize = 64 << 10;

/// A journal whose checksum was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Journal {
    path: PathBuf,
    /// Root of the weights before the step.
    pub before: Hash,
    /// Root after it; `None` while the step is not finished.
    pub after: Option<Hash>,
    entries: u64,
    /// Bytes of header and entries.
    body_bytes: u64,
    /// BLAKE3 of header and entries.
    checksum: Hash,
}

/// Content of a journal's file.
#[derive(Debug)]
pub(crate) enum Found {
    /// Nothing.
    Nothing,
    /// A journal of these weights.
    Journal(Journal),
    /// Something else, or a part of one. No crash causes that: a journal is complete before it gets its name.
    Damaged,
}

/// A change that a journal has to undo: a coordinate and its bits before.
pub(crate) type Entry = (u64, u32);

impl Journal {
    /// Writes a journal and syncs it. `entries` ascend by coordinate and are walked twice.
    pub fn write<I: Iterator<Item = Entry>>(
        path: &Path,
        groups_id: &Hash,
        before: &Hash,
        entries: impl Fn() -> I,
    ) -> Result<Self, StoreError> {
        // The first pass finds the sizes, which the header needs before entries that are never in memory together.
        let (mut count, mut bytes, mut next) = (0u64, 0u64, 0u64);
        for (coordinate, _) in entries() {
            bytes += gap_bytes(coordinate - next) + 4;
            (count, next) = (count + 1, coordinate + 1);
        }
        let mut hasher = blake3::Hasher::new();
        let written = write_atomic(path, |out| {
            let mut block = Vec::with_capacity(BLOCK + HEADER_BYTES as usize);
            block.extend_from_slice(MAGIC);
            block.extend_from_slice(groups_id);
            block.extend_from_slice(before);
            block.extend_from_slice(&count.to_le_bytes());
            block.extend_from_slice(&bytes.to_le_bytes());
            let mut next = 0;
            for (coordinate, bits) in entries() {
                push_gap(&mut block, coordinate - next);
                block.extend_from_slice(&bits.to_le_bytes());
                next = coordinate + 1;
                if block.len() >= BLOCK {
                    hasher.update(&block);
                    out.write_all(&block)?;
                    block.clear();
                }
            }
            hasher.update(&block);
            out.write_all(&block)?;
            out.write_all(hasher.finalize().as_bytes())
        });
        written.map_err(|error| StoreError::Journal {
            bytes: HEADER_BYTES + bytes + 32,
            error: Box::new(error),
        })?;
        Ok(Self {
            path: path.to_path_buf(),
            before: *before,
            after: None,
            entries: count,
            body_bytes: HEADER_BYTES + bytes,
            checksum: *hasher.finalize().as_bytes(),
        })
    }

    /// Reads what is at a path, in constant memory, and checks all of it. Coordinates are below `parameters`.
    pub fn find(path: &Path, groups_id: &Hash, parameters: u64) -> Result<Found, StoreError> {
        match Self::read(path, groups_id, parameters) {
            Ok(Some(journal)) => Ok(Found::Journal(journal)),
            Ok(None) => Ok(Found::Damaged),
            Err(error) => match error.kind() {
                ErrorKind::NotFound => Ok(Found::Nothing),
                ErrorKind::UnexpectedEof => Ok(Found::Damaged),
                _ => Err(StoreError::io("read", path)(error)),
            },
        }
    }

    fn read(path: &Path, groups_id: &Hash, parameters: u64) -> std::io::Result<Option<Self>> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut header = [0; HEADER_BYTES as usize];
        file.read_exact(&mut header)?;
        let mut fields = &header[..];
        let (mut magic, mut id, mut before, mut number) = ([0; 4], [0; 32], [0; 32], [0; 8]);
        fields.read_exact(&mut magic)?;
        fields.read_exact(&mut id)?;
        fields.read_exact(&mut before)?;
        fields.read_exact(&mut number)?;
        let entries = u64::from_le_bytes(number);
        fields.read_exact(&mut number)?;
        let bytes = u64::from_le_bytes(number);
        let body_bytes = HEADER_BYTES.saturating_add(bytes);
        // The size is checked before it is read: a damaged length must not become a loop over nothing.
        if magic != *MAGIC || id != *groups_id || body_bytes.saturating_add(32) > size {
            return Ok(None);
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&header);
        let mut remaining = bytes;
        let mut block = vec![0; BLOCK];
        while remaining > 0 {
            let take = remaining.min(BLOCK as u64) as usize;
            let part = block.get_mut(..take).unwrap_or_default();
            file.read_exact(part)?;
            hasher.update(part);
            remaining -= take as u64;
        }
        let (checksum, mut stored) = (*hasher.finalize().as_bytes(), [0; 32]);
        file.read_exact(&mut stored)?;
        if stored != checksum {
            return Ok(None);
        }
        // A torn seal is of a step that was being finished, which then counts as not finished.
        let (mut after, mut seal) = ([0; 32], [0; 32]);
        let sealed = file.read_exact(&mut after).and_then(|()| file.read_exact(&mut seal));
        let journal = Self {
            path: path.to_path_buf(),
            before,
            after: (sealed.is_ok() && seal == sealed_by(&checksum, &after)).then_some(after),
            entries,
            body_bytes,
            checksum,
        };
        // A checksum is not a signature, so the entries are checked before anything is written by them.
        let mut count = 0u64;
        let end = journal.for_each(|(coordinate, _)| {
            count += 1;
            coordinate < parameters
        })?;
        Ok((end && count == entries).then_some(journal))
    }

    /// Calls `each` with the entries in ascending order, until it returns false. Returns false then, and if an entry is
    /// not well formed.
    pub fn for_each(&self, mut each: impl FnMut(Entry) -> bool) -> std::io::Result<bool> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(HEADER_BYTES))?;
        let mut entries = BufReader::with_capacity(1 << 20, file).take(self.body_bytes - HEADER_BYTES);
        let mut next = 0u64;
        while entries.limit() > 0 {
            let Some(coordinate) = read_gap(&mut entries)?.and_then(|gap| next.checked_add(gap)) else {
                return Ok(false);
            };
            let mut bits = [0; 4];
            entries.read_exact(&mut bits)?;
            next = coordinate.saturating_add(1);
            if !each((coordinate, u32::from_le_bytes(bits))) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Seals the journal, synced: the step is finished, and from now on the journal only serves a revert.
    pub fn finish(&mut self, after: &Hash) -> Result<(), StoreError> {
        // In place and not by a new file: a torn seal is recognised, and copying the entries would double the writing.
        let write = || {
            let mut file = File::options().write(true).open(&self.path)?;
            file.seek(SeekFrom::Start(self.body_bytes + 32))?;
            file.write_all(&[*after, sealed_by(&self.checksum, after)].concat())?;
            file.sync_all()
        };
        write().map_err(StoreError::io("write", &self.path))?;
        self.after = Some(*after);
        Ok(())
    }

    /// Removes the seal, synced: whatever happens from now on, the weights return to the state before the step.
    pub fn reopen(&mut self) -> Result<(), StoreError> {
        let cut = || {
            let file = File::options().write(true).open(&self.path)?;
            file.set_len(self.body_bytes + 32)?;
            file.sync_all()
        };
        cut().map_err(StoreError::io("write", &self.path))?;
        self.after = None;
        Ok(())
    }

    /// Size on disk when finished, bytes.
    pub fn bytes(&self) -> u64 {
        self.body_bytes + 32 + 64
    }
}

fn sealed_by(checksum: &Hash, after: &Hash) -> Hash {
    *blake3::Hasher::new()
        .update(checksum)
        .update(after)
        .finalize()
        .as_bytes()
}

fn gap_bytes(gap: u64) -> u64 {
    u64::from((64 - gap.leading_zeros()).max(1).div_ceil(7))
}

fn push_gap(out: &mut Vec<u8>, mut gap: u64) {
    while gap >= 0x80 {
        out.push(gap as u8 | 0x80);
        gap >>= 7;
    }
    out.push(gap as u8);
}

/// `None` if it does not fit a u64.
fn read_gap(from: &mut impl Read) -> std::io::Result<Option<u64>> {
    let (mut gap, mut shift) = (0u64, 0u32);
    loop {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        let part = u64::from(byte[0] & 0x7f);
        // Bits shifted out of a u64 would make two encodings of one gap.
        if shift > 63 || part << shift >> shift != part {
            return Ok(None);
        }
        gap |= part << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(Some(gap));
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(path: &Path) -> Option<Journal> {
        match Journal::find(path, &[1; 32], 1 << 40).unwrap() {
            Found::Journal(journal) => Some(journal),
            Found::Nothing | Found::Damaged => None,
        }
    }

    #[test]
    fn journal_should_have_the_golden_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("theta.undo");
        let entries = [(0u64, 0x3f80_0000u32), (1, 7), (300, 0xffff_ffff)];
        let mut journal = Journal::write(&path, &[1; 32], &[2; 32], || entries.into_iter()).unwrap();
        journal.finish(&[3; 32]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, journal.bytes());
        let head = [
            &b"ALJ1"[..],
            &[1; 32],
            &[2; 32],
            &3u64.to_le_bytes(),
            &16u64.to_le_bytes(),
        ]
        .concat();
        assert_eq!(bytes[..84], head);
        assert_eq!(hex::encode(&bytes[84..100]), "000000803f0007000000aa02ffffffff");
        assert_eq!(bytes[100..132], *blake3::hash(&bytes[..100]).as_bytes());
        assert_eq!(bytes[132..164], [3; 32]);
    }

    #[test]
    fn journal_should_be_found_finished_or_not_and_only_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("theta.undo");
        assert!(matches!(Journal::find(&path, &[1; 32], 9).unwrap(), Found::Nothing));
        let entries = [(3u64, 5u32), (200, 6), (100_000, 7)];
        let mut journal = Journal::write(&path, &[1; 32], &[2; 32], || entries.into_iter()).unwrap();
        assert_eq!(found(&path), Some(journal.clone()));
        let unfinished = std::fs::read(&path).unwrap();
        journal.finish(&[3; 32]).unwrap();
        assert_eq!(found(&path).unwrap().after, Some([3; 32]));
        let finished = std::fs::read(&path).unwrap();
        let mut seen = Vec::new();
        journal
            .for_each(|e| {
                seen.push(e);
                true
            })
            .unwrap();
        assert_eq!(seen, entries);

        for cut in 0..finished.len() {
            std::fs::write(&path, &finished[..cut]).unwrap();
            let journal = found(&path);
            assert_eq!(journal.is_some(), cut >= unfinished.len(), "{cut} bytes");
            assert!(journal.is_none_or(|j| j.after.is_none()), "{cut} bytes");
        }
        for at in 0..finished.len() {
            let mut bytes = finished.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            let journal = found(&path);
            assert_eq!(journal.is_some(), at >= unfinished.len(), "byte {at}");
            assert!(journal.is_none_or(|j| j.after.is_none()), "byte {at}");
        }
        std::fs::write(&path, &finished).unwrap();
        assert!(
            matches!(Journal::find(&path, &[9; 32], 1 << 40).unwrap(), Found::Damaged),
            "of another run"
        );
        assert!(
            matches!(Journal::find(&path, &[1; 32], 100_000).unwrap(), Found::Damaged),
            "beyond the weights"
        );
        journal.reopen().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), unfinished);
    }

    proptest! {
        #[test]
        fn gaps_should_survive_and_be_as_long_as_announced(gap: u64, small in 0u64..1000) {
            for gap in [gap, small, gap >> 30] {
                let mut bytes = Vec::new();
                push_gap(&mut bytes, gap);
                prop_assert_eq!(bytes.len() as u64, gap_bytes(gap));
                prop_assert_eq!(read_gap(&mut bytes.as_slice()).unwrap(), Some(gap));
            }
        }

        #[test]
        fn any_bytes_should_be_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("theta.undo");
            std::fs::write(&path, [&b"ALJ1"[..], &[1; 32], &bytes].concat()).unwrap();
            prop_assert!(found(&path).is_none());
        }
    }
}
