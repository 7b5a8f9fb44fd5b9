//! The tokenizer that a run names in `data.tokenizer`: where it is found, and whether it is the one.

use crate::PsError;
use alice_api::{Client, Hex32};
use alice_data::Manifest;
use alice_spec::RunSpec;
use alice_store::BlobStore;
use alice_tokenizer::{MODEL_BYTES_MAX, TOKENIZER_MODEL_FILE, Tokenizer};
use std::path::Path;

/// The tokenizer in a corpus folder, or the one of bytes.
pub fn from_folder(spec: &RunSpec, dir: &Path) -> Result<Tokenizer, PsError> {
    if spec.tokenizer_hash().is_none() {
        return Ok(Tokenizer::bytes());
    }
    checked(spec, Tokenizer::read_model(&dir.join(TOKENIZER_MODEL_FILE))?, dir)
}

/// Makes the run's tokenizer a public blob, named by the hash in the run specification.
pub async fn publish(spec: &RunSpec, dir: &Path, blobs: &BlobStore) -> Result<(), PsError> {
    if spec.tokenizer_hash().is_some() {
        blobs.put(from_folder(spec, dir)?.model_bytes()).await?;
    }
    Ok(())
}

/// The tokenizer among a data directory's blobs.
pub async fn from_blobs(spec: &RunSpec, blobs: &BlobStore) -> Result<Tokenizer, PsError> {
    match spec.tokenizer_hash() {
        None => Ok(Tokenizer::bytes()),
        Some(hash) => {
            let bytes = blobs.get(&hash).await?;
            checked(spec, Tokenizer::parse_model(&bytes)?, blobs.dir())
        }
    }
}

/// The tokenizer that a server publishes.
pub async fn from_server(spec: &RunSpec, client: &Client) -> Result<Tokenizer, PsError> {
    match spec.tokenizer_hash() {
        None => Ok(Tokenizer::bytes()),
        Some(hash) => {
            let bytes = client.blob(&Hex32(hash), MODEL_BYTES_MAX).await?;
            checked(spec, Tokenizer::parse_model(&bytes)?, Path::new(client.url()))
        }
    }
}

/// Refuses a tokenizer that is not the run's.
pub fn checked(spec: &RunSpec, tokenizer: Tokenizer, from: &Path) -> Result<Tokenizer, PsError> {
    match spec.tokenizer_problem(&tokenizer.spec_name(), tokenizer.vocab()) {
        None => Ok(tokenizer),
        Some(problem) => Err(other("the tokenizer", from, problem)),
    }
}

/// Refuses a manifest whose shards were encoded with another tokenizer. One that says nothing was made by a development
/// build, which has bytes as tokens.
pub fn check_manifest(spec: &RunSpec, manifest: &Manifest, from: &Path) -> Result<(), PsError> {
    let bytes = (alice_spec::BYTES, spec.model.vocab);
    let about = manifest.about.as_ref();
    let (name, vocab) = about.map_or(bytes, |about| (about.tokenizer.as_str(), about.vocab));
    match spec.tokenizer_problem(name, vocab) {
        None => Ok(()),
        Some(problem) => Err(other("the tokenizer that made the shards", from, problem)),
    }
}

fn other(what: &'static str, from: &Path, problem: String) -> PsError {
    PsError::OtherTokenizer {
        what,
        from: from.to_path_buf(),
        problem,
    }
}
