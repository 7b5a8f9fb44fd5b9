//! The tokenizer that a run names in `data.tokenizer`: where it is found, and whether it is the one.

use crate::PsError;
use alice_audit::AuditError;
use alice_data::Manifest;
use alice_spec::RunSpec;
use alice_store::BlobStore;
use alice_tokenizer::{TOKENIZER_MODEL_FILE, Tokenizer};
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

/// Returns a tokenizer if it is the run's. `source` is for the error.
///
/// # Errors
/// It is another one.
pub fn checked(spec: &RunSpec, tokenizer: Tokenizer, source: &Path) -> Result<Tokenizer, PsError> {
    Ok(alice_audit::tokenizer::checked(spec, tokenizer, source)?)
}

/// Refuses a manifest whose shards were encoded with another tokenizer. One that says nothing was made by a development
/// build, which has bytes as tokens.
pub fn check_manifest(spec: &RunSpec, manifest: &Manifest, from: &Path) -> Result<(), PsError> {
    let bytes = (alice_spec::BYTES, spec.model.vocab);
    let about = manifest.about.as_ref();
    let (name, vocab) = about.map_or(bytes, |about| (about.tokenizer.as_str(), about.vocab));
    match spec.tokenizer_problem(name, vocab) {
        None => Ok(()),
        Some(problem) => Err(AuditError::OtherTokenizer {
            what: "the tokenizer that made the shards",
            place: from.to_path_buf(),
            problem,
        }
        .into()),
    }
}
