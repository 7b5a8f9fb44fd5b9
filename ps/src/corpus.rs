//! The built text: training shards that are served, and the reserve that is not.

use crate::{PsError, run_tokenizer};
use alice_api::{CorpusManifest, Hex32, Shard, TextSource};
use alice_corpus::{YARDSTICK_FILE, reserve_file};
use alice_data::{CORPUS_FILE, Manifest, PartName, RESERVE_FILE, TokenSource, tasks_available};
use alice_primitives::Hash;
use alice_spec::RunSpec;
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

/// Key in the database of the texts' description ([`describe_texts`](alice_audit::commands::export::describe_texts)),
/// for an export without the server.
pub const META: &str = "text";

/// The text of a run.
#[derive(Debug)]
pub struct Corpus {
    /// Its public part, as the API announces it.
    pub manifest: CorpusManifest,
    /// The public evaluation set (*yardstick*); `None` if the corpus has none.
    pub yardstick: Option<CorpusManifest>,
    /// Hashes of the shards of both: the only files of the folder that may be served.
    pub shards: HashSet<Hash>,
    /// Maximum slices of the training text in one epoch.
    pub slices_max: u32,
    /// The validation reserve; private.
    pub reserve: Manifest,
    /// Sequences in the reserve.
    pub reserve_sequences: u64,
}

impl Corpus {
    /// Reads both manifests and compares them with the roots of the specification.
    ///
    /// # Errors
    /// A manifest cannot be read, is of another run, or would publish private text.
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
        let yardstick = read_yardstick(spec, dir)?;
        let all = corpus.shards.iter().chain(yardstick.iter().flat_map(|y| &y.shards));
        Ok(Self {
            shards: all.map(|s| s.blob).collect(),
            manifest: served(&corpus),
            yardstick: yardstick.as_ref().map(served),
            slices_max: tasks_available(spec, sequences).min(spec.round.tasks_max),
            reserve_sequences: reserve.tokens() / context,
            reserve,
        })
    }

    /// Checks the specification's counts of tokens against the manifests.
    ///
    /// # Errors
    /// A count differs.
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
    ///
    /// # Errors
    /// A shard is missing or damaged.
    pub fn reserve_source(&self, spec: &RunSpec, dir: &Path) -> Result<TokenSource, PsError> {
        Ok(TokenSource::open(self.reserve.clone(), dir, spec.model.context)?)
    }
}

/// Manifests of the reserve's generations that exist, in their order.
fn reserves(dir: &Path) -> Result<Vec<PathBuf>, PsError> {
    let mut found = Vec::new();
    for generation in 0..alice_corpus::GENERATIONS_MAX {
        let path = dir.join(reserve_file(generation));
        if is_there(&path)? {
            found.push(path);
        }
    }
    Ok(found)
}

/// Whether a file exists. If that cannot be found out it is an error: text that is overlooked would not be kept
/// private.
fn is_there(path: &Path) -> Result<bool, PsError> {
    path.try_exists().map_err(|e| PsError::file("look at", path, &e))
}

/// The public evaluation set; `None` if the corpus has none. Refused if it names a shard of any generation of the
/// reserve, which would be served to everybody.
fn read_yardstick(spec: &RunSpec, dir: &Path) -> Result<Option<Manifest>, PsError> {
    let path = dir.join(YARDSTICK_FILE);
    if !is_there(&path)? {
        return Ok(None);
    }
    let yardstick = Manifest::read(&path)?;
    run_tokenizer::check_manifest(spec, &yardstick, &path)?;
    let public = |problem: String| {
        Err(PsError::NotPublic {
            path: path.clone(),
            problem,
        })
    };
    let part = yardstick.about.as_ref().map(|about| about.part);
    if let Some(part) = part.filter(|part| *part != PartName::Yardstick) {
        return public(format!("it says that it is {part:?}"));
    }
    let named: HashSet<Hash> = yardstick.shards.iter().map(|s| s.blob).collect();
    for reserve in reserves(dir)? {
        let private = Manifest::read(&reserve)?;
        if let Some(shard) = private.shards.iter().find(|s| named.contains(&s.blob)) {
            return public(format!("its shard {} is in {}", Hex32(shard.blob), reserve.display()));
        }
    }
    // A small corpus may have no document for it.
    Ok(Some(yardstick).filter(|yardstick| !yardstick.shards.is_empty()))
}

/// A manifest as the API announces it.
fn served(manifest: &Manifest) -> CorpusManifest {
    let sources = manifest.about.iter().flat_map(|about| &about.sources);
    CorpusManifest {
        root: Hex32(manifest.root),
        shards: manifest
            .shards
            .iter()
            .map(|s| Shard {
                blob: Hex32(s.blob),
                tokens: s.tokens,
            })
            .collect(),
        sources: sources
            .map(|s| TextSource {
                name: s.name.clone(),
                license: s.license.clone(),
                url: s.url.clone(),
                documents: s.documents,
                bytes: s.bytes,
            })
            .collect(),
    }
}

/// The generation of the reserve that has the run's root; the first that is there if none has.
fn read_reserve(spec: &RunSpec, dir: &Path) -> Result<Manifest, PsError> {
    let mut first = None;
    for path in reserves(dir)? {
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
