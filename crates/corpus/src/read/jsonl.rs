//! JSON lines: an object a line, the text under one of its keys.

use super::Place;
use crate::CorpusError;
use crate::document::{Document, Unusable, from_bytes};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A line may have so many times the bytes of the longest document: escapes and other keys take room.
const LINE_FACTOR: usize = 4;
const BOM: &[u8] = b"\xef\xbb\xbf";

pub(crate) struct JsonLines<R = File> {
    input: BufReader<R>,
    path: PathBuf,
    column: String,
    max: usize,
    line: Vec<u8>,
    pub(super) place: Place,
}

impl JsonLines {
    pub(super) fn open(path: &Path, column: &str, at: Place, max: usize) -> Result<Self, CorpusError> {
        let mut file = File::open(path).map_err(CorpusError::io("read", path))?;
        file.seek(SeekFrom::Start(at.bytes))
            .map_err(CorpusError::io("read", path))?;
        Ok(Self::over(file, path, column, at, max))
    }
}

/// How a line ended.
enum Line {
    Whole,
    TooLong,
    NoMore,
}

impl<R: Read> JsonLines<R> {
    pub(crate) fn over(input: R, path: &Path, column: &str, at: Place, max: usize) -> Self {
        Self {
            input: BufReader::with_capacity(1 << 18, input),
            path: path.to_path_buf(),
            column: column.into(),
            max,
            line: Vec::new(),
            place: at,
        }
    }

    pub(crate) fn next(&mut self) -> Result<Option<Document>, CorpusError> {
        loop {
            match self.read_line().map_err(CorpusError::io("read", &self.path))? {
                Line::NoMore => return Ok(None),
                Line::TooLong => {
                    self.place.documents += 1;
                    return Ok(Some(Err(Unusable::TooLarge)));
                }
                Line::Whole => {}
            }
            // Blank lines count, so that `place.documents + 1` is the number of the line.
            self.place.documents += 1;
            let line = self.line.strip_prefix(BOM).unwrap_or(&self.line);
            if !line.iter().all(u8::is_ascii_whitespace) {
                return self.parse(line).map(Some);
            }
        }
    }

    fn parse(&self, line: &[u8]) -> Result<Document, CorpusError> {
        let bad = |problem: String| CorpusError::Line {
            path: self.path.clone(),
            line: self.place.documents,
            problem,
        };
        let mut json = serde_json::Deserializer::from_slice(line);
        let found = Column(&self.column).deserialize(&mut json).and_then(|found| {
            json.end()?;
            Ok(found)
        });
        match found {
            Ok(Found::Text(bytes)) => Ok(from_bytes(bytes, self.max)),
            Ok(Found::Null) => Ok(Err(Unusable::Empty)),
            Ok(Found::Nothing(keys)) => Err(bad(format!(
                "it has no '{}' (it has: {keys}); say which key holds the text with text_column",
                self.column
            ))),
            Err(e) if e.is_eof() => Err(bad(
                "it ends in the middle of a JSON value; the file is cut off, get it again".into(),
            )),
            Err(e) => Err(bad(format!(
                "{e}; every line must be a JSON object with a string under '{}'",
                self.column
            ))),
        }
    }

    /// Reads a line into `self.line`, without its end; one that is too long is passed over without keeping it.
    fn read_line(&mut self) -> std::io::Result<Line> {
        self.line.clear();
        let limit = self.max.saturating_mul(LINE_FACTOR);
        let (mut any, mut too_long) = (false, false);
        loop {
            let buffer = match self.input.fill_buf() {
                Ok(buffer) => buffer,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            if buffer.is_empty() {
                break;
            }
            any = true;
            let end = buffer.iter().position(|b| *b == b'\n');
            let part = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or_default();
            too_long |= self.line.len() + part.len() > limit;
            match too_long {
                true => self.line.clear(),
                false => self.line.extend_from_slice(part),
            }
            let used = part.len() + usize::from(end.is_some());
            self.input.consume(used);
            self.place.bytes += used as u64;
            if end.is_some() {
                break;
            }
        }
        Ok(match (any, too_long) {
            (false, _) => Line::NoMore,
            (_, true) => Line::TooLong,
            _ => Line::Whole,
        })
    }
}

/// What a line has under the key.
enum Found {
    /// Perhaps no UTF-8: JSON can spell lone surrogates.
    Text(Vec<u8>),
    Null,
    /// The keys there are, for the error.
    Nothing(String),
}

/// Takes one key's value out of an object without building the rest.
struct Column<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Column<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Found, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Column<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        const KEYS_SHOWN_BYTES: usize = 200;
        let (mut found, mut keys) = (None, String::new());
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
                found = Some(match map.next_value::<Option<Bytes>>()? {
                    Some(Bytes(bytes)) => Found::Text(bytes),
                    None => Found::Null,
                });
                continue;
            }
            if keys.len() < KEYS_SHOWN_BYTES {
                keys.push_str(if keys.is_empty() { "" } else { ", " });
                keys.extend(key.chars().take(KEYS_SHOWN_BYTES));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(found.unwrap_or(Found::Nothing(keys)))
    }
}

/// A JSON string as bytes.
struct Bytes(Vec<u8>);

impl<'de> serde::Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct AsBytes;
        impl Visitor<'_> for AsBytes {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a string")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        d.deserialize_bytes(AsBytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8], max: usize) -> Result<Vec<Document>, CorpusError> {
        let mut reader = JsonLines::over(text, Path::new("x.jsonl"), "text", Place::default(), max);
        let mut found = Vec::new();
        while let Some(document) = reader.next()? {
            found.push(document);
        }
        assert_eq!(reader.place.bytes, text.len() as u64);
        Ok(found)
    }

    #[test]
    fn every_kind_of_line_should_have_a_result() {
        let text = b"\xef\xbb\xbf{\"id\": 1, \"text\": \"one\"}\r\n\n  \n\
            {\"text\": \"\\u00e9\\n\\ud83d\\ude00\", \"meta\": {\"text\": [1, {}]}}\n\
            {\"text\": null}\n{\"text\": \"\"}\n{\"text\": \"a\\u0000b\"}\n{\"text\": \"\\ud800\"}\n{\"text\": \"\xff\"}\n\
            {\"text\": \"123456789012345678901\"}\n{\"text\": \"x\", \"text\": \"last\"}";
        let expected: Vec<Document> = vec![
            Ok("one".into()),
            Ok("é\n😀".into()),
            Err(Unusable::Empty),
            Err(Unusable::Empty),
            Err(Unusable::WithNul),
            Err(Unusable::NotUtf8),
            Err(Unusable::NotUtf8),
            Err(Unusable::TooLarge),
            Ok("last".into()),
        ];
        assert_eq!(all(text, 20).unwrap(), expected);
    }

    #[test]
    fn broken_lines_should_be_named() {
        for (line, words) in [
            (&b"{\"text\": \"cut of"[..], "the file is cut off"),
            (b"{\"text\": \"a\"", "the file is cut off"),
            (b"{\"body\": \"a\", \"id\": 1}", "it has no 'text' (it has: body, id)"),
            (b"{}", "it has no 'text'"),
            (b"{\"text\": 7}", "expected a string"),
            (b"{\"text\": [1]}", "must be a JSON object"),
            (b"[1]", "must be a JSON object"),
            (b"text", "must be a JSON object"),
            (b"{\"text\": \"a\"} {\"text\": \"b\"}", "must be a JSON object"),
        ] {
            let mut text = b"{\"text\": \"fine\"}\n".to_vec();
            text.extend_from_slice(line);
            let message = all(&text, 1000).unwrap_err().to_string();
            let ok = message.starts_with("x.jsonl line 2: ") && message.contains(words);
            assert!(ok, "{}: {message}", String::from_utf8_lossy(line));
        }
    }

    /// A line of a GiB that nobody ever holds.
    struct LongLine {
        left: u64,
        tail: &'static [u8],
    }

    impl Read for LongLine {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.left == 0 {
                return self.tail.read(buffer);
            }
            let len = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            buffer[..len].fill(b'x');
            self.left -= len as u64;
            Ok(len)
        }
    }

    #[test]
    fn a_line_of_a_gigabyte_should_be_passed_over_without_holding_it() {
        const LEN: u64 = 1 << 30;
        let input = LongLine {
            left: LEN,
            tail: b"\n{\"text\": \"after\"}\n",
        };
        let max = 1 << 20;
        let mut reader = JsonLines::over(input, Path::new("x.jsonl"), "text", Place::default(), max);
        assert_eq!(reader.next().unwrap(), Some(Err(Unusable::TooLarge)));
        assert_eq!(
            reader.place,
            Place {
                documents: 1,
                bytes: LEN + 1
            }
        );
        assert!(
            reader.line.capacity() <= 2 * LINE_FACTOR * max,
            "{}",
            reader.line.capacity()
        );
        assert_eq!(reader.next().unwrap(), Some(Ok("after".into())));
        assert_eq!(reader.next().unwrap(), None);
    }

    #[test]
    fn reading_should_go_on_at_any_place() {
        let text: Vec<u8> = (0..50)
            .flat_map(|i| format!("{{\"text\": \"line {i}\"}}\n").into_bytes())
            .collect();
        let expected = all(&text, 100).unwrap();
        let mut reader = JsonLines::over(text.as_slice(), Path::new("x"), "text", Place::default(), 100);
        for document in &expected {
            let rest = &text[reader.place.bytes as usize..];
            let mut again = JsonLines::over(rest, Path::new("x"), "text", reader.place, 100);
            assert_eq!(again.next().unwrap().as_ref(), Some(document));
            assert_eq!(reader.next().unwrap().as_ref(), Some(document));
            assert_eq!(again.place, reader.place);
        }
    }
}
