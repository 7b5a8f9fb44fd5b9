//! One HTTP exchange: bounded, repeated where that is safe, with the server's reason where it refuses.

use super::ClientError;
use crate::ApiError;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use std::{
    hash::{BuildHasher, Hasher},
    time::Duration,
};

/// Time for a connection to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum silence in the middle of an answer: beyond it the connection counts as broken.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum error body, bytes.
const ERROR_BYTES_MAX: u64 = 64 << 10;
/// Maximum memory reserved for an answer before any of it is received, bytes: the announced length is not to be
/// trusted.
const RESERVE_BYTES_MAX: u64 = 1 << 20;

/// Back-off between repetitions.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Requests sent in all before the error is returned; at least one.
    pub attempts: u32,
    /// Pause after the first failure; it doubles with each further one.
    pub first: Duration,
    /// Maximum pause.
    pub max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 5,
            first: Duration::from_millis(250),
            max: Duration::from_secs(8),
        }
    }
}

impl Retry {
    /// Pause after the `failures`-th failure (from 1): between half and all of `first · 2^(failures−1)`, so that many
    /// miners who lost the same server do not come back at the same instant.
    pub fn pause(&self, failures: u32) -> Duration {
        let doubled = self
            .first
            // Beyond 2^20 the maximum applies anyway, and a shift of 32 bits would overflow.
            .saturating_mul(1 << failures.saturating_sub(1).min(20))
            .min(self.max);
        // The standard library's per-map random keys are randomness enough for spreading out requests.
        let random = std::hash::RandomState::new().build_hasher().finish();
        doubled / 2 + (doubled / 2).mul_f64(random as f64 / u64::MAX as f64)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Transport {
    http: reqwest::Client,
    url: String,
    retry: Retry,
}

/// A failed attempt: worth repeating, or not.
enum Failure {
    Again(ClientError),
    Final(ClientError),
}

impl Transport {
    pub(super) fn new(url: &str, retry: Retry) -> Result<Self, ClientError> {
        let bad = |problem: String| ClientError::Url {
            url: url.to_owned(),
            problem,
        };
        let parsed = reqwest::Url::parse(url).map_err(|e| bad(e.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(bad(format!("'{}' is not http or https", parsed.scheme())));
        }
        // Paths of the API are appended, so anything behind `?` or `#` would swallow them.
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(bad("it has a query or a fragment".to_owned()));
        }
        let http = http_client(&parsed)?;
        Ok(Self {
            http,
            // Paths of the API begin with a slash.
            url: parsed.as_str().trim_end_matches('/').to_owned(),
            retry,
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn decode_error(&self, path: &str, problem: &dyn std::fmt::Display) -> ClientError {
        ClientError::Decode {
            url: self.url.clone(),
            path: path.to_owned(),
            problem: problem.to_string(),
        }
    }

    /// Sends a request, with repetitions, and returns the body of a successful answer.
    pub(super) async fn fetch(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
        bytes_max: u64,
    ) -> Result<Bytes, ClientError> {
        let mut failures = 0;
        loop {
            let mut request = self.http.request(method.clone(), format!("{}{path}", self.url));
            if let Some((kind, bytes)) = &body {
                // `Bytes` are shared, not copied, so a repetition costs no memory.
                request = request.header(header::CONTENT_TYPE, *kind).body(bytes.clone());
            }
            let mut kept = BytesMut::new();
            match self.attempt(request, path, bytes_max, &mut kept, &mut |_| ()).await {
                Ok(()) => return Ok(kept.freeze()),
                Err(failure) => self.pause(failure, &mut failures, path).await?,
            }
        }
    }

    /// A `GET` that resumes at the byte where a broken transfer stopped.
    pub(super) async fn fetch_resumed(
        &self,
        path: &str,
        bytes_max: u64,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Vec<u8>, ClientError> {
        let mut failures = 0;
        let mut kept = BytesMut::new();
        loop {
            let before = kept.len();
            let mut request = self.http.get(format!("{}{path}", self.url));
            if before > 0 {
                request = request.header(header::RANGE, format!("bytes={before}-"));
            }
            match self.attempt(request, path, bytes_max, &mut kept, progress).await {
                Ok(()) => return Ok(kept.into()),
                Err(failure) => {
                    // Only attempts without a new byte count: a large blob over a bad line may need many.
                    if kept.len() > before {
                        failures = 0;
                    }
                    self.pause(failure, &mut failures, path).await?;
                }
            }
        }
    }

    async fn pause(&self, failure: Failure, failures: &mut u32, path: &str) -> Result<(), ClientError> {
        let error = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Again(error) => error,
        };
        *failures += 1;
        if *failures >= self.retry.attempts {
            return Err(error);
        }
        let pause = self.retry.pause(*failures);
        tracing::debug!(path, failures, pause_ms = pause.as_millis() as u64, %error, "request failed, trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// One request. Appends the body to `kept`, or replaces it if the server does not know ranges.
    async fn attempt(
        &self,
        request: RequestBuilder,
        path: &str,
        bytes_max: u64,
        kept: &mut BytesMut,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), Failure> {
        let response = request.send().await.map_err(|e| self.network(&e))?;
        let status = response.status();
        if status == StatusCode::RANGE_NOT_SATISFIABLE && !kept.is_empty() {
            // The whole blob was received, only the end of the answer was lost; the caller checks the hash.
            return Ok(());
        }
        if !status.is_success() {
            return Err(self.refusal(response, path).await);
        }
        if status != StatusCode::PARTIAL_CONTENT {
            kept.clear();
        }
        let too_large = || ClientError::TooLarge {
            url: self.url.clone(),
            path: path.to_owned(),
            bytes_max,
        };
        // Absent for a compressed answer; the loop below bounds what it decompresses to.
        let announced = response.content_length().unwrap_or(0);
        if announced.saturating_add(kept.len() as u64) > bytes_max {
            return Err(Failure::Final(too_large()));
        }
        kept.reserve(announced.min(RESERVE_BYTES_MAX) as usize);
        let mut stream = response.bytes_stream();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|e| self.network(&e))?;
            if (kept.len() + piece.len()) as u64 > bytes_max {
                return Err(Failure::Final(too_large()));
            }
            kept.extend_from_slice(&piece);
            progress(kept.len() as u64);
        }
        Ok(())
    }

    fn network(&self, error: &reqwest::Error) -> Failure {
        let error = ClientError::Unreachable {
            url: self.url.clone(),
            problem: chain(error),
        };
        Failure::Again(error)
    }

    /// Reads the reason of an answer that is not a success.
    async fn refusal(&self, response: Response, path: &str) -> Failure {
        let status = response.status();
        let mut body = BytesMut::new();
        let mut stream = response.bytes_stream();
        while let Some(Ok(piece)) = stream.next().await {
            // Too long for a reason of the API, so it is somebody else's page.
            if (body.len() + piece.len()) as u64 > ERROR_BYTES_MAX {
                break;
            }
            body.extend_from_slice(&piece);
        }
        let error = match serde_json::from_slice::<ApiError>(&body) {
            Ok(body) => ClientError::Api {
                url: self.url.clone(),
                body,
            },
            Err(_) => ClientError::Http {
                url: self.url.clone(),
                path: path.to_owned(),
                status: status.as_u16(),
            },
        };
        // 502 and 504 are a proxy's: the server behind it may be starting.
        match status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
                Failure::Again(error)
            }
            _ => Failure::Final(error),
        }
    }
}

/// The HTTP client for a server: TLS by rustls with ring, certificates checked against the system's trust store.
fn http_client(server: &reqwest::Url) -> Result<reqwest::Client, ClientError> {
    // reqwest takes the process's provider and panics without one. An error means that the program has installed one
    // of its own, which then is the right one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let host = server.host_str().unwrap_or_default();
    let builder = || {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("alice/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT);
        // A proxy of the environment cannot reach this machine's own loopback.
        if host == "localhost" || host == "[::1]" || host.starts_with("127.") {
            builder.no_proxy()
        } else {
            builder
        }
    };
    match builder().build() {
        // A minimal container has no trust store, which plain HTTP does not need: trust no certificate then.
        Err(_) if server.scheme() == "http" => builder().tls_certs_only([]).build(),
        built => built,
    }
    .map_err(|e| ClientError::Setup(chain(&e)))
}

/// An error with its causes: reqwest's own message leaves out why a connection failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_should_double_up_to_the_longest_and_be_spread() {
        let retry = Retry {
            attempts: 9,
            first: Duration::from_millis(100),
            max: Duration::from_secs(1),
        };
        for (failures, full_ms) in [
            (1, 100),
            (2, 200),
            (3, 400),
            (4, 800),
            (5, 1000),
            (30, 1000),
            (u32::MAX, 1000),
        ] {
            for _ in 0..20 {
                let pause = retry.pause(failures).as_millis();
                assert!((full_ms / 2..=full_ms).contains(&pause), "{failures}: {pause}");
            }
        }
        let distinct: std::collections::BTreeSet<_> = (0..20).map(|_| retry.pause(5)).collect();
        assert!(distinct.len() > 10, "{distinct:?}");
    }

    #[test]
    fn bad_addresses_should_be_refused_with_an_example() {
        for url in [
            "",
            "localhost:8080",
            "ftp://host",
            "not an address",
            "http://host:1/?key=1",
            "http://host:1/#top",
        ] {
            let message = Transport::new(url, Retry::default()).unwrap_err().to_string();
            assert!(message.contains("http://host:port"), "{message}");
        }
        assert_eq!(
            Transport::new("http://127.0.0.1:7/", Retry::default()).unwrap().url(),
            "http://127.0.0.1:7"
        );
    }
}
