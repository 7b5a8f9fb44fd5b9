//! A corpus's shards and their root (`docs/spec/corpus.md`).

use crate::{About, DataError};
use alice_primitives::{Hash, tagged_hash, tags};
use alice_store::merkle;
use codec::Encode;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::Path;

/// File name of the training manifest.
pub const CORPUS_FILE: &str = "corpus.json";
/// File name of the reserve's manifest.
pub const RESERVE_FILE: &str = "reserve.json";
/// Maximum manifest that is read, bytes: more than a million shards.
const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// The shards of a corpus in order, under their root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Root over the shards; the run specification names it.
    #[serde(with = "hex::serde")]
    pub root: Hash,
    /// Shards in order.
    pub shards: Vec<ShardEntry>,
    /// Origin of the tokens; `None` in a development run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<About>,
}

/// One shard: tokens as u16 little endian, in a file that is named by its BLAKE3.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// BLAKE3 of the shard's bytes.
    #[serde(with = "hex::serde")]
    pub blob: Hash,
    /// Tokens in it (two bytes each).
    pub tokens: u64,
}

impl Manifest {
    /// A manifest over shards, with their root.
    pub fn new(shards: Vec<ShardEntry>) -> Self {
        Self {
            root: root_of(&shards),
            shards,
            about: None,
        }
    }

    /// Reads a manifest and checks its shards against its root.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        // The size first: the manifest may come from another machine.
        let file = std::fs::File::open(path).map_err(DataError::io(path))?;
        let bytes = file.metadata().map_err(DataError::io(path))?.len();
        if bytes > MANIFEST_BYTES_MAX {
            return Err(DataError::ManifestTooLarge {
                path: path.to_path_buf(),
                bytes,
                max: MANIFEST_BYTES_MAX,
            });
        }
        let mut content = Vec::new();
        file.take(MANIFEST_BYTES_MAX)
            .read_to_end(&mut content)
            .map_err(DataError::io(path))?;
        Self::parse(&content, path)
    }

    /// A manifest from its bytes; its shards are checked against its root. `path` is for the error.
    pub fn parse(content: &[u8], path: &Path) -> Result<Self, DataError> {
        let manifest: Self = serde_json::from_slice(content).map_err(|source| DataError::Manifest {
            path: path.to_path_buf(),
            source,
        })?;
        // Here and not later: nobody should see counts that no root covers.
        manifest.verify(&manifest.root)?;
        Ok(manifest)
    }

    /// Writes the manifest, atomically.
    pub fn write(&self, path: &Path) -> Result<(), DataError> {
        alice_store::file::write_atomic(path, |out| {
            serde_json::to_writer(out, self).map_err(std::io::Error::from)
        })?;
        Ok(())
    }

    /// Checks that the shards have the root that the run specification (or the manifest itself) names.
    pub fn verify(&self, expected: &Hash) -> Result<(), DataError> {
        // Both roots: the manifest's own may be wrong although its shards are the expected ones.
        let found = root_of(&self.shards);
        match found == *expected && found == self.root {
            true => Ok(()),
            false => Err(DataError::Root {
                expected: *expected,
                found: if found == *expected { self.root } else { found },
            }),
        }
    }

    /// Tokens over all shards.
    pub fn tokens(&self) -> u64 {
        self.shards
            .iter()
            .fold(0, |sum, shard| sum.saturating_add(shard.tokens))
    }

    /// Numbers of the shards that hold the given sequences of `context` tokens, ascending: those a miner fetches.
    pub fn shards_for(&self, context: u32, sequences: &[u64]) -> Vec<usize> {
        let context = u64::from(context);
        let mut spans: Vec<(u64, u64)> = sequences
            .iter()
            // Saturating: sequences come from servers, and an absurd one must not wrap around to a real shard.
            .map(|s| (s.saturating_mul(context), s.saturating_add(1).saturating_mul(context)))
            .collect();
        spans.sort_unstable();
        let (mut needed, mut next_span) = (Vec::new(), 0);
        let mut start = 0u64;
        for (index, shard) in self.shards.iter().enumerate() {
            let end = start.saturating_add(shard.tokens);
            // Spans are sorted and of one length, so those that end before this shard end before all later ones.
            while spans.get(next_span).is_some_and(|span| span.1 <= start) {
                next_span += 1;
            }
            if spans.get(next_span).is_some_and(|span| span.0 < end) {
                needed.push(index);
            }
            start = end;
        }
        needed
    }
}

/// Merkle root over (index, blob, tokens) of each shard.
fn root_of(shards: &[ShardEntry]) -> Hash {
    let leaves: Vec<Hash> = shards
        .iter()
        .enumerate()
        // The index is in the leaf, so that shards cannot change places; the count of tokens, so that nobody has to
        // download a shard to know which sequences are in it.
        .map(|(index, shard)| tagged_hash(tags::CORPUS_LEAF, &[&(index as u32, shard.blob, shard.tokens).encode()]))
        .collect();
    merkle::root(tags::CORPUS_NODE, &leaves)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        Manifest::new(
            (0..5)
                .map(|i| ShardEntry {
                    blob: [i; 32],
                    tokens: 10,
                })
                .collect(),
        )
    }

    #[test]
    fn root_should_match_the_golden_value() {
        // Golden: run specifications name corpora by it.
        assert_eq!(
            hex::encode(sample().root),
            "8c1c56cf067643505d68eb7a826559cd25b57b47426c174024c9f69198099ef5"
        );
    }

    #[test]
    fn manifests_should_survive_the_disk_and_refuse_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("corpus.json");
        let manifest = sample();
        manifest.write(&path).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), manifest);
        assert!(manifest.verify(&[9; 32]).is_err());
        let mut changed = manifest.clone();
        changed.shards[2].tokens += 1;
        changed.write(&path).unwrap();
        assert!(matches!(Manifest::read(&path), Err(DataError::Root { .. })));
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(Manifest::read(&path), Err(DataError::Manifest { .. })));
        assert!(matches!(
            Manifest::read(&dir.path().join("none")),
            Err(DataError::Io { .. })
        ));
    }

    #[test]
    fn needed_shards_should_cover_the_sequences() {
        let manifest = sample();
        assert_eq!(manifest.shards_for(4, &[0]), [0]);
        // Tokens 8..12 lie in two shards.
        assert_eq!(manifest.shards_for(4, &[2]), [0, 1]);
        assert_eq!(manifest.shards_for(4, &[11, 0]), [0, 4]);
        assert_eq!(manifest.shards_for(30, &[0]), [0, 1, 2]);
        assert!(manifest.shards_for(4, &[]).is_empty());
        assert!(manifest.shards_for(4, &[99, u64::MAX]).is_empty());
    }

    /// The target in `fuzz/` does the same with a fuzzer's patience.
    #[test]
    fn damaged_manifests_should_be_refused_or_have_their_root() {
        let mut manifest = sample();
        manifest.about = Some(about());
        let good = serde_json::to_vec(&manifest).unwrap();
        let path = Path::new("corpus.json");
        assert_eq!(Manifest::parse(&good, path).unwrap(), manifest);
        let (mut refused, mut read) = (0, 0);
        alice_testkit::damaged(&good, alice_testkit::JSON, 100_000, |bytes| {
            match Manifest::parse(bytes, path) {
                Err(_) => refused += 1,
                Ok(found) => {
                    found.verify(&found.root).unwrap();
                    found.tokens();
                    found.shards_for(4, &[0, 7, u64::MAX]);
                    read += 1;
                }
            }
        });
        assert!(refused > 50_000 && read > 100, "{refused} refused, {read} read");
    }

    fn about() -> About {
        About {
            format: crate::CORPUS_FORMAT.into(),
            part: crate::PartName::Training,
            generation: None,
            split: crate::SplitRule::default(),
            tokenizer: "bytes".into(),
            vocab: 259,
            documents: 3,
            bytes: 50,
            sources: vec![crate::SourceEntry {
                name: "a".into(),
                license: "CC0-1.0".into(),
                url: Some("https://example.org".into()),
                documents: 3,
                bytes: 50,
                left_out: Some(crate::LeftOut::default()),
            }],
        }
    }

    #[test]
    fn what_is_said_about_the_text_should_not_change_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("corpus.json");
        let mut manifest = sample();
        manifest.about = Some(about());
        manifest.write(&path).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), manifest);
        assert_eq!(manifest.root, sample().root);
        // A manifest of a development build has no such part.
        assert!(!serde_json::to_string(&sample()).unwrap().contains("about"));
    }
}
