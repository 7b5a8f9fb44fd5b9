//! SIGINT and SIGTERM: finish what must be finished, then end.

use crate::exit;
use std::{future::Future, io, time::Duration};
use tokio::sync::watch;

/// A request to end, seen by every part of a program that holds a clone.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Time for a stopped command to clean up after itself before the process ends anyway.
const CLEAN_UP_TIME: Duration = Duration::from_secs(3);

/// Sends the request.
#[derive(Debug)]
pub struct ShutdownHandle(watch::Sender<bool>);

impl Shutdown {
    /// A request that its handle sends.
    pub fn new() -> (ShutdownHandle, Self) {
        let (sender, receiver) = watch::channel(false);
        (ShutdownHandle(sender), Self(receiver))
    }

    /// A request that the first SIGINT (Ctrl-C) or SIGTERM sends. The second signal ends the process at once with
    /// [`exit::INTERRUPTED`], for users who do not want to wait.
    ///
    /// # Errors
    /// The system refuses to install a handler.
    pub fn on_signals() -> io::Result<Self> {
        let (handle, shutdown) = Self::new();
        let mut signals = Signals::new()?;
        tokio::spawn(async move {
            signals.next().await;
            handle.request();
            // A second signal comes from somebody who does not want to wait.
            signals.next().await;
            std::process::exit(exit::INTERRUPTED.into());
        });
        Ok(shutdown)
    }

    /// Whether the request was sent.
    pub fn requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once the request is sent; never if the handle is gone, for then nobody can send it.
    pub async fn wait(&self) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|requested| *requested).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Runs a future until it is done or the request is sent, whichever comes first; `None` for the request.
    pub async fn race<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            // The request wins if both are ready: a stopped program should not begin its next step.
            biased;
            () = self.wait() => None,
            result = work => Some(result),
        }
    }

    /// Waits for a time, or until the request is sent.
    pub async fn sleep(&self, time: Duration) {
        let _ = self.race(tokio::time::sleep(time)).await;
    }
}

/// Runs a command until it is done, or until SIGINT or SIGTERM; `None` if it was stopped.
///
/// A command that waits is dropped, and removes its temporary files in doing so. One in the middle of a long
/// computation cannot be dropped before its next wait, so after three seconds the process ends with `code` whatever the
/// command does; then files with temporary names may stay.
///
/// # Errors
/// The system refuses to install a handler for signals.
pub async fn stoppable<T>(command: impl Future<Output = T>, code: u8) -> io::Result<Option<T>> {
    // Before the command starts, so that a signal in its first instant is not lost.
    let shutdown = Shutdown::on_signals()?;
    let stopped = shutdown.clone();
    tokio::spawn(async move {
        stopped.wait().await;
        tokio::time::sleep(CLEAN_UP_TIME).await;
        eprintln!("error: stopped; files with temporary names may be left");
        std::process::exit(code.into());
    });
    Ok(shutdown.race(command).await)
}

impl ShutdownHandle {
    /// Sends the request.
    pub fn request(&self) {
        let _ = self.0.send(true);
    }
}

/// The process's signals. SIGTERM comes from service managers and exists on Unix only.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            terminate: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        let interrupt = async {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        #[cfg(unix)]
        tokio::select! {
            () = interrupt => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        interrupt.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_should_end_waiting_at_once() {
        let (handle, shutdown) = Shutdown::new();
        assert!(!shutdown.requested());
        let waiter = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.race(std::future::pending::<()>()).await }
        });
        handle.request();
        assert_eq!(waiter.await.unwrap(), None);
        shutdown.sleep(Duration::from_secs(1000)).await;
        assert!(shutdown.requested());
    }

    #[tokio::test]
    async fn work_should_finish_if_nobody_can_stop_it() {
        let (handle, shutdown) = Shutdown::new();
        drop(handle);
        assert_eq!(shutdown.race(async { 5 }).await, Some(5));
    }
}
