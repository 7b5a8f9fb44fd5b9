//! What can be wrong, and what to do about it.

/// Why an update was not encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The vector does not have the layout's length.
    #[error("update has {found} values, the model has {expected}; was it made for another run?")]
    Length {
        /// Parameters of the model.
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
    /// Nothing to send: all values are zero or too small for the smallest scale.
    #[error("update is zero; there is nothing to send")]
    Zero,
    /// Not even an update with one entry fits.
    #[error("update.budget_bytes = {budget_bytes} is too small for {chunks} chunks; raise it in the run spec")]
    Budget {
        /// The budget.
        budget_bytes: u64,
        /// Chunks of the layout.
        chunks: usize,
    },
    /// Not a width that the format has.
    #[error("update.value_bits = {0} is not known; use 1, 2, 4 or 8")]
    ValueBits(u8),
    /// Flat indices would not fit 32 bits.
    #[error("the model has {0} parameters, an update covers at most 2^32; train it in fragments")]
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
    /// A count is written in another form than the shortest.
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
    /// Not a width that the format has.
    #[error("values of {0} bits are not known")]
    ValueBits(u8),
    /// Flat indices would not fit 32 bits.
    #[error("the model has {0} parameters, an update covers at most 2^32; train it in fragments")]
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

/// Why a stored residual cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeedbackError {
    /// The file is damaged or is not a residual.
    #[error("stored residual is damaged ({0}); delete it to start from a zero residual")]
    Damaged(&'static str),
    /// The file belongs to another model.
    #[error("stored residual has {found} values, the model has {expected}; it belongs to another run, move it away")]
    Length {
        /// Parameters of the model.
        expected: usize,
        /// Values in the file.
        found: u64,
    },
}
