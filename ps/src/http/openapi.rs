//! The API's description of itself (OpenAPI).

use axum::Json;
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "alice-ps",
        description = "Parameter server of Alice. Signed parts are signed over SCALE, see docs/spec/http-api.md."
    ),
    paths(
        super::reads::status,
        super::reads::run,
        super::reads::model,
        super::reads::corpus,
        super::reads::yardstick,
        super::blobs::blob,
        super::tasks::claim,
        super::tasks::declare,
        super::tasks::upload_state,
        super::tasks::receive,
        super::tasks::commit,
        super::reads::submission,
        super::reads::epochs,
        super::reads::epoch,
        super::reads::manifest,
        super::reads::page,
        super::reads::page_of,
        super::reads::miner,
        super::reads::health,
        super::metrics::render,
        document,
    )
)]
struct Document;

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
pub async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
