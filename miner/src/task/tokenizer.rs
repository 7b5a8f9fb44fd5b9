//! The run's tokenizer: fetched once by the hash that the run specification names, and kept in the run's directory.
//! Training needs the token shards only; showing or entering text needs the tokenizer.

use crate::{
    MinerError, files,
    shutdown::{Shutdown, unless_requested},
};
use alice_api::{Client, Hex32};
use alice_spec::RunSpec;
use alice_tokenizer::{MODEL_BYTES_MAX, TOKENIZER_MODEL_FILE, Tokenizer};
use std::path::Path;

/// Fetches the run's tokenizer into `run_dir`, unless it is there already.
///
/// # Errors
/// The server is away or sends another tokenizer, or the file cannot be written.
pub async fn ensure(client: &Client, spec: &RunSpec, run_dir: &Path, shutdown: &Shutdown) -> Result<(), MinerError> {
    // Runs over bytes have no file.
    let Some(hash) = spec.tokenizer_hash() else {
        return Ok(());
    };
    let path = run_dir.join(TOKENIZER_MODEL_FILE);
    // A cache: one that cannot be read is fetched again.
    let stored = files::read_optional(&path, MODEL_BYTES_MAX).ok().flatten();
    if stored.is_some_and(|bytes| check(spec, &bytes).is_ok()) {
        return Ok(());
    }
    let sent = unless_requested(shutdown, client.blob(&Hex32(hash), MODEL_BYTES_MAX)).await?;
    check(spec, &sent).map_err(|problem| MinerError::untrue("tokenizer", problem))?;
    files::write_atomic(&path, &sent)
}

/// Checks that a file is the run's tokenizer; the error names the difference.
fn check(spec: &RunSpec, bytes: &[u8]) -> Result<(), String> {
    let tokenizer = Tokenizer::parse_model(bytes).map_err(|e| e.to_string())?;
    spec.tokenizer_problem(&tokenizer.spec_name(), tokenizer.vocab())
        .map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::any_blob_server as server;
    use alice_tokenizer::TrainOptions;

    fn learned() -> (RunSpec, Tokenizer) {
        let text = [Ok(&b"the river and the light and the river and the light"[..])];
        let tokenizer = alice_tokenizer::train(text, &TrainOptions::new(280), &mut |_| ()).unwrap();
        let mut spec = alice_testkit::fixtures::dev();
        spec.data.tokenizer = tokenizer.spec_name();
        spec.model.vocab = tokenizer.vocab();
        spec.validate().unwrap();
        (spec, tokenizer)
    }

    #[tokio::test]
    async fn the_runs_tokenizer_should_be_fetched_once_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKENIZER_MODEL_FILE);
        let (_handle, shutdown) = Shutdown::new();
        let (spec, tokenizer) = learned();

        // Another tokenizer than the run names: the blob has another hash.
        let other = server(Some(Tokenizer::bytes().model_bytes())).await;
        assert!(ensure(&other, &spec, dir.path(), &shutdown).await.is_err());
        assert!(!path.exists());

        ensure(
            &server(Some(tokenizer.model_bytes())).await,
            &spec,
            dir.path(),
            &shutdown,
        )
        .await
        .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), tokenizer.model_bytes());
        // A stored tokenizer needs no server; a damaged one is fetched again.
        let gone = server(None).await;
        ensure(&gone, &spec, dir.path(), &shutdown).await.unwrap();
        std::fs::write(&path, "garbage").unwrap();
        assert!(ensure(&gone, &spec, dir.path(), &shutdown).await.is_err());
        ensure(
            &server(Some(tokenizer.model_bytes())).await,
            &spec,
            dir.path(),
            &shutdown,
        )
        .await
        .unwrap();

        // The hash is right and the size of the model is not: the specification contradicts itself.
        let mut wide = spec.clone();
        wide.model.vocab += 1;
        std::fs::remove_file(&path).unwrap();
        let error = ensure(
            &server(Some(tokenizer.model_bytes())).await,
            &wide,
            dir.path(),
            &shutdown,
        )
        .await
        .unwrap_err();
        assert!(error.to_string().contains("model.vocab"), "{error}");
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn bytes_should_need_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let (_handle, shutdown) = Shutdown::new();
        let spec = alice_testkit::fixtures::dev();
        ensure(&server(None).await, &spec, dir.path(), &shutdown).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
