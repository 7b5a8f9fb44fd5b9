//! Clients that hold what they do not use: the server must go on for everybody else. Every test opens real sockets.

mod common;

use alice_api::{ApiError, CorpusManifest, Key, Receipt};
use alice_ps::http::connections::{Limits, serve};
use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use bytes::Bytes;
use common::{Fixture, Ps};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    time::timeout,
};

/// Longest wait for anything that should happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Receive buffer of a client: much smaller than a blob, and large enough to be emptied quickly.
const BUFFER_BYTES: u32 = 256 << 10;

/// A server on a port of its own, stopped when this is dropped.
struct Served {
    address: SocketAddr,
    stopping: watch::Sender<bool>,
}

async fn start(ps: &Ps, limits: Limits) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stopping, stopped) = watch::channel(false);
    tokio::spawn(serve(listener, ps.router.clone(), limits, stopped));
    Served { address, stopping }
}

/// Everything that the server answers to `request`, until it closes the connection.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let answer = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is as good as an end.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    timeout(PATIENCE, answer).await.unwrap()
}

async fn status(address: SocketAddr) -> String {
    exchange(
        address,
        "GET /v1/status HTTP/1.1\r\nhost: ps\r\nconnection: close\r\n\r\n",
    )
    .await
}

/// Waits until the server has closed a connection on which it may have sent something before.
async fn closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .expect("closed by the server");
}

/// A blob that no socket's buffers hold.
async fn large_blob(ps: &Ps) -> String {
    let hash = ps.state.blobs().put(vec![7u8; 16 << 20]).await.unwrap();
    format!("/v1/blobs/{}", alice_api::Hex32(hash))
}

/// A client that asks for `path` and reads the first bytes of the answer only. Its system keeps at most about
/// `buffer_bytes` of the rest.
async fn stall(address: SocketAddr, path: &str, buffer_bytes: u32) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(buffer_bytes).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: ps\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut first)).await.unwrap().unwrap();
    assert!(first.starts_with(b"HTTP/1.1 "), "{first:?}");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_downloads_should_stop_neither_status_nor_commits() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    ps.open_round().await;
    let served = start(&ps, Limits::default()).await;
    let path = large_blob(&ps).await;
    let mut stalled = Vec::new();
    for _ in 0..512 {
        stalled.push(stall(served.address, &path, 4 << 10).await);
    }
    let download = exchange(
        served.address,
        &format!("GET {path} HTTP/1.1\r\nconnection: close\r\n\r\n"),
    )
    .await;
    assert!(
        download.starts_with("HTTP/1.1 503 "),
        "all slots of downloads are taken"
    );
    assert!(status(served.address).await.starts_with("HTTP/1.1 200 "));
    // From claim to receipt over the same router.
    let miner = Key::from_seed(&[7; 32]);
    let lease = ps.claim(&miner, [9; 32]).await;
    let receipt: Receipt = ps.submit(&miner, lease.task.task_id, b"an update").await;
    assert_eq!(receipt.body.sequence, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_should_be_closed_and_a_slow_one_served() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    let limits = Limits {
        stall_window: Duration::from_secs(1),
        stall_bytes_min: 64 << 10,
        ..Limits::default()
    };
    let served = start(&ps, limits).await;
    let path = large_blob(&ps).await;
    let mut stalled = stall(served.address, &path, BUFFER_BYTES).await;
    // At about 3 MB/s the server waits for this client most of the time, for several windows.
    let mut slow = TcpStream::connect(served.address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: ps\r\n\r\n");
    slow.write_all(request.as_bytes()).await.unwrap();
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    let mut buffer = vec![0; 32 << 10];
    let started = tokio::time::Instant::now();
    while started.elapsed() < limits.stall_window * 3 {
        pace.tick().await;
        let read = timeout(PATIENCE, slow.read(&mut buffer)).await.unwrap().unwrap();
        assert!(read > 0, "closed by the server");
    }
    // The other one gets what was in the buffers, and no more.
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stalled.read_to_end(&mut rest))
        .await
        .expect("closed by the server");
    assert!(rest.len() < 16 << 20, "{} bytes", rest.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_half_sent_heads_should_be_closed() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    let limits = Limits {
        head_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let served = start(&ps, limits).await;
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    let mut half = TcpStream::connect(served.address).await.unwrap();
    half.write_all(b"GET /v1/status HTTP/1.1\r\nhost: ").await.unwrap();
    let mut idle = TcpStream::connect(served.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: ps\r\n\r\n")
        .await
        .unwrap();
    for stream in [&mut silent, &mut half, &mut idle] {
        closed(stream).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_should_make_room_when_all_places_are_taken() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    // As on a system with few descriptors. The heads' timer is not what helps here.
    let limits = Limits {
        connections_max: 20,
        head_timeout: Duration::from_secs(600),
        ..Limits::default()
    };
    let served = start(&ps, limits).await;
    let mut silent = Vec::new();
    for _ in 0..60 {
        silent.push(TcpStream::connect(served.address).await.unwrap());
    }
    for _ in 0..5 {
        assert!(status(served.address).await.starts_with("HTTP/1.1 200 "));
    }
    // The oldest lost their places.
    closed(&mut silent[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_place_should_be_told_why() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    let limits = Limits {
        connections_max: 2,
        ..Limits::default()
    };
    let served = start(&ps, limits).await;
    let path = large_blob(&ps).await;
    let _busy = [
        stall(served.address, &path, BUFFER_BYTES).await,
        stall(served.address, &path, BUFFER_BYTES).await,
    ];
    let answer = status(served.address).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 "), "{answer}");
    let error: ApiError = serde_json::from_str(body).unwrap();
    assert_eq!(error.error.code(), "unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_should_be_refused_like_everything_else() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    let served = start(&ps, Limits::default()).await;
    let long_path = format!("GET /{} HTTP/1.1\r\nhost: ps\r\n\r\n", "a".repeat(70_000));
    let long_head = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(200));
    for (request, expected) in [
        ("nonsense\r\n\r\n", "HTTP/1.1 400 "),
        (long_path.as_str(), "HTTP/1.1 414 "),
        (long_head.as_str(), "HTTP/1.1 431 "),
    ] {
        let answer = exchange(served.address, request).await;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{expected}: {answer}"));
        assert!(head.starts_with(expected), "{answer}");
        assert!(head.contains("access-control-allow-origin: *"), "{answer}");
        let error: ApiError = serde_json::from_str(body).unwrap();
        assert_eq!(error.error.code(), "bad_request");
        assert!(!error.message.is_empty() && !error.hint.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_should_finish_answers_and_end_idle_connections() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stopping, stopped) = watch::channel(false);
    let server = tokio::spawn(serve(listener, ps.router.clone(), Limits::default(), stopped));
    let path = large_blob(&ps).await;
    let mut download = stall(address, &path, BUFFER_BYTES).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    stopping.send(true).unwrap();
    closed(&mut idle).await;
    let mut rest = Vec::new();
    timeout(PATIENCE, download.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(rest.len() > 16 << 20, "the answer in progress is sent to its end");
    timeout(PATIENCE, server).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn web_pages_should_be_allowed_to_read_and_json_to_be_compressed() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    let get = |path: &str, name: header::HeaderName, value: &str| {
        let request = Request::get(path)
            .header(name, value)
            .header("origin", "https://page.example");
        request.body(Body::empty()).unwrap()
    };
    let answer = ps.send(get("/v1/openapi.json", header::ACCEPT_ENCODING, "zstd")).await;
    assert_eq!(answer.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    assert_eq!(answer.headers[header::CONTENT_ENCODING], "zstd");
    let refused = ps.send(get("/v1/nothing", header::ACCEPT_ENCODING, "zstd")).await;
    assert_eq!(refused.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    let preflight = Request::options("/v1/tasks")
        .header("origin", "https://page.example")
        .header("access-control-request-method", "POST");
    let preflight = ps.send(preflight.body(Body::empty()).unwrap()).await;
    let allowed = preflight.headers[header::ACCESS_CONTROL_ALLOW_METHODS]
        .to_str()
        .unwrap();
    assert!(allowed.contains("GET") && !allowed.contains("POST"), "{allowed}");

    // The list of shards: written once, named by its hash.
    let plain = ps.get("/v1/corpus").await;
    let packed = ps.send(get("/v1/corpus", header::ACCEPT_ENCODING, "zstd")).await;
    assert_eq!(packed.headers[header::CONTENT_ENCODING], "zstd");
    assert_eq!(zstd::decode_all(&packed.body[..]).unwrap(), plain.body);
    let etag = plain.headers[header::ETAG].to_str().unwrap();
    let known = ps.send(get("/v1/corpus", header::IF_NONE_MATCH, etag)).await;
    assert_eq!((known.status, known.body.len()), (StatusCode::NOT_MODIFIED, 0));

    // Blobs are sent as they are, whole and in ranges.
    let corpus: CorpusManifest = plain.parse();
    let blob = format!("/v1/blobs/{}", corpus.shards[0].blob);
    let whole = ps.send(get(&blob, header::ACCEPT_ENCODING, "zstd")).await;
    assert!(!whole.headers.contains_key(header::CONTENT_ENCODING));
    assert_eq!(whole.headers[header::CONTENT_LENGTH], whole.body.len().to_string());
    let mut range = get(&blob, header::ACCEPT_ENCODING, "zstd");
    range
        .headers_mut()
        .insert(header::RANGE, "bytes=0-1999".parse().unwrap());
    let range = ps.send(range).await;
    assert_eq!((range.status, range.body.len()), (StatusCode::PARTIAL_CONTENT, 2000));
    assert!(!range.headers.contains_key(header::CONTENT_ENCODING));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_should_end_even_if_its_client_is_gone() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    ps.open_round().await;
    let served = start(&ps, Limits::default()).await;
    // Each client leaves as soon as its claim is sent; whoever claims afterwards must find every slice either free or
    // its own, never one slice leased twice.
    let mut claims = Vec::new();
    for seed in 1..=6 {
        let body = serde_json::to_vec(&ps.claim_request(&Key::from_seed(&[seed; 32]), [9; 32])).unwrap();
        let head = format!(
            "POST /v1/tasks HTTP/1.1\r\nhost: ps\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        claims.push(Bytes::from([head.into_bytes(), body].concat()));
    }
    let send = |claim: Bytes| async move {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(&claim).await.unwrap();
    };
    futures::future::join_all(claims.into_iter().map(send)).await;
    let mut slices = Vec::new();
    for seed in 1..=6 {
        slices.push(ps.claim(&Key::from_seed(&[seed; 32]), [9; 32]).await.task.slice);
    }
    slices.sort_unstable();
    slices.dedup();
    assert_eq!(slices.len(), 6, "{slices:?}");
    drop(served.stopping);
}
