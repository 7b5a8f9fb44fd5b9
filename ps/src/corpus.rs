//! The built text: training shards that are served, and the reserve that is not.

use crate::PsError;
use alice_api::{CorpusManifest, Hex32, Shard};
use alice_data::{CORPUS_FILE, Manifest, RESERVE_FILE, TokenSource, tasks_available};
use alice_primitives::Hash;
use alice_spec::RunSpec;
use std::{collections::HashSet, path::Path};

/// The text of a run.
#[derive(Debug)]
pub struct Corpus {
    /// What is served of it.
    pub manifest: CorpusManifest,
    /// Names of the training shards: the only files of the folder that may be served.
    pub shards: HashSet<Hash>,
    /// Slices of the training text in one epoch, at most.
    pub slices_max: u32,
    /// The reserve.
    pub reserve: Manifest,
    /// Sequences in the reserve.
    pub reserve_sequences: u64,
}

impl Corpus {
    /// Reads both manifests and holds them against the roots of the specification.
    pub fn open(spec: &RunSpec, dir: &Path) -> Result<Self, PsError> {
        let corpus = Manifest::read(&dir.join(CORPUS_FILE))?;
        let reserve = Manifest::read(&dir.join(RESERVE_FILE))?;
        for (which, found, expected) in [
            ("corpus", corpus.root, spec.corpus_root()),
            ("reserve", reserve.root, spec.reserve_root()),
        ] {
            if found != expected {
                let dir = dir.to_path_buf();
                let (found, expected) = (Hex32(found).to_string(), Hex32(expected).to_string());
                return Err(PsError::CorpusRoot {
                    which,
                    dir,
                    found,
                    expected,
                });
            }
        }
        let context = u64::from(spec.model.context.max(1));
        let sequences = corpus.tokens() / context;
        let shards = corpus.shards.iter().map(|s| s.blob).collect();
        let served = corpus
            .shards
            .iter()
            .map(|s| Shard {
                blob: Hex32(s.blob),
                tokens: s.tokens,
            })
            .collect();
        Ok(Self {
            manifest: CorpusManifest {
                root: Hex32(corpus.root),
                shards: served,
            },
            shards,
            slices_max: tasks_available(spec, sequences).min(spec.round.tasks_max),
            reserve_sequences: reserve.tokens() / context,
            reserve,
        })
    }

    /// Opens the reserve for reading; every shard's hash is checked.
    pub fn reserve_source(&self, spec: &RunSpec, dir: &Path) -> Result<TokenSource, PsError> {
        Ok(TokenSource::open(self.reserve.clone(), dir, spec.model.context)?)
    }
}
