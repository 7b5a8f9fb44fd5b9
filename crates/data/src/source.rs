//! Reads sequences out of verified shards.

use crate::{DataError, Manifest};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A corpus on disk as sequences of `context` tokens. Sequence i is tokens `i·context .. (i+1)·context`; an incomplete
/// last sequence is not used. Shards are checked when the source is opened and read on demand, so that a large corpus
/// takes no memory.
#[derive(Debug)]
pub struct TokenSource {
    shards: Vec<OpenShard>,
    sequences: u64,
    context: u32,
}

#[derive(Debug)]
struct OpenShard {
    /// First token.
    start: u64,
    tokens: u64,
    /// `None` if the shard was not asked for. The lock guards the file's cursor.
    file: Option<(Mutex<File>, PathBuf)>,
}

impl TokenSource {
    /// Opens a whole corpus whose shards are in `dir`, and checks every shard's hash.
    pub fn open(manifest: Manifest, dir: &Path, context: u32) -> Result<Self, DataError> {
        let all: Vec<usize> = (0..manifest.shards.len()).collect();
        Self::open_shards(manifest, dir, context, &all)
    }

    /// Opens and checks only the shards of these numbers (see [`Manifest::shards_for`]).
    pub fn open_shards(manifest: Manifest, dir: &Path, context: u32, needed: &[usize]) -> Result<Self, DataError> {
        manifest.verify(&manifest.root)?;
        let sequences = manifest
            .tokens()
            .checked_div(context.into())
            .ok_or(DataError::NoContext)?;
        let mut start = 0u64;
        let mut shards = Vec::with_capacity(manifest.shards.len());
        for (index, shard) in manifest.shards.iter().enumerate() {
            let path = dir.join(hex::encode(shard.blob));
            let file = match needed.contains(&index) {
                true => Some((
                    Mutex::new(open_verified(index, &path, &shard.blob, shard.tokens)?),
                    path,
                )),
                false => None,
            };
            shards.push(OpenShard {
                start,
                tokens: shard.tokens,
                file,
            });
            start = start.saturating_add(shard.tokens);
        }
        Ok(Self {
            shards,
            sequences,
            context,
        })
    }

    /// Number of sequences.
    pub fn sequences(&self) -> u64 {
        self.sequences
    }

    /// Tokens in a sequence.
    pub fn context(&self) -> u32 {
        self.context
    }

    /// Tokens of sequence `index`, exactly [`TokenSource::context`] of them.
    pub fn sequence(&self, index: u64) -> Result<Vec<u16>, DataError> {
        if index >= self.sequences {
            return Err(DataError::NoSequence {
                index,
                sequences: self.sequences,
            });
        }
        let context = u64::from(self.context);
        let (mut position, end) = (index * context, (index + 1) * context);
        let mut tokens = Vec::with_capacity(self.context as usize);
        // The last shard that starts at or before the sequence; shards without tokens are skipped.
        let mut number = self
            .shards
            .partition_point(|shard| shard.start <= position)
            .saturating_sub(1);
        while position < end {
            let shard = self.shards.get(number).ok_or(DataError::NoSequence {
                index,
                sequences: self.sequences,
            })?;
            let until = end.min(shard.start + shard.tokens);
            if position < until {
                let Some((file, path)) = &shard.file else {
                    return Err(DataError::ShardNotOpened { index, shard: number });
                };
                let mut bytes = vec![0; (until - position) as usize * 2];
                // A poisoned lock is harmless: the only state is the cursor, which is set here.
                let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                file.seek(SeekFrom::Start((position - shard.start) * 2))
                    .map_err(DataError::io(path))?;
                file.read_exact(&mut bytes).map_err(DataError::io(path))?;
                tokens.extend(bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)));
                position = until;
            }
            number += 1;
        }
        Ok(tokens)
    }
}

fn open_verified(index: usize, path: &Path, blob: &[u8; 32], tokens: u64) -> Result<File, DataError> {
    let mut file = File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => DataError::ShardMissing {
            index,
            path: path.to_path_buf(),
        },
        _ => DataError::io(path)(e),
    })?;
    // Read once in full here, so that a task cannot train on damaged text; later reads trust the disk.
    let mut hasher = blake3::Hasher::new();
    let copied = std::io::copy(&mut file, &mut hasher).map_err(DataError::io(path))?;
    if hasher.finalize().as_bytes() != blob || Some(copied) != tokens.checked_mul(2) {
        return Err(DataError::ShardCorrupted {
            index,
            path: path.to_path_buf(),
        });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ShardEntry;
    use alice_store::blob_hash;

    /// Shards of 10, 0, 7 and 6 tokens that count up from zero.
    fn sample(dir: &Path) -> Manifest {
        let mut next = 0u16;
        let shards = [10u16, 0, 7, 6].map(|tokens| {
            let bytes: Vec<u8> = (next..next + tokens).flat_map(u16::to_le_bytes).collect();
            next += tokens;
            let blob = blob_hash(&bytes);
            std::fs::write(dir.join(hex::encode(blob)), bytes).unwrap();
            ShardEntry {
                blob,
                tokens: tokens.into(),
            }
        });
        Manifest::new(shards.to_vec())
    }

    #[test]
    fn sequences_should_run_across_shards() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = sample(dir.path());
        for context in 1..=23u16 {
            let source = TokenSource::open(manifest.clone(), dir.path(), context.into()).unwrap();
            assert_eq!(source.sequences(), 23 / u64::from(context));
            for i in 0..source.sequences() as u16 {
                let expected: Vec<u16> = (i * context..(i + 1) * context).collect();
                assert_eq!(
                    source.sequence(i.into()).unwrap(),
                    expected,
                    "context {context}, sequence {i}"
                );
            }
            assert!(matches!(
                source.sequence(source.sequences()),
                Err(DataError::NoSequence { .. })
            ));
            assert!(source.sequence(u64::MAX).is_err());
        }
        assert!(matches!(
            TokenSource::open(manifest, dir.path(), 0),
            Err(DataError::NoContext)
        ));
    }

    #[test]
    fn missing_and_corrupted_shards_should_be_named() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = sample(dir.path());
        let path = dir.path().join(hex::encode(manifest.shards[2].blob));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[5] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let message = TokenSource::open(manifest.clone(), dir.path(), 4)
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("shard 2 at") && message.contains("corrupted"),
            "{message}"
        );
        std::fs::remove_file(&path).unwrap();
        let message = TokenSource::open(manifest.clone(), dir.path(), 4)
            .unwrap_err()
            .to_string();
        assert!(message.starts_with("shard 2 is missing"), "{message}");

        // Sequences of other shards can be read without it.
        let needed = manifest.shards_for(4, &[0, 1]);
        let source = TokenSource::open_shards(manifest.clone(), dir.path(), 4, &needed).unwrap();
        assert_eq!(source.sequence(1).unwrap(), [4, 5, 6, 7]);
        assert!(matches!(
            source.sequence(2),
            Err(DataError::ShardNotOpened { index: 2, shard: 2 })
        ));
    }

    #[test]
    fn a_manifest_with_another_count_should_be_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut shards = sample(dir.path()).shards;
        shards[0].tokens = u64::MAX;
        assert!(TokenSource::open(Manifest::new(shards), dir.path(), 4).is_err());
    }
}
