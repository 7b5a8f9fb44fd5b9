//! Snapshots: the weights cut into chunks that are verified one by one, so that a download can be interrupted and
//! resumed.

use crate::master::{Progress, fresh_path};
use crate::theta::to_le_bytes;
use crate::{BlobStore, Master, StoreError, blob_hash, model_root};
use alice_primitives::Hash;
use alice_spec::TensorShape;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Size of a published snapshot's chunks but the last, bytes.
pub const SNAPSHOT_CHUNK_BYTES: u32 = 4 << 20;
/// Maximum chunk accepted from a server, bytes: a chunk is held in memory while it is checked.
pub const SNAPSHOT_CHUNK_BYTES_MAX: u32 = 64 << 20;

/// Description of a published snapshot: with it a joining machine fetches and checks the weights.
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

impl Snapshot {
    /// Checks that the description can be one of the run's model: nothing is written or allocated for a false size.
    pub fn check(&self, tensors: &[TensorShape]) -> Result<(), StoreError> {
        // The size first: the number of chunks follows from it, and memory and disk are used by these numbers.
        let parameters: u64 = tensors.iter().map(TensorShape::len).sum();
        let problem = |text: String| Err(StoreError::Snapshot(text));
        if self.bytes != parameters * 4 {
            return problem(format!(
                "it has {} bytes, the run's model has {}",
                self.bytes,
                parameters * 4
            ));
        }
        let chunk = self.chunk_bytes;
        if chunk == 0 || chunk > SNAPSHOT_CHUNK_BYTES_MAX || !chunk.is_multiple_of(4) {
            return problem(format!(
                "chunks of {chunk} bytes; a multiple of 4 up to {SNAPSHOT_CHUNK_BYTES_MAX} is allowed"
            ));
        }
        let expected = self.bytes.div_ceil(chunk.into());
        if self.chunks.len() as u64 != expected {
            return problem(format!(
                "it lists {} chunks, its size needs {expected}",
                self.chunks.len()
            ));
        }
        Ok(())
    }

    /// Bytes of a chunk; zero beyond the last.
    fn chunk_len(&self, index: usize) -> u64 {
        let chunk = u64::from(self.chunk_bytes);
        self.bytes.saturating_sub(index as u64 * chunk).min(chunk)
    }
}

/// Cuts weights into chunks, stores them as blobs and describes them.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// # let dir = tempfile::tempdir()?;
/// use alice_store::{BlobStore, snapshot};
/// let tensors = [alice_spec::TensorShape { name: "w".into(), shape: vec![2, 3] }];
/// let theta = [0.5f32; 6];
/// let store = BlobStore::open(dir.path())?;
/// let published = snapshot::publish(&store, &tensors, &theta).await?;
/// published.check(&tensors)?;
/// assert_eq!(published.bytes, 24);
/// assert_eq!(published.model_root, alice_store::model_root(&tensors, &theta));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub async fn publish(store: &BlobStore, tensors: &[TensorShape], theta: &[f32]) -> Result<Snapshot, StoreError> {
    publish_rooted(store, model_root(tensors, theta), theta).await
}

/// The same with a root that is known. One chunk is in memory at a time.
pub(crate) async fn publish_rooted(store: &BlobStore, root: Hash, theta: &[f32]) -> Result<Snapshot, StoreError> {
    let mut chunks = Vec::new();
    for values in theta.chunks(SNAPSHOT_CHUNK_BYTES as usize / 4) {
        chunks.push(store.put(to_le_bytes(values)).await?);
    }
    Ok(Snapshot {
        model_root: root,
        bytes: theta.len() as u64 * 4,
        chunk_bytes: SNAPSHOT_CHUNK_BYTES,
        chunks,
    })
}

/// Weights that are put together on disk from chunks that arrive in order, in constant memory. Each chunk is checked
/// before it is written, the root before the weights take their place.
///
/// Only chunks with the right hash count: after a kill or a power failure, [`Join::open`] hashes the file again and
/// goes on after the last good chunk. Chunks are appended, so a full disk is an error and leaves no hole.
#[derive(Debug)]
pub struct Join<'a> {
    tensors: &'a [TensorShape],
    snapshot: &'a Snapshot,
    path: PathBuf,
    file: File,
    next: usize,
}

impl<'a> Join<'a> {
    /// Starts to put the weights at `path` together, or resumes. Old weights stay until the new ones are complete.
    pub fn open(path: &Path, tensors: &'a [TensorShape], snapshot: &'a Snapshot) -> Result<Self, StoreError> {
        snapshot.check(tensors)?;
        let fresh = fresh_path(path);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&fresh)
            .map_err(StoreError::io("open", &fresh))?;
        // Two processes that fetch the same snapshot would cut off each other's chunks.
        file.try_lock().map_err(|_| StoreError::Busy(fresh.clone()))?;
        let mut join = Self {
            tensors,
            snapshot,
            path: path.to_path_buf(),
            file,
            next: 0,
        };
        join.find_good().map_err(StoreError::io("read", &fresh))?;
        Ok(join)
    }

    /// Counts the good chunks and cuts off what follows them.
    fn find_good(&mut self) -> std::io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        'chunks: for (index, expected) in self.snapshot.chunks.iter().enumerate() {
            let (mut hasher, mut remaining) = (blake3::Hasher::new(), self.snapshot.chunk_len(index));
            while remaining > 0 {
                let take = remaining.min(buffer.len() as u64) as usize;
                let part = buffer.get_mut(..take).unwrap_or_default();
                match self.file.read_exact(part) {
                    Ok(()) => hasher.update(part),
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => break 'chunks,
                    Err(error) => return Err(error),
                };
                remaining -= take as u64;
            }
            if hasher.finalize().as_bytes() != expected {
                break;
            }
            self.next += 1;
        }
        // Cut off rather than overwritten later: the file's length must be that of its good chunks.
        self.file.set_len(self.bytes())
    }

    /// Bytes of the good chunks.
    pub fn bytes(&self) -> u64 {
        (self.next as u64 * u64::from(self.snapshot.chunk_bytes)).min(self.snapshot.bytes)
    }

    /// Hash of the chunk that [`Join::push`] expects; `None` if all are there.
    pub fn next_chunk(&self) -> Option<Hash> {
        self.snapshot.chunks.get(self.next).copied()
    }

    /// Checks and writes the next chunk. After an error the same chunk is still expected.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let index = self.next as u32;
        let Some(expected) = self.next_chunk() else {
            return Err(StoreError::Snapshot(format!("chunk {index} is beyond its end")));
        };
        let found = blob_hash(bytes);
        if found != expected {
            return Err(StoreError::Chunk { index, expected, found });
        }
        let size = self.snapshot.chunk_len(self.next);
        // The server chose the hash, so a chunk of the right hash may still have the wrong size.
        if bytes.len() as u64 != size {
            return Err(StoreError::Snapshot(format!(
                "chunk {index} has {} bytes instead of {size}",
                bytes.len()
            )));
        }
        // Sought each time: a failed write may have left the cursor anywhere.
        let start = SeekFrom::Start(self.bytes());
        self.file
            .seek(start)
            .and_then(|_| self.file.write_all(bytes))
            .map_err(StoreError::io("write", &fresh_path(&self.path)))?;
        self.next += 1;
        Ok(())
    }

    /// Checks the model root and puts the weights in their place. If the root is wrong, the fetched chunks are removed:
    /// each is as announced, so the announcement itself is wrong.
    pub fn finish(self, progress: Progress<'_>) -> Result<Master, StoreError> {
        let (got, all) = (self.next, self.snapshot.chunks.len());
        if got != all {
            return Err(StoreError::Snapshot(format!("{got} of {all} chunks are there")));
        }
        let fresh = fresh_path(&self.path);
        self.file.sync_all().map_err(StoreError::io("sync", &fresh))?;
        // Releases the lock, which the mapping takes.
        drop(self.file);
        let adopted = Master::adopt(&self.path, self.tensors, Some(self.snapshot.model_root), progress);
        if matches!(adopted, Err(StoreError::Root { .. })) {
            crate::file::remove(&fresh)?;
        }
        adopted
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

    /// The published sample and its chunks' bytes.
    async fn published(dir: &Path) -> (Vec<TensorShape>, Vec<f32>, Snapshot, Vec<Vec<u8>>) {
        let store = BlobStore::open(dir).unwrap();
        let (tensors, theta) = sample();
        let snapshot = publish(&store, &tensors, &theta).await.unwrap();
        let mut chunks = Vec::new();
        for hash in &snapshot.chunks {
            chunks.push(store.get(hash).await.unwrap().to_vec());
        }
        (tensors, theta, snapshot, chunks)
    }

    #[tokio::test]
    async fn a_snapshot_should_be_joined_and_published_again_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (tensors, theta, snapshot, chunks) = published(&dir.path().join("blobs")).await;
        assert_eq!(chunks.len(), 3);
        let path = dir.path().join("theta");
        let mut join = Join::open(&path, &tensors, &snapshot).unwrap();
        chunks.iter().for_each(|c| join.push(c).unwrap());
        assert_eq!((join.next_chunk(), join.bytes()), (None, snapshot.bytes));
        let master = join.finish(&mut |_, _| ()).unwrap();
        assert!(master.theta() == theta);
        assert_eq!(master.root(), snapshot.model_root);
        let store = BlobStore::open(&dir.path().join("others")).unwrap();
        assert_eq!(master.publish(&store).await.unwrap(), snapshot);
        drop(master);
        let again = Master::open(&path, &tensors, &mut |_, _| ()).unwrap();
        assert_eq!((again.opened(), again.bytes_hashed()), (crate::Opened::AsLeft, 0));
    }

    #[tokio::test]
    async fn a_join_should_go_on_after_the_last_good_chunk() {
        let dir = tempfile::tempdir().unwrap();
        let (tensors, theta, snapshot, chunks) = published(&dir.path().join("blobs")).await;
        let path = dir.path().join("theta");
        let fresh = fresh_path(&path);
        let whole = chunks.concat();
        let chunk = SNAPSHOT_CHUNK_BYTES as usize;
        // Possible remains of a killed process: nothing, a part of a chunk, whole chunks, too much.
        for (left, good) in [
            (0, 0),
            (17, 0),
            (chunk, 1),
            (chunk + 1, 1),
            (2 * chunk + 5, 2),
            (whole.len(), 3),
        ] {
            std::fs::write(&fresh, &whole[..left]).unwrap();
            let mut join = Join::open(&path, &tensors, &snapshot).unwrap();
            assert_eq!(join.next_chunk(), snapshot.chunks.get(good).copied(), "{left} bytes");
            assert!(matches!(
                Join::open(&path, &tensors, &snapshot),
                Err(StoreError::Busy(_))
            ));
            chunks[good..].iter().for_each(|c| join.push(c).unwrap());
            assert!(join.finish(&mut |_, _| ()).unwrap().theta() == theta, "{left} bytes");
            assert!(!fresh.exists());
        }
        let mut damaged = [&whole[..], b"more"].concat();
        damaged[chunk + 3] ^= 1;
        std::fs::write(&fresh, &damaged).unwrap();
        let join = Join::open(&path, &tensors, &snapshot).unwrap();
        assert_eq!(join.bytes(), chunk as u64);
        assert_eq!(std::fs::metadata(&fresh).unwrap().len(), chunk as u64);
        assert!(matches!(join.finish(&mut |_, _| ()), Err(StoreError::Snapshot(_))));
        // The weights that were there are there still.
        assert!(Master::open(&path, &tensors, &mut |_, _| ()).unwrap().theta() == theta);
    }

    #[tokio::test]
    async fn corrupted_chunks_and_false_descriptions_should_be_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (tensors, _, snapshot, chunks) = published(&dir.path().join("blobs")).await;
        let path = dir.path().join("theta");

        let mut join = Join::open(&path, &tensors, &snapshot).unwrap();
        join.push(&chunks[0]).unwrap();
        let mut bad = chunks[1].clone();
        bad[0] ^= 0x80;
        let message = join.push(&bad).unwrap_err().to_string();
        assert!(message.starts_with("chunk 1 of the snapshot is corrupted"), "{message}");
        assert!(matches!(join.push(&chunks[2]), Err(StoreError::Chunk { index: 1, .. })));
        // The download goes on after a bad chunk.
        join.push(&chunks[1]).unwrap();
        join.push(&chunks[2]).unwrap();
        assert!(join.push(&chunks[2]).is_err());
        drop(join);

        let wrong_root = Snapshot {
            model_root: [7; 32],
            ..snapshot.clone()
        };
        let join = Join::open(&path, &tensors, &wrong_root).unwrap();
        assert_eq!(join.next_chunk(), None);
        assert!(matches!(join.finish(&mut |_, _| ()), Err(StoreError::Root { .. })));
        assert!(!path.exists() && !fresh_path(&path).exists(), "nothing false is kept");

        let short = Snapshot {
            chunks: vec![blob_hash(b"abc"); 3],
            ..snapshot.clone()
        };
        assert!(matches!(
            Join::open(&path, &tensors, &short).unwrap().push(b"abc"),
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
                Join::open(&path, &tensors, &false_one),
                Err(StoreError::Snapshot(_))
            ));
        }
    }
}
