//! The hashes of a master file's groups, in a file next to it, so that opening it does not read it.
//!
//! ```text
//! "ALT1" | groups id 32 | changed at u64 | model root 32 | 32 bytes for each group | BLAKE3 of all of that 32
//! ```
//! Integers are little endian. It is a cache: a sidecar that does not fit is built again from the weights.

use crate::{StoreError, file::write_atomic};
use alice_primitives::Hash;
use std::path::Path;

const MAGIC: &[u8; 4] = b"ALT1";
const HEADER_BYTES: usize = 4 + 32 + 8 + 32;

/// The hashes of all groups, and the weights that they belong to.
pub(crate) struct Sidecar {
    /// Time of the weights' last change, nanoseconds since 1970: the file's own time, so that a change by another
    /// program is noticed.
    pub changed_at: u64,
    /// Root of the weights.
    pub root: Hash,
    /// Hash of each group.
    pub values: Vec<Hash>,
}

impl Sidecar {
    /// Reads the sidecar of weights with `groups` groups; `None` if it is missing, damaged, or of another run.
    pub fn read(path: &Path, groups_id: &Hash, groups: usize) -> Option<Self> {
        let size = HEADER_BYTES + groups * 32 + 32;
        if std::fs::metadata(path).ok()?.len() != size as u64 {
            return None;
        }
        let bytes = std::fs::read(path).ok()?;
        let (body, checksum) = bytes.split_last_chunk::<32>()?;
        if blake3::hash(body).as_bytes() != checksum {
            return None;
        }
        let rest = body.strip_prefix(MAGIC)?.strip_prefix(groups_id)?;
        let (changed_at, rest) = rest.split_first_chunk::<8>()?;
        let (root, rest) = rest.split_first_chunk::<32>()?;
        let (values, []) = rest.as_chunks::<32>() else {
            return None;
        };
        (values.len() == groups).then(|| Self {
            changed_at: u64::from_le_bytes(*changed_at),
            root: *root,
            values: values.to_vec(),
        })
    }

    /// Writes it, atomically.
    pub fn write(
        path: &Path,
        groups_id: &Hash,
        changed_at: u64,
        root: &Hash,
        values: &[Hash],
    ) -> Result<(), StoreError> {
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(groups_id);
        head.extend_from_slice(&changed_at.to_le_bytes());
        head.extend_from_slice(root);
        let checksum = *blake3::Hasher::new()
            .update(&head)
            .update(values.as_flattened())
            .finalize()
            .as_bytes();
        write_atomic(path, |out| {
            out.write_all(&head)?;
            out.write_all(values.as_flattened())?;
            out.write_all(&checksum)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecar_should_be_read_only_whole_and_of_its_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("theta.tree");
        let values = [[4; 32], [5; 32]];
        Sidecar::write(&path, &[1; 32], 77, &[3; 32], &values).unwrap();
        let read = Sidecar::read(&path, &[1; 32], 2).unwrap();
        assert_eq!(
            (read.changed_at, read.root, &read.values[..]),
            (77, [3; 32], &values[..])
        );
        assert!(Sidecar::read(&path, &[2; 32], 2).is_none(), "another run");
        assert!(Sidecar::read(&path, &[1; 32], 3).is_none(), "another size");
        assert!(Sidecar::read(&dir.path().join("none"), &[1; 32], 2).is_none());
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert!(Sidecar::read(&path, &[1; 32], 2).is_none(), "byte {at}");
            std::fs::write(&path, &bytes[..at]).unwrap();
            assert!(Sidecar::read(&path, &[1; 32], 2).is_none(), "{at} bytes");
        }
    }
}
