//! Fetches the verdicts that are due, checks their signatures, and stores and reports them.

use crate::{
    MinerError,
    report::Reporter,
    settlement::receipts::{Receipts, Record, Standing},
    shutdown::{Shutdown, unless_requested},
};
use alice_api::{Client, ClientError, ErrorCode, Phase, Status, Verdict};
use serde_json::json;

/// A round may be decided this many epochs late (docs/spec/protocol.md#late-attestation); after that nothing is
/// expected any more.
pub const VERDICT_EPOCHS_MAX: u32 = 24;
/// Maximum number of submissions that one poll asks for: a long absence must not delay the next claim by thousands of
/// requests.
const SUBMISSIONS_PER_POLL: usize = 64;

/// Fetches all verdicts that may exist, and returns the number of submissions that were decided. A false answer leaves
/// its submission undecided and does not block the others.
///
/// # Errors
/// The first false answer, after all others are stored; the server is away; or a record cannot be written.
pub async fn fetch_verdicts(
    status: &Status,
    client: &Client,
    receipts: &mut Receipts,
    reporter: &mut Reporter,
    shutdown: &Shutdown,
) -> Result<u32, MinerError> {
    let due: Vec<Record> = receipts
        .iter()
        .filter(|r| is_due(r, status))
        .take(SUBMISSIONS_PER_POLL)
        .cloned()
        .collect();
    let (mut decided, mut untrue) = (0, None);
    for mut record in due {
        // The request's own error is looked at below, so only the shutdown ends the loop here.
        let request = async { Ok::<_, MinerError>(client.submission(&record.id).await) };
        let answer = unless_requested(shutdown, request).await?;
        let verdict = match answer {
            Ok(answer) => answer.verdict,
            Err(e) if e.code() == Some(ErrorCode::NotFound) => None,
            Err(e @ ClientError::Unreachable { .. }) => return Err(e.into()),
            // A useless answer about this submission must not block the others.
            Err(e) => {
                tracing::warn!(submission = %record.id, error = %e, "the verdict cannot be fetched");
                None
            }
        };
        let verdict = verdict.filter(|verdict| match check(verdict, &record) {
            Ok(()) => true,
            Err(error) => {
                untrue.get_or_insert(error);
                false
            }
        });
        match verdict {
            Some(verdict) => record.verdict = Some(verdict),
            None if status.epoch > record.epoch.saturating_add(VERDICT_EPOCHS_MAX) => {
                record.closed = Some(format!(
                    "the server gave none that holds within {VERDICT_EPOCHS_MAX} epochs"
                ));
            }
            None => continue,
        }
        // Stored before it is reported: on a full disk the next poll fetches it again.
        receipts.put(record.clone())?;
        report(&record, reporter);
        decided += 1;
    }
    untrue.map_or(Ok(decided), Err)
}

/// Whether the server can have a verdict: not while the submission's own round is still open.
fn is_due(record: &Record, status: &Status) -> bool {
    record.standing() == Standing::Pending && !(status.phase == Phase::Open && status.round_epoch == Some(record.epoch))
}

/// Accepts a verdict about this submission that the server of its receipt signed.
fn check(verdict: &Verdict, record: &Record) -> Result<(), MinerError> {
    if verdict.body.id != record.id || verdict.body.epoch != record.epoch {
        return Err(MinerError::untrue("verdict", "it is about another submission"));
    }
    // Another server's verdict about this submission proves nothing against the one that gave the receipt.
    let same_server = record
        .receipt
        .as_ref()
        .is_some_and(|receipt| receipt.ps_key == verdict.ps_key);
    if !same_server || !verdict.verify(&record.genesis_hash.0) {
        return Err(MinerError::untrue("verdict", "its signature does not verify"));
    }
    Ok(())
}

/// Reports the state of a submission.
pub fn report(record: &Record, reporter: &mut Reporter) {
    let event = match record.standing() {
        Standing::Pending => "receipt",
        Standing::Late => "late",
        _ => "verdict",
    };
    let text = match (&record.receipt, record.standing()) {
        (Some(r), Standing::Pending) => {
            let b = &r.body;
            format!(
                "epoch {}: receipt for {} bytes, submission {} of the round, in block {}",
                b.epoch,
                b.bytes,
                b.sequence + 1,
                b.block
            )
        }
        _ => format!("epoch {}: {}", record.epoch, record.reason()),
    };
    let verdict = record.verdict.as_ref().map(|v| &v.body);
    let fields = json!({
        "epoch": record.epoch,
        "id": record.id,
        "bytes": record.bytes,
        "outcome": verdict.map(|v| v.outcome.code()),
        "score": record.score(),
        "reason": record.reason(),
    });
    reporter.event(event, &text, fields);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settlement::receipts::tests::{record, verdict};
    use alice_api::{Hex32, Outcome, SubmissionStatus};
    use axum::{Json, Router, http::StatusCode, response::IntoResponse, routing};

    fn status(epoch: u32, phase: Phase, ps_key: Hex32) -> Status {
        Status {
            protocol: 1,
            ps_key,
            genesis_hash: Hex32(crate::settlement::receipts::tests::GENESIS),
            run_hash: Hex32([8; 32]),
            run: "dev".into(),
            block: epoch * 30,
            epoch,
            phase,
            round_epoch: Some(epoch),
            deadline_block: Some(epoch * 30 + 18),
            model_root: Hex32([0; 32]),
            model_step: 0,
            held_out_loss: None,
            submissions: 0,
            notice: None,
        }
    }

    async fn fetch_from(
        answer: Option<SubmissionStatus>,
        epoch: u32,
        phase: Phase,
    ) -> (Result<u32, MinerError>, Record) {
        let handler = move || async move {
            match answer {
                Some(answer) => Json(answer).into_response(),
                None => {
                    let body = alice_api::ApiError {
                        error: ErrorCode::NotFound,
                        message: "m".into(),
                        hint: "h".into(),
                    };
                    (StatusCode::NOT_FOUND, Json(body)).into_response()
                }
            }
        };
        let router = Router::new().route("/v1/submissions/{id}", routing::get(handler));
        let client = crate::testing::client_of(router, 1).await;
        let dir = tempfile::tempdir().unwrap();
        let mut receipts = Receipts::open(dir.path()).unwrap();
        let mine = record(3, 1);
        let ps_key = mine.receipt.as_ref().unwrap().ps_key;
        receipts.put(mine.clone()).unwrap();
        let (_handle, shutdown) = Shutdown::new();
        let result = fetch_verdicts(
            &status(epoch, phase, ps_key),
            &client,
            &mut receipts,
            &mut Reporter::new(true),
            &shutdown,
        )
        .await;
        (
            result,
            Receipts::open(dir.path()).unwrap().get(&mine.id).unwrap().clone(),
        )
    }

    fn answer(outcome: Outcome) -> SubmissionStatus {
        let mine = record(3, 1);
        SubmissionStatus {
            verdict: Some(verdict(&mine, outcome)),
            receipt: mine.receipt.unwrap(),
        }
    }

    #[tokio::test]
    async fn a_verdict_should_be_stored() {
        let (decided, record) = fetch_from(Some(answer(Outcome::Accepted)), 3, Phase::Settling).await;
        assert_eq!(decided.unwrap(), 1);
        assert_eq!((record.standing(), record.score()), (Standing::Accepted, Some(1.02)));
    }

    #[tokio::test]
    async fn the_servers_silence_should_be_waited_out_and_then_closed() {
        let (decided, record) = fetch_from(None, 3 + VERDICT_EPOCHS_MAX, Phase::Open).await;
        assert_eq!((decided.unwrap(), record.standing()), (0, Standing::Pending));
        let (decided, record) = fetch_from(None, 4 + VERDICT_EPOCHS_MAX, Phase::Open).await;
        assert_eq!((decided.unwrap(), record.standing()), (1, Standing::Voided));
        assert!(record.reason().contains("24 epochs"));
    }

    #[tokio::test]
    async fn an_open_round_should_not_be_asked_about() {
        let (decided, record) = fetch_from(Some(answer(Outcome::Accepted)), 3, Phase::Open).await;
        assert_eq!((decided.unwrap(), record.standing()), (0, Standing::Pending));
    }

    #[tokio::test]
    async fn a_forged_verdict_should_not_count() {
        let mut forged = answer(Outcome::NoImprovement);
        if let Some(v) = &mut forged.verdict {
            v.body.outcome = Outcome::Accepted;
        }
        let (decided, record) = fetch_from(Some(forged), 3, Phase::Settling).await;
        assert!(matches!(decided, Err(MinerError::Untrue { what: "verdict", .. })));
        assert_eq!(record.standing(), Standing::Pending);
    }
}
