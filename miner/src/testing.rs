//! Servers for unit tests: a router on a loopback port, and one that serves blobs.

use alice_api::{Client, Hex32, client::Retry};
use axum::{Router, extract::Path, extract::State, http::StatusCode, routing};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// A client of a server with these routes, which tries each request `attempts` times without a pause.
pub async fn client_of(router: Router, attempts: u32) -> Client {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let retry = Retry {
        attempts,
        first: Duration::ZERO,
        max: Duration::ZERO,
    };
    Client::with_retry(&url, retry).unwrap()
}

/// A client of a server that has these blobs, with the number of requests for blobs.
pub async fn blob_server(blobs: impl IntoIterator<Item = Vec<u8>>) -> (Client, Arc<AtomicU32>) {
    type Served = State<(Arc<BTreeMap<String, Vec<u8>>>, Arc<AtomicU32>)>;
    let by_hash = |bytes: Vec<u8>| (Hex32(*blake3::hash(&bytes).as_bytes()).to_string(), bytes);
    let blobs: BTreeMap<_, _> = blobs.into_iter().map(by_hash).collect();
    let requests = Arc::new(AtomicU32::new(0));
    let get = |State((blobs, requests)): Served, Path(hash): Path<String>| async move {
        requests.fetch_add(1, Ordering::SeqCst);
        blobs.get(&hash).cloned().ok_or(StatusCode::NOT_FOUND)
    };
    let router = Router::new()
        .route("/v1/blobs/{hash}", routing::get(get))
        .with_state((Arc::new(blobs), requests.clone()));
    (client_of(router, 1).await, requests)
}

/// A client of a server that sends this blob for every hash; `None` for a server without any.
pub async fn any_blob_server(blob: Option<Vec<u8>>) -> Client {
    let get = move || async move { blob.ok_or(StatusCode::NOT_FOUND) };
    client_of(Router::new().route("/v1/blobs/{hash}", routing::get(get)), 1).await
}
