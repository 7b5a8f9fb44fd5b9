//! Ctrl-C and SIGTERM: finish what must be finished, then leave.

use crate::MinerError;
use std::{future::Future, time::Duration};
use tokio::sync::watch;

/// Tells every part of the miner that the user wants it to end.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

/// Asks the miner to end.
#[derive(Debug)]
pub struct StopHandle(watch::Sender<bool>);

impl Stop {
    /// A stop that is asked for by its handle.
    pub fn new() -> (StopHandle, Self) {
        let (sender, receiver) = watch::channel(false);
        (StopHandle(sender), Self(receiver))
    }

    /// A stop that is asked for by the first Ctrl-C or SIGTERM; the second ends the process at once.
    pub fn on_signals() -> Result<Self, MinerError> {
        let (handle, stop) = Self::new();
        #[cfg(unix)]
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .map_err(|e| MinerError::Setting(format!("cannot listen for SIGTERM: {e}")))?;
        tokio::spawn(async move {
            let mut signals = 0;
            loop {
                #[cfg(unix)]
                tokio::select! { _ = tokio::signal::ctrl_c() => {}, _ = terminate.recv() => {} }
                #[cfg(not(unix))]
                let _ = tokio::signal::ctrl_c().await;
                signals += 1;
                if signals > 1 {
                    // 128 + SIGINT, as shells expect.
                    std::process::exit(130);
                }
                handle.stop();
            }
        });
        Ok(stop)
    }

    /// Whether it was asked for.
    pub fn requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once it is asked for; never where nobody can ask.
    pub async fn wanted(&self) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Runs a future to its end or until the stop, whichever comes first.
    pub async fn or<T, E: Into<MinerError>>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, MinerError> {
        tokio::select! {
            biased;
            () = self.wanted() => Err(MinerError::Stopped),
            result = work => result.map_err(Into::into),
        }
    }

    /// Waits, or until the stop.
    pub async fn sleep(&self, time: Duration) {
        let wait = async {
            tokio::time::sleep(time).await;
            Ok::<(), MinerError>(())
        };
        let _ = self.or(wait).await;
    }
}

impl StopHandle {
    /// Asks for the stop.
    pub fn stop(&self) {
        let _ = self.0.send(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stop_should_end_waiting_at_once() {
        let (handle, stop) = Stop::new();
        assert!(!stop.requested());
        let waiter = tokio::spawn({
            let stop = stop.clone();
            async move { stop.or(std::future::pending::<Result<(), MinerError>>()).await }
        });
        handle.stop();
        assert!(matches!(waiter.await.unwrap(), Err(MinerError::Stopped)));
        stop.sleep(Duration::from_secs(1000)).await;
        assert!(stop.requested());
    }

    #[tokio::test]
    async fn work_should_go_on_where_nobody_can_stop_it() {
        let (handle, stop) = Stop::new();
        drop(handle);
        assert_eq!(stop.or(async { Ok::<_, MinerError>(5) }).await.unwrap(), 5);
    }
}
