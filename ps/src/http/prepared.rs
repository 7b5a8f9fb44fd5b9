//! JSON that never changes while the server runs: written once, plain and compressed, and named by its hash.
//!
//! The shard list of a large run has about 90 MB; writing it anew for every request would cost a core for each reader.

use crate::PsError;
use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;

/// Level of compression: zstd's own default.
const ZSTD_LEVEL: i32 = 3;

/// A JSON document in the forms in which it is sent.
#[derive(Clone, Debug)]
pub struct PreparedJson {
    plain: Bytes,
    zstd: Bytes,
    /// BLAKE3 of the plain bytes, quoted.
    etag: HeaderValue,
}

impl PreparedJson {
    /// Writes `value`. `what` names it in an error.
    pub fn new(what: &str, value: &impl Serialize) -> Result<Self, PsError> {
        let failed = |problem: String| PsError::Json {
            what: what.to_owned(),
            problem,
        };
        let plain = serde_json::to_vec(value).map_err(|e| failed(e.to_string()))?;
        let zstd = zstd::encode_all(&plain[..], ZSTD_LEVEL).map_err(|e| failed(e.to_string()))?;
        let etag = format!("\"{}\"", blake3::hash(&plain));
        Ok(Self {
            etag: HeaderValue::try_from(etag).map_err(|e| failed(e.to_string()))?,
            plain: plain.into(),
            zstd: zstd.into(),
        })
    }

    /// The answer to a request: 304 if the client has this document, compressed if it takes zstd.
    pub fn answer(&self, request: &HeaderMap) -> Response {
        let names = |header| request.get(header).and_then(|value| value.to_str().ok()).unwrap_or("");
        // Weak comparison (RFC 9110, section 13.1.2): proxies that recompress weaken the tag.
        let same = |tag: &str| tag.trim().trim_start_matches("W/").as_bytes() == self.etag.as_bytes();
        let mut response = if names(header::IF_NONE_MATCH).split(',').any(same) {
            StatusCode::NOT_MODIFIED.into_response()
        } else if names(header::ACCEPT_ENCODING).split(',').any(accepts_zstd) {
            let mut response = Response::new(Body::from(self.zstd.clone()));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("zstd"));
            response
        } else {
            Response::new(Body::from(self.plain.clone()))
        };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ETAG, self.etag.clone());
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        response
    }
}

/// Whether one item of an Accept-Encoding names zstd and does not weigh it zero.
fn accepts_zstd(item: &str) -> bool {
    let (name, weight) = item.split_once(';').unwrap_or((item, "q=1"));
    let weight = weight.trim().strip_prefix("q=").and_then(|q| q.parse::<f32>().ok());
    name.trim().eq_ignore_ascii_case("zstd") && weight.is_some_and(|q| q > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(header: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header, HeaderValue::from_str(value).unwrap())])
    }

    async fn body(response: Response) -> Vec<u8> {
        axum::body::to_bytes(response.into_body(), 1 << 20)
            .await
            .unwrap()
            .to_vec()
    }

    #[tokio::test]
    async fn a_prepared_document_should_be_sent_in_the_form_that_the_client_takes() {
        let prepared = PreparedJson::new("a list", &vec![7u32; 1000]).unwrap();
        let plain = prepared.answer(&HeaderMap::new());
        let etag = plain.headers()[header::ETAG].to_str().unwrap().to_owned();
        let plain = body(plain).await;
        assert_eq!(plain, serde_json::to_vec(&vec![7u32; 1000]).unwrap());
        let packed = prepared.answer(&request(header::ACCEPT_ENCODING, "gzip, zstd;q=0.5"));
        assert_eq!(packed.headers()[header::CONTENT_ENCODING], "zstd");
        assert_eq!(zstd::decode_all(&body(packed).await[..]).unwrap(), plain);
        for refused in ["gzip", "zstd;q=0", "", "zstdx"] {
            let answer = prepared.answer(&request(header::ACCEPT_ENCODING, refused));
            assert!(!answer.headers().contains_key(header::CONTENT_ENCODING), "{refused}");
        }
        for known in [etag.clone(), format!("\"other\", W/{etag}")] {
            let answer = prepared.answer(&request(header::IF_NONE_MATCH, &known));
            assert_eq!(answer.status(), StatusCode::NOT_MODIFIED);
            assert!(body(answer).await.is_empty());
        }
        let other = prepared.answer(&request(header::IF_NONE_MATCH, "\"other\""));
        assert_eq!(other.status(), StatusCode::OK);
    }
}
