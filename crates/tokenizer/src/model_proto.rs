//! SentencePiece's `ModelProto` (`sentencepiece_model.proto` of the SentencePiece repository), by hand: protocol
//! buffers' wire format needs forty lines, and the bytes must be the same on every machine.
//!
//! [`read`] accepts the models that this crate encodes exactly as SentencePiece does, and names the reason for all
//! others. Every length is checked against the bytes that are there before anything is allocated.

use crate::error::ModelProblem;
use crate::vocabulary::{BEGIN, END, Normalizer, SPACE, UNKNOWN, VOCABULARY_MAX, fixed_pieces};
use crate::{Piece, PieceKind, Tokenizer, is_lfs_pointer};

/// Maximum size of a `tokenizer.model` that is read, bytes. The largest published ones have 8 MB.
pub const MODEL_BYTES_MAX: u64 = 64 << 20;
/// Maximum length of a piece that is read, bytes.
const PIECE_BYTES_MAX: usize = 1 << 10;

// Wire types of protocol buffers.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// `TrainerSpec.ModelType.BPE`.
const MODEL_TYPE_BPE: u64 = 2;

fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn put_number(out: &mut Vec<u8>, field: u64, v: u64) {
    put_varint(out, field << 3 | VARINT);
    put_varint(out, v);
}

fn put_float(out: &mut Vec<u8>, field: u64, v: f32) {
    put_varint(out, field << 3 | FIXED32);
    out.extend_from_slice(&v.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, field << 3 | BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The whole file.
pub(crate) fn write(pieces: &[Piece], normalizer: Normalizer, coverage: f32, piece_chars_max: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        let mut body = Vec::with_capacity(piece.text.len() + 9);
        put_bytes(&mut body, 1, piece.text.as_bytes());
        put_float(&mut body, 2, piece.score);
        // The default, normal, is left out, as SentencePiece's own trainer does.
        if piece.kind != PieceKind::Normal {
            put_number(&mut body, 3, piece.kind as u64);
        }
        put_bytes(&mut out, 1, &body);
    }
    let mut trainer = Vec::new();
    put_number(&mut trainer, 3, MODEL_TYPE_BPE);
    put_number(&mut trainer, 4, pieces.len() as u64); // vocab_size
    put_float(&mut trainer, 10, coverage); // character_coverage
    put_number(&mut trainer, 20, piece_chars_max.into()); // max_sentencepiece_length
    put_number(&mut trainer, 25, 1); // split_digits
    put_number(&mut trainer, 26, 1); // allow_whitespace_only_pieces
    put_number(&mut trainer, 35, 1); // byte_fallback
    put_number(&mut trainer, 40, UNKNOWN.into());
    put_number(&mut trainer, 41, BEGIN.into());
    put_number(&mut trainer, 42, END.into());
    put_number(&mut trainer, 43, u64::MAX); // pad_id −1: none
    put_bytes(&mut out, 2, &trainer);
    let mut norm = Vec::new();
    put_bytes(&mut norm, 1, b"identity");
    put_number(&mut norm, 3, normalizer.dummy_prefix.into());
    put_number(&mut norm, 4, 0); // remove_extra_whitespaces
    put_number(&mut norm, 5, normalizer.escape_spaces.into());
    put_bytes(&mut out, 3, &norm);
    out
}

/// One field of a message.
enum Value<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
}

/// Reads fields one after the other; never past the end, never allocating.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, ModelProblem> {
        let mut value = 0u64;
        // Ten groups of seven bits are more than 64: a longer number is no number.
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.rest.split_first().ok_or(ModelProblem::Truncated("a number"))?;
            self.rest = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ModelProblem::LongNumber)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], ModelProblem> {
        let len = usize::try_from(len).map_err(|_| ModelProblem::Truncated("a field"))?;
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(ModelProblem::Truncated("a field"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// Number and value of the next field. `None` at the end.
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, ModelProblem> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            VARINT => Value::Number(self.varint()?),
            FIXED64 => Value::Bytes(self.take(8)?),
            BYTES => {
                let len = self.varint()?;
                Value::Bytes(self.take(len)?)
            }
            FIXED32 => {
                let bytes = self.take(4)?;
                let bytes: [u8; 4] = bytes.try_into().map_err(|_| ModelProblem::Truncated("a float"))?;
                Value::Float(f32::from_le_bytes(bytes))
            }
            other => return Err(ModelProblem::WireType(other)),
        };
        Ok(Some((key >> 3, value)))
    }
}

/// The options that decide whether this crate encodes a model as SentencePiece does.
struct Options {
    model_type: u64,
    byte_fallback: bool,
    unknown: u64,
    begin: u64,
    end: u64,
    dummy_prefix: bool,
    remove_extra_spaces: bool,
    escape_spaces: bool,
    charsmap: bool,
    suffix_spaces: bool,
    coverage: f32,
    piece_chars_max: u64,
}

impl Default for Options {
    /// The defaults of the format: fields that a file leaves out.
    fn default() -> Self {
        Self {
            model_type: 1,
            byte_fallback: false,
            unknown: 0,
            begin: 1,
            end: 2,
            dummy_prefix: true,
            remove_extra_spaces: true,
            escape_spaces: true,
            charsmap: false,
            suffix_spaces: false,
            coverage: 0.9995,
            piece_chars_max: 16,
        }
    }
}

/// Reads a model. Accepted are those that this crate encodes exactly as SentencePiece does: BPE with byte fallback,
/// identity normalisation, unknown, begin and end at ids 0, 1 and 2, no user-defined pieces. Byte and control pieces
/// may have any other ids.
pub(crate) fn read(bytes: &[u8]) -> Result<Tokenizer, ModelProblem> {
    if is_lfs_pointer(bytes) {
        return Err(ModelProblem::LfsPointer);
    }
    if bytes.len() as u64 > MODEL_BYTES_MAX {
        return Err(ModelProblem::TooLarge(bytes.len()));
    }
    let mut options = Options::default();
    let mut pieces = Vec::new();
    let mut fields = Fields { rest: bytes };
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (1, Value::Bytes(body)) => {
                if pieces.len() >= VOCABULARY_MAX as usize {
                    return Err(ModelProblem::TooManyPieces);
                }
                pieces.push(read_piece(pieces.len(), body)?);
            }
            (2, Value::Bytes(body)) => read_trainer(body, &mut options)?,
            (3, Value::Bytes(body)) => read_normalizer(body, &mut options)?,
            _ => {}
        }
    }
    check_options(&pieces, &options)?;
    check_pieces(&pieces, &options)?;
    let normalizer = Normalizer {
        dummy_prefix: options.dummy_prefix,
        escape_spaces: options.escape_spaces,
    };
    let piece_chars_max = u32::try_from(options.piece_chars_max).unwrap_or(u32::MAX);
    Ok(Tokenizer::new(pieces, normalizer, options.coverage, piece_chars_max))
}

fn read_piece(id: usize, body: &[u8]) -> Result<Piece, ModelProblem> {
    let bad = |problem| Err(ModelProblem::Piece { id, problem });
    let mut piece = Piece::named("", PieceKind::Normal);
    let mut fields = Fields { rest: body };
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (1, Value::Bytes(text)) => {
                if text.len() > PIECE_BYTES_MAX {
                    return bad("is longer than 1,024 bytes");
                }
                let Ok(text) = std::str::from_utf8(text) else {
                    return bad("is not UTF-8");
                };
                piece.text = text.to_owned();
            }
            (2, Value::Float(score)) => piece.score = score,
            (3, Value::Number(kind)) => {
                piece.kind = match kind {
                    1 => PieceKind::Normal,
                    2 => PieceKind::Unknown,
                    3 => PieceKind::Control,
                    6 => PieceKind::Byte,
                    kind => return Err(ModelProblem::PieceKind { id, kind }),
                }
            }
            _ => {}
        }
    }
    if piece.text.is_empty() || !piece.score.is_finite() {
        return bad("is empty or its score is no number");
    }
    Ok(piece)
}

fn read_trainer(body: &[u8], options: &mut Options) -> Result<(), ModelProblem> {
    let mut fields = Fields { rest: body };
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (3, Value::Number(v)) => options.model_type = v,
            (10, Value::Float(v)) => options.coverage = v,
            (20, Value::Number(v)) => options.piece_chars_max = v,
            (24, Value::Number(v)) => options.suffix_spaces = v != 0,
            (35, Value::Number(v)) => options.byte_fallback = v != 0,
            (40, Value::Number(v)) => options.unknown = v,
            (41, Value::Number(v)) => options.begin = v,
            (42, Value::Number(v)) => options.end = v,
            _ => {}
        }
    }
    Ok(())
}

fn read_normalizer(body: &[u8], options: &mut Options) -> Result<(), ModelProblem> {
    let mut fields = Fields { rest: body };
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (2, Value::Bytes(v)) => options.charsmap = !v.is_empty(),
            (3, Value::Number(v)) => options.dummy_prefix = v != 0,
            (4, Value::Number(v)) => options.remove_extra_spaces = v != 0,
            (5, Value::Number(v)) => options.escape_spaces = v != 0,
            _ => {}
        }
    }
    Ok(())
}

fn refuse(wrong: bool, problem: &'static str) -> Result<(), ModelProblem> {
    if wrong {
        return Err(ModelProblem::Unsupported(problem));
    }
    Ok(())
}

/// The options are those of a model that is encoded here as SentencePiece does it.
fn check_options(pieces: &[Piece], options: &Options) -> Result<(), ModelProblem> {
    refuse(pieces.is_empty(), "it has no pieces; this is no SentencePiece model")?;
    refuse(
        options.model_type != MODEL_TYPE_BPE,
        "it is not BPE (trainer_spec.model_type 2)",
    )?;
    refuse(!options.byte_fallback, "it has no byte fallback")?;
    refuse(options.charsmap, "it normalises text; only the identity is read here")?;
    refuse(
        options.remove_extra_spaces,
        "it removes spaces; only models that keep them are read here",
    )?;
    refuse(options.suffix_spaces, "it marks spaces as suffixes")?;
    let ids = [options.unknown, options.begin, options.end];
    let kinds = [PieceKind::Unknown, PieceKind::Control, PieceKind::Control];
    let found = pieces.iter().map(|p| p.kind).take(kinds.len());
    refuse(
        ids != [UNKNOWN, BEGIN, END].map(u64::from) || !found.eq(kinds),
        "unknown, begin and end are not ids 0, 1 and 2",
    )
}

/// Every byte has a piece, and every other piece is text without a second meaning, or a control piece.
fn check_pieces(pieces: &[Piece], options: &Options) -> Result<(), ModelProblem> {
    let mut has_byte = [false; 256];
    for found in pieces.iter().filter_map(Piece::byte) {
        if let Some(place) = has_byte.get_mut(usize::from(found)) {
            *place = true;
        }
    }
    if let Some((byte, _)) = (0..=255).zip(has_byte).find(|(_, found)| !found) {
        return Err(ModelProblem::NoBytePiece(byte));
    }
    let bytes_only = pieces.iter().all(|p| p.kind != PieceKind::Normal);
    let names = |pieces: &[Piece]| pieces.iter().map(|p| p.text.clone()).collect::<Vec<_>>();
    // Other programs take this vocabulary by its ids alone: GGUF's GPT-2 kind lists the bytes in order.
    refuse(
        bytes_only && names(pieces).get(END as usize + 1..) != names(&fixed_pieces()).get(END as usize + 1..),
        "it has bytes alone, and they are not ids 3 to 258",
    )?;
    refuse(
        bytes_only && (options.escape_spaces || options.dummy_prefix),
        "it has bytes alone and rewrites spaces, so that a space would be three tokens",
    )?;
    refuse(
        !bytes_only && !options.escape_spaces,
        "it has learned pieces and does not write spaces as U+2581",
    )?;
    let space = SPACE.to_string();
    refuse(
        !bytes_only && pieces.iter().all(|p| p.text != space),
        "it has no piece for a space (U+2581)",
    )?;
    let mut seen = std::collections::HashSet::new();
    for (id, piece) in pieces.iter().enumerate() {
        let problem = match piece.kind {
            PieceKind::Unknown if id != UNKNOWN as usize => "is a second unknown piece",
            PieceKind::Byte if piece.byte().is_none() => "is a byte piece without the name of a byte",
            // SentencePiece looks up every character among all pieces: this one would come out of plain text.
            PieceKind::Control if piece.text.chars().nth(1).is_none() => "is a control piece of one character",
            _ if piece.text.contains(' ') => "has a space, which no text has after normalisation",
            _ if !seen.insert(piece.text.as_str()) => "is there twice",
            _ => continue,
        };
        return Err(ModelProblem::Piece { id, problem });
    }
    Ok(())
}
