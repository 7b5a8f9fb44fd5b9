//! Errors of a corpus build.

use std::path::{Path, PathBuf};

/// Why a corpus could not be built.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// A list of sources that cannot be read.
    #[error("{} is no list of sources: {problem}", .path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
    /// A setting outside its bounds.
    #[error("{field}: {problem}")]
    Setting {
        /// Which one.
        field: String,
        /// The problem, and the allowed values.
        problem: String,
    },
    /// A source whose licence is not an SPDX expression.
    #[error(
        "source '{name}': license '{license}' is not an SPDX identifier ({problem}); see https://spdx.org/licenses, \
         for example CC0-1.0 or CC-BY-4.0, or write LicenseRef-NAME for one that is not listed"
    )]
    License {
        /// The source.
        name: String,
        /// The given text.
        license: String,
        /// The parser's reason.
        problem: String,
    },
    /// A source whose path does not exist.
    #[error("source '{name}': the path does not exist: there is nothing at {}", .path.display())]
    NoPath {
        /// The source.
        name: String,
        /// Its path.
        path: PathBuf,
    },
    /// A source without a file that can be read.
    #[error("source '{name}': no {wanted} file at {}{}", .path.display(), first_unread(.unread.as_deref()))]
    NoFiles {
        /// The source.
        name: String,
        /// Its path.
        path: PathBuf,
        /// The formats that are read.
        wanted: String,
        /// The first file there that is not read.
        unread: Option<Box<crate::UnreadFile>>,
    },
    /// A folder for a development corpus without a `.txt` file.
    #[error("no .txt file in {}; put one document in each file, UTF-8", .0.display())]
    NoText(PathBuf),
    /// Too few documents for a development corpus.
    #[error("{documents} different documents in {}: every {every}th goes to the reserve, so at least {every} are needed", .dir.display())]
    NoReserve {
        /// Folder of the texts.
        dir: PathBuf,
        /// Documents in it.
        documents: usize,
        /// One document of this number goes to the reserve.
        every: usize,
    },
    /// A document of a development corpus that is not UTF-8.
    #[error("{} is not UTF-8 (byte {offset}); convert it, for example with iconv", .path.display())]
    NotUtf8 {
        /// The document.
        path: PathBuf,
        /// First bad byte.
        offset: usize,
    },
    /// A document of a development corpus with a NUL: nearly always a binary file or UTF-16.
    #[error("{} has a NUL at byte {offset}, so it is not text; remove it or convert it to UTF-8", .path.display())]
    Nul {
        /// The document.
        path: PathBuf,
        /// Where the NUL is.
        offset: usize,
    },
    /// A document of a development corpus that is too large to be read as a whole.
    #[error("{} has more than {max} bytes, the maximum of a document; split it", .path.display())]
    TooLarge {
        /// The document.
        path: PathBuf,
        /// Maximum size, bytes.
        max: u64,
    },
    /// Not one document that could be used.
    #[error("the sources hold no text: {left_out} documents were left out, none remains")]
    Empty {
        /// Documents that were left out.
        left_out: u64,
    },
    /// A source with too many malformed lines.
    #[error(
        "source '{name}': {malformed} of {documents} lines are malformed, at most {permille} of 1000 are left out; the \
         first: {first} (mend the file, or raise --malformed-permille)"
    )]
    Malformed {
        /// The source.
        name: String,
        /// Malformed lines so far.
        malformed: u64,
        /// Documents read so far, malformed lines included.
        documents: u64,
        /// Maximum malformed lines, thousandths.
        permille: u32,
        /// The first of them: file, line, and what is wrong.
        first: String,
    },
    /// A part without documents.
    #[error("no document of {documents} fell to the {part}; give more documents, or raise {raise}")]
    NoPart {
        /// `training text` or `reserve`.
        part: String,
        /// Different documents in all.
        documents: u64,
        /// The setting that gives this part more.
        raise: &'static str,
    },
    /// A file of JSON lines that cannot be read on from a line.
    #[error("{} line {line}: {problem}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: u64,
        /// The problem, and the remedy.
        problem: String,
    },
    /// A Parquet file that is damaged or without the column.
    #[error("{}: {problem}", .path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The problem, and the remedy.
        problem: String,
    },
    /// A compressed file that cannot be decompressed.
    #[error("cannot decompress {}: {source}; it is damaged or cut off, get it again", .path.display())]
    Compressed {
        /// The file.
        path: PathBuf,
        /// The decompressor's reason.
        source: std::io::Error,
    },
    /// A tokenizer whose ids do not fit a shard's 16 bits.
    #[error("the tokenizer has {0} ids; shards hold ids of 16 bits, so 65536 is the most")]
    Vocabulary(u32),
    /// A folder that holds a corpus.
    #[error("{} holds a corpus already; choose another folder", .0.display())]
    Exists(PathBuf),
    /// An interrupted build with other inputs.
    #[error(
        "{} holds a build that was interrupted, of other sources, settings or files that have changed since; \
         give the same ones to finish it; to start over, build into another folder and remove this one", .dir.display()
    )]
    OtherBuild {
        /// Output folder.
        dir: PathBuf,
        /// Folder of the build's state.
        state: PathBuf,
    },
    /// State of an interrupted build that cannot be used.
    #[error(
        "the interrupted build cannot be resumed: {problem} ({}); to start over, build into another folder and remove this one",
        .state.display()
    )]
    Checkpoint {
        /// The problem.
        problem: String,
        /// Folder of the build's state.
        state: PathBuf,
    },
    /// Another process builds in the folder.
    #[error("another build is running in {}; wait for it or stop it", .0.display())]
    Locked(PathBuf),
    /// [`crate::build`]'s progress function stopped the build.
    #[error("stopped; the same command resumes from the last checkpoint")]
    Stopped,
    /// The operating system refused.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// The failed operation, as a verb.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A shard or manifest.
    #[error(transparent)]
    Data(#[from] alice_data::DataError),
    /// A file could not be written.
    #[error(transparent)]
    Store(#[from] alice_store::StoreError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] alice_tokenizer::TokenizerError),
}

impl CorpusError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { what, path, source }
    }

    pub(crate) fn setting(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Setting {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

fn first_unread(unread: Option<&crate::UnreadFile>) -> String {
    match unread {
        None => String::new(),
        Some(file) => format!(" (not read: {}, {})", file.path.display(), file.reason),
    }
}
