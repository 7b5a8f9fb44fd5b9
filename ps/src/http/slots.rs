//! Slots: how many requests of a kind are handled at the same time.
//!
//! Each kind of request has slots of its own, so that the largest of them (downloads) cannot keep a miner from
//! committing, and a flood of claims cannot hide the server's status. A request holds its slot until the last byte of
//! its answer is sent.

use super::{held::Held, metrics, response::HttpError};
use crate::service::Refusal;
use alice_api::ErrorCode;
use axum::{
    body::Body,
    extract::{MatchedPath, Request},
    http::Method,
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// Slots of each kind. Each download in progress keeps one block of a blob (1 MiB) in memory.
const SLOTS: usize = 512;
/// Longest time to the start of an answer; for a part of an upload that includes its body: 1 MiB at 140 kbit/s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The same for a request with a small JSON body.
const DECISION_TIMEOUT: Duration = Duration::from_secs(20);

/// Kind of a request, by what it can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Blobs, and the answers that grow with the run: shard lists and manifests.
    Download,
    /// A part of an upload.
    Part,
    /// Claims, declarations and commits.
    Decision,
    /// Everything else.
    Read,
}

impl Kind {
    fn of(method: &Method, route: &str) -> Self {
        match (method, route) {
            (&Method::PATCH, _) => Self::Part,
            (&Method::POST, _) => Self::Decision,
            (_, "/v1/blobs/{hash}" | "/v1/epochs/{epoch}/manifest" | "/v1/corpus" | "/v1/yardstick") => Self::Download,
            _ => Self::Read,
        }
    }

    fn timeout(self) -> Duration {
        match self {
            Self::Decision => DECISION_TIMEOUT,
            Self::Download | Self::Part | Self::Read => REQUEST_TIMEOUT,
        }
    }
}

/// The slots of a server.
#[derive(Debug)]
pub struct Slots {
    downloads: Arc<Semaphore>,
    parts: Arc<Semaphore>,
    decisions: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

impl Default for Slots {
    fn default() -> Self {
        let slots = || Arc::new(Semaphore::new(SLOTS));
        Self {
            downloads: slots(),
            parts: slots(),
            decisions: slots(),
            reads: slots(),
        }
    }
}

impl Slots {
    fn of(&self, kind: Kind) -> Arc<Semaphore> {
        match kind {
            Kind::Download => &self.downloads,
            Kind::Part => &self.parts,
            Kind::Decision => &self.decisions,
            Kind::Read => &self.reads,
        }
        .clone()
    }

    /// Handles a request if its kind has a free slot, within its time, and counts it.
    pub async fn handle(self: Arc<Self>, request: Request, next: Next) -> Response {
        let started = Instant::now();
        // Known names only: every name is a time series of its own, and anybody can make up methods.
        let method = match *request.method() {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            Method::PATCH => "PATCH",
            _ => "other",
        };
        let route = request
            .extensions()
            .get::<MatchedPath>()
            .map_or_else(|| "other".into(), |p| p.as_str().to_owned());
        let kind = Kind::of(request.method(), &route);
        let busy = |message: &str| {
            let refusal = Refusal::new(ErrorCode::Unavailable, message, "try again in a few seconds");
            HttpError(refusal).into_response()
        };
        // Never queued: a client that waits in a row holds a connection, and is served no sooner than if it asks again.
        let response = match self.of(kind).try_acquire_owned() {
            Ok(slot) => match tokio::time::timeout(kind.timeout(), next.run(request)).await {
                Ok(response) => response.map(|body| Body::new(Held::new(body, slot))),
                Err(_) => busy("the request took too long"),
            },
            Err(_) => busy("the server handles as many requests of this kind as it may"),
        };
        metrics::observe(method, &route, response.status().as_u16(), started.elapsed());
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_should_be_told_apart_by_what_they_can_hold() {
        for (method, route, kind) in [
            (Method::GET, "/v1/blobs/{hash}", Kind::Download),
            (Method::HEAD, "/v1/epochs/{epoch}/manifest", Kind::Download),
            (Method::GET, "/v1/status", Kind::Read),
            (Method::GET, "/v1/uploads/{id}", Kind::Read),
            (Method::PATCH, "/v1/uploads/{id}", Kind::Part),
            (Method::POST, "/v1/uploads/{id}/commit", Kind::Decision),
            (Method::DELETE, "other", Kind::Read),
        ] {
            assert_eq!(Kind::of(&method, route), kind, "{method} {route}");
        }
    }
}
