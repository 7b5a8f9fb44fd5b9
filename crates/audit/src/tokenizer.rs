//! The tokenizer that a run names in `data.tokenizer`.

use crate::AuditError;
use alice_api::{Client, Hex32};
use alice_spec::RunSpec;
use alice_tokenizer::{MODEL_BYTES_MAX, Tokenizer};
use std::path::Path;

/// The run's tokenizer as a server publishes it.
///
/// # Errors
/// The server does not answer, or serves another tokenizer.
pub async fn from_server(spec: &RunSpec, client: &Client) -> Result<Tokenizer, AuditError> {
    match spec.tokenizer_hash() {
        None => Ok(Tokenizer::bytes()),
        Some(hash) => {
            let bytes = client.blob(&Hex32(hash), MODEL_BYTES_MAX).await?;
            checked(spec, Tokenizer::parse_model(&bytes)?, Path::new(client.url()))
        }
    }
}

/// Returns a tokenizer if it is the run's. `source` is for the error.
///
/// # Errors
/// It is another one.
pub fn checked(spec: &RunSpec, tokenizer: Tokenizer, source: &Path) -> Result<Tokenizer, AuditError> {
    match spec.tokenizer_problem(&tokenizer.spec_name(), tokenizer.vocab()) {
        None => Ok(tokenizer),
        Some(problem) => Err(AuditError::OtherTokenizer {
            what: "the tokenizer",
            place: source.to_path_buf(),
            problem,
        }),
    }
}
