//! What can go wrong with vocabularies and their files.

use std::path::{Path, PathBuf};

/// Why a tokenizer could not be trained, read or written.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// Documents without a single character that could become a piece.
    #[error("the corpus has no text to learn from ({bytes} bytes read); give documents in UTF-8")]
    NoText {
        /// Bytes that were read.
        bytes: u64,
    },
    /// A vocabulary that does not even hold the characters.
    #[error(
        "a vocabulary of {asked} is too small: 259 ids are special and bytes, {characters} characters cover the \
         corpus; ask for at least {}", .characters + 259
    )]
    VocabularyTooSmall {
        /// Size asked for.
        asked: u32,
        /// Characters that the coverage asks for.
        characters: usize,
    },
    /// More merges than the corpus has pairs.
    #[error(
        "a vocabulary of {asked} is larger than the corpus can give: it has pieces for {possible}; ask for at most that, or give more text"
    )]
    CorpusTooSmall {
        /// Size asked for.
        asked: u32,
        /// Size that is possible.
        possible: usize,
    },
    /// A setting outside its bounds.
    #[error("tokenizer option {option}: {problem}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// Bytes that are no SentencePiece model, or one of a kind that is not read here.
    #[error("not a tokenizer.model of this kind: {0}")]
    Model(String),
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
    /// A document could not be read.
    #[error("cannot read document {number}: {source}")]
    Document {
        /// Position of the document, from 0.
        number: u64,
        /// The reason.
        source: std::io::Error,
    },
}

impl TokenizerError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { what, path, source }
    }
}
