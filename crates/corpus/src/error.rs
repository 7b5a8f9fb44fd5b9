//! What can go wrong between texts and shards.

use std::path::{Path, PathBuf};

/// Why a corpus could not be built.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// A list of sources that cannot be read.
    #[error("{} is no list of sources: {problem}", .path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A setting outside its bounds.
    #[error("{field}: {problem}")]
    Setting {
        /// Which one.
        field: String,
        /// What is wrong and what is allowed.
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
        /// What was given.
        license: String,
        /// What the parser says.
        problem: String,
    },
    /// A source that names no file.
    #[error("source '{name}': no {wanted} file at {}", .path.display())]
    NoFiles {
        /// The source.
        name: String,
        /// Where it was looked for.
        path: PathBuf,
        /// Which files were looked for.
        wanted: String,
    },
    /// Not one document that could be used.
    #[error("the sources hold no text: {left_out} documents were left out, none remains")]
    Empty {
        /// Documents that were left out.
        left_out: u64,
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
    /// A line of JSON lines that is none.
    #[error("{} line {line}: {problem}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: u64,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A Parquet file that is damaged or without the column.
    #[error("{}: {problem}", .path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
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
        "the interrupted build cannot go on: {problem} ({}); to start over, build into another folder and remove this one",
        .state.display()
    )]
    Checkpoint {
        /// What is wrong.
        problem: String,
        /// Folder of the build's state.
        state: PathBuf,
    },
    /// Somebody else builds in the folder.
    #[error("another build is at work in {}; wait for it or stop it", .0.display())]
    Locked(PathBuf),
    /// [`crate::build`]'s progress function said to stop.
    #[error("stopped; the same command goes on from the last checkpoint")]
    Stopped,
    /// The operating system refused.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// What was tried.
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
