//! Endpoints that only read.

use super::{
    Api,
    blobs::serve,
    extract::{account, bad_request, hex32, not_found, number, query},
    response::HttpResult,
};
use crate::service::Refusal;
use alice_api::{
    ApiError, CorpusManifest, EpochManifest, EpochSummary, ErrorCode, MinerHistory, ModelManifest, PayoutPage, Status,
    SubmissionStatus,
};
use axum::{
    Json,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use std::sync::Arc;

/// Epochs in one answer: the default and the maximum, about 500 bytes each.
const EPOCHS_DEFAULT: u32 = 100;
const EPOCHS_MAX: u32 = 1000;

/// Network, run, block, phase, round and model of the server.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
pub async fn status(State(api): State<Arc<Api>>) -> HttpResult<Json<Status>> {
    Ok(Json(api.service.status().await?))
}

/// The run specification, TOML.
#[utoipa::path(get, path = "/v1/run", responses((status = 200, body = String, content_type = "application/toml")))]
pub async fn run(State(api): State<Arc<Api>>) -> Response {
    (
        [(header::CONTENT_TYPE, "application/toml")],
        api.state().run().run_text.clone(),
    )
        .into_response()
}

/// How to get the current model.
#[utoipa::path(get, path = "/v1/model", responses((status = 200, body = ModelManifest)))]
pub async fn model(State(api): State<Arc<Api>>) -> HttpResult<Json<ModelManifest>> {
    let manifest = api.db().model_manifest().await?;
    Ok(Json(manifest.ok_or_else(|| {
        not_found("there is no model yet", "run alice-ps init")
    })?))
}

/// The training shards.
#[utoipa::path(get, path = "/v1/corpus", responses((status = 200, body = CorpusManifest),
    (status = 304, description = "the client has it (If-None-Match)")))]
pub async fn corpus(State(api): State<Arc<Api>>, headers: HeaderMap) -> Response {
    api.corpus.answer(&headers)
}

/// The shards of the public evaluation set (*yardstick*): text that nobody trains on and anybody may measure a model
/// with.
#[utoipa::path(get, path = "/v1/yardstick", responses((status = 200, body = CorpusManifest),
    (status = 304, description = "the client has it (If-None-Match)"), (status = 404, body = ApiError)))]
pub async fn yardstick(State(api): State<Arc<Api>>, headers: HeaderMap) -> HttpResult<Response> {
    let prepared = api.yardstick.as_ref().ok_or_else(|| {
        not_found(
            "this run's corpus has no public yardstick",
            "alice-ps corpus build makes one; corpora of --text have none",
        )
    })?;
    Ok(prepared.answer(&headers))
}

/// Receipt and verdict of a submission.
#[utoipa::path(get, path = "/v1/submissions/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = SubmissionStatus), (status = 404, body = ApiError),
))]
pub async fn submission(State(api): State<Arc<Api>>, Path(id): Path<String>) -> HttpResult<Json<SubmissionStatus>> {
    let id = hex32("a submission", &id)?;
    let found = api.db().submission(&id).await?;
    Ok(Json(found.ok_or_else(|| {
        not_found(format!("there is no submission {id}"), "it exists from its commit on")
    })?))
}

/// Scored epochs, newest first.
#[utoipa::path(get, path = "/v1/epochs",
    params(("before" = Option<u32>, Query, description = "only epochs before this one"),
           ("limit" = Option<u32>, Query, description = "maximum number of epochs; 100 by default, at most 1000")),
    responses((status = 200, body = Vec<EpochSummary>)))]
pub async fn epochs(State(api): State<Arc<Api>>, RawQuery(raw): RawQuery) -> HttpResult<Json<Vec<EpochSummary>>> {
    let before = query(raw.as_deref(), "before")
        .map(|v| number("an epoch", v))
        .transpose()?;
    let limit = query(raw.as_deref(), "limit")
        .map(|v| number("a limit", v))
        .transpose()?;
    let limit = limit.unwrap_or(EPOCHS_DEFAULT).min(EPOCHS_MAX);
    Ok(Json(api.db().epochs(before.unwrap_or(u32::MAX), limit).await?))
}

fn no_epoch(epoch: u32) -> Refusal {
    not_found(
        format!("epoch {epoch} has no result"),
        "it is there once the epoch is scored; GET /v1/epochs lists them",
    )
}

/// Summary of an epoch.
#[utoipa::path(get, path = "/v1/epochs/{epoch}", params(("epoch" = u32, Path)), responses(
    (status = 200, body = EpochSummary), (status = 404, body = ApiError),
))]
pub async fn epoch(State(api): State<Arc<Api>>, Path(epoch): Path<String>) -> HttpResult<Json<EpochSummary>> {
    let epoch = number("an epoch", &epoch)?;
    let row = api.db().epoch(epoch).await?.ok_or_else(|| no_epoch(epoch))?;
    Ok(Json(row.summary))
}

/// The epoch's manifest, the very bytes that were hashed.
#[utoipa::path(get, path = "/v1/epochs/{epoch}/manifest", params(("epoch" = u32, Path)), responses(
    (status = 200, body = EpochManifest), (status = 404, body = ApiError),
))]
pub async fn manifest(
    State(api): State<Arc<Api>>,
    Path(epoch): Path<String>,
    headers: HeaderMap,
) -> HttpResult<Response> {
    let epoch = number("an epoch", &epoch)?;
    let row = api.db().epoch(epoch).await?.ok_or_else(|| no_epoch(epoch))?;
    serve(
        api.state().blobs(),
        &row.summary.manifest_hash.0,
        &headers,
        "application/json",
    )
    .await
}

/// A payout page with its proof.
#[utoipa::path(get, path = "/v1/epochs/{epoch}/pages/{index}",
    params(("epoch" = u32, Path), ("index" = u32, Path)), responses(
    (status = 200, body = PayoutPage), (status = 404, body = ApiError),
))]
pub async fn page(
    State(api): State<Arc<Api>>,
    Path((epoch, index)): Path<(String, String)>,
) -> HttpResult<Json<PayoutPage>> {
    let (epoch, index) = (number("an epoch", &epoch)?, number("a page", &index)?);
    let found = api.db().page(epoch, index).await?;
    let missing = || {
        not_found(
            format!("epoch {epoch} has no payout page {index}"),
            "pages are there once the epoch is scored",
        )
    };
    Ok(Json(found.ok_or_else(missing)?))
}

/// The payout page with an account's entry.
#[utoipa::path(get, path = "/v1/epochs/{epoch}/pages",
    params(("epoch" = u32, Path), ("account" = String, Query)), responses(
    (status = 200, body = PayoutPage), (status = 404, body = ApiError),
))]
pub async fn page_of(
    State(api): State<Arc<Api>>,
    Path(epoch): Path<String>,
    RawQuery(raw): RawQuery,
) -> HttpResult<Json<PayoutPage>> {
    let epoch = number("an epoch", &epoch)?;
    let wanted = query(raw.as_deref(), "account").ok_or_else(|| {
        bad_request(
            "the query has no account",
            "add ?account= with an address or hexadecimal digits",
        )
    })?;
    let wanted = account(wanted)?;
    let found = api.db().page_of(epoch, &wanted).await?;
    let missing = || {
        not_found(
            format!("account {wanted} is paid nothing in epoch {epoch}"),
            "see the verdicts at /v1/miners/{key}",
        )
    };
    Ok(Json(found.ok_or_else(missing)?))
}

/// History of a mining key or payout account.
#[utoipa::path(get, path = "/v1/miners/{key}", params(("key" = String, Path)), responses(
    (status = 200, body = MinerHistory), (status = 404, body = ApiError),
))]
pub async fn miner(State(api): State<Arc<Api>>, Path(key): Path<String>) -> HttpResult<Json<MinerHistory>> {
    let key = account(&key)?;
    let found = api.db().history(&key.0).await?;
    Ok(Json(found.ok_or_else(|| {
        not_found(
            format!("{key} never took a task here"),
            "it is known from its first task on",
        )
    })?))
}

/// Whether the server answers and reads its database; the chain's state is in `/v1/status`.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = String), (status = 503, body = ApiError)))]
pub async fn health(State(api): State<Arc<Api>>) -> HttpResult<&'static str> {
    match api.db().model_step().await {
        Ok(Some(_)) => Ok("ok\n"),
        Ok(None) => Err(Refusal::new(ErrorCode::Unavailable, "the server has no model", "run alice-ps init").into()),
        Err(e) => Err(e.into()),
    }
}
