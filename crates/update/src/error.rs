//! Errors of the codec and of error feedback, each with its remedy.

use std::ops::Range;

/// Why an update was not encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The vector does not have the layout's length.
    #[error("update has {found} values, the model (or its fragment) has {expected}; was it made for another run?")]
    Length {
        /// Coordinates that the layout covers.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// NaN or infinite.
    #[error("update value {index} is not finite; training diverged, lower the learning rate or drop this task")]
    NonFinite {
        /// Flat index of the first such value.
        index: usize,
    },
    /// All values are zero or too small for the smallest scale.
    #[error("update is zero; there is nothing to send")]
    Zero,
    /// Not even an update with one entry fits.
    #[error("update.budget_bytes = {budget_bytes} is too small for {chunks} chunks; raise it in the run spec")]
    Budget {
        /// The budget.
        budget_bytes: u64,
        /// Chunks of the layout.
        chunks: u64,
    },
    /// The format has no values of this width.
    #[error("update.value_bits = {0} is not known; use 1, 2, 4 or 8")]
    ValueBits(u8),
    /// More parameters than an update can cover.
    #[error("the model has {0} parameters, an update covers a model of at most 2^40")]
    Parameters(usize),
}

/// Why bytes are not an update or not a published aggregate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The first bytes are not this format's.
    #[error("bytes do not start with {expected}; another format or version")]
    Magic {
        /// Expected magic as text.
        expected: &'static str,
    },
    /// Longer than the budget.
    #[error("update has {found} bytes, at most {budget_bytes} are allowed")]
    TooLong {
        /// The budget.
        budget_bytes: u64,
        /// Bytes given.
        found: usize,
    },
    /// The bytes end too early.
    #[error("bytes end inside {what}")]
    Truncated {
        /// Where.
        what: Place,
    },
    /// The base count is above the limit.
    #[error("base count {found} is above k_max = {max}")]
    BaseCount {
        /// Largest allowed.
        max: u32,
        /// Found.
        found: u32,
    },
    /// A chunk claims more entries than it may have.
    #[error("{place} has {found} entries, at most {max} are allowed")]
    Count {
        /// Chunk.
        place: Place,
        /// Largest allowed.
        max: u32,
        /// Found.
        found: u32,
    },
    /// A count is not written in its shortest form.
    #[error("{place} writes its count {found} in a longer form than needed")]
    CountForm {
        /// Chunk.
        place: Place,
        /// Found.
        found: u32,
    },
    /// An index lies beyond its chunk.
    #[error("{place} has an index beyond its {len} coordinates")]
    Index {
        /// Chunk.
        place: Place,
        /// Coordinates of the chunk.
        len: u32,
    },
    /// Bits after the last entry are not zero.
    #[error("padding bits after the last entry are not zero")]
    Padding,
    /// Bytes after the last entry.
    #[error("{0} bytes follow the last entry")]
    Trailing(usize),
    /// The format has no values of this width.
    #[error("values of {0} bits are not known")]
    ValueBits(u8),
    /// More parameters than an update can cover.
    #[error("the model has {0} parameters, an update covers a model of at most 2^40")]
    Parameters(usize),
}

/// A part of an encoded update, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The header.
    Header,
    /// A chunk, counted from zero.
    Chunk(usize),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header => write!(f, "the header"),
            Self::Chunk(index) => write!(f, "chunk {index}"),
        }
    }
}

/// Why error feedback cannot be read or stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeedbackError {
    /// The file is damaged or is not a residual.
    #[error("stored error feedback is damaged ({0}); delete it to start from a zero residual")]
    Damaged(&'static str),
    /// The file belongs to another model, or to another part of it.
    #[error(
        "stored error feedback is for the parameters {}..{}, the run asks for {}..{}; it belongs to another run, move it away",
        .found.start, .found.end, .expected.start, .expected.end
    )]
    Length {
        /// Coordinates that are asked for.
        expected: Range<u64>,
        /// Coordinates of the file.
        found: Range<u64>,
    },
    /// The ledger exists, the residual that it names does not.
    #[error("residual {generation} is missing; put it back, or delete the ledger to start from a zero residual")]
    Missing {
        /// Its generation.
        generation: u64,
    },
    /// More or fewer values than the residual has.
    #[error("residual ends at parameter {expected}, values were given up to {found}; this is a bug, please report it")]
    Values {
        /// Its end.
        expected: u64,
        /// Where the values ended.
        found: u64,
    },
    /// The file could not be read.
    #[error("residual could not be read: {problem}")]
    Read {
        /// Kind of the error.
        kind: std::io::ErrorKind,
        /// Its text.
        problem: String,
    },
    /// The file could not be written, usually because the disk is full.
    #[error("residual could not be stored: {problem}; make room on the disk, the residual before it is still valid")]
    Store {
        /// Kind of the error.
        kind: std::io::ErrorKind,
        /// Its text.
        problem: String,
    },
}

impl FeedbackError {
    pub(crate) fn reading(error: std::io::Error) -> Self {
        Self::Read {
            kind: error.kind(),
            problem: error.to_string(),
        }
    }

    pub(crate) fn storing(error: std::io::Error) -> Self {
        Self::Store {
            kind: error.kind(),
            problem: error.to_string(),
        }
    }
}
