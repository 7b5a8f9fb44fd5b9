//! The run's tokenizer: fetched once by the hash that the run specification names, and kept beside the run. Training
//! needs its shards only; who shows or enters text needs this.

use crate::{MinerError, files, shutdown::Stop};
use alice_api::{Client, Hex32};
use alice_spec::RunSpec;
use alice_tokenizer::{MODEL_BYTES_MAX, TOKENIZER_MODEL_FILE, Tokenizer};
use std::path::Path;

/// Makes sure that the run's tokenizer is in `run_dir` and is the one that the run names.
pub async fn ensure(client: &Client, spec: &RunSpec, run_dir: &Path, stop: &Stop) -> Result<(), MinerError> {
    let Some(hash) = spec.tokenizer_hash() else {
        return Ok(());
    };
    let path = run_dir.join(TOKENIZER_MODEL_FILE);
    let stored = files::read_optional(&path, MODEL_BYTES_MAX).ok().flatten();
    if stored.is_some_and(|bytes| check(spec, &bytes).is_ok()) {
        return Ok(());
    }
    let sent = stop.or(client.blob(&Hex32(hash), MODEL_BYTES_MAX)).await?;
    check(spec, &sent).map_err(|problem| MinerError::untrue("tokenizer", problem))?;
    files::write_atomic(&path, &sent)
}

/// Why a file is not the run's tokenizer.
fn check(spec: &RunSpec, bytes: &[u8]) -> Result<(), String> {
    let tokenizer = Tokenizer::parse_model(bytes).map_err(|e| e.to_string())?;
    spec.tokenizer_problem(&tokenizer.spec_name(), tokenizer.vocab())
        .map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alice_api::client::Retry;
    use alice_tokenizer::TrainOptions;
    use axum::{Router, http::StatusCode, routing};

    const DEV: &str = include_str!("../../../chain-spec/runs/dev.toml");

    async fn server(blob: Option<Vec<u8>>) -> Client {
        let get = move || async move { blob.ok_or(StatusCode::NOT_FOUND) };
        let router = Router::new().route("/v1/blobs/{hash}", routing::get(get));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let retry = Retry {
            attempts: 1,
            ..Retry::default()
        };
        let client = Client::with_retry(&format!("http://{}", listener.local_addr().unwrap()), retry).unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        client
    }

    fn learned() -> (RunSpec, Tokenizer) {
        let text = [Ok(&b"the river and the light and the river and the light"[..])];
        let tokenizer = alice_tokenizer::train(text, &TrainOptions::new(280), &mut |_| ()).unwrap();
        let mut spec = RunSpec::parse(DEV).unwrap();
        spec.data.tokenizer = tokenizer.spec_name();
        spec.model.vocab = tokenizer.vocab();
        spec.validate().unwrap();
        (spec, tokenizer)
    }

    #[tokio::test]
    async fn the_runs_tokenizer_should_be_fetched_once_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKENIZER_MODEL_FILE);
        let (_handle, stop) = Stop::new();
        let (spec, tokenizer) = learned();

        // Not what the run names: the transfer's hash is another.
        let other = server(Some(Tokenizer::bytes().model_bytes())).await;
        assert!(ensure(&other, &spec, dir.path(), &stop).await.is_err());
        assert!(!path.exists());

        ensure(&server(Some(tokenizer.model_bytes())).await, &spec, dir.path(), &stop)
            .await
            .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), tokenizer.model_bytes());
        // It is there: no server is asked. A damaged file is fetched again.
        let gone = server(None).await;
        ensure(&gone, &spec, dir.path(), &stop).await.unwrap();
        std::fs::write(&path, "garbage").unwrap();
        assert!(ensure(&gone, &spec, dir.path(), &stop).await.is_err());
        ensure(&server(Some(tokenizer.model_bytes())).await, &spec, dir.path(), &stop)
            .await
            .unwrap();

        // The hash is right and the size of the model is not: the specification contradicts itself.
        let mut wide = spec.clone();
        wide.model.vocab += 1;
        std::fs::remove_file(&path).unwrap();
        let error = ensure(&server(Some(tokenizer.model_bytes())).await, &wide, dir.path(), &stop)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("model.vocab"), "{error}");
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn bytes_should_need_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let (_handle, stop) = Stop::new();
        let spec = RunSpec::parse(DEV).unwrap();
        ensure(&server(None).await, &spec, dir.path(), &stop).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
