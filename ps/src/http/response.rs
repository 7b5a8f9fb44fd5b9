//! Result of a handler: an answer, or a refusal with its status and JSON body.

use crate::{PsError, db::DbError, service::Refusal};
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};

/// A refusal as an HTTP answer.
#[derive(Debug)]
pub struct HttpError(pub Refusal);

/// Result of a handler.
pub type HttpResult<T> = Result<T, HttpError>;

impl From<Refusal> for HttpError {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<PsError> for HttpError {
    fn from(error: PsError) -> Self {
        Self(error.into())
    }
}

impl From<DbError> for HttpError {
    fn from(error: DbError) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let body = self.0.0;
        let status = StatusCode::from_u16(body.error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        ::metrics::counter!("alice_ps_refusals_total", "code" => body.error.code()).increment(1);
        (status, Json(body)).into_response()
    }
}
