//! Why a request to a parameter server failed.

use crate::{ApiError, ErrorCode, Hex32};

/// Why a request failed; each message says what happened, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not an address.
    #[error(
        "'{url}' is not the address of a parameter server ({problem}); write it as http://host:port or https://host"
    )]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The HTTP client could not be set up.
    #[error(
        "the HTTP client cannot start: {0}; for https, the system's trust store is needed (package ca-certificates)"
    )]
    Setup(String),
    /// Nobody answered, after all repetitions.
    #[error("cannot reach the parameter server at {url}: {problem}; check the address and the network connection")]
    Unreachable {
        /// Server.
        url: String,
        /// What the network said.
        problem: String,
    },
    /// The server refused and said why.
    #[error("{url} refused ({}): {}; {}", .body.error.code(), .body.message, .body.hint)]
    Api {
        /// Server.
        url: String,
        /// Its answer.
        body: ApiError,
    },
    /// An HTTP status without the API's error body.
    #[error("{url}{path} answered HTTP {status} without an explanation; is this the address of an alice-ps?")]
    Http {
        /// Server.
        url: String,
        /// Path and query.
        path: String,
        /// HTTP status.
        status: u16,
    },
    /// The answer is not what the API promises.
    #[error(
        "{url}{path} sent an answer that this version cannot read: {problem}; compare the versions of server and miner"
    )]
    Decode {
        /// Server.
        url: String,
        /// Path and query.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The answer is longer than it may be.
    #[error("{url}{path} sent more than the {bytes_max} bytes that were expected; nothing of it was kept")]
    TooLarge {
        /// Server.
        url: String,
        /// Path and query.
        path: String,
        /// The bound.
        bytes_max: u64,
    },
    /// A blob with other contents.
    #[error("{url} sent a blob with hash {found} for {expected}; it was thrown away")]
    BlobHash {
        /// Server.
        url: String,
        /// Hash asked for.
        expected: Hex32,
        /// Hash of what came.
        found: Hex32,
    },
    /// The server does not get on with an upload.
    #[error("upload {id} does not get on: the server stays at byte {offset} of {total}; try again later")]
    UploadDesync {
        /// Upload.
        id: Hex32,
        /// Where the server is.
        offset: u64,
        /// Size of the upload.
        total: u64,
    },
}

impl ClientError {
    /// The server's stable code, where it gave one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Api { body, .. } => Some(body.error),
            _ => None,
        }
    }

    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::UploadDesync { .. } | Self::BlobHash { .. } => true,
            Self::Http { status, .. } => *status >= 500 || *status == 429,
            Self::Api { body, .. } => matches!(
                body.error,
                ErrorCode::Unavailable | ErrorCode::Internal | ErrorCode::NoRound | ErrorCode::NoTask
            ),
            Self::Url { .. } | Self::Setup(_) | Self::Decode { .. } | Self::TooLarge { .. } => false,
        }
    }
}
