//! Bounded bodies; paths and queries, refused with the value that is wrong.

use super::{response::HttpResult, shortened};
use crate::service::Refusal;
use alice_api::{ErrorCode, Hex32, ss58};
use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use std::str::FromStr;

/// Maximum size of a JSON body, bytes: the largest request has about 500.
pub const JSON_BYTES_MAX: u64 = 16 << 10;

/// Reads a body of at most `bytes_max` bytes. A body that announces more is refused before any of it is read.
pub async fn read_body(headers: &HeaderMap, body: Body, bytes_max: u64) -> HttpResult<Bytes> {
    let too_large = |found: String| {
        Refusal::new(
            ErrorCode::TooLarge,
            format!("the body has {found} bytes, at most {bytes_max} are read"),
            "send less in one request; updates go in parts of at most part_bytes_max bytes",
        )
    };
    if let Some(length) = headers.get(header::CONTENT_LENGTH) {
        let length: Option<u64> = length.to_str().ok().and_then(|text| text.parse().ok());
        match length {
            Some(length) if length <= bytes_max => {}
            Some(length) => return Err(too_large(length.to_string()).into()),
            None => return Err(bad_request("Content-Length is not a number", "send the number of bytes").into()),
        }
    }
    // The announced size may be a lie, or missing (chunked), so the bytes are counted as they arrive.
    let mut all = BytesMut::new();
    let mut stream = body.into_data_stream();
    while let Some(part) = stream.next().await {
        let part = part.map_err(|e| bad_request(&format!("the body broke off: {e}"), "send it again"))?;
        if (all.len() as u64).saturating_add(part.len() as u64) > bytes_max {
            return Err(too_large(format!("more than {bytes_max}")).into());
        }
        all.extend_from_slice(&part);
    }
    Ok(all.freeze())
}

/// Reads a JSON body.
pub async fn read_json<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> HttpResult<T> {
    let bytes = read_body(headers, body, JSON_BYTES_MAX).await?;
    serde_json::from_slice(&bytes).map_err(|e| {
        bad_request(
            &format!("the body is not the expected JSON: {e}"),
            "GET /v1/openapi.json describes it",
        )
        .into()
    })
}

/// A hash or identifier of a path.
pub fn hex32(what: &str, text: &str) -> HttpResult<Hex32> {
    text.parse().map_err(|_| {
        let message = format!("'{}' is not {what}", shortened(text));
        bad_request(&message, "64 hexadecimal digits are expected").into()
    })
}

/// A key in hexadecimal digits or an address.
pub fn account(text: &str) -> HttpResult<Hex32> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    match ss58::decode(text) {
        Ok(account) => Ok(Hex32(account)),
        Err(e) => Err(bad_request(
            &e.to_string(),
            "give an address that starts with 'a', or 64 hexadecimal digits",
        )
        .into()),
    }
}

/// A number of a path or query.
pub fn number<T: FromStr>(what: &str, text: &str) -> HttpResult<T> {
    text.parse().map_err(|_| {
        let message = format!("'{}' is not {what}", shortened(text));
        bad_request(&message, "a whole number, not negative and not too large, is expected").into()
    })
}

/// A value of the query; `None` if it has no such key. The values of this API (numbers, hexadecimal digits, base58)
/// need no percent-decoding.
pub fn query<'a>(query: Option<&'a str>, key: &str) -> Option<&'a str> {
    query?
        .split('&')
        .find_map(|pair| pair.split_once('=').filter(|(k, _)| *k == key).map(|(_, value)| value))
}

/// 400.
pub fn bad_request(message: &str, hint: &str) -> Refusal {
    Refusal::new(ErrorCode::BadRequest, message, hint)
}

/// 404.
pub fn not_found(message: impl Into<String>, hint: &str) -> Refusal {
    Refusal::new(ErrorCode::NotFound, message, hint)
}
