//! Refusals: the body of every answer that is not a success.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// Code of the refusal.
    pub error: ErrorCode,
    /// The problem and its place, in a sentence.
    pub message: String,
    /// Advice: the next step for the caller.
    pub hint: String,
}

/// Stable codes of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: not the JSON, path or query that was expected.
    BadRequest,
    /// 413: body or declared size over the limit.
    TooLarge,
    /// 401: the signature does not verify.
    BadSignature,
    /// 409: no round is open, or the claim names another epoch.
    NoRound,
    /// 429: no task is left in this round, or too many requests.
    NoTask,
    /// 404: no such task.
    UnknownTask,
    /// 404: no such upload, submission, blob, epoch, page or miner.
    NotFound,
    /// 410: the lease has expired.
    LeaseExpired,
    /// 403: the task is leased to another key.
    NotYourTask,
    /// 409: another update was already committed for the task.
    Duplicate,
    /// 409: a part does not start at the offset that the server has.
    WrongOffset,
    /// 409: commit before all bytes are there.
    Incomplete,
    /// 422: the bytes do not have the declared hash.
    HashMismatch,
    /// 410: after the deadline block.
    Late,
    /// 503: the server cannot do it now (chain unreachable, starting); try again.
    Unavailable,
    /// 500: a fault of the server.
    Internal,
}

impl ErrorCode {
    /// HTTP status that goes with the code.
    pub fn http_status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::BadSignature => 401,
            Self::NotYourTask => 403,
            Self::UnknownTask | Self::NotFound => 404,
            Self::NoRound | Self::Duplicate | Self::WrongOffset | Self::Incomplete => 409,
            // 410 and not 409: nothing that the caller does can make the same request succeed.
            Self::LeaseExpired | Self::Late => 410,
            Self::TooLarge => 413,
            Self::HashMismatch => 422,
            Self::NoTask => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }

    /// The stable code, as in JSON.
    pub fn code(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::TooLarge => "too_large",
            Self::BadSignature => "bad_signature",
            Self::NoRound => "no_round",
            Self::NoTask => "no_task",
            Self::UnknownTask => "unknown_task",
            Self::NotFound => "not_found",
            Self::LeaseExpired => "lease_expired",
            Self::NotYourTask => "not_your_task",
            Self::Duplicate => "duplicate",
            Self::WrongOffset => "wrong_offset",
            Self::Incomplete => "incomplete",
            Self::HashMismatch => "hash_mismatch",
            Self::Late => "late",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}
