//! Pieces, their kinds, and the ids of the vocabularies that are trained here.

/// Id of the unknown piece; never produced, because every byte has a piece.
pub const UNKNOWN: u32 = 0;
/// Id of the begin of a text; never produced by encoding.
pub const BEGIN: u32 = 1;
/// Id of the end of a document; never produced by encoding.
pub const END: u32 = 2;
/// Id of byte 0 in vocabularies that are trained here; byte `b` has `b + 3`.
pub const BYTE_FIRST: u32 = 3;
/// First id of a learned piece in vocabularies that are trained here.
pub const FIRST_LEARNED: u32 = 259;
/// Character that is written for a space inside pieces: U+2581, lower one eighth block.
pub const SPACE: char = '\u{2581}';
/// Maximum size of a vocabulary, ids. Scores are f32, which is exact up to 2^24.
pub const VOCABULARY_MAX: u32 = 1 << 20;

/// Kind of a piece. The numbers are those of SentencePiece's `ModelProto.SentencePiece.Type` and of GGUF's
/// `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PieceKind {
    /// Text.
    Normal = 1,
    /// The unknown piece.
    Unknown = 2,
    /// A mark without text: begin, end, and whatever else a model's authors reserve.
    Control = 3,
    /// One byte, written `<0x41>`.
    Byte = 6,
}

/// One entry of the vocabulary; its id is its position.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The text, with [`SPACE`] for spaces; a name in angle brackets for other kinds.
    pub text: String,
    /// Priority of the merge that makes the piece: the highest score is merged first. Zero for pieces that are not
    /// learned.
    pub score: f32,
    /// Its kind.
    pub kind: PieceKind,
}

impl Piece {
    pub(crate) fn named(text: impl Into<String>, kind: PieceKind) -> Self {
        Self {
            text: text.into(),
            score: 0.0,
            kind,
        }
    }

    /// The byte of a byte piece. `None` for other kinds, and for a name that no byte has.
    pub fn byte(&self) -> Option<u8> {
        if self.kind != PieceKind::Byte {
            return None;
        }
        let digits = self.text.strip_prefix("<0x")?.strip_suffix('>')?;
        let byte = u8::from_str_radix(digits, 16).ok()?;
        // SentencePiece knows one spelling of each, with two capital digits.
        (byte_name(byte) == self.text).then_some(byte)
    }
}

/// Name of a byte's piece.
pub(crate) fn byte_name(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// The first 259 pieces of the vocabularies that are trained here.
pub(crate) fn fixed_pieces() -> Vec<Piece> {
    let mut pieces = vec![
        Piece::named("<unk>", PieceKind::Unknown),
        Piece::named("<s>", PieceKind::Control),
        Piece::named("</s>", PieceKind::Control),
    ];
    pieces.extend((0..=255).map(|b| Piece::named(byte_name(b), PieceKind::Byte)));
    pieces
}

/// Rewriting of spaces, before text is cut into the characters that pieces are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Normalizer {
    /// A space is put before every text (Llama 2 does, Alice does not).
    pub(crate) dummy_prefix: bool,
    /// Spaces are written as [`SPACE`]; only the byte tokenizer leaves them.
    pub(crate) escape_spaces: bool,
}

// The constants of the format, so that a change of one is noticed.
const _: () = assert!(UNKNOWN == 0 && BEGIN == 1 && END == 2 && FIRST_LEARNED == BYTE_FIRST + 256);
