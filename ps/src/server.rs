//! `alice-ps run`: puts the parts together and serves until it is stopped.

use crate::{
    PsError,
    commands::init,
    config::Config,
    corpus::{self, Corpus},
    http::{self, connections::Limits},
    key,
    round::{driver::Driver, scoring::ScoringError, scoring_thread::Scorer},
    run_context::read_spec,
    run_tokenizer,
    service::{Service, chain_view::ChainView},
    state::ServerState,
};
use alice_audit::commands::export::describe_texts;
use alice_model::{DeviceChoice, TorchOracle};
use alice_store::BlobStore;
use std::{future::Future, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch};

/// Longest time for answers in progress when the server stops: a part of an upload on a slow line may be lost with it,
/// and is sent again.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until `stop` is done, or until something fails that waiting does not cure.
///
/// # Errors
/// Settings, key, data directory, corpus, chain and device do not fit, or the disk or the database fails.
pub async fn run(config: Config, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), PsError> {
    // Held until the end: two servers on one directory would sign two decisions for one question.
    let _lock = init::lock(&config.data_dir)?;
    let state = open(&config).await?;
    let scorer = start_scorer(&config, &state).await?;
    let (view_sender, view) = watch::channel(ChainView::default());
    let service = Arc::new(Service::new(state.clone(), view));
    let driver = Driver::restore(state.clone(), scorer, view_sender).await?;
    let router = http::router(service)?;

    http::install_metrics();
    let failed = |e: std::io::Error| PsError::Listen {
        address: config.listen.to_string(),
        problem: e.to_string(),
    };
    // After the scorer has opened the reserve's files: what is left are the descriptors of connections.
    let limits = Limits::for_this_process();
    let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(%address, run = state.run().spec.name, ps_key = %state.key().public(), "serving");

    let (stopping, stopped) = watch::channel(false);
    let mut serving = tokio::spawn(http::connections::serve(listener, router, limits, stopped));
    let result = tokio::select! {
        () = stop => Ok(()),
        () = http::metrics_upkeep() => Ok(()),
        result = driver.run(&config.chain_url) => result,
        // It ends only when it is stopped, or by a panic.
        ended = &mut serving => match ended {
            Ok(()) => Ok(()),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        },
    };
    // An error means that nobody serves any more.
    let _ = stopping.send(true);
    if !serving.is_finished() && tokio::time::timeout(STOP_TIMEOUT, &mut serving).await.is_err() {
        serving.abort();
    }
    state.close().await;
    tracing::info!("stopped");
    result
}

/// Opens key, data directory and corpus, and checks that they belong together.
async fn open(config: &Config) -> Result<Arc<ServerState>, PsError> {
    let key = key::load(&config.key_file)?;
    let (text, spec) = read_spec(&config.run_spec)?;
    let (run, files, db) = init::open_state(&config.data_dir, text, spec).await?;
    init::bind_key(&db, key.public()).await?;
    let corpus = Corpus::open(&run.spec, &config.corpus_dir)?;
    // Written at every start: names and licences of texts may be corrected later.
    let description = describe_texts(&corpus.manifest.sources);
    db.set_meta(corpus::META, description.as_bytes()).await?;
    run_tokenizer::publish(&run.spec, &config.corpus_dir, &BlobStore::open(&files.blobs())?).await?;
    let shards = BlobStore::open(&config.corpus_dir)?;
    Ok(Arc::new(ServerState::new(run, corpus, db, files, shards, key)?))
}

async fn start_scorer(config: &Config, state: &ServerState) -> Result<Scorer, PsError> {
    let device = |problem: String| PsError::Scoring(ScoringError::Device(problem));
    let choice: DeviceChoice = config
        .device
        .parse()
        .map_err(|e: alice_model::DeviceError| PsError::SettingValue {
            key: "device",
            problem: e.to_string(),
        })?;
    let spec = state.run().spec.clone();
    let reserve = state.corpus().reserve_source(&spec, &config.corpus_dir)?;
    let threads = config.threads;
    let make = move || {
        if let Some(threads) = threads {
            alice_model::set_threads(threads.into());
        }
        let resolved = choice.resolve().map_err(|e| device(e.to_string()))?;
        TorchOracle::new(&spec, reserve, resolved).map_err(|e| device(e.to_string()))
    };
    Scorer::start(make).await
}
