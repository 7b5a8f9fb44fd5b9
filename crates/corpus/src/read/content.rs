//! A file's content, decompressed while it is read.

use crate::CorpusError;
use flate2::bufread::MultiGzDecoder;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Buffer between the file and the decompressor, bytes.
const BUFFER_BYTES: usize = 1 << 17;
/// Largest window of a Zstandard file, log2 bytes: 128 MiB, what `zstd` itself decompresses without further flags. The
/// window is memory that the file asks for.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How a file is compressed, by the ending of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// The compression of a file and its name without that ending.
    pub(crate) fn of(path: &Path) -> (Self, &OsStr) {
        let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
        let compression = match ending.as_deref().and_then(OsStr::to_str) {
            Some("gz") => Self::Gzip,
            Some("zst" | "zstd") => Self::Zstd,
            _ => Self::None,
        };
        let name = match compression {
            Self::None => path.file_name(),
            _ => path.file_stem(),
        };
        (compression, name.unwrap_or_default())
    }
}

/// A stream of a file's content. It needs the same memory for any file: what a small file expands to is never held.
pub(crate) struct Content {
    stream: Box<dyn Read + Send>,
    /// Bytes of the compressed file that were read; `None` for a file that is not compressed.
    compressed_bytes: Option<Arc<AtomicU64>>,
}

impl Content {
    /// Content of an open file.
    pub(crate) fn of(file: File, path: &Path, compression: Compression) -> Result<Self, CorpusError> {
        let read = Arc::new(AtomicU64::new(0));
        let counted = Counted {
            file,
            read: Arc::clone(&read),
        };
        let stream: Box<dyn Read + Send> = match compression {
            Compression::None => {
                return Ok(Self {
                    stream: Box::new(counted.file),
                    compressed_bytes: None,
                });
            }
            // Multi: a file made by `cat a.gz b.gz` has several members, and the first alone would be text lost.
            Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER_BYTES, counted))),
            Compression::Zstd => {
                let buffered = BufReader::with_capacity(BUFFER_BYTES, counted);
                let mut decoder = zstd::Decoder::with_buffer(buffered).map_err(damaged(path))?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(damaged(path))?;
                Box::new(decoder)
            }
        };
        Ok(Self {
            stream,
            compressed_bytes: Some(read),
        })
    }

    /// Bytes of the compressed file that were read, buffered ones included; `None` for a file that is not compressed.
    pub(crate) fn compressed_bytes(&self) -> Option<u64> {
        Some(self.compressed_bytes.as_ref()?.load(Ordering::Relaxed))
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stream.read(buffer)
    }
}

/// The error of a failed read: for a compressed file it is the decompressor's, as a rule.
pub(crate) fn read_error(path: &Path, compression: Compression) -> impl FnOnce(std::io::Error) -> CorpusError {
    move |source| match compression {
        Compression::None => CorpusError::io("read", path)(source),
        _ => damaged(path)(source),
    }
}

fn damaged(path: &Path) -> impl FnOnce(std::io::Error) -> CorpusError {
    let path = path.to_path_buf();
    move |source| CorpusError::Compressed { path, source }
}

/// Counts what is read of a file.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.file.read(buffer)?;
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_should_follow_from_the_ending_in_any_case() {
        for (path, compression, name) in [
            ("a/b.jsonl", Compression::None, "b.jsonl"),
            ("a/b.jsonl.gz", Compression::Gzip, "b.jsonl"),
            ("B.TXT.GZ", Compression::Gzip, "B.TXT"),
            ("b.txt.zst", Compression::Zstd, "b.txt"),
            ("b.Zstd", Compression::Zstd, "b"),
            ("gz", Compression::None, "gz"),
        ] {
            assert_eq!(
                Compression::of(Path::new(path)),
                (compression, OsStr::new(name)),
                "{path}"
            );
        }
    }
    #[test]
    fn zstandard_window_should_be_bounded() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt.zst");
        for (window_log, allowed) in [(ZSTD_WINDOW_LOG_MAX, true), (ZSTD_WINDOW_LOG_MAX + 1, false)] {
            let mut encoder = zstd::Encoder::new(File::create(&path).unwrap(), 1).unwrap();
            encoder.window_log(window_log).unwrap();
            // Flushed before the end, so that the header cannot have a smaller window for a short content.
            encoder.write_all(b"text").unwrap();
            encoder.flush().unwrap();
            encoder.finish().unwrap();
            let mut text = String::new();
            let mut content = Content::of(File::open(&path).unwrap(), &path, Compression::Zstd).unwrap();
            let read = content.read_to_string(&mut text);
            assert_eq!(read.is_ok(), allowed, "2^{window_log}: {read:?}");
        }
    }
}
