//! Connections: accepted within limits, served with timers, ended when the server stops.
//!
//! A client costs a descriptor for as long as its connection is open, so every way to hold one without using it ends:
//!
//! | the client | ends after | by |
//! |---|---|---|
//! | sends no head, half a head, or nothing after an answer | [`Limits::head_timeout`] | Hyper's timer |
//! | reads slower than [`Limits::stall_bytes_min`] in a window | [`Limits::stall_window`] blocked | `pace` |
//! | sends a body slowly | the request's timeout | `slots` |
//!
//! When all places are taken, the connection that has been idle longest makes room; a client that sends its request at
//! once is served however many idle connections are open. One address can take [`Limits::per_address_max`] places.
//! Loopback is exempt, because a reverse proxy on this machine stands for many clients and limits them itself.

use super::{
    held::Held,
    pace::Paced,
    places::{Busy, Place, Places},
};
use axum::{Router, body::Body, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::sleep,
};
use tower::ServiceExt;

/// Connections at most, if there are descriptors for them. A connection costs about 20 KiB of memory.
const CONNECTIONS_MAX: usize = 4096;
/// Connections that are kept even if hardly any descriptors are left.
const CONNECTIONS_MIN: usize = 8;
/// Descriptors of a connection in use: its socket, and the blob or upload that its request reads or writes.
const DESCRIPTORS_PER_CONNECTION: u64 = 2;
/// Descriptors kept for everything else: three files for each of 20 database connections, and the round's own files.
const DESCRIPTORS_RESERVED: u64 = 96;
/// Pause after `accept` failed, so that a full table of descriptors neither keeps a core busy nor floods the log.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);
/// Answer on a connection for which there is no place.
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 111\r\n\
    access-control-allow-origin: *\r\nconnection: close\r\n\r\n\
    {\"error\":\"unavailable\",\"message\":\"too many connections are open\",\"hint\":\"close some, or try again in a minute\"}";

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections at most.
    pub connections_max: usize,
    /// Open connections of one address at most; an IPv6 address counts by its first 64 bits.
    pub per_address_max: usize,
    /// Longest time from the opening of a connection, or the end of an answer, to the end of the next request's head.
    pub head_timeout: Duration,
    /// Time of being blocked on a client that does not read, after which its pace is judged.
    pub stall_window: Duration,
    /// Bytes that a client must have read in that time.
    pub stall_bytes_min: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
            // A quarter of the slots of each class of requests: one machine cannot take any class for itself, and a
            // hundred miners behind one address are served.
            per_address_max: 128,
            // Miners ask every 4 to 15 s and keep their connection between two questions.
            head_timeout: Duration::from_secs(20),
            // Linux reports room in a socket only when a third of its buffer (4 MiB at most) is free. A shorter window
            // would judge the buffer of a slow client and not its pace.
            stall_window: Duration::from_secs(30),
            // 35 kbit/s: slower than any line on which training is of use.
            stall_bytes_min: 128 << 10,
        }
    }
}

impl Limits {
    /// The defaults, with as many connections as this process has descriptors for. Raises the soft limit of descriptors
    /// to the hard one first. Call it when all long-lived files are open.
    pub fn for_this_process() -> Self {
        let limit = raise_descriptor_limit();
        let connections_max = connections_for(limit, open_descriptors());
        tracing::info!(descriptors = limit, connections_max, "limits");
        Self {
            connections_max,
            ..Self::default()
        }
    }
}

/// The limit of descriptors in force afterwards; `u64::MAX` if there is none.
fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let found = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: found.maximum,
        maximum: found.maximum,
    };
    // macOS refuses an unlimited soft limit; then the old one stays.
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(_) => found.current,
    };
    limit.unwrap_or(u64::MAX)
}

/// Descriptors in use. Where the system does not list them, only the reserve counts.
fn open_descriptors() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}

fn connections_for(limit: u64, open: u64) -> usize {
    let spare = limit.saturating_sub(open).saturating_sub(DESCRIPTORS_RESERVED);
    usize::try_from(spare / DESCRIPTORS_PER_CONNECTION)
        .unwrap_or(CONNECTIONS_MAX)
        .clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)
}

/// Serves `router` until `stopping` is true or its sender is gone. Requests in progress are finished before this
/// returns; drop the future to end them.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, mut stopping: watch::Receiver<bool>) {
    let places = Arc::new(Places::new(limits));
    let mut open = JoinSet::new();
    let stopped = stopping.clone();
    loop {
        let accepted = tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => break,
            Some(_) = open.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match places.admit(peer.ip()) {
                Some(place) => {
                    open.spawn(drive(stream, place, router.clone(), limits, stopped.clone()));
                }
                None => refuse(stream),
            },
            Err(error) => {
                // The client was gone before it was accepted, or there are no descriptors: an idle connection may have
                // one.
                tracing::warn!(%error, "cannot accept a connection");
                places.evict_idle(|_| true);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Closed before the last answers are sent: new clients go elsewhere.
    drop(listener);
    while open.join_next().await.is_some() {}
}

/// Says why on a connection for which there is no place. A new socket's buffer is empty, so this never waits.
fn refuse(stream: TcpStream) {
    use std::io::Write;
    // If the client does not get the reason it sees a closed connection, and tries again all the same.
    let _ = stream.into_std().and_then(|mut stream| stream.write(BUSY));
}

/// Serves one connection to its end.
async fn drive(stream: TcpStream, place: Place, router: Router, limits: Limits, mut stopping: watch::Receiver<bool>) {
    let connection = place.connection().clone();
    let io = TokioIo::new(Paced::new(stream, connection.clone(), limits));
    let serving = connection.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        // Until the last byte of the answer: a download in progress is never evicted.
        let busy = Busy::new(serving.clone());
        let answer = router.clone().oneshot(request);
        async move {
            let answer = answer.await?;
            Ok::<_, std::convert::Infallible>(answer.map(|body| Body::new(Held::new(body, busy))))
        }
    });
    let mut serving = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_timeout)
            .serve_connection(io, service)
    );
    let mut stops = false;
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            // Dropping the connection closes its socket.
            () = connection.evicted() => return,
            _ = stopping.wait_for(|stop| *stop), if !stops => {
                stops = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_should_fit_the_descriptors_that_are_left() {
        assert_eq!(connections_for(u64::MAX, 50), CONNECTIONS_MAX);
        assert_eq!(connections_for(1024, 60), 434);
        assert_eq!(connections_for(100, 60), CONNECTIONS_MIN);
        assert_eq!(connections_for(20_000, 19_100), 402);
    }

    #[test]
    fn the_busy_answer_should_be_complete_and_an_api_error() {
        let text = std::str::from_utf8(BUSY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        let error: alice_api::ApiError = serde_json::from_str(body).unwrap();
        assert_eq!(error.error.http_status(), 503);
    }
}
