//! Refusals: what went wrong with a request, and what the client can do.

use crate::{PsError, db::DbError};
use alice_api::{ApiError, ErrorCode, Hex32};
use alice_store::StoreError;

/// A refusal as the client reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal(pub ApiError);

impl Refusal {
    /// A code, what went wrong, and what to do.
    pub fn new(error: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self(ApiError {
            error,
            message: message.into(),
            hint: hint.into(),
        })
    }

    /// Internal error: full detail in the log, a short message to the client. A busy database is no fault of anything;
    /// clients repeat a request that is refused as unavailable.
    fn internal(error: &PsError) -> Self {
        if matches!(error, PsError::Db(DbError::Busy)) {
            tracing::warn!("a request found the database busy");
            return Self::new(
                ErrorCode::Unavailable,
                "the server's database is busy",
                "try again in a few seconds",
            );
        }
        tracing::error!(%error, "request failed");
        Self::new(
            ErrorCode::Internal,
            "the server failed to handle the request",
            "try again later; the operator sees the reason in the log",
        )
    }
}

// One by one: a blanket conversion from everything that becomes a PsError would include the refusal itself.
impl From<PsError> for Refusal {
    fn from(error: PsError) -> Self {
        Self::internal(&error)
    }
}

impl From<DbError> for Refusal {
    fn from(error: DbError) -> Self {
        Self::internal(&error.into())
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::internal(&error.into())
    }
}

/// The signature does not verify.
pub(super) fn bad_signature(what: &str, over: &str) -> Refusal {
    Refusal::new(
        ErrorCode::BadSignature,
        format!("the signature of the {what} does not verify"),
        format!("sign {over} with the mining key's sr25519 (docs/spec/http-api.md)"),
    )
}

/// No such upload.
pub(super) fn unknown_upload(id: &Hex32) -> Refusal {
    Refusal::new(
        ErrorCode::NotFound,
        format!("there is no upload {id}"),
        "declare it first (POST /v1/uploads)",
    )
}

/// The task is leased to another key.
pub(super) fn not_yours(task: &Hex32) -> Refusal {
    Refusal::new(
        ErrorCode::NotYourTask,
        format!("task {task} is leased to another key"),
        "claim a task with this key",
    )
}

/// The server's view of the chain is missing or out of date.
pub(super) fn unavailable(message: &str) -> Refusal {
    Refusal::new(ErrorCode::Unavailable, message, "try again in a few seconds")
}
