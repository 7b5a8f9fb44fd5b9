//! One column of a Parquet file, a page at a time.

use super::Place;
use crate::CorpusError;
use crate::document::{Document, Unusable, from_bytes};
use parquet::basic::{Compression, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::collections::VecDeque;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Rows decoded at a time; values are slices of their page.
const ROWS: usize = 128;

pub(crate) struct ParquetColumn {
    file: SerializedFileReader<File>,
    path: PathBuf,
    column: usize,
    /// Definition level of a value that is not null.
    present: i16,
    file_bytes: u64,
    rows: u64,
    document_bytes_max: usize,
    group: usize,
    /// Rows of the group that are decoded.
    group_rows: u64,
    reader: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Decoded rows; `None` is null.
    decoded: VecDeque<Option<ByteArray>>,
    pub(super) place: Place,
}

impl ParquetColumn {
    pub(super) fn open(
        path: &Path,
        column: &str,
        place: Place,
        document_bytes_max: usize,
    ) -> Result<Self, CorpusError> {
        let input = File::open(path).map_err(CorpusError::io("read", path))?;
        let file_bytes = input.metadata().map_err(CorpusError::io("read", path))?.len();
        let file = guarded(path, || SerializedFileReader::new(input))?;
        let meta = file.metadata().file_metadata();
        let schema = meta.schema_descr();
        let bad = |problem: String| CorpusError::Parquet {
            path: path.to_path_buf(),
            problem,
        };
        let names: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
        let Some(number) = names.iter().position(|name| name == column) else {
            return Err(bad(format!(
                "it has no column '{column}' (it has: {}); give the one that holds the text as text_column",
                names.join(", ")
            )));
        };
        let described = schema.column(number);
        // Repeated values would need a rule for how they make a document.
        if described.physical_type() != Type::BYTE_ARRAY || described.max_rep_level() != 0 {
            return Err(bad(format!(
                "column '{column}' is no column of strings; give the one that holds the text as text_column"
            )));
        }
        // Those compiled in; the others would need more libraries, and data sets have Snappy or Zstandard as a rule.
        let unreadable = |how: &Compression| {
            !matches!(
                how,
                Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_)
            )
        };
        let chunks = file
            .metadata()
            .row_groups()
            .iter()
            .filter_map(|g| g.columns().get(number));
        if let Some(how) = chunks.map(|chunk| chunk.compression()).find(unreadable) {
            return Err(bad(format!(
                "column '{column}' is compressed with {how}; write it again with Snappy, Zstandard or without compression"
            )));
        }
        let (present, rows) = (described.max_def_level(), u64::try_from(meta.num_rows()).unwrap_or(0));
        let mut opened = Self {
            present,
            path: path.to_path_buf(),
            column: number,
            file_bytes,
            rows,
            document_bytes_max,
            group: 0,
            group_rows: 0,
            reader: None,
            decoded: VecDeque::new(),
            place: Place::default(),
            file,
        };
        opened.skip(place.documents)?;
        opened.place = place;
        Ok(opened)
    }

    /// Skips rows: whole groups by their counts, the rest in the group where it ends.
    fn skip(&mut self, mut rows: u64) -> Result<(), CorpusError> {
        while rows > 0 && self.group < self.file.num_row_groups() {
            let in_group = self.file.metadata().row_group(self.group).num_rows();
            let in_group = u64::try_from(in_group).unwrap_or(0);
            // By the footer's counts: nothing of the group is decoded.
            if rows >= in_group {
                rows -= in_group;
                self.group += 1;
                continue;
            }
            let mut reader = self.open_group()?;
            guarded(&self.path, || reader.skip_records(rows as usize))?;
            self.group_rows = rows;
            self.reader = Some(reader);
            return Ok(());
        }
        Ok(())
    }

    fn open_group(&self) -> Result<ColumnReaderImpl<ByteArrayType>, CorpusError> {
        let reader = guarded(&self.path, || {
            self.file.get_row_group(self.group)?.get_column_reader(self.column)
        })?;
        match reader {
            ColumnReader::ByteArrayColumnReader(reader) => Ok(reader),
            _ => Err(CorpusError::Parquet {
                path: self.path.clone(),
                problem: format!("row group {} holds no strings", self.group),
            }),
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Document>, CorpusError> {
        while self.decoded.is_empty() {
            if self.group >= self.file.num_row_groups() {
                return Ok(None);
            }
            self.decode()?;
        }
        let value = self.decoded.pop_front().flatten();
        self.place.documents += 1;
        // Pages have no position per row, so progress is the share of the rows.
        let share = u128::from(self.file_bytes) * u128::from(self.place.documents) / u128::from(self.rows.max(1));
        self.place.bytes = u64::try_from(share).unwrap_or(self.file_bytes).min(self.file_bytes);
        Ok(Some(match value {
            None => Err(Unusable::Empty),
            Some(value) if value.len() > self.document_bytes_max => Err(Unusable::TooLarge),
            Some(value) => from_bytes(value.data().to_vec(), self.document_bytes_max),
        }))
    }

    /// Decodes some rows, or moves to the next group.
    fn decode(&mut self) -> Result<(), CorpusError> {
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => self.open_group()?,
        };
        let (mut values, mut levels) = (Vec::with_capacity(ROWS), Vec::with_capacity(ROWS));
        let present = self.present;
        let (rows, ..) = guarded(&self.path, || {
            let levels = (present > 0).then_some(&mut levels);
            reader.read_records(ROWS, levels, None, &mut values)
        })?;
        self.group_rows += rows as u64;
        // The footer's promise is checked: a group that ends early would be text lost without a word.
        if rows == 0 {
            let promised = self.file.metadata().row_group(self.group).num_rows();
            if u64::try_from(promised) != Ok(self.group_rows) {
                let problem = format!("row group {} has {} rows, not {promised}", self.group, self.group_rows);
                return guarded(&self.path, || Err(ParquetError::General(problem)));
            }
            (self.group, self.group_rows) = (self.group + 1, 0);
            return Ok(());
        }
        // Values come without the nulls; the definition levels tell where those were.
        if present == 0 {
            self.decoded.extend(values.into_iter().map(Some));
        } else {
            let mut values = values.into_iter();
            let levels = levels.into_iter();
            self.decoded
                .extend(levels.map(|level| if level == present { values.next() } else { None }));
        }
        self.reader = Some(reader);
        Ok(())
    }
}

/// Calls the Parquet library; a panic in it over a damaged file is an error like its own.
fn guarded<T>(path: &Path, call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, CorpusError> {
    // The library trusts lengths of the file in places. The state it leaves behind is dropped with the reader.
    let problem = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(e)) => e.to_string(),
        Err(_) => "the reader gave up".into(),
    };
    Err(CorpusError::Parquet {
        path: path.to_path_buf(),
        problem: format!("it is damaged, cut off or no Parquet file ({problem}); get it again"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{write_compressed, write_parquet};

    /// The supported ones.
    fn compressions() -> [Compression; 3] {
        [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::ZSTD(Default::default()),
        ]
    }

    fn all(path: &Path, column: &str, at: u64) -> Result<Vec<Document>, CorpusError> {
        let place = Place {
            documents: at,
            bytes: 0,
        };
        let mut reader = ParquetColumn::open(path, column, place, 100)?;
        let mut found = Vec::new();
        while let Some(document) = reader.next()? {
            found.push(document);
        }
        Ok(found)
    }

    fn rows() -> Vec<Option<String>> {
        let row = |i: usize| match i % 7 {
            3 => None,
            5 => Some("x".repeat(101)),
            _ => Some(format!("row {i}")),
        };
        (0..1000).map(row).collect()
    }

    #[test]
    fn a_column_should_be_read_from_any_row() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        let expected: Vec<Document> = rows()
            .into_iter()
            .map(|row| match row {
                None => Err(Unusable::Empty),
                Some(text) if text.len() > 100 => Err(Unusable::TooLarge),
                Some(text) => Ok(text),
            })
            .collect();
        for how in compressions() {
            write_compressed(&path, "text", &rows(), 300, how);
            for at in [0, 1, 127, 128, 299, 300, 301, 600, 998, 999, 1000] {
                let found = all(&path, "text", at).unwrap();
                assert_eq!(found, expected[at as usize..], "{how} from {at}");
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_should_be_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        write_parquet(&path, "body", &rows(), 300);
        for (column, words) in [
            ("text", "it has no column 'text' (it has: id, body)"),
            ("id", "is no column of strings"),
        ] {
            let message = all(&path, column, 0).unwrap_err().to_string();
            assert!(message.contains("a.parquet") && message.contains(words), "{message}");
        }
        let whole = std::fs::read(&path).unwrap();
        for len in [0, 3, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..len]).unwrap();
            let message = all(&path, "body", 0).unwrap_err().to_string();
            assert!(
                message.contains("damaged, cut off or no Parquet file"),
                "{len}: {message}"
            );
        }
    }

    #[test]
    fn damage_should_never_be_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        let mut random = alice_testkit::Lcg::new(1);
        for how in compressions() {
            write_compressed(&path, "text", &rows()[..200], 100, how);
            let whole = std::fs::read(&path).unwrap();
            let mut refused = 0;
            for _ in 0..1000 {
                let mut bytes = whole.clone();
                for _ in 0..3 {
                    let offset = random.below(bytes.len());
                    bytes[offset] ^= 1 << random.below(8);
                }
                std::fs::write(&path, &bytes).unwrap();
                refused += usize::from(all(&path, "text", 0).is_err());
            }
            assert!(refused > 50, "{how}: {refused}");
        }
    }
}
