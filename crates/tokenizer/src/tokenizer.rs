//! The vocabulary with its tables: lookup of symbols, decoding, and the list of merges.

use crate::encode::Encoder;
use crate::hash::{FastMap, FastSet};
use crate::vocabulary::{FIRST_LEARNED, Normalizer, SPACE, UNKNOWN, fixed_pieces};
use crate::{Piece, PieceKind, TokenizerError, model_proto};

/// Symbol of a character that is in no piece.
const NONE: u32 = u32::MAX;
/// Text that decoding shows for [`UNKNOWN`]: SentencePiece's default.
const UNKNOWN_SURFACE: &str = " \u{2047} ";

/// A vocabulary with the tables that encode and decode by it. Symbols are ids of pieces, and beyond them the
/// characters that occur in pieces but are none.
#[derive(Clone)]
pub struct Tokenizer {
    pieces: Vec<Piece>,
    pub(crate) normalizer: Normalizer,
    coverage: f32,
    piece_chars_max: u32,
    /// Id of each byte's piece. Trained vocabularies have 3 to 258; other trainers have them anywhere.
    byte_ids: [u32; 256],
    /// Symbol of a character below 128.
    ascii: [u32; 128],
    /// Symbol of every other character that occurs in a piece.
    chars: FastMap<char, u32>,
    /// (left symbol, right symbol) → (rank, symbol of the concatenation); a smaller rank is a higher score.
    pairs: FastMap<(u32, u32), (u32, u32)>,
    /// Bit `b` of entry `a`: characters a and b, both below 128 ([`SPACE`] as 32), are neighbours in a piece.
    ascii_joins: [u128; 128],
    /// Neighbours in pieces, for all other characters.
    joins: FastSet<(char, char)>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} pieces, {:?})", self.pieces.len(), self.normalizer)
    }
}

impl PartialEq for Tokenizer {
    fn eq(&self, other: &Self) -> bool {
        self.pieces == other.pieces && self.normalizer == other.normalizer
    }
}

impl Tokenizer {
    /// The caller has checked the pieces: every byte has one, none is there twice.
    pub(crate) fn new(pieces: Vec<Piece>, normalizer: Normalizer, coverage: f32, piece_chars_max: u32) -> Self {
        let mut made = Self {
            pieces: Vec::new(),
            normalizer,
            coverage,
            piece_chars_max,
            byte_ids: [UNKNOWN; 256],
            ascii: [NONE; 128],
            chars: FastMap::default(),
            pairs: FastMap::default(),
            ascii_joins: [0; 128],
            joins: FastSet::default(),
        };
        for (piece, id) in pieces.iter().zip(0u32..) {
            let byte = piece.byte().map(usize::from);
            if let Some(place) = byte.and_then(|byte| made.byte_ids.get_mut(byte)) {
                *place = id;
            }
        }
        let normal = || {
            let learned = pieces.iter().zip(0u32..);
            learned.filter(|(piece, _)| piece.kind == PieceKind::Normal)
        };
        let mut symbols: FastMap<&str, u32> = normal().map(|(piece, id)| (piece.text.as_str(), id)).collect();
        // Characters without a piece get numbers beyond the vocabulary: they can be merged, but not be ids.
        let mut next = pieces.len() as u32;
        for (piece, _) in normal() {
            let mut before = None;
            for (at, c) in piece.text.char_indices() {
                let text = piece.text.get(at..at + c.len_utf8()).unwrap_or_default();
                let symbol = *symbols.entry(text).or_insert_with(|| {
                    next += 1;
                    next - 1
                });
                let slot = made.slot(c);
                match made.ascii.get_mut(slot) {
                    Some(place) => *place = symbol,
                    None => drop(made.chars.insert(c, symbol)),
                }
                if let Some(before) = before.replace(c) {
                    made.join(before, c);
                }
            }
        }
        // Ranks are compared when merging: integers, and equal for equal scores, so that the leftmost pair wins.
        let mut scores: Vec<f32> = normal().map(|(piece, _)| piece.score).collect();
        scores.sort_unstable_by(|a, b| b.total_cmp(a));
        scores.dedup();
        for (piece, id) in normal() {
            let rank = scores.partition_point(|s| *s > piece.score) as u32;
            for (left, right) in splits(&piece.text) {
                if let (Some(left), Some(right)) = (symbols.get(left), symbols.get(right)) {
                    made.pairs.insert((*left, *right), (rank, id));
                }
            }
        }
        made.pieces = pieces;
        made
    }

    /// The tokenizer without learned pieces: nothing to train, nothing to download, every text possible. 259 ids in the
    /// order of SentencePiece models with byte fallback: 0 unknown, 1 begin, 2 end, then byte b as b + 3.
    ///
    /// ```
    /// let tokenizer = alice_tokenizer::Tokenizer::bytes();
    /// assert_eq!(tokenizer.encode(b"Hi"), [u32::from(b'H') + 3, u32::from(b'i') + 3]);
    /// assert_eq!(tokenizer.vocab(), 259);
    /// ```
    pub fn bytes() -> Self {
        let normalizer = Normalizer {
            dummy_prefix: false,
            escape_spaces: false,
        };
        Self::new(fixed_pieces(), normalizer, 1.0, 1)
    }

    /// Reads the bytes of a `tokenizer.model`. Accepted are models that this crate encodes exactly as SentencePiece
    /// does: BPE with byte fallback, no normalisation, no user-defined pieces.
    ///
    /// # Errors
    /// [`TokenizerError::Model`] with the reason.
    pub fn parse_model(bytes: &[u8]) -> Result<Self, TokenizerError> {
        Ok(model_proto::read(bytes)?)
    }

    /// The `tokenizer.model` file (SentencePiece `ModelProto`).
    pub fn model_bytes(&self) -> Vec<u8> {
        model_proto::write(&self.pieces, self.normalizer, self.coverage, self.piece_chars_max)
    }

    /// BLAKE3 of the `tokenizer.model` file.
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.model_bytes()).as_bytes()
    }

    /// Name of this tokenizer in `data.tokenizer` of a run specification: `bytes`, or [`Tokenizer::hash`] in
    /// hexadecimal.
    pub fn spec_name(&self) -> String {
        if self.is_bytes() {
            return "bytes".into();
        }
        blake3::Hash::from_bytes(self.hash()).to_hex().to_string()
    }

    /// All pieces; a piece's id is its position.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Number of ids.
    pub fn vocab(&self) -> u32 {
        self.pieces.len() as u32
    }

    /// Whether every token is a byte: nothing was learned.
    pub fn is_bytes(&self) -> bool {
        self.pieces.len() == FIRST_LEARNED as usize
    }

    /// Whether a space is put before every text.
    pub fn dummy_prefix(&self) -> bool {
        self.normalizer.dummy_prefix
    }

    /// An encoder with its own memory of words. Make one for each thread.
    pub fn encoder(&self) -> Encoder<'_> {
        Encoder::new(self)
    }

    /// Ids of a text, without begin and end. Bytes that are no UTF-8 become their byte pieces. Names of control pieces
    /// in the text (`</s>`) are text.
    pub fn encode(&self, text: &[u8]) -> Vec<u32> {
        let mut ids = Vec::new();
        self.encoder().encode(text, &mut ids);
        ids
    }

    /// Bytes of ids. Control pieces and ids beyond the vocabulary are left out.
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(ids.len() * 4);
        let mut strip = self.normalizer.dummy_prefix;
        for id in ids {
            // Only the first text of a sequence has the space that was put before it.
            strip &= !self.append(*id, strip, &mut out);
        }
        out
    }

    /// Bytes of one id inside a text: a space at its start is kept, whatever is put before texts.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let mut out = Vec::new();
        self.append(id, false, &mut out);
        out
    }

    /// Appends an id's bytes, without a space at its start if `strip`. `false` for ids without text.
    fn append(&self, id: u32, strip: bool, out: &mut Vec<u8>) -> bool {
        let Some(piece) = self.pieces.get(id as usize) else {
            return false;
        };
        match piece.kind {
            PieceKind::Control => return false,
            PieceKind::Unknown => out.extend_from_slice(UNKNOWN_SURFACE.as_bytes()),
            PieceKind::Byte => out.extend(piece.byte()),
            PieceKind::Normal => {
                let text = match piece.text.strip_prefix(SPACE) {
                    Some(rest) if strip => rest,
                    _ => &piece.text,
                };
                if self.normalizer.escape_spaces {
                    for (number, part) in text.split(SPACE).enumerate() {
                        if number > 0 {
                            out.push(b' ');
                        }
                        out.extend_from_slice(part.as_bytes());
                    }
                } else {
                    out.extend_from_slice(text.as_bytes());
                }
            }
        }
        true
    }

    /// Text of ids; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        String::from_utf8_lossy(&self.decode_bytes(ids)).into_owned()
    }

    /// All merges as pairs of texts: for every piece from the highest score on, every way to put it together from two
    /// pieces, longer left parts first. This is how Hugging Face's converter lists the merges of a SentencePiece model.
    pub fn merges(&self) -> Vec<(&str, &str)> {
        let learned = |piece: &&Piece| piece.kind == PieceKind::Normal;
        let known: FastSet<&str> = self.pieces.iter().filter(learned).map(|p| p.text.as_str()).collect();
        let mut pieces: Vec<&Piece> = self.pieces.iter().filter(learned).collect();
        // Stable: pieces of one score stay in the order of their ids.
        pieces.sort_by(|a, b| b.score.total_cmp(&a.score));
        let mut merges = Vec::new();
        for piece in pieces {
            let all = splits(&piece.text).collect::<Vec<_>>();
            let possible = all.into_iter().rev();
            merges.extend(possible.filter(|(left, right)| known.contains(left) && known.contains(right)));
        }
        merges
    }

    /// Index in the tables for characters below 128; beyond them for others. [`SPACE`] has the place of the space.
    fn slot(&self, c: char) -> usize {
        match c {
            SPACE if self.normalizer.escape_spaces => usize::from(b' '),
            c => c as usize,
        }
    }

    fn join(&mut self, a: char, b: char) {
        let (slot_a, slot_b) = (self.slot(a), self.slot(b));
        match self.ascii_joins.get_mut(slot_a) {
            Some(row) if slot_b < 128 => *row |= 1 << slot_b,
            _ => drop(self.joins.insert((fold(slot_a, a), fold(slot_b, b)))),
        }
    }

    /// Rank and symbol of the piece that two symbols make together; the smaller rank is merged first. `None` if they
    /// make none.
    #[inline]
    pub(crate) fn pair(&self, pair: (u32, u32)) -> Option<(u32, u32)> {
        self.pairs.get(&pair).copied()
    }

    /// Id of a byte's piece.
    #[inline]
    pub(crate) fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids.get(usize::from(byte)).copied().unwrap_or(UNKNOWN)
    }

    /// Whether two characters are neighbours in any piece.
    #[inline]
    pub(crate) fn joined(&self, a: char, b: char) -> bool {
        let (slot_a, slot_b) = (self.slot(a), self.slot(b));
        match self.ascii_joins.get(slot_a) {
            Some(row) if slot_b < 128 => row >> slot_b & 1 == 1,
            _ => self.joins.contains(&(fold(slot_a, a), fold(slot_b, b))),
        }
    }

    /// Symbol of a character: the id of its piece, a number beyond the vocabulary if it occurs in pieces only, or one
    /// that is in no pair.
    #[inline]
    pub(crate) fn symbol(&self, c: char) -> u32 {
        match self.ascii.get(self.slot(c)) {
            Some(symbol) => *symbol,
            None => self.chars.get(&c).copied().unwrap_or(NONE),
        }
    }
}

/// One form for a space and for the character that is written for it.
fn fold(slot: usize, c: char) -> char {
    if slot == usize::from(b' ') { ' ' } else { c }
}

/// Every way to cut a text in two parts, shorter left parts first.
pub(crate) fn splits(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.char_indices().skip(1).map(|(position, _)| text.split_at(position))
}
