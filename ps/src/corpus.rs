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

/// Under which name the database keeps [`described`], for an export without the server.
pub const META: &str = "text";
/// Longest line of [`described`], bytes, less its end.
const DESCRIBED_BYTES_MAX: usize = 4000;

/// The text of a run.
#[derive(Debug)]
pub struct Corpus {
    /// What is served of it.
    pub manifest: CorpusManifest,
    /// The public yardstick, where the corpus has one.
    pub yardstick: Option<CorpusManifest>,
    /// Names of the shards of both: the only files of the folder that may be served.
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

/// The manifests of the reserve's generations that are there, in their order.
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

/// An error is no answer: what is not seen could not be kept private.
fn is_there(path: &Path) -> Result<bool, PsError> {
    path.try_exists().map_err(|e| PsError::file("look at", path, &e))
}

/// The yardstick, if there is one. A shard of any generation of the reserve in it would be served to everybody.
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
    // No document may have fallen to it.
    Ok(Some(yardstick).filter(|yardstick| !yardstick.shards.is_empty()))
}

/// One line for a model card: names and licences of the texts, as who built the corpus gave them. Empty where nothing is said.
pub fn described(sources: &[TextSource]) -> String {
    let plain = |text: &str| text.replace(char::is_control, " ");
    let mut line = String::new();
    for source in sources.iter().filter(|source| source.documents > 0) {
        let url = source.url.as_deref().map_or(String::new(), |url| format!(", {url}"));
        let next = plain(&format!("{} ({}{url})", source.name, source.license));
        // As much as a card takes.
        if line.len() + next.len() > DESCRIBED_BYTES_MAX {
            line += ", and others";
            break;
        }
        if !line.is_empty() {
            line += ", ";
        }
        line += &next;
    }
    line
}

/// What the API says of a manifest.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, url: Option<&str>, documents: u64) -> TextSource {
        TextSource {
            name: name.into(),
            license: "CC0-1.0".into(),
            url: url.map(Into::into),
            documents,
            bytes: 1,
        }
    }

    #[test]
    fn a_cards_line_should_name_texts_and_licences_and_end() {
        assert_eq!(described(&[]), "");
        let two = [
            source("a", Some("https://example.org"), 1),
            source("none of it", None, 0),
            source("b\nc", None, 2),
        ];
        assert_eq!(described(&two), "a (CC0-1.0, https://example.org), b c (CC0-1.0)");
        let many: Vec<_> = (0..1000).map(|n| source(&format!("source {n}"), None, 1)).collect();
        let line = described(&many);
        assert!(line.len() <= 4096 && line.ends_with(", and others"), "{}", line.len());
    }
}
