//! Answers to what is no HTTP request.
//!
//! Hyper answers a head that it cannot parse by itself, before any handler runs, with a status and no body. This API
//! promises the same JSON body and CORS header with every refusal, so such an answer is completed on its way out.

use alice_api::{ApiError, ErrorCode};

/// Status of each bare answer, with the message and the hint of its complete form.
const CAUSES: [(&str, &str, &str); 3] = [
    (
        "400 Bad Request",
        "this is no HTTP/1.1 request",
        "send HTTP/1.1; GET /v1/openapi.json describes the API",
    ),
    (
        "414 URI Too Long",
        "the path is too long",
        "GET /v1/openapi.json lists the paths",
    ),
    (
        "431 Request Header Fields Too Large",
        "the head of the request is too large",
        "send fewer or shorter header fields",
    ),
];

/// The complete form of a bare answer of Hyper; `None` for every other answer. Refusals of this API with one of these
/// statuses always have a body, so an empty one can only be Hyper's.
pub fn complete_answer(bytes: &[u8]) -> Option<Vec<u8>> {
    let head = bytes.strip_suffix(b"\r\n\r\n")?;
    let status_line = head
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| head.strip_prefix(b"HTTP/1.0 "))?;
    let (status, message, hint) = CAUSES
        .into_iter()
        .find(|(status, ..)| status_line.starts_with(status.as_bytes()))?;
    let text = std::str::from_utf8(head).ok()?.to_ascii_lowercase();
    if !text.lines().any(|line| line == "content-length: 0") {
        return None;
    }
    let body = serde_json::to_string(&ApiError {
        error: ErrorCode::BadRequest,
        message: message.into(),
        hint: hint.into(),
    })
    .ok()?;
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         access-control-allow-origin: *\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    Some(answer.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_answers_should_get_a_body_and_others_should_not_be_touched() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let text = String::from_utf8(complete_answer(bare).unwrap()).unwrap();
        assert!(text.starts_with("HTTP/1.1 431 ") && text.contains("\r\naccess-control-allow-origin: *\r\n"));
        assert!(text.contains("\"bad_request\""), "{text}");
        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 416 Range Not Satisfiable\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 10\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\nbody",
            "",
        ] {
            assert_eq!(complete_answer(other.as_bytes()), None, "{other}");
        }
    }
}
