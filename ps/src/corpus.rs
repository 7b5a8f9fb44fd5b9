//! The built text: training shards that are served, and the reserve that is not.

use crate::{PsError, run_tokenizer};
use alice_api::{CorpusManifest, Hex32, Shard};
use alice_corpus::reserve_file;
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
        let reserve = read_reserve(spec, dir)?;
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
        run_tokenizer::check_manifest(spec, &corpus, &dir.join(CORPUS_FILE))?;
        run_tokenizer::check_manifest(spec, &reserve, &dir.join(RESERVE_FILE))?;
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

    /// Whether the specification's counts of tokens are those of the manifests.
    pub fn check_counts(&self, spec: &RunSpec) -> Result<(), PsError> {
        let corpus = self.manifest.shards.iter().map(|shard| shard.tokens).sum();
        for (what, found, expected) in [
            ("data.corpus_tokens of run_spec", spec.data.corpus_tokens, corpus),
            (
                "data.reserve_tokens of run_spec",
                spec.data.reserve_tokens,
                self.reserve.tokens(),
            ),
        ] {
            if found != expected {
                return Err(PsError::Mismatch {
                    what,
                    found: found.to_string(),
                    expected: expected.to_string(),
                    hint: "write the number that the corpus has into the run specification before the network starts",
                });
            }
        }
        Ok(())
    }

    /// Opens the reserve for reading; every shard's hash is checked.
    pub fn reserve_source(&self, spec: &RunSpec, dir: &Path) -> Result<TokenSource, PsError> {
        Ok(TokenSource::open(self.reserve.clone(), dir, spec.model.context)?)
    }
}

/// The generation of the reserve that has the run's root; the first that is there if none has.
fn read_reserve(spec: &RunSpec, dir: &Path) -> Result<Manifest, PsError> {
    let mut first = None;
    for generation in 0..alice_corpus::GENERATIONS_MAX {
        let path = dir.join(reserve_file(generation));
        if !path.exists() {
            continue;
        }
        let manifest = Manifest::read(&path)?;
        if manifest.root == spec.reserve_root() {
            return Ok(manifest);
        }
        first = first.or(Some(manifest));
    }
    match first {
        Some(manifest) => Ok(manifest),
        // Says which file is missing.
        None => Ok(Manifest::read(&dir.join(RESERVE_FILE))?),
    }
}
