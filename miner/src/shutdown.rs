//! SIGINT and SIGTERM in the miner's terms: waiting for a reply ends with [`MinerError::Stopped`].

use crate::MinerError;
pub use alice_program::shutdown::{Shutdown, ShutdownHandle};
use std::future::Future;

/// Runs a future until it is done or the shutdown is requested, whichever comes first.
///
/// # Errors
/// [`MinerError::Stopped`] for the request, else the future's own error.
pub async fn unless_requested<T, E: Into<MinerError>>(
    shutdown: &Shutdown,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, MinerError> {
    match shutdown.race(work).await {
        Some(result) => result.map_err(Into::into),
        None => Err(MinerError::Stopped),
    }
}

/// The request that signals send.
///
/// # Errors
/// [`MinerError::Signals`] if the system refuses to install a handler.
pub fn on_signals() -> Result<Shutdown, MinerError> {
    Shutdown::on_signals().map_err(MinerError::Signals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_should_end_waiting_as_stopped() {
        let (handle, shutdown) = Shutdown::new();
        let done = unless_requested(&shutdown, async { Ok::<_, MinerError>(5) }).await;
        assert_eq!(done.unwrap(), 5);
        handle.request();
        let waiting = unless_requested(&shutdown, std::future::pending::<Result<(), MinerError>>());
        assert!(matches!(waiting.await, Err(MinerError::Stopped)));
    }
}
