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
        /// The given text.
        url: String,
        /// The problem with it.
        problem: String,
    },
    /// The HTTP client could not be set up.
    #[error(
        "the HTTP client cannot start: {0}; for https, the system's trust store is needed (package ca-certificates)"
    )]
    Setup(String),
    /// No answer, after all repetitions.
    #[error("cannot reach the parameter server at {url}: {problem}; check the address and the network connection")]
    Unreachable {
        /// Server.
        url: String,
        /// The network's reason.
        problem: String,
    },
    /// The server refused, with a reason.
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
    /// The answer does not have the form that the API promises.
    #[error(
        "{url}{path} sent an answer that this version cannot read: {problem}; compare the versions of server and miner"
    )]
    Decode {
        /// Server.
        url: String,
        /// Path and query.
        path: String,
        /// The problem.
        problem: String,
    },
    /// An answer over the maximum size.
    #[error("{url}{path} sent more than the {bytes_max} bytes that were expected; nothing of it was kept")]
    TooLarge {
        /// Server.
        url: String,
        /// Path and query.
        path: String,
        /// Maximum size, bytes.
        bytes_max: u64,
    },
    /// A blob with other contents.
    #[error("{url} sent a blob with hash {found} for {expected}; it was discarded")]
    BlobHash {
        /// Server.
        url: String,
        /// Hash asked for.
        expected: Hex32,
        /// Hash of the received bytes.
        found: Hex32,
    },
    /// The server's offset of an upload does not advance.
    #[error("upload {id} makes no progress: the server stays at byte {offset} of {total}; try again later")]
    UploadDesync {
        /// Upload.
        id: Hex32,
        /// The server's offset.
        offset: u64,
        /// Size of the upload.
        total: u64,
    },
}

impl ClientError {
    /// The server's stable code; `None` if it did not refuse with one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Api { body, .. } => Some(body.error),
            _ => None,
        }
    }

    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_temporary(&self) -> bool {
        match self {
            // A wrong hash too: the bytes may have been damaged on their way.
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
