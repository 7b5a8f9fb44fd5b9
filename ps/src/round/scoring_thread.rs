//! The thread that measures losses. Tensors never leave it, so no request ever waits for a device.

use crate::{
    PsError,
    round::scoring::{Job, Scored, ScoringError, score},
    state::ServerState,
};
use alice_score::LossOracle;
use alice_store::Master;
use std::sync::{Arc, mpsc};
use tokio::sync::oneshot;

type Work = Box<dyn FnOnce(&mut dyn LossOracle) + Send>;

/// Handle of the scoring thread. The thread ends with its last handle.
#[derive(Clone)]
pub struct Scorer {
    work: mpsc::SyncSender<Work>,
}

impl Scorer {
    /// Starts the thread and waits until its oracle is ready. `make` runs on the thread.
    pub async fn start<O, F>(make: F) -> Result<Self, PsError>
    where
        O: LossOracle,
        F: FnOnce() -> Result<O, PsError> + Send + 'static,
    {
        // The driver scores one round at a time. Room for one, so that handing it over never blocks the driver.
        let (work, jobs) = mpsc::sync_channel::<Work>(1);
        let (ready, is_ready) = oneshot::channel();
        let body = move || {
            let mut oracle = match make() {
                Ok(oracle) => oracle,
                Err(error) => {
                    // The receiver is gone only if the server is stopping.
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(()));
            while let Ok(work) = jobs.recv() {
                work(&mut oracle);
            }
        };
        let thread = std::thread::Builder::new().name("scoring".into()).spawn(body);
        thread.map_err(|e| ScoringError::Device(format!("the scoring thread does not start: {e}")))?;
        is_ready.await.map_err(|_| ended())??;
        Ok(Self { work })
    }

    /// Scores a round on the thread. Gives the weights back as they were.
    pub async fn score(
        &self,
        state: Arc<ServerState>,
        job: Arc<Job>,
        theta: Master,
    ) -> Result<(Scored, Master), ScoringError> {
        let (answer, done) = oneshot::channel();
        let work: Work = Box::new(move |oracle| {
            let scored = theta
                .scratch()
                .map_err(ScoringError::from)
                .and_then(|mut point| score(state.run(), &job, &mut point, oracle));
            // The receiver is gone only if the server is stopping.
            let _ = answer.send(scored.map(|scored| (scored, theta)));
        });
        self.work.try_send(work).map_err(|_| ended())?;
        done.await.map_err(|_| ended())?
    }
}

fn ended() -> ScoringError {
    ScoringError::Ended("the scoring thread is gone".into())
}
