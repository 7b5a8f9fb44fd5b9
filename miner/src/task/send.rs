//! Sends a stored update and returns the server's answer: a receipt, or the reason why there is none.

use crate::{
    MinerError,
    report::Reporter,
    settlement::receipts::{Record, Refusal},
    shutdown::{Shutdown, unless_requested},
    task::journal::Outgoing,
};
use alice_api::{Client, ClientError, CommitRequest, DeclareRequest, ErrorCode, Hex32, Key, Receipt};
use bytes::Bytes;

/// A connection to the server that signs receipts.
pub struct Sender<'a> {
    /// The server.
    pub client: &'a Client,
    /// The mining key.
    pub key: &'a Key,
    /// Genesis hash of the network.
    pub genesis: Hex32,
    /// Key of the server's signatures.
    pub ps_key: Hex32,
    /// Shutdown request.
    pub shutdown: &'a Shutdown,
}

impl Sender<'_> {
    /// Declares, uploads and commits. A final refusal is a record, too.
    ///
    /// # Errors
    /// Everything that may change: the same bytes are to be sent again later.
    pub async fn send(&self, out: &Outgoing, update: Vec<u8>, reporter: &mut Reporter) -> Result<Record, MinerError> {
        let mut record = self.record(out);
        let bar = reporter.bar("upload", out.bytes, true);
        let mut progress = |sent| bar.set_position(sent);
        let result = unless_requested(self.shutdown, self.exchange(out, update.into(), &mut progress)).await;
        reporter.bar_done();
        match result {
            Ok(receipt) => {
                self.check(&receipt, out)?;
                record.receipt = Some(receipt);
                Ok(record)
            }
            Err(MinerError::Client(ClientError::Api { body, .. })) if is_final(body.error) => {
                record.refusal = Some(Refusal {
                    code: body.error.code().into(),
                    message: body.message,
                });
                Ok(record)
            }
            Err(error) => Err(error),
        }
    }

    /// Asks for the receipt of an update whose bytes are lost; `None` if it never was committed.
    ///
    /// # Errors
    /// The server is away, or its receipt is about another update.
    pub async fn ask(&self, out: &Outgoing) -> Result<Option<Record>, MinerError> {
        match unless_requested(self.shutdown, self.client.submission(&out.id)).await {
            Ok(status) => {
                self.check(&status.receipt, out)?;
                Ok(Some(Record {
                    receipt: Some(status.receipt),
                    ..self.record(out)
                }))
            }
            Err(MinerError::Client(error)) if error.code() == Some(ErrorCode::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The record of an update without a valid receipt.
    pub fn given_up(&self, out: &Outgoing, why: String) -> Record {
        Record {
            closed: Some(why),
            ..self.record(out)
        }
    }

    fn record(&self, out: &Outgoing) -> Record {
        let task = &out.lease.task;
        Record {
            genesis_hash: self.genesis,
            run_hash: task.run_hash,
            id: out.id,
            task_id: task.task_id,
            epoch: task.epoch,
            bytes: out.bytes,
            receipt: None,
            verdict: None,
            refusal: None,
            closed: None,
        }
    }

    async fn exchange(
        &self,
        out: &Outgoing,
        update: Bytes,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Receipt, ClientError> {
        let declare = DeclareRequest::new(self.key, &self.genesis.0, out.lease.task.task_id, out.blob, out.bytes);
        let commit = CommitRequest::new(self.key, &self.genesis.0, out.id);
        // The server answers a repeated declaration with the bytes it has, so an upload continues where it stopped.
        match self.client.upload(&declare, &update, progress).await {
            Ok(_) => self.client.commit(&commit).await,
            // The deadline may have passed between our commit and its answer: then there is a receipt all the same.
            Err(error) if error.code().is_some_and(is_final) => match self.client.submission(&out.id).await {
                Ok(status) => Ok(status.receipt),
                // The refusal is final only if the server confirms that it has no such submission.
                Err(lookup) if lookup.code() == Some(ErrorCode::NotFound) => Err(error),
                Err(lookup) => Err(lookup),
            },
            Err(error) => Err(error),
        }
    }

    /// Accepts a receipt of exactly the update that was sent, with a valid signature.
    fn check(&self, receipt: &Receipt, out: &Outgoing) -> Result<(), MinerError> {
        let (body, task) = (&receipt.body, &out.lease.task);
        // Every field, because a receipt about a smaller claim would later prove less than was done.
        let same = body.id == out.id
            && body.task_id == task.task_id
            && body.epoch == task.epoch
            && body.miner == self.key.public()
            && body.payout == task.payout
            && body.blob == out.blob
            && body.bytes == out.bytes;
        if !same {
            return Err(MinerError::untrue(
                "receipt",
                "it is about another update than the one that was sent",
            ));
        }
        if receipt.ps_key != self.ps_key || !receipt.verify(&self.genesis.0) {
            return Err(MinerError::untrue("receipt", "its signature does not verify"));
        }
        Ok(())
    }
}

/// Whether sending the same bytes again would bring the same refusal.
fn is_final(code: ErrorCode) -> bool {
    match code {
        ErrorCode::Unavailable | ErrorCode::Internal | ErrorCode::NoTask => false,
        // The bytes are checked before they are sent, so these are faults of the transfer.
        ErrorCode::WrongOffset | ErrorCode::Incomplete | ErrorCode::HashMismatch => false,
        ErrorCode::BadRequest
        | ErrorCode::TooLarge
        | ErrorCode::BadSignature
        | ErrorCode::NoRound
        | ErrorCode::UnknownTask
        | ErrorCode::NotFound
        | ErrorCode::LeaseExpired
        | ErrorCode::NotYourTask
        | ErrorCode::Duplicate
        | ErrorCode::Late => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{settlement::receipts::Standing, task::journal::tests::lease};
    use alice_api::{ApiError, ReceiptBody, SubmissionStatus, UploadState};
    use axum::{Json, Router, http::StatusCode, response::IntoResponse, routing};

    const GENESIS: [u8; 32] = [0; 32];
    const UPDATE: &[u8] = b"encoded update";

    fn keys() -> (Key, Key) {
        (Key::from_seed(&[1; 32]), Key::from_seed(&[7; 32]))
    }

    fn outgoing(miner: &Key) -> Outgoing {
        let blob = Hex32(*blake3::hash(UPDATE).as_bytes());
        let lease = lease(1);
        let id = alice_api::sign::submission_id(&lease.task.task_id, &miner.public(), &blob);
        Outgoing {
            id,
            lease,
            blob,
            bytes: UPDATE.len() as u64,
        }
    }

    fn receipt(out: &Outgoing, miner: &Key, ps: &Key, genesis: [u8; 32]) -> Receipt {
        let task = &out.lease.task;
        let body = ReceiptBody {
            id: out.id,
            task_id: task.task_id,
            epoch: task.epoch,
            miner: miner.public(),
            payout: task.payout,
            blob: out.blob,
            bytes: out.bytes,
            block: 40,
            sequence: 0,
        };
        Receipt::new(ps, &genesis, body)
    }

    fn refusal(error: ErrorCode) -> axum::response::Response {
        let body = ApiError {
            error,
            message: "why".into(),
            hint: "what to do".into(),
        };
        (StatusCode::from_u16(error.http_status()).unwrap(), Json(body)).into_response()
    }

    /// Runs a closure with a sender to a server.
    async fn with_sender<T>(router: Router, then: impl AsyncFnOnce(Sender<'_>, &Key) -> T) -> T {
        let client = crate::testing::client_of(router, 2).await;
        let (miner, ps) = keys();
        let (_handle, shutdown) = Shutdown::new();
        let sender = Sender {
            client: &client,
            key: &miner,
            genesis: Hex32(GENESIS),
            ps_key: ps.public(),
            shutdown: &shutdown,
        };
        then(sender, &miner).await
    }

    async fn send(router: Router) -> Result<Record, MinerError> {
        with_sender(router, async |sender, miner| {
            sender
                .send(&outgoing(miner), UPDATE.to_vec(), &mut Reporter::new(true))
                .await
        })
        .await
    }

    /// Asks a server that answers a request for the submission as given.
    async fn ask(
        answer: impl Fn() -> axum::response::Response + Clone + Send + Sync + 'static,
    ) -> Result<Option<Record>, MinerError> {
        let submission = routing::get(move || async move { answer() });
        let router = Router::new().route("/v1/submissions/{id}", submission);
        with_sender(router, async |sender, miner| sender.ask(&outgoing(miner)).await).await
    }

    #[tokio::test]
    async fn a_lost_update_should_be_given_up_only_if_the_server_confirms_it() {
        let (miner, ps) = keys();
        let status = |ps: &Key| SubmissionStatus {
            receipt: receipt(&outgoing(&miner), &miner, ps, GENESIS),
            verdict: None,
        };
        let (good, forged) = (status(&ps), status(&miner));
        let record = ask({
            let good = good.clone();
            move || Json(good.clone()).into_response()
        });
        assert_eq!(record.await.unwrap().unwrap().receipt, Some(good.receipt));
        assert_eq!(ask(|| refusal(ErrorCode::NotFound)).await.unwrap(), None);
        let error = ask(|| refusal(ErrorCode::Internal)).await.unwrap_err();
        assert!(error.is_temporary(), "{error}");
        let error = ask(move || Json(forged.clone()).into_response()).await.unwrap_err();
        assert!(matches!(error, MinerError::Untrue { what: "receipt", .. }), "{error}");
    }

    /// A server that accepts every upload and answers the commit as given.
    fn server(commit: impl Fn() -> axum::response::Response + Clone + Send + Sync + 'static) -> Router {
        let (miner, _) = keys();
        let id = outgoing(&miner).id;
        let state = move |offset| {
            Json(UploadState {
                id,
                offset,
                bytes: UPDATE.len() as u64,
                part_bytes_max: 1 << 20,
                committed: false,
            })
        };
        Router::new()
            .route("/v1/uploads", routing::post(move || async move { state(0) }))
            .route(
                "/v1/uploads/{id}",
                routing::patch(move || async move { state(UPDATE.len() as u64) }),
            )
            .route(
                "/v1/uploads/{id}/commit",
                routing::post(move || async move { commit() }),
            )
    }

    #[tokio::test]
    async fn a_commit_should_bring_a_receipt() {
        let (miner, ps) = keys();
        let good = receipt(&outgoing(&miner), &miner, &ps, GENESIS);
        let record = send(server({
            let good = good.clone();
            move || Json(good.clone()).into_response()
        }))
        .await
        .unwrap();
        assert_eq!(record.receipt, Some(good));
        assert_eq!(record.standing(), Standing::Pending);
        assert_eq!(record.verify(), Ok(()));
    }

    #[tokio::test]
    async fn a_forged_receipt_should_not_count() {
        let (miner, ps) = keys();
        for forged in [
            receipt(&outgoing(&miner), &miner, &ps, [9; 32]),
            receipt(&outgoing(&miner), &miner, &miner, GENESIS),
        ] {
            let error = send(server(move || Json(forged.clone()).into_response()))
                .await
                .unwrap_err();
            assert!(matches!(error, MinerError::Untrue { what: "receipt", .. }), "{error}");
            assert!(error.is_temporary());
        }
    }

    #[tokio::test]
    async fn late_should_be_a_record_and_unavailable_an_error() {
        let record = send(server(|| refusal(ErrorCode::Late))).await.unwrap();
        assert_eq!(record.standing(), Standing::Late);
        assert_eq!(record.reason(), "late, no score: why");
        let error = send(server(|| refusal(ErrorCode::Unavailable))).await.unwrap_err();
        assert!(error.is_temporary());
    }

    #[tokio::test]
    async fn a_commit_whose_answer_was_lost_should_bring_its_receipt_after_the_deadline() {
        let (miner, ps) = keys();
        let status = SubmissionStatus {
            receipt: receipt(&outgoing(&miner), &miner, &ps, GENESIS),
            verdict: None,
        };
        let router = Router::new()
            .route("/v1/uploads", routing::post(|| async { refusal(ErrorCode::Late) }))
            .route(
                "/v1/submissions/{id}",
                routing::get(move || async move { Json(status.clone()) }),
            );
        assert!(send(router).await.unwrap().receipt.is_some());
    }

    #[tokio::test]
    async fn a_refusal_should_not_be_final_while_the_submission_cannot_be_looked_up() {
        let router = |lookup: ErrorCode| {
            Router::new()
                .route("/v1/uploads", routing::post(|| async { refusal(ErrorCode::Late) }))
                .route(
                    "/v1/submissions/{id}",
                    routing::get(move || async move { refusal(lookup) }),
                )
        };
        let error = send(router(ErrorCode::Internal)).await.unwrap_err();
        assert!(error.is_temporary(), "{error}");
        let record = send(router(ErrorCode::NotFound)).await.unwrap();
        assert_eq!(record.standing(), Standing::Late);
    }
}
