//! Snapshots: the weights cut into chunks that are verified one by one, so that a download can stop and go on.

use crate::theta::{extend_from_le_bytes, to_le_bytes};
use crate::{BlobStore, StoreError, blob_hash, model_root};
use alice_primitives::Hash;
use alice_spec::TensorShape;

/// Size of a published snapshot's chunks but the last, bytes.
pub const SNAPSHOT_CHUNK_BYTES: u32 = 4 << 20;
/// Largest chunk that is accepted from a server, bytes.
pub const SNAPSHOT_CHUNK_BYTES_MAX: u32 = 64 << 20;

/// A published snapshot: what a joining machine needs to fetch and check the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Root of the model.
    pub model_root: Hash,
    /// Total size, bytes.
    pub bytes: u64,
    /// Bytes in each chunk but the last.
    pub chunk_bytes: u32,
    /// BLAKE3 of each chunk.
    pub chunks: Vec<Hash>,
}

/// Cuts weights into chunks, stores them as blobs and describes them.
pub async fn publish(store: &BlobStore, tensors: &[TensorShape], theta: &[f32]) -> Result<Snapshot, StoreError> {
    let mut chunks = Vec::new();
    for values in theta.chunks(SNAPSHOT_CHUNK_BYTES as usize / 4) {
        chunks.push(store.put(to_le_bytes(values)).await?);
    }
    Ok(Snapshot {
        model_root: model_root(tensors, theta),
        bytes: theta.len() as u64 * 4,
        chunk_bytes: SNAPSHOT_CHUNK_BYTES,
        chunks,
    })
}

/// Reads a snapshot whose chunks are all in a store.
pub async fn assemble(store: &BlobStore, tensors: &[TensorShape], snapshot: &Snapshot) -> Result<Vec<f32>, StoreError> {
    let mut assembler = Assembler::new(tensors, snapshot)?;
    while let Some(hash) = assembler.next_chunk() {
        assembler.push(&store.get(&hash).await?)?;
    }
    assembler.finish()
}

/// Puts weights together from chunks that arrive in order; each is checked before it is used, the root at the end.
pub struct Assembler<'a> {
    tensors: &'a [TensorShape],
    snapshot: &'a Snapshot,
    theta: Vec<f32>,
    next: usize,
}

impl<'a> Assembler<'a> {
    /// Starts, after checking that the description fits the run: nothing is allocated for a false size.
    pub fn new(tensors: &'a [TensorShape], snapshot: &'a Snapshot) -> Result<Self, StoreError> {
        let parameters: u64 = tensors.iter().map(TensorShape::len).sum();
        let problem = |text: String| Err(StoreError::Snapshot(text));
        if snapshot.bytes != parameters * 4 {
            return problem(format!(
                "it has {} bytes, the run's model has {}",
                snapshot.bytes,
                parameters * 4
            ));
        }
        let chunk = snapshot.chunk_bytes;
        if chunk == 0 || chunk > SNAPSHOT_CHUNK_BYTES_MAX || !chunk.is_multiple_of(4) {
            return problem(format!(
                "chunks of {chunk} bytes; a multiple of 4 up to {SNAPSHOT_CHUNK_BYTES_MAX} is allowed"
            ));
        }
        let expected = snapshot.bytes.div_ceil(chunk.into());
        if snapshot.chunks.len() as u64 != expected {
            return problem(format!(
                "it lists {} chunks, its size needs {expected}",
                snapshot.chunks.len()
            ));
        }
        Ok(Self {
            tensors,
            snapshot,
            theta: Vec::with_capacity(parameters as usize),
            next: 0,
        })
    }

    /// Hash of the chunk that [`Assembler::push`] expects; none when all are there.
    pub fn next_chunk(&self) -> Option<Hash> {
        self.snapshot.chunks.get(self.next).copied()
    }

    /// Checks and takes the next chunk. After an error the same chunk is still expected.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let index = self.next as u32;
        let Some(expected) = self.next_chunk() else {
            return Err(StoreError::Snapshot(format!("chunk {index} is beyond its end")));
        };
        let found = blob_hash(bytes);
        if found != expected {
            return Err(StoreError::Chunk { index, expected, found });
        }
        let start = self.next as u64 * u64::from(self.snapshot.chunk_bytes);
        let size = u64::from(self.snapshot.chunk_bytes).min(self.snapshot.bytes - start);
        // The hash is the server's word, so a chunk of the right hash may still have the wrong size.
        if bytes.len() as u64 != size {
            return Err(StoreError::Snapshot(format!(
                "chunk {index} has {} bytes instead of {size}",
                bytes.len()
            )));
        }
        extend_from_le_bytes(&mut self.theta, bytes);
        self.next += 1;
        Ok(())
    }

    /// Checks the model root and hands the weights over.
    pub fn finish(self) -> Result<Vec<f32>, StoreError> {
        let (got, all) = (self.next, self.snapshot.chunks.len());
        if got != all {
            return Err(StoreError::Snapshot(format!("{got} of {all} chunks are there")));
        }
        let found = model_root(self.tensors, &self.theta);
        if found != self.snapshot.model_root {
            return Err(StoreError::Root {
                expected: self.snapshot.model_root,
                found,
            });
        }
        Ok(self.theta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two full chunks and a short one.
    fn sample() -> (Vec<TensorShape>, Vec<f32>) {
        let rows = u64::from(SNAPSHOT_CHUNK_BYTES) / 4 / 64 * 2 + 3;
        let tensors = vec![TensorShape {
            name: "a".into(),
            shape: vec![rows, 64],
        }];
        let theta = (0..rows * 64).map(|i| (i % 1000) as f32 - 500.0).collect();
        (tensors, theta)
    }

    #[tokio::test]
    async fn a_snapshot_should_be_assembled_from_its_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let (tensors, theta) = sample();
        let snapshot = publish(&store, &tensors, &theta).await.unwrap();
        assert_eq!(snapshot.chunks.len(), 3);
        assert!(assemble(&store, &tensors, &snapshot).await.unwrap() == theta);

        let path = store.file(&snapshot.chunks[1]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[99] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(
            assemble(&store, &tensors, &snapshot).await,
            Err(StoreError::Corrupted { .. })
        ));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(
            assemble(&store, &tensors, &snapshot).await,
            Err(StoreError::Missing { .. })
        ));
    }

    #[tokio::test]
    async fn corrupted_chunks_and_false_descriptions_should_be_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let (tensors, theta) = sample();
        let snapshot = publish(&store, &tensors, &theta).await.unwrap();
        let mut chunks = Vec::new();
        for hash in &snapshot.chunks {
            chunks.push(store.get(hash).await.unwrap().to_vec());
        }

        let mut assembler = Assembler::new(&tensors, &snapshot).unwrap();
        assembler.push(&chunks[0]).unwrap();
        let mut bad = chunks[1].clone();
        bad[0] ^= 0x80;
        let message = assembler.push(&bad).unwrap_err().to_string();
        assert!(message.starts_with("chunk 1 of the snapshot is corrupted"), "{message}");
        assert!(matches!(
            assembler.push(&chunks[2]),
            Err(StoreError::Chunk { index: 1, .. })
        ));
        // The download goes on after a bad chunk.
        assembler.push(&chunks[1]).unwrap();
        assembler.push(&chunks[2]).unwrap();
        assert!(assembler.push(&chunks[2]).is_err());
        assert!(assembler.finish().unwrap() == theta);

        let mut early = Assembler::new(&tensors, &snapshot).unwrap();
        early.push(&chunks[0]).unwrap();
        assert!(matches!(early.finish(), Err(StoreError::Snapshot(_))));

        let wrong_root = Snapshot {
            model_root: [7; 32],
            ..snapshot.clone()
        };
        let mut assembler = Assembler::new(&tensors, &wrong_root).unwrap();
        chunks.iter().for_each(|c| assembler.push(c).unwrap());
        assert!(matches!(assembler.finish(), Err(StoreError::Root { .. })));

        let short = Snapshot {
            chunks: vec![blob_hash(b"abc"); 3],
            ..snapshot.clone()
        };
        assert!(matches!(
            Assembler::new(&tensors, &short).unwrap().push(b"abc"),
            Err(StoreError::Snapshot(_))
        ));
        for false_one in [
            Snapshot {
                bytes: snapshot.bytes + 4,
                ..snapshot.clone()
            },
            Snapshot {
                chunk_bytes: 0,
                ..snapshot.clone()
            },
            Snapshot {
                chunk_bytes: u32::MAX,
                ..snapshot.clone()
            },
            Snapshot {
                chunk_bytes: 4098,
                ..snapshot.clone()
            },
            Snapshot {
                chunks: snapshot.chunks[..2].to_vec(),
                ..snapshot.clone()
            },
        ] {
            assert!(matches!(
                Assembler::new(&tensors, &false_one),
                Err(StoreError::Snapshot(_))
            ));
        }
    }
}
