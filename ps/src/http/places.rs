//! Places: which connections are open, and which of them gives way when all places are taken.

use super::connections::Limits;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};
use tokio::{sync::Notify, time::Instant};

/// The open connections.
#[derive(Debug)]
pub struct Places {
    limits: Limits,
    started: Instant,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    by_number: HashMap<u64, Arc<Connection>>,
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    address: IpAddr,
    /// Start of the clock of `active`.
    started: Instant,
    /// Milliseconds from `started` to the last byte that was read or written.
    active: AtomicU64,
    /// Requests whose answers are not complete.
    requests: AtomicUsize,
    evicted: Notify,
}

impl Connection {
    /// Notes that the client is there.
    pub fn touch(&self) {
        let elapsed = self.started.elapsed().as_millis() as u64;
        self.active.store(elapsed, Ordering::Relaxed);
    }

    /// Returns when another connection gets the place.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

/// A request in progress; its connection is not idle while this lives.
pub struct Busy(Arc<Connection>);

impl Busy {
    /// Begins a request on `connection`.
    pub fn new(connection: Arc<Connection>) -> Self {
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

/// A connection's place, free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    number: u64,
    connection: Arc<Connection>,
    places: Arc<Places>,
}

impl Place {
    /// The connection in this place.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.open().by_number.remove(&self.number);
    }
}

impl Places {
    /// Places within `limits`, all of them free.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            started: Instant::now(),
            open: Mutex::default(),
        }
    }

    /// No code panics under this lock, and the map is whole after each statement.
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from `ip`, made by evicting an idle one if need be: of the same address if that has all
    /// its places, of any otherwise. `None` if all of them are at work.
    pub fn admit(self: &Arc<Self>, ip: IpAddr) -> Option<Place> {
        let address = counted_address(ip);
        let (all, own) = {
            let open = self.open();
            let own = open.by_number.values().filter(|c| c.address == address).count();
            (open.by_number.len(), own)
        };
        // An address that is at its limit pays for a new connection with one of its own.
        if own >= self.limits.per_address_max && !address.is_loopback() {
            if !self.evict_idle(|connection| connection.address == address) {
                return None;
            }
        } else if all >= self.limits.connections_max && !self.evict_idle(|_| true) {
            return None;
        }
        let connection = Arc::new(Connection {
            address,
            started: self.started,
            active: AtomicU64::default(),
            requests: AtomicUsize::default(),
            evicted: Notify::new(),
        });
        // A new connection is not idle yet, or the next one would evict it before its head arrives.
        connection.touch();
        let number = {
            let mut open = self.open();
            let number = open.next;
            open.next += 1;
            open.by_number.insert(number, connection.clone());
            number
        };
        Some(Place {
            number,
            connection,
            places: self.clone(),
        })
    }

    /// Ends the connection that has been idle longest among those that `eligible` accepts; false if none is idle.
    pub fn evict_idle(&self, eligible: impl Fn(&Connection) -> bool) -> bool {
        let mut open = self.open();
        let idle = open
            .by_number
            .iter()
            .filter(|(_, c)| c.requests.load(Ordering::Relaxed) == 0 && eligible(c))
            .min_by_key(|(_, c)| c.active.load(Ordering::Relaxed))
            .map(|(number, _)| *number);
        let Some(connection) = idle.and_then(|number| open.by_number.remove(&number)) else {
            return false;
        };
        // Stored until the connection's task waits for it, so that an eviction is never missed.
        connection.evicted.notify_one();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn places(connections_max: usize, per_address_max: usize) -> Arc<Places> {
        Arc::new(Places::new(Limits {
            connections_max,
            per_address_max,
            ..Limits::default()
        }))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_new_connection_should_take_the_place_of_the_one_idle_longest() {
        let places = places(2, 10);
        let first = places.admit(ip("1.1.1.1")).unwrap();
        let second = places.admit(ip("1.1.1.2")).unwrap();
        second.connection.active.store(0, Ordering::Relaxed);
        first.connection.active.store(5, Ordering::Relaxed);
        let third = places.admit(ip("1.1.1.3")).unwrap();
        assert!(!places.open().by_number.contains_key(&second.number));
        // Requests in progress are never evicted.
        let _busy = [&first, &third].map(|place| Busy::new(place.connection.clone()));
        assert!(places.admit(ip("1.1.1.4")).is_none());
        drop(first);
        assert!(places.admit(ip("1.1.1.4")).is_some());
    }

    #[test]
    fn an_address_should_have_its_share_and_loopback_no_limit() {
        let places = places(100, 2);
        let own = ["2001:db8::1", "2001:db8::2"].map(|a| places.admit(ip(a)).unwrap());
        let busy = own.each_ref().map(|place| Busy::new(place.connection.clone()));
        assert!(places.admit(ip("2001:db8::3")).is_none(), "one /64");
        assert!(places.admit(ip("2001:db8:0:1::3")).is_some());
        drop(busy);
        assert!(places.admit(ip("2001:db8::3")).is_some(), "its own idle one makes room");
        let local: Vec<_> = (0..10).map(|_| places.admit(ip("127.0.0.1")).unwrap()).collect();
        assert_eq!(local.len(), 10);
        let mapped = places.admit(ip("::ffff:9.9.9.9")).unwrap();
        assert_eq!(mapped.connection.address, ip("9.9.9.9"));
    }
}
