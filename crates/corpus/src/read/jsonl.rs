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
            Err(e) => Err(bad(format!("{e}; every line must be a JSON object"))),
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
                found = Some(match map.next_value::<Option<Bytes>>() {
                    Ok(Some(Bytes(bytes))) => Found::Text(bytes),
                    Ok(None) => Found::Null,
                    Err(e) => return Err(A::Error::custom(format_args!("'{}': {e}", self.0))),
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
