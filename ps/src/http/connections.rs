//! Connections: accepted within limits, served with timers, ended when the server stops.
//!
//! A client costs a descriptor for as long as its connection is open, so every way to hold one without using it ends:
//!
//! | the client | ends after | by |
//! |---|---|---|
//! | sends no head, half a head, or nothing after an answer | [`Limits::head_timeout`] | Hyper's timer |
//! | reads slower than [`Limits::stall_bytes_min`] in a window | [`Limits::stall_window`] blocked | [`Pace`] |
//! | sends a body slowly | the request's timeout | `slots` |
//!
//! When all places are taken, the connection that has been idle longest makes room; a client that sends its request at
//! once is served however many idle connections are open. One address can take [`Limits::per_address_max`] places.
//! Loopback is exempt, because a reverse proxy on this machine stands for many clients and limits them itself.

use super::{
    bare::complete_answer,
    held::Held,
};
use axum::{Router, body::Body, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, Sleep, sleep, sleep_until},
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
/// Pause after `accept` failed, so that a full table of descriptors does not keep a core busy.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
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
            // A quarter of the slots of each class of requests: one machine cannot take any class for itself, and a hundred
            // miners behind one address are served.
            per_address_max: 128,
            // Miners ask every 4 to 15 s and keep their connection between two questions.
            head_timeout: Duration::from_secs(20),
            // 52 kbit/s: slower than any line on which training is of use.
            stall_window: Duration::from_secs(20),
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
    let table = Arc::new(Table::new(limits));
    let mut open = JoinSet::new();
    let stopped = stopping.clone();
    loop {
        let accepted = tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => break,
            Some(_) = open.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match table.admit(peer.ip()) {
                Some(place) => {
                    open.spawn(drive(stream, place, router.clone(), limits, stopped.clone()));
                }
                None => refuse(stream),
            },
            Err(error) => {
                // The client was gone before it was accepted, or there are no descriptors: an idle connection may have one.
                tracing::warn!(%error, "cannot accept a connection");
                table.evict_idle(|_| true);
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
    let connection = place.connection.clone();
    let io = TokioIo::new(Paced::new(stream, connection.clone(), limits));
    let serving = connection.clone();
    let service = service_fn(move |request: Request<Incoming>| {
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
            () = connection.evicted.notified() => return,
            _ = stopping.wait_for(|stop| *stop), if !stops => {
                stops = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// An open connection, as far as others need to know.
#[derive(Debug)]
struct Connection {
    address: IpAddr,
    /// Start of the table's clock, for `active`.
    started: Instant,
    /// Milliseconds from `started` to the last byte that was read or written.
    active: AtomicU64,
    /// Requests whose answers are not complete.
    requests: AtomicUsize,
    /// Told when another connection needs the place.
    evicted: Notify,
}

impl Connection {
    fn touch(&self) {
        self.active.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

/// A request in progress; its connection is not idle while this lives.
struct Busy(Arc<Connection>);

impl Busy {
    fn new(connection: Arc<Connection>) -> Self {
        connection.requests.fetch_add(1, Ordering::Relaxed);
        Self(connection)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch();
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The open connections.
#[derive(Debug)]
struct Table {
    limits: Limits,
    started: Instant,
    open: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    by_number: HashMap<u64, Arc<Connection>>,
}

/// A connection's place in the table, free again when it is dropped.
#[derive(Debug)]
struct Place {
    number: u64,
    connection: Arc<Connection>,
    table: Arc<Table>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.table.places().by_number.remove(&self.number);
    }
}

impl Table {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            started: Instant::now(),
            open: Mutex::default(),
        }
    }

    /// No code panics under this lock, and the map is whole after each statement.
    fn places(&self) -> MutexGuard<'_, Places> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from `ip`, made by evicting an idle one if need be: of the same address if that has all
    /// its places, of any otherwise. None if all of them are at work.
    fn admit(self: &Arc<Self>, ip: IpAddr) -> Option<Place> {
        let address = counted_address(ip);
        let (open, own) = {
            let places = self.places();
            let own = places.by_number.values().filter(|c| c.address == address).count();
            (places.by_number.len(), own)
        };
        if own >= self.limits.per_address_max && !address.is_loopback() {
            if !self.evict_idle(|connection| connection.address == address) {
                return None;
            }
        } else if open >= self.limits.connections_max && !self.evict_idle(|_| true) {
            return None;
        }
        let connection = Arc::new(Connection {
            address,
            started: self.started,
            active: AtomicU64::default(),
            requests: AtomicUsize::default(),
            evicted: Notify::new(),
        });
        connection.touch();
        let mut places = self.places();
        let number = places.next;
        places.next += 1;
        places.by_number.insert(number, connection.clone());
        drop(places);
        Some(Place {
            number,
            connection,
            table: self.clone(),
        })
    }

    /// Ends the connection that has been idle longest among those that `eligible` accepts; false if none is idle.
    fn evict_idle(&self, eligible: impl Fn(&Connection) -> bool) -> bool {
        let mut places = self.places();
        let idle = places
            .by_number
            .iter()
            .filter(|(_, c)| c.requests.load(Ordering::Relaxed) == 0 && eligible(c))
            .min_by_key(|(_, c)| c.active.load(Ordering::Relaxed))
            .map(|(number, _)| *number);
        let Some(evicted) = idle.and_then(|number| places.by_number.remove(&number)) else {
            return false;
        };
        evicted.evicted.notify_one();
        true
    }
}

/// The address that connections are counted by. Whoever has one IPv6 address has at least a /64 of them.
fn counted_address(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        other => other,
    }
}

/// Judges how fast a client reads. Only time in which the server is blocked on the client counts.
#[derive(Debug)]
struct Pace {
    window: Duration,
    bytes_min: u64,
    /// Blocked in this window before `blocked_since`.
    blocked: Duration,
    /// Written in this window.
    written: u64,
    blocked_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn new(limits: &Limits) -> Self {
        Self {
            window: limits.stall_window,
            bytes_min: limits.stall_bytes_min,
            blocked: Duration::ZERO,
            written: 0,
            blocked_since: None,
            timer: None,
        }
    }

    /// Takes the result of a write, and replaces it by an error if the client is too slow.
    fn judge(&mut self, context: &mut Context<'_>, write: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match write {
            Poll::Ready(Ok(bytes)) => {
                if let Some(since) = self.blocked_since.take() {
                    self.blocked += since.elapsed();
                }
                self.written = self.written.saturating_add(bytes as u64);
                if self.blocked >= self.window {
                    self.end_window()?;
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => loop {
                if self.blocked.is_zero() && self.blocked_since.is_none() {
                    // What went into the socket's buffer before does not show that anybody reads.
                    self.written = 0;
                }
                let since = *self.blocked_since.get_or_insert_with(Instant::now);
                let end = since + self.window.saturating_sub(self.blocked);
                let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
                if timer.deadline() != end {
                    timer.as_mut().reset(end);
                }
                ready!(timer.as_mut().poll(context));
                self.end_window()?;
            },
        }
    }

    fn end_window(&mut self) -> io::Result<()> {
        if self.written < self.bytes_min {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads too slowly"));
        }
        (self.blocked, self.written, self.blocked_since) = (Duration::ZERO, 0, None);
        Ok(())
    }
}

/// A client's socket: notes when it was last active, ends it if the client reads too slowly, and gives the bare answers of
/// the HTTP parser the body that every refusal of this API has.
#[derive(Debug)]
struct Paced {
    stream: TcpStream,
    connection: Arc<Connection>,
    pace: Pace,
    /// The answer that is written instead of a bare one, and how much of it was written.
    replacement: Option<(Vec<u8>, usize)>,
}

impl Paced {
    fn new(stream: TcpStream, connection: Arc<Connection>, limits: Limits) -> Self {
        Self {
            stream,
            connection,
            pace: Pace::new(&limits),
            replacement: None,
        }
    }

    fn judge(&mut self, context: &mut Context<'_>, write: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(write, Poll::Ready(Ok(_))) {
            self.connection.touch();
        }
        self.pace.judge(context, write)
    }

    /// Writes the complete form of a bare answer in its place; None if `first` is no bare answer.
    fn poll_replace(&mut self, context: &mut Context<'_>, first: &[u8]) -> Option<Poll<io::Result<usize>>> {
        if self.replacement.is_none() {
            self.replacement = Some((complete_answer(first)?, 0));
        }
        while let Some((answer, written)) = &mut self.replacement
            && let Some(rest) = answer.get(*written..).filter(|rest| !rest.is_empty())
        {
            let write = Pin::new(&mut self.stream).poll_write(context, rest);
            if let Poll::Ready(Ok(bytes)) = write {
                *written += bytes;
            }
            match self.judge(context, write) {
                Poll::Ready(Ok(_)) => {}
                other => return Some(other),
            }
        }
        self.replacement = None;
        Some(Poll::Ready(Ok(first.len())))
    }
}

impl AsyncRead for Paced {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, out);
        if read.is_ready() {
            self.connection.touch();
        }
        read
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(replaced) = self.poll_replace(context, bytes) {
            return replaced;
        }
        let write = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A bare answer has no body, so it is one part.
        if let [only] = parts
            && let Some(replaced) = self.poll_replace(context, only)
        {
            return replaced;
        }
        let write = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.judge(context, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(connections_max: usize, per_address_max: usize) -> Arc<Table> {
        Arc::new(Table::new(Limits {
            connections_max,
            per_address_max,
            ..Limits::default()
        }))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

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

    #[test]
    fn a_new_connection_should_take_the_place_of_the_one_idle_longest() {
        let table = table(2, 10);
        let (first, second) = (table.admit(ip("1.1.1.1")).unwrap(), table.admit(ip("1.1.1.2")).unwrap());
        second.connection.active.store(0, Ordering::Relaxed);
        first.connection.active.store(5, Ordering::Relaxed);
        let third = table.admit(ip("1.1.1.3")).unwrap();
        assert!(!table.places().by_number.contains_key(&second.number));
        // Requests in progress are never evicted.
        let _busy = (Busy::new(first.connection.clone()), Busy::new(third.connection.clone()));
        assert!(table.admit(ip("1.1.1.4")).is_none());
        drop(first);
        assert!(table.admit(ip("1.1.1.4")).is_some());
    }

    #[test]
    fn an_address_should_have_its_share_and_loopback_no_limit() {
        let table = table(100, 2);
        let own: Vec<_> = ["2001:db8::1", "2001:db8::2"].map(|a| table.admit(ip(a)).unwrap()).into();
        let busy: Vec<_> = own.iter().map(|place| Busy::new(place.connection.clone())).collect();
        assert!(table.admit(ip("2001:db8::3")).is_none(), "one /64");
        assert!(table.admit(ip("2001:db8:0:1::3")).is_some());
        drop(busy);
        assert!(table.admit(ip("2001:db8::3")).is_some(), "its own idle one makes room");
        let local: Vec<_> = (0..10).map(|_| table.admit(ip("127.0.0.1")).unwrap()).collect();
        assert_eq!(local.len(), 10);
        let mapped = table.admit(ip("::ffff:9.9.9.9")).unwrap();
        assert_eq!(mapped.connection.address, ip("9.9.9.9"));
    }
}
