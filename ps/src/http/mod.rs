//! The HTTP API (`docs/spec/http-api.md`). Handlers parse, bound and translate; decisions are the [`Service`]'s.
//!
//! A request passes, from outside in: [`connections`] (places, timers), CORS, `slots` (how many at a time, and how
//! long), compression, and its handler. `extract` bounds what a handler reads, `response` turns refusals into answers.

mod bare;
mod blobs;
pub mod connections;
mod extract;
mod held;
mod metrics;
mod openapi;
mod pace;
mod places;
mod prepared;
mod reads;
mod response;
mod slots;
mod tasks;

pub use extract::JSON_BYTES_MAX;

use crate::{
    PsError,
    db::Db,
    service::{Refusal, Service},
    state::ServerState,
};
use alice_api::ErrorCode;
use axum::{
    Router,
    extract::Request,
    http::{Extensions, HeaderMap, Method, StatusCode, Version, header},
    middleware,
    routing::{get, post},
};
use prepared::PreparedJson;
use response::HttpResult;
use slots::Slots;
use std::sync::Arc;
use tower_http::{
    compression::{CompressionLayer, Predicate, predicate::SizeAbove},
    cors::{Any, CorsLayer},
};

/// Shortest JSON that is compressed, bytes: below that the saved packet is not worth the work.
const COMPRESSED_BYTES_MIN: u64 = 1024;

/// State of the handlers.
struct Api {
    service: Arc<Service>,
    corpus: PreparedJson,
    yardstick: Option<PreparedJson>,
}

impl Api {
    fn state(&self) -> &ServerState {
        self.service.state()
    }

    /// The database for handlers that only read.
    fn db(&self) -> &Db {
        self.state().read_db()
    }
}

/// The API of a server.
///
/// # Errors
/// The corpus manifest cannot be written as JSON.
pub fn router(service: Arc<Service>) -> Result<Router, PsError> {
    let corpus = service.state().corpus();
    let api = Api {
        corpus: PreparedJson::new("the corpus manifest", &corpus.manifest)?,
        yardstick: match &corpus.yardstick {
            Some(yardstick) => Some(PreparedJson::new("the yardstick's manifest", yardstick)?),
            None => None,
        },
        service,
    };
    let slots = Arc::new(Slots::default());
    let compression = CompressionLayer::new().compress_when(SizeAbove::new(COMPRESSED_BYTES_MIN).and(is_json));
    Ok(routes()
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(compression)
        .layer(middleware::from_fn(move |request, next| {
            slots.clone().handle(request, next)
        }))
        .layer(cors())
        .with_state(Arc::new(api)))
}

fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/status", get(reads::status))
        .route("/v1/run", get(reads::run))
        .route("/v1/model", get(reads::model))
        .route("/v1/corpus", get(reads::corpus))
        .route("/v1/yardstick", get(reads::yardstick))
        .route("/v1/blobs/{hash}", get(blobs::blob))
        .route("/v1/tasks", post(tasks::claim))
        .route("/v1/uploads", post(tasks::declare))
        .route("/v1/uploads/{id}", get(tasks::upload_state).patch(tasks::receive))
        .route("/v1/uploads/{id}/commit", post(tasks::commit))
        .route("/v1/submissions/{id}", get(reads::submission))
        .route("/v1/epochs", get(reads::epochs))
        .route("/v1/epochs/{epoch}", get(reads::epoch))
        .route("/v1/epochs/{epoch}/manifest", get(reads::manifest))
        .route("/v1/epochs/{epoch}/pages", get(reads::page_of))
        .route("/v1/epochs/{epoch}/pages/{index}", get(reads::page))
        .route("/v1/miners/{key}", get(reads::miner))
        .route("/v1/openapi.json", get(openapi::document))
        .route("/metrics", get(metrics::render))
        .route("/healthz", get(reads::health))
}

/// Any web page may read: everything here is public, and no answer depends on cookies. Mining needs a key and a
/// program, so no page may send.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::HEAD])
        .allow_headers([header::RANGE, header::IF_NONE_MATCH])
        .expose_headers([header::ACCEPT_RANGES, header::CONTENT_RANGE, header::ETAG])
}

/// Only JSON is compressed. Blobs are dense already, and a client resumes them by ranges of their own bytes; the layer
/// itself leaves answers with a range alone.
fn is_json(_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
}

/// Starts counting; called once, before the first request.
pub fn install_metrics() {
    metrics::install();
}

/// Keeps the counting in bounds; runs for as long as the server.
pub async fn metrics_upkeep() {
    metrics::upkeep().await;
}

async fn no_route(request: Request) -> HttpResult<()> {
    Err(Refusal::new(
        ErrorCode::NotFound,
        format!("there is nothing at {}", shortened(request.uri().path())),
        "GET /v1/openapi.json lists what there is",
    )
    .into())
}

async fn no_method(method: Method, request: Request) -> HttpResult<()> {
    Err(Refusal::new(
        ErrorCode::BadRequest,
        format!("{method} does not go with {}", shortened(request.uri().path())),
        "GET /v1/openapi.json lists the methods of each path",
    )
    .into())
}

/// The client's text for a message: at most 100 characters.
fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}
