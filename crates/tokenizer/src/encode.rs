//! Encoding as SentencePiece's BPE does it (`bpe_model.cc`): start from characters, always merge the adjacent pair whose
//! concatenation is the piece of the highest score, the leftmost first among equals, until no pair is a piece; what is
//! then no piece becomes its bytes.
//!
//! Two facts make it fast and change no result. A boundary between two characters that stand side by side in no piece
//! is never merged over, so a text falls into short words that are merged one by one; and the ids of a word are always
//! the same, so they are remembered.

use crate::hash::{FastMap, FastSet, SeededMap};
use crate::model::{BEGIN, BYTE_FIRST, END, FIRST_LEARNED, Normalizer, SPACE, UNKNOWN, fixed_pieces};
use crate::{Piece, PieceKind, TokenizerError, proto};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No symbol: a character that is in no piece.
const NONE: u32 = u32::MAX;
/// Words of up to so many symbols are merged by looking for the best pair each time, longer ones with a queue.
const SCAN_MAX: usize = 24;
/// Words whose ids are remembered: at most so many, of at most so many bytes.
const CACHE_WORDS_MAX: usize = 1 << 16;
const CACHE_WORD_BYTES_MAX: usize = 64;
/// What decoding shows for [`UNKNOWN`]: SentencePiece's default.
const UNKNOWN_SURFACE: &str = " \u{2047} ";

/// A vocabulary with what is needed to encode and decode by it. Symbols are ids of pieces, and beyond them the
/// characters that occur in pieces but are none.
#[derive(Clone)]
pub struct Tokenizer {
    pieces: Vec<Piece>,
    pub(crate) normalizer: Normalizer,
    coverage: f32,
    piece_chars_max: u32,
    /// Symbol of a character below 128.
    ascii: [u32; 128],
    /// Symbol of every other character that occurs in a piece.
    chars: FastMap<char, u32>,
    /// (left symbol, right symbol) → (rank, symbol of the concatenation); a smaller rank is a higher score.
    pairs: FastMap<(u32, u32), (u32, u32)>,
    /// Bit `b` of entry `a`: characters a and b, both below 128 ([`SPACE`] as 32), stand side by side in a piece.
    ascii_joins: [u128; 128],
    /// The same for other characters.
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
    /// The caller has checked the pieces: the first 259 are the fixed ones, the rest is normal text, none twice.
    pub(crate) fn new(pieces: Vec<Piece>, normalizer: Normalizer, coverage: f32, piece_chars_max: u32) -> Self {
        let mut made = Self {
            pieces: Vec::new(),
            normalizer,
            coverage,
            piece_chars_max,
            ascii: [NONE; 128],
            chars: FastMap::default(),
            pairs: FastMap::default(),
            ascii_joins: [0; 128],
            joins: FastSet::default(),
        };
        let normal = || {
            let learned = pieces.iter().zip(0u32..);
            learned.filter(|(piece, _)| piece.kind == PieceKind::Normal)
        };
        let mut symbols: FastMap<&str, u32> = normal().map(|(piece, id)| (piece.text.as_str(), id)).collect();
        let mut next = pieces.len() as u32;
        for (piece, _) in normal() {
            let mut before = None;
            for (at, c) in piece.text.char_indices() {
                let text = &piece.text[at..at + c.len_utf8()];
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

    /// The tokenizer without learned pieces: every byte is a token, 259 ids, equal to `alice_data::tokenizer`.
    pub fn bytes() -> Self {
        let normalizer = Normalizer {
            dummy_prefix: false,
            escape_spaces: false,
        };
        Self::new(fixed_pieces(), normalizer, 1.0, 1)
    }

    /// Reads a `tokenizer.model`. Only models that this crate encodes exactly as SentencePiece are accepted.
    pub fn parse_model(bytes: &[u8]) -> Result<Self, TokenizerError> {
        proto::read(bytes)
    }

    /// The `tokenizer.model` file (SentencePiece `ModelProto`).
    pub fn model_bytes(&self) -> Vec<u8> {
        proto::write(&self.pieces, self.normalizer, self.coverage, self.piece_chars_max)
    }

    /// BLAKE3 of the `tokenizer.model` file.
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.model_bytes()).as_bytes()
    }

    /// What `data.tokenizer` of a run specification says for this one: `bytes`, or [`Tokenizer::hash`] in hexadecimal.
    pub fn spec_name(&self) -> String {
        match self.is_bytes() {
            true => "bytes".into(),
            false => blake3::Hash::from_bytes(self.hash()).to_hex().to_string(),
        }
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
        Encoder {
            tokenizer: self,
            known: SeededMap::default(),
            known_ids: Vec::new(),
            work: Work::default(),
        }
    }

    /// Ids of a text, without begin and end. Bytes that are no UTF-8 become their byte pieces.
    pub fn encode(&self, text: &[u8]) -> Vec<u32> {
        let mut ids = Vec::new();
        self.encoder().encode(text, &mut ids);
        ids
    }

    /// Bytes of ids. Begin, end and ids beyond the vocabulary are left out.
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(ids.len() * 4);
        let mut strip = self.normalizer.dummy_prefix;
        for id in ids {
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

    /// Appends an id's bytes, without a space at its start if `strip` says so. False for ids that stand for no text.
    fn append(&self, id: u32, strip: bool, out: &mut Vec<u8>) -> bool {
        let Some(piece) = self.pieces.get(id as usize) else {
            return false;
        };
        match piece.kind {
            PieceKind::Control => return false,
            PieceKind::Unknown => out.extend_from_slice(UNKNOWN_SURFACE.as_bytes()),
            PieceKind::Byte => out.push(id.wrapping_sub(BYTE_FIRST) as u8),
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

    /// Whether two neighbours stand side by side in any piece.
    #[inline]
    fn joined(&self, a: char, b: char) -> bool {
        let (slot_a, slot_b) = (self.slot(a), self.slot(b));
        match self.ascii_joins.get(slot_a) {
            Some(row) if slot_b < 128 => row >> slot_b & 1 == 1,
            _ => self.joins.contains(&(fold(slot_a, a), fold(slot_b, b))),
        }
    }

    #[inline]
    fn symbol(&self, c: char) -> u32 {
        match self.ascii.get(self.slot(c)) {
            Some(symbol) => *symbol,
            None => self.chars.get(&c).copied().unwrap_or(NONE),
        }
    }
}

/// One form for a space and the character that stands for it.
fn fold(slot: usize, c: char) -> char {
    if slot == usize::from(b' ') { ' ' } else { c }
}

/// Every way to cut a text in two parts, shorter left parts first.
pub(crate) fn splits(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.char_indices().skip(1).map(|(at, _)| text.split_at(at))
}

/// Encodes texts and remembers frequent words.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Word → start and number of its ids in `known_ids`.
    known: SeededMap<Box<[u8]>, (u32, u32)>,
    known_ids: Vec<u32>,
    work: Work,
}

impl Encoder<'_> {
    /// Appends the ids of a text to `out`, without begin and end.
    pub fn encode(&mut self, text: &[u8], out: &mut Vec<u32>) {
        if self.tokenizer.normalizer.dummy_prefix && !text.is_empty() {
            let mut prefixed = Vec::with_capacity(text.len() + 1);
            prefixed.push(b' ');
            prefixed.extend_from_slice(text);
            return self.encode_all(&prefixed, out);
        }
        self.encode_all(text, out);
    }

    fn encode_all(&mut self, text: &[u8], out: &mut Vec<u32>) {
        if self.tokenizer.is_bytes() {
            out.extend(text.iter().map(|b| u32::from(*b) + BYTE_FIRST));
            return;
        }
        for chunk in text.utf8_chunks() {
            let valid = chunk.valid();
            let (mut start, mut before) = (0, None);
            for (at, c) in valid.char_indices() {
                if before.is_some_and(|before| !self.tokenizer.joined(before, c)) {
                    self.word(&valid[start..at], out);
                    start = at;
                }
                before = Some(c);
            }
            self.word(&valid[start..], out);
            out.extend(chunk.invalid().iter().map(|b| u32::from(*b) + BYTE_FIRST));
        }
    }

    /// Ids of a part that no merge crosses.
    fn word(&mut self, word: &str, out: &mut Vec<u32>) {
        if word.is_empty() {
            return;
        }
        if let Some((start, len)) = self.known.get(word.as_bytes()) {
            let (start, len) = (*start as usize, *len as usize);
            out.extend_from_slice(self.known_ids.get(start..start + len).unwrap_or_default());
            return;
        }
        let first = out.len();
        self.work.load(word, self.tokenizer);
        if self.work.symbols.len() <= SCAN_MAX {
            self.work.merge_by_scan(self.tokenizer);
        } else {
            self.work.merge_by_queue(self.tokenizer);
        }
        let bytes = word.as_bytes();
        let pieces = self.tokenizer.vocab();
        let mut at = 0;
        for (symbol, len) in self.work.symbols.iter().zip(&self.work.lens) {
            let end = at + *len as usize;
            if *symbol < pieces {
                out.push(*symbol);
            } else {
                let bytes = bytes.get(at..end).unwrap_or_default();
                out.extend(bytes.iter().map(|b| u32::from(*b) + BYTE_FIRST));
            }
            at = end;
        }
        if word.len() <= CACHE_WORD_BYTES_MAX && self.known.len() < CACHE_WORDS_MAX {
            let ids = out.get(first..).unwrap_or_default();
            let place = (self.known_ids.len() as u32, ids.len() as u32);
            self.known_ids.extend_from_slice(ids);
            self.known.insert(bytes.into(), place);
        }
    }
}

/// The symbols of one word and their lengths in bytes, while they are merged.
#[derive(Default)]
struct Work {
    symbols: Vec<u32>,
    lens: Vec<u32>,
    previous: Vec<u32>,
    next: Vec<u32>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

/// A pair that could be merged. The order is that of merging: rank, then position.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: u32,
    right: u32,
    /// Symbols when the pair was found: it is stale where they have changed.
    pair: (u32, u32),
    merged: u32,
}

impl Work {
    fn load(&mut self, word: &str, tokenizer: &Tokenizer) {
        self.symbols.clear();
        self.lens.clear();
        for c in word.chars() {
            self.symbols.push(tokenizer.symbol(c));
            self.lens.push(c.len_utf8() as u32);
        }
    }

    fn merge_by_scan(&mut self, tokenizer: &Tokenizer) {
        loop {
            let mut best: Option<(u32, usize, u32)> = None;
            for (at, pair) in self.symbols.windows(2).enumerate() {
                let &[left, right] = pair else { continue };
                if let Some((rank, merged)) = tokenizer.pairs.get(&(left, right))
                    && best.is_none_or(|(best, ..)| *rank < best)
                {
                    best = Some((*rank, at, *merged));
                }
            }
            let Some((_, at, merged)) = best else { return };
            self.symbols.remove(at + 1);
            let len = self.lens.remove(at + 1);
            self.symbols[at] = merged;
            self.lens[at] += len;
        }
    }

    /// The same in O(n log n): a linked list of symbols and a queue of candidates. A merged-away symbol has length 0.
    fn merge_by_queue(&mut self, tokenizer: &Tokenizer) {
        // A word longer than 2^32 bytes never gets here in one piece of memory that machines have for `char`s; the
        // positions are u32 to keep candidates small, so such a word is left unmerged (its characters are pieces too).
        let Ok(n) = u32::try_from(self.symbols.len()) else {
            return;
        };
        self.previous.clear();
        self.previous.extend((0..n).map(|i| i.wrapping_sub(1)));
        self.next.clear();
        self.next.extend(1..=n);
        self.queue.clear();
        for left in 0..n.saturating_sub(1) {
            self.propose(left, left + 1, tokenizer);
        }
        while let Some(Reverse(c)) = self.queue.pop() {
            let (left, right) = (c.left as usize, c.right as usize);
            let stale = self.lens[left] == 0
                || self.lens[right] == 0
                || self.next[left] != c.right
                || (self.symbols[left], self.symbols[right]) != c.pair;
            if stale {
                continue;
            }
            self.symbols[left] = c.merged;
            self.lens[left] += self.lens[right];
            self.lens[right] = 0;
            let after = self.next[right];
            self.next[left] = after;
            if after < n {
                self.previous[after as usize] = c.left;
                self.propose(c.left, after, tokenizer);
            }
            let before = self.previous[left];
            if before < n {
                self.propose(before, c.left, tokenizer);
            }
        }
        let mut kept = 0;
        for at in 0..self.symbols.len() {
            if self.lens[at] > 0 {
                self.symbols[kept] = self.symbols[at];
                self.lens[kept] = self.lens[at];
                kept += 1;
            }
        }
        self.symbols.truncate(kept);
        self.lens.truncate(kept);
    }

    fn propose(&mut self, left: u32, right: u32, tokenizer: &Tokenizer) {
        let pair = (self.symbols[left as usize], self.symbols[right as usize]);
        if let Some((rank, merged)) = tokenizer.pairs.get(&pair) {
            self.queue.push(Reverse(Candidate {
                rank: *rank,
                left,
                right,
                pair,
                merged: *merged,
            }));
        }
    }
}

// The constants of the format, so that a change of one is noticed.
const _: () = assert!(UNKNOWN == 0 && BEGIN == 1 && END == 2);
