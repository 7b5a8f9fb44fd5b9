//! Blobs by their hash, whole or in ranges (RFC 9110 section 14, one range).

use super::{
    Api,
    extract::{bad_request, hex32, not_found},
    response::HttpResult,
};
use crate::PsError;
use alice_api::{ApiError, Hex32};
use alice_primitives::Hash;
use alice_store::{BlobStore, StoreError};
use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use std::{ops::Range, sync::Arc};

/// Bytes read at a time: the memory of one download.
const BLOCK_BYTES: u64 = 1 << 20;

/// A public blob: a shard of training text or of the public evaluation set, a snapshot's chunk, an aggregate, a
/// manifest, or the update of a scored epoch.
#[utoipa::path(get, path = "/v1/blobs/{hash}", params(("hash" = String, Path)), responses(
    (status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 206, description = "the range"),
    (status = 404, body = ApiError), (status = 416, description = "beyond the end"),
))]
pub async fn blob(State(api): State<Arc<Api>>, Path(hash): Path<String>, headers: HeaderMap) -> HttpResult<Response> {
    let hash = hex32("a blob", &hash)?;
    let state = api.state();
    // The corpus folder holds the private reserve too, so only the shards that the public manifests name are served
    // from it.
    let store = if state.corpus().shards.contains(&hash.0) {
        state.shards()
    } else {
        state.blobs()
    };
    serve(store, &hash.0, &headers, "application/octet-stream").await
}

/// Answers with a blob or a range of it.
pub async fn serve(store: &BlobStore, hash: &Hash, headers: &HeaderMap, kind: &'static str) -> HttpResult<Response> {
    let len = match store.len(hash).await {
        Ok(len) => len,
        Err(StoreError::Missing { .. }) => {
            let message = format!("there is no blob {}", Hex32(*hash));
            return Err(not_found(
                message,
                "manifests name the blobs; updates become public when they are scored",
            )
            .into());
        }
        Err(e) => return Err(PsError::from(e).into()),
    };
    let requested = headers
        .get(header::RANGE)
        .map(|value| parse_range(value, len))
        .transpose()?;
    let (status, range) = match requested {
        None => (StatusCode::OK, 0..len),
        Some(Some(range)) => (StatusCode::PARTIAL_CONTENT, range),
        Some(None) => {
            let total = [(header::CONTENT_RANGE, format!("bytes */{len}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, total).into_response());
        }
    };
    let mut response = Response::new(stream(store.clone(), *hash, range.clone()));
    *response.status_mut() = status;
    let out = response.headers_mut();
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    out.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    out.insert(header::CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    // A blob is named by its hash and never changes, so a cache in front of the server may keep it for ever.
    out.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=31536000, immutable"),
    );
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(value) = HeaderValue::from_str(&format!("bytes {}-{}/{len}", range.start, range.end - 1))
    {
        out.insert(header::CONTENT_RANGE, value);
    }
    Ok(response)
}

fn stream(store: BlobStore, hash: Hash, range: Range<u64>) -> Body {
    let parts = futures::stream::unfold(range.start, move |position| {
        let (store, end) = (store.clone(), range.end);
        async move {
            if position >= end {
                return None;
            }
            let next = end.min(position.saturating_add(BLOCK_BYTES));
            let part = store.get_range(&hash, position..next).await;
            // An error ends the body early, so that the client sees a broken transfer.
            let after = if part.is_ok() { next } else { end };
            Some((part, after))
        }
    });
    // Fused: layers around the body may poll it again after its end, at which `unfold` panics.
    Body::from_stream(futures::StreamExt::fuse(parts))
}

/// `bytes=a-b`, `bytes=a-` or `bytes=-n`. `None` if the range lies beyond the end.
fn parse_range(value: &HeaderValue, len: u64) -> HttpResult<Option<Range<u64>>> {
    let bad = || {
        bad_request(
            "the Range header is not one range of bytes",
            "send Range: bytes=FIRST-LAST or bytes=FIRST-",
        )
    };
    let text = value.to_str().map_err(|_| bad())?;
    let (first, last) = text
        .strip_prefix("bytes=")
        .and_then(|r| r.trim().split_once('-'))
        .ok_or_else(bad)?;
    let parse = |text: &str| text.parse::<u64>().map_err(|_| bad());
    let range = match (first, last) {
        ("", suffix) => len.saturating_sub(parse(suffix)?)..len,
        (first, "") => parse(first)?..len,
        // The last byte may lie beyond the end; the first may not.
        (first, last) => {
            let (first, last) = (parse(first)?, parse(last)?);
            if last < first {
                return Err(bad().into());
            }
            first..last.saturating_add(1).min(len)
        }
    };
    Ok(if range.start < range.end { Some(range) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_should_be_parsed_and_bounded() {
        let parse = |text: &'static str| parse_range(&HeaderValue::from_static(text), 10);
        assert_eq!(parse("bytes=0-3").unwrap(), Some(0..4));
        assert_eq!(parse("bytes=4-").unwrap(), Some(4..10));
        assert_eq!(parse("bytes=-3").unwrap(), Some(7..10));
        assert_eq!(parse("bytes=-30").unwrap(), Some(0..10));
        assert_eq!(parse("bytes=8-99").unwrap(), Some(8..10));
        assert_eq!(parse("bytes=10-").unwrap(), None);
        assert_eq!(parse("bytes=18446744073709551615-18446744073709551615").unwrap(), None);
        for bad in [
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=3-1",
            "bytes=1-2,4-5",
            "items=0-1",
            "bytes=a-b",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
