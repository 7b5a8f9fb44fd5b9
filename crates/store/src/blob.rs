//! Blobs named by their BLAKE3, one file each, flat in a folder.

use crate::{
    StoreError, blob_hash,
    file::{sync_folder, write_atomic},
};
use alice_primitives::Hash;
use bytes::Bytes;
use object_store::{ObjectStoreExt, local::LocalFileSystem, path::Path as ObjectPath};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::AsyncReadExt;

/// Part of a file that is in memory while it is copied into the store, bytes.
const PART_BYTES: usize = 8 << 20;

/// A store of immutable blobs. Cheap to clone. Writing is atomic: a reader sees a whole blob or none, and the same blob
/// may be put twice. The file of a blob is `<folder>/<hash in hex>`, so a corpus folder made by `alice-data` is also a
/// blob store.
#[derive(Clone, Debug)]
pub struct BlobStore {
    objects: Arc<LocalFileSystem>,
    dir: PathBuf,
}

impl BlobStore {
    /// Opens the store in a folder, which is made if it is missing.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(StoreError::io("make the folder", dir))?;
        let objects = LocalFileSystem::new_with_prefix(dir).map_err(object("open the folder"))?;
        Ok(Self {
            objects: Arc::new(objects),
            dir: dir.to_path_buf(),
        })
    }

    /// Folder of the store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the file of a blob is, or would be.
    pub fn file(&self, hash: &Hash) -> PathBuf {
        self.dir.join(hex::encode(hash))
    }

    /// Stores bytes and returns their name. They survive a power failure: object_store does not sync its local files,
    /// so they are written by [`write_atomic`].
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let store = alice_store::BlobStore::open(dir.path())?;
    /// let hash = store.put(&b"some bytes"[..]).await?;
    /// assert_eq!(hash, alice_store::blob_hash(b"some bytes"));
    /// assert_eq!(&store.get(&hash).await?[..], b"some bytes");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn put(&self, bytes: impl Into<Bytes>) -> Result<Hash, StoreError> {
        let bytes = bytes.into();
        let hash = blob_hash(&bytes);
        let path = self.file(&hash);
        let write = move || write_atomic(&path, |out| out.write_all(&bytes));
        match tokio::task::spawn_blocking(write).await {
            Ok(done) => done.map(|()| hash),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Stores a copy of a file of any size without holding it in memory, and returns its name.
    pub async fn put_file(&self, path: &Path) -> Result<Hash, StoreError> {
        // Read twice: the copy is written under its final name, which is the hash.
        let hash = hash_file(path).await?;
        let mut file = tokio::fs::File::open(path)
            .await
            .map_err(StoreError::io("open", path))?;
        let mut upload = self
            .objects
            .put_multipart(&key(&hash))
            .await
            .map_err(object("write a blob"))?;
        let mut hasher = blake3::Hasher::new();
        let copied = async {
            loop {
                let mut part = Vec::with_capacity(PART_BYTES);
                let read = (&mut file).take(PART_BYTES as u64).read_to_end(&mut part).await;
                if read.map_err(StoreError::io("read", path))? == 0 {
                    break;
                }
                hasher.update(&part);
                upload.put_part(part.into()).await.map_err(object("write a blob"))?;
            }
            // Hashed once for the name and once more for what was copied: a file that changes must not get a wrong
            // name.
            if *hasher.finalize().as_bytes() == hash {
                Ok(())
            } else {
                Err(StoreError::Changed(path.to_path_buf()))
            }
        }
        .await;
        if let Err(error) = copied {
            // The first error is the one to report; leftovers of the copy are never visible as blobs.
            let _ = upload.abort().await;
            return Err(error);
        }
        upload.complete().await.map_err(object("write a blob"))?;
        let (file, folder) = (self.file(&hash), self.dir.clone());
        let sync = move || {
            std::fs::File::open(&file)
                .and_then(|file| file.sync_all())
                .map_err(StoreError::io("sync", &file))?;
            sync_folder(&folder)
        };
        match tokio::task::spawn_blocking(sync).await {
            Ok(done) => done.map(|()| hash),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Reads a blob and checks it against its name.
    pub async fn get(&self, hash: &Hash) -> Result<Bytes, StoreError> {
        // Checked at every read, not only when it was put: disks lose bits, and operators copy folders.
        let result = self.objects.get(&key(hash)).await.map_err(|e| self.missing(hash, e))?;
        let bytes = result.bytes().await.map_err(object("read a blob"))?;
        let found = blob_hash(&bytes);
        if found != *hash {
            return Err(StoreError::Corrupted { expected: *hash, found });
        }
        Ok(bytes)
    }

    /// Reads bytes `range` of a blob, unchecked: a part cannot be checked against the hash of the whole.
    pub async fn get_range(&self, hash: &Hash, range: Range<u64>) -> Result<Bytes, StoreError> {
        let len = self.len(hash).await?;
        if range.start > range.end || range.end > len {
            return Err(StoreError::Range {
                hash: *hash,
                start: range.start,
                end: range.end,
                len,
            });
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.objects
            .get_range(&key(hash), range)
            .await
            .map_err(|e| self.missing(hash, e))
    }

    /// Size of a blob, bytes.
    pub async fn len(&self, hash: &Hash) -> Result<u64, StoreError> {
        Ok(self
            .objects
            .head(&key(hash))
            .await
            .map_err(|e| self.missing(hash, e))?
            .size)
    }

    /// Whether there is a blob of this name.
    pub async fn exists(&self, hash: &Hash) -> Result<bool, StoreError> {
        match self.len(hash).await {
            Ok(_) => Ok(true),
            Err(StoreError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads a blob's file in full and checks it against its name, a block at a time.
    pub async fn verify(&self, hash: &Hash) -> Result<(), StoreError> {
        if !self.exists(hash).await? {
            return Err(StoreError::Missing {
                hash: *hash,
                store: self.dir.clone(),
            });
        }
        let found = hash_file(&self.file(hash)).await?;
        if found == *hash {
            Ok(())
        } else {
            Err(StoreError::Corrupted { expected: *hash, found })
        }
    }

    /// Removes a blob, if it is there.
    pub async fn remove(&self, hash: &Hash) -> Result<(), StoreError> {
        match self.objects.delete(&key(hash)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(StoreError::Object {
                what: "remove a blob",
                source,
            }),
        }
    }

    fn missing(&self, hash: &Hash, source: object_store::Error) -> StoreError {
        match source {
            object_store::Error::NotFound { .. } => StoreError::Missing {
                hash: *hash,
                store: self.dir.clone(),
            },
            source => StoreError::Object {
                what: "read a blob",
                source,
            },
        }
    }
}

fn key(hash: &Hash) -> ObjectPath {
    ObjectPath::from(hex::encode(hash))
}

fn object(what: &'static str) -> impl FnOnce(object_store::Error) -> StoreError {
    move |source| StoreError::Object { what, source }
}

async fn hash_file(path: &Path) -> Result<Hash, StoreError> {
    let mut file = tokio::fs::File::open(path)
        .await
        .map_err(StoreError::io("open", path))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).await.map_err(StoreError::io("read", path))?;
        match buffer.get(..read) {
            Some(part) if !part.is_empty() => hasher.update(part),
            _ => return Ok(*hasher.finalize().as_bytes()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn blobs_should_come_back_by_their_hash() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(&dir.path().join("blobs")).unwrap();
        let hash = store.put(&b"some bytes"[..]).await.unwrap();
        assert_eq!(hash, *blake3::hash(b"some bytes").as_bytes());
        assert_eq!(store.put(&b"some bytes"[..]).await.unwrap(), hash);
        assert_eq!(&store.get(&hash).await.unwrap()[..], b"some bytes");
        assert_eq!(store.len(&hash).await.unwrap(), 10);
        assert!(store.exists(&hash).await.unwrap());
        assert!(!store.exists(&[0; 32]).await.unwrap());
        assert!(matches!(store.get(&[0; 32]).await, Err(StoreError::Missing { .. })));
        let empty = store.put(Bytes::new()).await.unwrap();
        assert!(store.get(&empty).await.unwrap().is_empty());
        store.remove(&hash).await.unwrap();
        store.remove(&hash).await.unwrap();
        assert!(!store.exists(&hash).await.unwrap());
        assert_eq!(
            std::fs::read_dir(store.dir()).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[tokio::test]
    async fn ranges_should_be_bounded_by_the_blob() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let hash = store.put(&b"0123456789"[..]).await.unwrap();
        assert_eq!(&store.get_range(&hash, 3..7).await.unwrap()[..], b"3456");
        assert_eq!(&store.get_range(&hash, 0..10).await.unwrap()[..], b"0123456789");
        assert!(store.get_range(&hash, 10..10).await.unwrap().is_empty());
        assert!(matches!(
            store.get_range(&hash, 3..11).await,
            Err(StoreError::Range { len: 10, .. })
        ));
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = store.get_range(&hash, 7..3).await;
        assert!(matches!(reversed, Err(StoreError::Range { .. })));
    }

    #[tokio::test]
    async fn a_changed_byte_should_be_detected() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let hash = store.put(&b"0123456789"[..]).await.unwrap();
        store.verify(&hash).await.unwrap();
        std::fs::write(store.file(&hash), b"0123456780").unwrap();
        let message = store.get(&hash).await.unwrap_err().to_string();
        assert!(
            message.contains("corrupted") && message.contains(&hex::encode(hash)),
            "{message}"
        );
        assert!(matches!(store.verify(&hash).await, Err(StoreError::Corrupted { .. })));
        store.put(&b"0123456789"[..]).await.unwrap();
        store.get(&hash).await.unwrap();
    }

    #[tokio::test]
    async fn files_should_be_stored_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(&dir.path().join("blobs")).unwrap();
        let content: Vec<u8> = (0..PART_BYTES + 12_345).map(|i| (i * 31 % 251) as u8).collect();
        let path = dir.path().join("file");
        std::fs::write(&path, &content).unwrap();
        let hash = store.put_file(&path).await.unwrap();
        assert_eq!(hash, blob_hash(&content));
        assert!(store.get(&hash).await.unwrap() == content);
        assert!(matches!(
            store.put_file(&dir.path().join("none")).await,
            Err(StoreError::Io { .. })
        ));
        assert_eq!(std::fs::read_dir(store.dir()).unwrap().count(), 1);
    }
}
