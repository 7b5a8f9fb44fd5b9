//! Claims and uploads.

use super::{
    Api,
    extract::{bad_request, hex32, number, query, read_body, read_json},
    response::HttpResult,
};
use crate::service::{PART_BYTES_MAX, Refusal};
use alice_api::{ApiError, ClaimRequest, CommitRequest, DeclareRequest, ErrorCode, Lease, Receipt, UploadState};
use axum::{
    Json,
    body::Body,
    extract::{Path, RawQuery, State},
    http::HeaderMap,
};
use std::{future::Future, sync::Arc};

/// Asks for a task.
#[utoipa::path(post, path = "/v1/tasks", request_body = ClaimRequest, responses(
    (status = 200, body = Lease),
    (status = 401, body = ApiError), (status = 409, body = ApiError), (status = 429, body = ApiError),
))]
pub async fn claim(State(api): State<Arc<Api>>, headers: HeaderMap, body: Body) -> HttpResult<Json<Lease>> {
    let request: ClaimRequest = read_json(&headers, body).await?;
    decided(async move { api.service.claim(&request).await }).await
}

/// Declares an upload.
#[utoipa::path(post, path = "/v1/uploads", request_body = DeclareRequest, responses(
    (status = 200, body = UploadState), (status = 401, body = ApiError), (status = 403, body = ApiError),
    (status = 404, body = ApiError), (status = 409, body = ApiError), (status = 410, body = ApiError),
    (status = 413, body = ApiError),
))]
pub async fn declare(State(api): State<Arc<Api>>, headers: HeaderMap, body: Body) -> HttpResult<Json<UploadState>> {
    let request: DeclareRequest = read_json(&headers, body).await?;
    decided(async move { api.service.declare(&request).await }).await
}

/// State of an upload.
#[utoipa::path(get, path = "/v1/uploads/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = UploadState), (status = 404, body = ApiError),
))]
pub async fn upload_state(State(api): State<Arc<Api>>, Path(id): Path<String>) -> HttpResult<Json<UploadState>> {
    let id = hex32("an upload", &id)?;
    Ok(Json(api.service.upload_state(&id).await?))
}

/// Sends the next part of an upload: raw bytes from `offset` on, at most 1 MiB.
#[utoipa::path(patch, path = "/v1/uploads/{id}", params(("id" = String, Path), ("offset" = u64, Query)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses(
    (status = 200, body = UploadState), (status = 404, body = ApiError), (status = 409, body = ApiError),
    (status = 410, body = ApiError), (status = 413, body = ApiError),
))]
pub async fn receive(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> HttpResult<Json<UploadState>> {
    let id = hex32("an upload", &id)?;
    let offset = query(raw.as_deref(), "offset").ok_or_else(|| {
        bad_request(
            "the query has no offset",
            "send PATCH /v1/uploads/{id}?offset=N with N from the upload's state",
        )
    })?;
    let offset: u64 = number("an offset", offset)?;
    let part = read_body(&headers, body, PART_BYTES_MAX).await?;
    decided(async move { api.service.receive(&id, offset, part).await }).await
}

/// Commits an upload. The same commit again gives the same receipt.
#[utoipa::path(post, path = "/v1/uploads/{id}/commit", params(("id" = String, Path)), request_body = CommitRequest,
    responses(
    (status = 200, body = Receipt), (status = 401, body = ApiError), (status = 403, body = ApiError),
    (status = 404, body = ApiError), (status = 409, body = ApiError), (status = 410, body = ApiError),
    (status = 422, body = ApiError),
))]
pub async fn commit(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> HttpResult<Json<Receipt>> {
    let id = hex32("an upload", &id)?;
    let request: CommitRequest = read_json(&headers, body).await?;
    decided(async move { api.service.commit(&id, &request).await }).await
}

/// Runs a decision to its end even if the client goes away. A dropped request would release the write lock while the
/// database still executes its last statement, and the next decision would not see what that wrote.
async fn decided<T: Send + 'static>(
    decision: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> HttpResult<Json<T>> {
    match tokio::spawn(decision).await {
        Ok(decided) => Ok(Json(decided?)),
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only the end of the runtime cancels it.
            Err(_) => Err(Refusal::new(ErrorCode::Unavailable, "the server is stopping", "try again later").into()),
        },
    }
}
