//! Refusals as HTTP answers.

use crate::service::Refusal;
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};

/// A refusal on its way out.
#[derive(Debug)]
pub struct Failure(pub Refusal);

/// What a handler returns.
pub type Answer<T> = Result<T, Failure>;

impl<E: Into<Refusal>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = self.0.0;
        let status = StatusCode::from_u16(body.error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        ::metrics::counter!("alice_ps_refusals_total", "code" => body.error.code()).increment(1);
        (status, Json(body)).into_response()
    }
}
