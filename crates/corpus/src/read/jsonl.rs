//! JSON lines: an object a line, the text under one of its keys.

use super::Place;
use super::content::{Compression, Content, read_error};
use crate::CorpusError;
use crate::document::{Document, Unusable, from_bytes};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Maximum length of a line, as a multiple of the longest document: escapes and other keys need room.
const LINE_FACTOR: usize = 4;
/// Read buffer, bytes.
const BUFFER_BYTES: usize = 1 << 18;
const BOM: &[u8] = b"\xef\xbb\xbf";

pub(crate) struct JsonLines<R = Content> {
    input: BufReader<R>,
    path: PathBuf,
    compression: Compression,
    column: String,
    document_bytes_max: usize,
    line: Vec<u8>,
    pub(super) place: Place,
}

impl JsonLines {
    pub(super) fn open(
        path: &Path,
        compression: Compression,
        column: &str,
        place: Place,
        document_bytes_max: usize,
    ) -> Result<Self, CorpusError> {
        let mut file = File::open(path).map_err(CorpusError::io("read", path))?;
        if compression == Compression::None {
            file.seek(SeekFrom::Start(place.bytes))
                .map_err(CorpusError::io("read", path))?;
            let content = Content::of(file, path, compression)?;
            return Ok(Self::over(
                content,
                path,
                compression,
                column,
                place,
                document_bytes_max,
            ));
        }
        let content = Content::of(file, path, compression)?;
        let mut lines = Self::over(content, path, compression, column, Place::default(), document_bytes_max);
        // There is no seeking in a compressed stream: an interrupted build decompresses again what it has read.
        for _ in 0..place.documents {
            lines.read_line()?;
        }
        lines.place = place;
        Ok(lines)
    }

    /// The next document; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Document>, CorpusError> {
        let next = self.next_document();
        if let Some(bytes) = self.input.get_ref().compressed_bytes() {
            self.place.bytes = bytes;
        }
        next
    }
}

/// How a line ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    /// With a line feed.
    Whole,
    /// With the file.
    Last,
    TooLong,
    /// There is no further line.
    NoMore,
}

impl<R: Read> JsonLines<R> {
    fn over(
        input: R,
        path: &Path,
        compression: Compression,
        column: &str,
        place: Place,
        document_bytes_max: usize,
    ) -> Self {
        Self {
            input: BufReader::with_capacity(BUFFER_BYTES, input),
            path: path.to_path_buf(),
            compression,
            column: column.into(),
            document_bytes_max,
            line: Vec::new(),
            place,
        }
    }

    fn next_document(&mut self) -> Result<Option<Document>, CorpusError> {
        loop {
            let line_end = self.read_line()?;
            match line_end {
                Line::NoMore => return Ok(None),
                Line::TooLong => {
                    self.place.documents += 1;
                    return Ok(Some(Err(Unusable::TooLarge)));
                }
                Line::Whole | Line::Last => {}
            }
            // Blank lines count, so that `place.documents + 1` is the number of the line.
            self.place.documents += 1;
            let line = self.line.strip_prefix(BOM).unwrap_or(&self.line);
            if !line.iter().all(u8::is_ascii_whitespace) {
                return self.parse(line, line_end).map(Some);
            }
        }
    }

    fn parse(&self, line: &[u8], line_end: Line) -> Result<Document, CorpusError> {
        let malformed = |problem: String| {
            let (path, number) = (self.path.display(), self.place.documents);
            Ok(Err(Unusable::Malformed(format!("{path} line {number}: {problem}"))))
        };
        let mut json = serde_json::Deserializer::from_slice(line);
        let found = Column(&self.column).deserialize(&mut json).and_then(|found| {
            // A second value in the line would be lost.
            json.end()?;
            Ok(found)
        });
        match found {
            Ok(Found::Text(bytes)) => Ok(from_bytes(bytes, self.document_bytes_max)),
            Ok(Found::Null) => Ok(Err(Unusable::Empty)),
            Ok(Found::Nothing(keys)) => malformed(format!(
                "it has no '{}' (it has: {keys}); give the key that holds the text as text_column",
                self.column
            )),
            // A file that ends inside a value has lost everything behind it, which no threshold can weigh.
            Err(e) if e.is_eof() && line_end == Line::Last => Err(CorpusError::Line {
                path: self.path.clone(),
                line: self.place.documents,
                problem: "it ends in the middle of a JSON value; the file is cut off, get it again".into(),
            }),
            Err(e) => malformed(format!(
                "{e}; every line must be a JSON object with a string under '{}'",
                self.column
            )),
        }
    }

    /// Reads a line into `self.line`, without its end. A line that is too long is skipped without being held.
    fn read_line(&mut self) -> Result<Line, CorpusError> {
        self.line.clear();
        let limit = self.document_bytes_max.saturating_mul(LINE_FACTOR);
        let (mut any, mut too_long, mut ended) = (false, false, false);
        while !ended {
            let buffer = match self.input.fill_buf() {
                Ok(buffer) => buffer,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(read_error(&self.path, self.compression)(e)),
            };
            if buffer.is_empty() {
                break;
            }
            any = true;
            let end = buffer.iter().position(|b| *b == b'\n');
            let part = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or_default();
            too_long |= self.line.len() + part.len() > limit;
            // Cleared at once: the memory of a line is bounded while it is read, not afterwards.
            match too_long {
                true => self.line.clear(),
                false => self.line.extend_from_slice(part),
            }
            let used = part.len() + usize::from(end.is_some());
            self.input.consume(used);
            self.place.bytes += used as u64;
            ended = end.is_some();
        }
        Ok(match (any, too_long, ended) {
            (false, ..) => Line::NoMore,
            (_, true, _) => Line::TooLong,
            (.., true) => Line::Whole,
            (.., false) => Line::Last,
        })
    }
}

/// The value under the key.
enum Found {
    /// A string, as bytes since it may not be UTF-8: JSON can spell lone surrogates.
    Text(Vec<u8>),
    Null,
    /// The line lacks the key; the keys it has, for the error.
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

    fn over<R: Read>(input: R, place: Place, max: usize) -> JsonLines<R> {
        JsonLines::over(input, Path::new("x.jsonl"), Compression::None, "text", place, max)
    }

    fn all(text: &[u8], max: usize) -> Result<Vec<Document>, CorpusError> {
        let mut reader = over(text, Place::default(), max);
        let mut found = Vec::new();
        while let Some(document) = reader.next_document()? {
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
    fn malformed_lines_should_be_left_out_and_named() {
        for (line, words) in [
            (
                &b"{\"body\": \"a\", \"id\": 1}"[..],
                "it has no 'text' (it has: body, id)",
            ),
            (b"{}", "it has no 'text'"),
            (b"{\"text\": 7}", "expected a string"),
            (b"{\"text\": [1]}", "must be a JSON object"),
            (b"[1]", "must be a JSON object"),
            (b"text", "must be a JSON object"),
            (b"{\"text\": \"a\"} {\"text\": \"b\"}", "must be a JSON object"),
            (b"{\"text\": \"a\", \"score\": NaN}", "must be a JSON object"),
            (b"{\"text\": \"a\", \"score\": -Infinity}", "must be a JSON object"),
            (b"{\"text\": \"cut of\n", "must be a JSON object"),
        ] {
            let mut text = b"{\"text\": \"fine\"}\n".to_vec();
            text.extend_from_slice(line);
            text.extend_from_slice(b"\n{\"text\": \"after\"}\n");
            let found = all(&text, 1000).unwrap();
            let [Ok(before), Err(Unusable::Malformed(message)), Ok(after)] = &found[..] else {
                panic!("{}: {found:?}", String::from_utf8_lossy(line));
            };
            assert_eq!((before.as_str(), after.as_str()), ("fine", "after"));
            let ok = message.starts_with("x.jsonl line 2: ") && message.contains(words);
            assert!(ok, "{}: {message}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn file_that_is_cut_off_should_be_refused() {
        for line in [&b"{\"text\": \"cut of"[..], b"{\"text\": \"a\""] {
            let mut text = b"{\"text\": \"fine\"}\n".to_vec();
            text.extend_from_slice(line);
            let message = all(&text, 1000).unwrap_err().to_string();
            let ok = message.starts_with("x.jsonl line 2: ") && message.contains("the file is cut off");
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
        let mut reader = over(input, Place::default(), max);
        assert_eq!(reader.next_document().unwrap(), Some(Err(Unusable::TooLarge)));
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
        assert_eq!(reader.next_document().unwrap(), Some(Ok("after".into())));
        assert_eq!(reader.next_document().unwrap(), None);
    }

    #[test]
    fn reading_should_go_on_at_any_place() {
        let text: Vec<u8> = (0..50)
            .flat_map(|i| format!("{{\"text\": \"line {i}\"}}\n").into_bytes())
            .collect();
        let expected = all(&text, 100).unwrap();
        let mut reader = over(text.as_slice(), Place::default(), 100);
        for document in &expected {
            let rest = &text[reader.place.bytes as usize..];
            let mut again = over(rest, reader.place, 100);
            assert_eq!(again.next_document().unwrap().as_ref(), Some(document));
            assert_eq!(reader.next_document().unwrap().as_ref(), Some(document));
            assert_eq!(again.place, reader.place);
        }
    }
}
