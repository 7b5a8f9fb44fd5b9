//! Errors of vocabularies and their files.

use crate::model_proto::MODEL_BYTES_MAX;
use crate::{LFS_POINTER_ADVICE, VOCABULARY_MAX};
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
        /// The fault, and the allowed values.
        problem: String,
    },
    /// Bytes that are no SentencePiece model, or one of a kind that is not read here.
    #[error("not a tokenizer.model of this kind: {0}")]
    Model(#[from] ModelProblem),
    /// [`TokenizerError::Model`] of a file.
    #[error("{} is not a tokenizer.model of this kind: {problem}", .path.display())]
    ModelFile {
        /// The file.
        path: PathBuf,
        /// The fault.
        problem: ModelProblem,
    },
    /// The operating system refused.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The file it was tried on.
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

    /// Adds the path to a problem of a model's bytes.
    pub(crate) fn in_file(self, path: &Path) -> Self {
        match self {
            Self::Model(problem) => Self::ModelFile {
                path: path.to_path_buf(),
                problem,
            },
            other => other,
        }
    }
}

/// Fault in the bytes of a `tokenizer.model`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelProblem {
    /// A pointer of Git Large File Storage in place of the file.
    #[error("it is {LFS_POINTER_ADVICE}")]
    LfsPointer,
    /// Larger than any model.
    #[error("it has {0} bytes, at most {MODEL_BYTES_MAX} are read")]
    TooLarge(usize),
    /// The bytes end early.
    #[error("the file ends inside {0}; download it again")]
    Truncated(&'static str),
    /// A number with more bytes than protocol buffers have.
    #[error("a number has more than ten bytes")]
    LongNumber,
    /// A wire type that protocol buffers do not have, or no longer.
    #[error("wire type {0} is not known")]
    WireType(u64),
    /// More pieces than ids.
    #[error("it has more than {VOCABULARY_MAX} pieces")]
    TooManyPieces,
    /// A kind of model or an option that is not encoded here as SentencePiece does it.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A byte without a piece.
    #[error("it has no piece <0x{0:02X}>; the 256 bytes need one each, at any ids (SentencePiece's byte_fallback)")]
    NoBytePiece(u8),
    /// A piece that cannot be used.
    #[error("piece {id} {problem}")]
    Piece {
        /// Its id.
        id: usize,
        /// The fault.
        problem: &'static str,
    },
    /// A kind of piece that is not read here.
    #[error("piece {id} is of kind {kind}, which is not read here (user-defined and unused pieces are not)")]
    PieceKind {
        /// Its id.
        id: usize,
        /// `ModelProto.SentencePiece.Type`.
        kind: u64,
    },
}
