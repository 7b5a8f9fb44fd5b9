//! `alice-ps run`: puts the parts together and serves until it is told to stop.

use crate::{
    PsError,
    commands::init,
    config::Config,
    corpus::{self, Corpus},
    http, key,
    round::driver::Driver,
    round::scoring::ScoringError,
    round::scoring_thread::Scorer,
    run_context::read_spec,
    run_tokenizer,
    service::Service,
    service::chain_view::View,
};
use alice_model::{DeviceChoice, TorchOracle};
use alice_store::BlobStore;
use std::{future::Future, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch};

/// How long open answers may take when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until `stop` is done, or until something fails that waiting does not cure.
pub async fn run(config: Config, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), PsError> {
    let key = key::load(&config.key_file)?;
    let (text, spec) = read_spec(&config.run_spec)?;
    let _lock = init::lock(&config.data_dir)?;
    let (net, files, db) = init::open_state(&config.data_dir, text, spec).await?;
    init::bind_key(&db, key.public()).await?;
    let corpus = Corpus::open(&net.spec, &config.corpus_dir)?;
    // Names and licences may be put right later.
    let text = corpus::described(&corpus.manifest.sources);
    db.set_meta(corpus::META, text.as_bytes()).await?;
    run_tokenizer::publish(&net.spec, &config.corpus_dir, &BlobStore::open(&files.blobs())?).await?;
    let scorer = start_scorer(&config, &net.spec, &corpus).await?;
    let shards = BlobStore::open(&config.corpus_dir)?;
    let (view_sender, view) = watch::channel(View::default());
    let service = Arc::new(Service::new(net, corpus, db, files, shards, key, view)?);
    let driver = Driver::restore(service.clone(), scorer, view_sender).await?;

    http::install_metrics();
    let failed = |e: std::io::Error| PsError::Listen {
        address: config.listen.to_string(),
        problem: e.to_string(),
    };
    let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(%address, run = service.net.spec.name, ps_key = %service.key.public(), "serving");

    let (stopping, mut stopped) = watch::channel(false);
    let serving = axum::serve(listener, http::router(service.clone()))
        .with_graceful_shutdown(async move {
            // An error means that the sender is gone, which is a reason to stop as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        })
        .into_future();
    let mut serving = tokio::spawn(serving);
    let result = tokio::select! {
        () = stop => Ok(()),
        () = http::metrics_upkeep() => Ok(()),
        result = driver.run(&config.chain_url) => result,
        ended = &mut serving => match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(failed(e)),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        },
    };
    // A receiver that is gone has stopped already.
    let _ = stopping.send(true);
    if !serving.is_finished() && tokio::time::timeout(STOP_TIMEOUT, &mut serving).await.is_err() {
        serving.abort();
    }
    service.db.close().await;
    tracing::info!("stopped");
    result
}

async fn start_scorer(config: &Config, spec: &alice_spec::RunSpec, corpus: &Corpus) -> Result<Scorer, PsError> {
    let device = |problem: String| PsError::Scoring(ScoringError::Device(problem));
    let choice: DeviceChoice = config
        .device
        .parse()
        .map_err(|e| PsError::Setting(format!("device: {e}")))?;
    let reserve = corpus.reserve_source(spec, &config.corpus_dir)?;
    let (spec, threads) = (spec.clone(), config.threads);
    let make = move || {
        if let Some(threads) = threads {
            alice_model::set_threads(threads.into());
        }
        let resolved = choice.resolve().map_err(|e| device(e.to_string()))?;
        TorchOracle::new(&spec, reserve, resolved).map_err(|e| device(e.to_string()))
    };
    Scorer::start(make).await
}
