//! The client against a server in the same process: repetitions, the server's reasons, resumed transfers, bounds.

use alice_api::{
    ApiError, Client, ClientError, CommitRequest, CorpusManifest, DeclareRequest, ErrorCode, Hex32, Key, Shard,
    UploadState, client::Retry,
};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, patch, post},
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const RETRY: Retry = Retry {
    attempts: 4,
    first: Duration::from_millis(1),
    max: Duration::from_millis(4),
};
const PART_BYTES: u64 = 1000;

async fn serve(router: Router) -> Client {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Client::with_retry(&url, RETRY).unwrap()
}

fn refuse(error: ErrorCode) -> Response {
    let status = StatusCode::from_u16(error.http_status()).unwrap();
    let body = ApiError {
        error,
        message: "what and where".into(),
        hint: "what to do".into(),
    };
    (status, Json(body)).into_response()
}

fn hash(bytes: &[u8]) -> Hex32 {
    Hex32(*blake3::hash(bytes).as_bytes())
}

#[tokio::test]
async fn unavailable_should_be_repeated_until_it_succeeds() {
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let handler = move || async move {
        match calls.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => refuse(ErrorCode::Unavailable),
            _ => Json(Vec::<()>::new()).into_response(),
        }
    };
    let client = serve(Router::new().route("/v1/epochs", get(handler))).await;
    assert!(client.epochs().await.unwrap().is_empty());
    assert_eq!(seen.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn unavailable_for_ever_should_end_with_the_servers_reason() {
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let handler = move || async move {
        calls.fetch_add(1, Ordering::SeqCst);
        refuse(ErrorCode::Unavailable)
    };
    let client = serve(Router::new().route("/v1/status", get(handler))).await;
    let error = client.status().await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unavailable));
    assert!(error.is_temporary());
    assert_eq!(seen.load(Ordering::SeqCst), RETRY.attempts);
}

#[tokio::test]
async fn a_refusal_should_carry_code_message_and_hint_and_not_be_repeated() {
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let handler = move || async move {
        calls.fetch_add(1, Ordering::SeqCst);
        refuse(ErrorCode::Late)
    };
    let client = serve(Router::new().route("/v1/uploads/{id}/commit", post(handler))).await;
    let request = CommitRequest::new(&Key::from_seed(&[1; 32]), &[2; 32], Hex32([3; 32]));
    let error = client.commit(&request).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Late));
    assert!(!error.is_temporary());
    let message = error.to_string();
    assert!(
        message.contains("refused (late): what and where; what to do"),
        "{message}"
    );
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn answers_that_are_not_the_apis_should_be_named() {
    let router = Router::new()
        .route("/v1/status", get(|| async { "<html>" }))
        .route("/v1/model", get(|| async { (StatusCode::FORBIDDEN, "no") }));
    let client = serve(router).await;
    assert!(matches!(client.status().await, Err(ClientError::Decode { .. })));
    let error = client.model().await.unwrap_err();
    assert!(matches!(&error, ClientError::Http { status: 403, .. }), "{error}");
    assert!(error.to_string().contains("alice-ps"));
}

/// A list of shards is longer than any other answer: `genesis-7b` has a trillion tokens, a million shards.
#[tokio::test]
async fn a_large_corpus_should_be_read() {
    let shard = |n: u32| Shard {
        blob: hash(&n.to_le_bytes()),
        tokens: 1 << 20,
    };
    let manifest = CorpusManifest {
        root: hash(b"root"),
        shards: (0..200_000).map(shard).collect(),
        sources: vec![],
    };
    let bytes = serde_json::to_vec(&manifest).unwrap();
    assert!(bytes.len() as u64 > alice_api::client::JSON_BYTES_MAX);
    assert!(bytes.len() as u64 * 5 < alice_api::client::CORPUS_BYTES_MAX);
    let get_bytes = get(move || async move { bytes });
    let router = Router::new()
        .route("/v1/corpus", get_bytes.clone())
        .route("/v1/yardstick", get_bytes);
    let client = serve(router).await;
    assert_eq!(client.corpus().await.unwrap(), manifest);
    assert_eq!(client.yardstick().await.unwrap(), manifest);
}

#[tokio::test]
async fn nobody_there_should_be_unreachable() {
    // A port that was just free: bound and closed again.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let client = Client::with_retry(&format!("http://127.0.0.1:{port}"), RETRY).unwrap();
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(error.is_temporary());
}

#[tokio::test]
async fn a_broken_blob_transfer_should_go_on_where_it_stopped() {
    let blob: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8).collect();
    let expected = blob.clone();
    // By hand, because a proper server does not close in the middle of what it announced.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::with_retry(&format!("http://{}", listener.local_addr().unwrap()), RETRY).unwrap();
    let server = tokio::spawn(async move {
        let mut ranges = Vec::new();
        for end in [2500, 5000] {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = String::new();
            let mut piece = [0; 1024];
            while !request.contains("\r\n\r\n") {
                let n = socket.read(&mut piece).await.unwrap();
                request += std::str::from_utf8(&piece[..n]).unwrap();
            }
            let range = request
                .to_lowercase()
                .lines()
                .find_map(|l| l.strip_prefix("range: bytes=").map(str::to_owned));
            let from: usize = range.as_ref().map_or(0, |r| r.trim_end_matches('-').parse().unwrap());
            let status = if from == 0 { "200 OK" } else { "206 Partial Content" };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", 5000 - from);
            socket.write_all(head.as_bytes()).await.unwrap();
            socket.write_all(&blob[from..end]).await.unwrap();
            ranges.push(range);
        }
        ranges
    });
    let mut last = 0;
    let got = client
        .blob_with(&hash(&expected), 5000, &mut |n| last = n)
        .await
        .unwrap();
    assert_eq!(got, expected);
    assert_eq!(last, 5000);
    assert_eq!(server.await.unwrap(), vec![None, Some("2500-".to_owned())]);
}

#[tokio::test]
async fn wrong_and_oversized_blobs_should_be_refused() {
    let client = serve(Router::new().route("/v1/blobs/{hash}", get(|| async { vec![7u8; 100] }))).await;
    assert!(matches!(
        client.blob(&Hex32([0; 32]), 100).await,
        Err(ClientError::BlobHash { .. })
    ));
    assert!(matches!(
        client.blob(&hash(&[7; 100]), 99).await,
        Err(ClientError::TooLarge { bytes_max: 99, .. })
    ));
    assert_eq!(client.blob(&hash(&[7; 100]), 100).await.unwrap(), vec![7; 100]);
    // Without a length in the header, too.
    let endless = || async {
        let pieces = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[7; 100])));
        Body::from_stream(pieces).into_response()
    };
    let client = serve(Router::new().route("/v1/blobs/{hash}", get(endless))).await;
    assert!(matches!(
        client.blob(&Hex32([0; 32]), 1000).await,
        Err(ClientError::TooLarge { .. })
    ));
}

/// A server's end of one upload, which loses the answer to the second part.
struct UploadServer {
    request: DeclareRequest,
    bytes: Mutex<Vec<u8>>,
    parts: AtomicU32,
}

impl UploadServer {
    fn state(&self) -> UploadState {
        UploadState {
            id: self.request.id(),
            offset: self.bytes.lock().unwrap().len() as u64,
            bytes: self.request.bytes,
            part_bytes_max: PART_BYTES,
            committed: false,
        }
    }
}

#[derive(serde::Deserialize)]
struct Offset {
    offset: u64,
}

async fn part(State(server): State<Arc<UploadServer>>, Query(at): Query<Offset>, body: Bytes) -> Response {
    if at.offset != server.state().offset {
        return refuse(ErrorCode::WrongOffset);
    }
    assert!(body.len() as u64 <= PART_BYTES);
    server.bytes.lock().unwrap().extend_from_slice(&body);
    match server.parts.fetch_add(1, Ordering::SeqCst) {
        // The part arrived, but the miner will not hear of it.
        1 => refuse(ErrorCode::Unavailable),
        _ => Json(server.state()).into_response(),
    }
}

#[tokio::test]
async fn an_upload_should_resume_and_survive_a_lost_answer() {
    let bytes: Bytes = (0..3500u32).map(|i| (i % 241) as u8).collect::<Vec<_>>().into();
    let key = Key::from_seed(&[1; 32]);
    let request = DeclareRequest::new(&key, &[9; 32], Hex32([4; 32]), hash(&bytes), bytes.len() as u64);
    let server = Arc::new(UploadServer {
        request: request.clone(),
        // A first process of the miner had sent this much.
        bytes: Mutex::new(bytes[..700].to_vec()),
        parts: AtomicU32::new(0),
    });
    let state = |State(s): State<Arc<UploadServer>>| async move { Json(s.state()) };
    let router = Router::new()
        .route("/v1/uploads", post(state))
        .route("/v1/uploads/{id}", patch(part).get(state))
        .with_state(server.clone());
    let client = serve(router).await;
    let mut offsets = Vec::new();
    let state = client.upload(&request, &bytes, &mut |n| offsets.push(n)).await.unwrap();
    assert_eq!(state.offset, 3500);
    assert_eq!(*server.bytes.lock().unwrap(), bytes);
    assert_eq!(offsets.first(), Some(&700));
    assert_eq!(offsets.last(), Some(&3500));
}

#[tokio::test]
async fn an_upload_that_the_server_never_stores_should_end() {
    let bytes = Bytes::from_static(&[1; 10]);
    let key = Key::from_seed(&[1; 32]);
    let request = DeclareRequest::new(&key, &[9; 32], Hex32([4; 32]), hash(&bytes), 10);
    let id = request.id();
    let state = move || async move {
        Json(UploadState {
            id,
            offset: 0,
            bytes: 10,
            part_bytes_max: 5,
            committed: false,
        })
    };
    let router = Router::new()
        .route("/v1/uploads", post(state))
        .route("/v1/uploads/{id}", patch(state));
    let client = serve(router).await;
    let error = client.upload(&request, &bytes, &mut |_| ()).await.unwrap_err();
    assert!(matches!(error, ClientError::UploadDesync { .. }), "{error}");
}

fn compressed(body: Vec<u8>) -> Response {
    (
        [("content-encoding", "zstd")],
        zstd::encode_all(body.as_slice(), 1).unwrap(),
    )
        .into_response()
}

#[tokio::test]
async fn compressed_answers_should_be_read_and_bounded_by_what_they_expand_to() {
    let blob = vec![7; 100_000];
    let served = blob.clone();
    let router = Router::new()
        .route("/v1/blobs/{hash}", get(move || async move { compressed(served) }))
        // 64 MiB of white space in a few KiB: JSON that never ends.
        .route("/v1/epochs", get(|| async { compressed(vec![b' '; 64 << 20]) }));
    let client = serve(router).await;
    assert_eq!(client.blob(&hash(&blob), 100_000).await.unwrap(), blob);
    for error in [
        client.blob(&hash(&blob), 99_999).await.unwrap_err(),
        client.epochs().await.unwrap_err(),
    ] {
        assert!(matches!(error, ClientError::TooLarge { .. }), "{error}");
    }
}

/// Without certificates, as in a minimal container: in a process of its own, since the system's are found once.
#[test]
fn trust_store_should_be_needed_for_https_only() {
    const CHILD: &str = "ALICE_API_TEST_WITHOUT_TRUST_STORE";
    if std::env::var_os(CHILD).is_some() {
        Client::new("http://127.0.0.1:1").unwrap();
        let error = Client::new("https://127.0.0.1:1").unwrap_err();
        assert!(error.to_string().contains("ca-certificates"), "{error}");
        return;
    }
    Client::new("http://127.0.0.1:1").unwrap();
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "trust_store_should_be_needed_for_https_only"])
        .env(CHILD, "1")
        .env("SSL_CERT_FILE", "/nonexistent")
        .env("SSL_CERT_DIR", "/nonexistent")
        .status();
    assert!(status.unwrap().success());
}
