//! The HTTP API (`docs/spec/http-api.md`). Handlers parse, bound and translate; decisions are the [`Service`]'s.

mod answers;
mod blobs;
mod extract;
mod metrics;
mod openapi;
mod reads;
mod tasks;

pub use extract::JSON_BYTES_MAX;

use crate::service::{Refusal, Service};
use alice_api::ErrorCode;
use answers::Answer;
use axum::{
    Router,
    body::{Body, HttpBody},
    extract::{MatchedPath, Request},
    http::Method,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Longest time for a request, the body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests that are handled at the same time; more are told to come back.
const REQUESTS_MAX: usize = 512;

/// The API of a server.
pub fn router(service: Arc<Service>) -> Router {
    let slots = Arc::new(Semaphore::new(REQUESTS_MAX));
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
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn(move |request, next| {
            bounded(slots.clone(), request, next)
        }))
        .with_state(service)
}

/// Starts counting; called once, before the first request.
pub fn install_metrics() {
    metrics::install();
}

/// Keeps the counting in bounds; runs for as long as the server.
pub async fn metrics_upkeep() {
    metrics::upkeep().await;
}

async fn no_route(request: Request) -> Answer<()> {
    Err(Refusal::new(
        ErrorCode::NotFound,
        format!("there is nothing at {}", shortened(request.uri().path())),
        "GET /v1/openapi.json lists what there is",
    )
    .into())
}

async fn no_method(method: Method, request: Request) -> Answer<()> {
    Err(Refusal::new(
        ErrorCode::BadRequest,
        format!("{method} does not go with {}", shortened(request.uri().path())),
        "GET /v1/openapi.json lists the methods of each path",
    )
    .into())
}

/// Text of the other side for a message: bounded.
fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

/// A body that holds its request's place.
struct Slotted {
    body: Body,
    _slot: OwnedSemaphorePermit,
}

impl HttpBody for Slotted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Puts limits on every request and counts it.
async fn bounded(slots: Arc<Semaphore>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    // Known names only: every name is a time series of its own, and anybody can make up methods.
    let method = match *request.method() {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        _ => "other",
    };
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "other".into(), |p| p.as_str().to_owned());
    let busy = |message: &str| {
        let refusal = Refusal::new(ErrorCode::Unavailable, message, "try again in a few seconds");
        answers::Failure(refusal).into_response()
    };
    let response = match slots.try_acquire_owned() {
        Ok(slot) => match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
            // A download holds its place until its last byte.
            Ok(response) => response.map(|body| Body::new(Slotted { body, _slot: slot })),
            Err(_) => busy("the request took too long"),
        },
        Err(_) => busy("the server handles as many requests as it may"),
    };
    metrics::observe(method, &path, response.status().as_u16(), started.elapsed());
    response
}
