//! SentencePiece's `ModelProto` (sentencepiece_model.proto of the SentencePiece repository), by hand: protocol
//! buffers' wire format needs forty lines, and the bytes must be the same on every machine.

use crate::model::{BEGIN, BYTE_FIRST, END, FIRST_LEARNED, Normalizer, SPACE, UNKNOWN, VOCABULARY_MAX, byte_name};
use crate::{Piece, PieceKind, Tokenizer, TokenizerError};

/// Largest `tokenizer.model` that is read, bytes.
pub const MODEL_BYTES_MAX: u64 = 64 << 20;
/// Longest piece that is read, bytes.
const PIECE_BYTES_MAX: usize = 1 << 10;

// Wire types.
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
    fn varint(&mut self) -> Result<u64, TokenizerError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.rest.split_first().ok_or_else(|| cut("a number"))?;
            self.rest = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(bad("a number has more than ten bytes"))
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], TokenizerError> {
        let len = usize::try_from(len).map_err(|_| cut("a field"))?;
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(|| cut("a field"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// Number and value of the next field; none at the end.
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, TokenizerError> {
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
                let bytes: [u8; 4] = bytes.try_into().map_err(|_| cut("a float"))?;
                Value::Float(f32::from_le_bytes(bytes))
            }
            other => return Err(bad(format!("wire type {other} is not known"))),
        };
        Ok(Some((key >> 3, value)))
    }
}

fn bad(problem: impl Into<String>) -> TokenizerError {
    TokenizerError::Model(problem.into())
}

fn cut(what: &str) -> TokenizerError {
    bad(format!("the file ends inside {what}; download it again"))
}

/// What decides whether this crate reads a model as SentencePiece does. Defaults are those of the format.
struct Options {
    model_type: u64,
    byte_fallback: bool,
    ids: [u64; 3],
    dummy_prefix: bool,
    remove_extra_spaces: bool,
    escape_spaces: bool,
    charsmap: bool,
    suffix_spaces: bool,
    coverage: f32,
    piece_chars_max: u64,
}

/// Reads a model. Only what this crate encodes exactly as SentencePiece does is accepted: BPE with byte fallback,
/// identity normalisation, the first 259 ids of [`crate::model`], no user-defined pieces.
pub(crate) fn read(bytes: &[u8]) -> Result<Tokenizer, TokenizerError> {
    if bytes.len() as u64 > MODEL_BYTES_MAX {
        return Err(bad(format!(
            "it has {} bytes, at most {MODEL_BYTES_MAX} are read",
            bytes.len()
        )));
    }
    let mut o = Options {
        model_type: 1,
        byte_fallback: false,
        ids: [0, 1, 2],
        dummy_prefix: true,
        remove_extra_spaces: true,
        escape_spaces: true,
        charsmap: false,
        suffix_spaces: false,
        coverage: 0.9995,
        piece_chars_max: 16,
    };
    let mut pieces = Vec::new();
    let mut fields = Fields { rest: bytes };
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (1, Value::Bytes(body)) => {
                if pieces.len() >= VOCABULARY_MAX as usize {
                    return Err(bad(format!("it has more than {VOCABULARY_MAX} pieces")));
                }
                pieces.push(read_piece(pieces.len(), body)?);
            }
            (2, Value::Bytes(body)) => read_trainer(body, &mut o)?,
            (3, Value::Bytes(body)) => read_normalizer(body, &mut o)?,
            _ => {}
        }
    }
    check(&pieces, &o)?;
    let normalizer = Normalizer {
        dummy_prefix: o.dummy_prefix,
        escape_spaces: o.escape_spaces,
    };
    let piece_chars_max = u32::try_from(o.piece_chars_max).unwrap_or(u32::MAX);
    Ok(Tokenizer::new(pieces, normalizer, o.coverage, piece_chars_max))
}

fn read_piece(id: usize, body: &[u8]) -> Result<Piece, TokenizerError> {
    let mut piece = Piece::named("", PieceKind::Normal);
    let mut fields = Fields { rest: body };
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (1, Value::Bytes(text)) => {
                if text.len() > PIECE_BYTES_MAX {
                    return Err(bad(format!("piece {id} has {} bytes", text.len())));
                }
                let text = std::str::from_utf8(text).map_err(|_| bad(format!("piece {id} is not UTF-8")))?;
                piece.text = text.to_owned();
            }
            (2, Value::Float(score)) => piece.score = score,
            (3, Value::Number(kind)) => {
                piece.kind = match kind {
                    1 => PieceKind::Normal,
                    2 => PieceKind::Unknown,
                    3 => PieceKind::Control,
                    6 => PieceKind::Byte,
                    other => return Err(bad(format!("piece {id} is of kind {other}, which is not read here"))),
                }
            }
            _ => {}
        }
    }
    if piece.text.is_empty() || !piece.score.is_finite() {
        return Err(bad(format!("piece {id} is empty or its score is no number")));
    }
    Ok(piece)
}

fn read_trainer(body: &[u8], o: &mut Options) -> Result<(), TokenizerError> {
    let mut fields = Fields { rest: body };
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (3, Value::Number(v)) => o.model_type = v,
            (10, Value::Float(v)) => o.coverage = v,
            (20, Value::Number(v)) => o.piece_chars_max = v,
            (24, Value::Number(v)) => o.suffix_spaces = v != 0,
            (35, Value::Number(v)) => o.byte_fallback = v != 0,
            (40, Value::Number(v)) => o.ids[0] = v,
            (41, Value::Number(v)) => o.ids[1] = v,
            (42, Value::Number(v)) => o.ids[2] = v,
            _ => {}
        }
    }
    Ok(())
}

fn read_normalizer(body: &[u8], o: &mut Options) -> Result<(), TokenizerError> {
    let mut fields = Fields { rest: body };
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (2, Value::Bytes(v)) => o.charsmap = !v.is_empty(),
            (3, Value::Number(v)) => o.dummy_prefix = v != 0,
            (4, Value::Number(v)) => o.remove_extra_spaces = v != 0,
            (5, Value::Number(v)) => o.escape_spaces = v != 0,
            _ => {}
        }
    }
    Ok(())
}

fn check(pieces: &[Piece], o: &Options) -> Result<(), TokenizerError> {
    let refuse = |wrong: bool, problem: &str| if wrong { Err(bad(problem)) } else { Ok(()) };
    refuse(pieces.is_empty(), "it has no pieces; this is no SentencePiece model")?;
    refuse(
        o.model_type != MODEL_TYPE_BPE,
        "it is not BPE (trainer_spec.model_type 2)",
    )?;
    refuse(!o.byte_fallback, "it has no byte fallback")?;
    refuse(o.charsmap, "it normalises text; only the identity is read here")?;
    refuse(
        o.remove_extra_spaces,
        "it removes spaces; only models that keep them are read here",
    )?;
    refuse(o.suffix_spaces, "it marks spaces as suffixes")?;
    refuse(o.ids != [0, 1, 2], "unknown, begin and end are not ids 0, 1 and 2")?;
    let kinds = [PieceKind::Unknown, PieceKind::Control, PieceKind::Control];
    for (id, kind) in kinds.into_iter().enumerate() {
        refuse(
            pieces.get(id).is_none_or(|p| p.kind != kind),
            "unknown, begin and end are not ids 0, 1 and 2",
        )?;
    }
    for byte in 0..=255u8 {
        let piece = pieces.get(BYTE_FIRST as usize + usize::from(byte));
        let right = piece.is_some_and(|p| p.kind == PieceKind::Byte && p.text == byte_name(byte));
        refuse(!right, "the 256 bytes are not ids 3 to 258")?;
    }
    let bytes_only = pieces.len() == FIRST_LEARNED as usize;
    refuse(
        bytes_only && (o.escape_spaces || o.dummy_prefix),
        "it has bytes alone and rewrites spaces, so that a space would be three tokens",
    )?;
    refuse(
        !bytes_only && !o.escape_spaces,
        "it has learned pieces and does not write spaces as U+2581",
    )?;
    let space = SPACE.to_string();
    refuse(
        !bytes_only && pieces.iter().all(|p| p.text != space),
        "it has no piece for a space (U+2581)",
    )?;
    let mut seen = std::collections::HashSet::new();
    for (id, piece) in pieces.iter().enumerate() {
        if id >= FIRST_LEARNED as usize && piece.kind != PieceKind::Normal {
            return Err(bad(format!("piece {id} is not normal text")));
        }
        if piece.text.contains(' ') {
            return Err(bad(format!(
                "piece {id} has a space, which no text has after normalisation"
            )));
        }
        if !seen.insert(piece.text.as_str()) {
            return Err(bad(format!("piece {id} is there twice")));
        }
    }
    Ok(())
}
