//! Learns a vocabulary: counts words in a stream of documents, then merges the most frequent pair of neighbours again
//! and again (Sennrich et al. 2016, algorithm 1).
//!
//! Everything is deterministic: counts are sums, and every tie has a rule (the higher count, then the shorter piece,
//! then the lesser text, then the shorter left part). Memory is bounded: [`TrainOptions::memory_bytes`] for the words.

use crate::hash::{FastMap, FastSet, SeededMap};
use crate::model::{FIRST_LEARNED, Normalizer, SPACE, VOCABULARY_MAX, fixed_pieces};
use crate::{Piece, PieceKind, Tokenizer, TokenizerError, encode::splits};
use std::collections::BinaryHeap;
use std::io::Read;

/// Longest word that is counted as one, characters; longer ones are cut, so that a text without spaces takes no memory.
const WORD_CHARS_MAX: usize = 128;
/// Bytes that a word takes in the table of counts beside its text (estimate: key, count, bucket, allocation).
const WORD_OVERHEAD_BYTES: usize = 64;
/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;
/// A pair must occur so often to become a piece: once is not a pattern.
const COUNT_MIN: i64 = 2;

/// What to learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainOptions {
    /// Number of ids, special ones and bytes included.
    pub vocab: u32,
    /// The most frequent characters that together make up so many millionths of all become pieces; the rest are bytes.
    /// SentencePiece's default is 999500.
    pub coverage_millionths: u32,
    /// Longest piece, characters. SentencePiece's default is 16.
    pub piece_chars_max: u32,
    /// Whether a space is put before every text, as Llama 2 does. Alice's models do not: encoding then needs no rule
    /// for the start of a text, and every loader gives the same ids.
    pub dummy_prefix: bool,
    /// Memory for counting words, bytes. Where it is not enough, the rarest words are forgotten.
    pub memory_bytes: usize,
}

impl TrainOptions {
    /// The usual options for a vocabulary of this size.
    pub fn new(vocab: u32) -> Self {
        Self {
            vocab,
            coverage_millionths: 999_500,
            piece_chars_max: 16,
            dummy_prefix: false,
            memory_bytes: 1 << 30,
        }
    }

    fn check(&self) -> Result<(), TokenizerError> {
        let range = |v: u64, min: u64, max: u64, option| match (min..=max).contains(&v) {
            true => Ok(()),
            false => Err(TokenizerError::Option {
                option,
                problem: format!("{v} must be between {min} and {max}"),
            }),
        };
        let smallest = FIRST_LEARNED + 1;
        range(self.vocab.into(), smallest.into(), VOCABULARY_MAX.into(), "vocab")?;
        range(self.coverage_millionths.into(), 1, 1_000_000, "coverage_millionths")?;
        range(self.piece_chars_max.into(), 1, 64, "piece_chars_max")?;
        range(self.memory_bytes as u64, 1 << 20, u64::MAX, "memory_bytes")
    }
}

/// How far training is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Documents are being read: so many bytes so far.
    Read {
        /// Bytes of text.
        bytes: u64,
        /// Documents that are complete.
        documents: u64,
    },
    /// Merges are being learned.
    Merge {
        /// Merges so far.
        done: u32,
        /// Merges in the end.
        total: u32,
    },
}

/// Trains on documents, each read as a stream. `progress` is called about once for each MiB and each hundred merges.
pub fn train<R: Read>(
    documents: impl IntoIterator<Item = std::io::Result<R>>,
    options: &TrainOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Tokenizer, TokenizerError> {
    let mut trainer = Trainer::new(options)?;
    let mut buffer = vec![0; READ_BYTES];
    for (document, number) in documents.into_iter().zip(0u64..) {
        let failed = |source| TokenizerError::Document { number, source };
        let mut document = document.map_err(failed)?;
        loop {
            let read = match document.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(failed(e)),
            };
            trainer.feed(buffer.get(..read).unwrap_or_default());
            progress(Progress::Read {
                bytes: trainer.bytes,
                documents: number,
            });
        }
        trainer.end_document();
    }
    trainer.finish(progress)
}

/// What a character is for the cutting of words: a piece never spans two classes, except that the last space of a run
/// begins the word after it. (SentencePiece cuts between scripts; these classes do the same where it matters most,
/// between letters and punctuation, without a table of scripts.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Space,
    /// Digits stand alone, so that numbers are spelled.
    Digit,
    Letter,
    Other,
    /// Control characters are never part of a piece: they are bytes.
    Control,
}

fn class(c: char) -> Class {
    match c {
        ' ' | SPACE => Class::Space,
        'a'..='z' | 'A'..='Z' => Class::Letter,
        '0'..='9' => Class::Digit,
        c if c.is_control() => Class::Control,
        c if c.is_ascii() => Class::Other,
        c if c.is_numeric() => Class::Digit,
        c if c.is_alphabetic() => Class::Letter,
        // General punctuation up to miscellaneous symbols and arrows, CJK punctuation, vertical and small forms,
        // full-width ASCII punctuation, pictographs, Latin-1 signs.
        '\u{80}'..='\u{bf}'
        | '\u{d7}'
        | '\u{f7}'
        | '\u{2000}'..='\u{2bff}'
        | '\u{2e00}'..='\u{2e7f}'
        | '\u{3000}'..='\u{303f}'
        | '\u{fe10}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ffef}'
        | '\u{1f000}'..='\u{1faff}' => Class::Other,
        // Marks (accents, vowel signs, viramas) belong to the letter before them.
        _ => Class::Letter,
    }
}

/// Counts words of documents that are fed in parts, then learns.
pub struct Trainer {
    options: TrainOptions,
    words: SeededMap<Box<str>, u64>,
    words_bytes: usize,
    /// Words seen no more often than this were forgotten at the last shortage of memory.
    forgotten_up_to: u64,
    chars: FastMap<char, u64>,
    word: String,
    word_chars: usize,
    word_class: Class,
    /// First bytes of a character that the last part cut.
    carry: Vec<u8>,
    at_start: bool,
    bytes: u64,
}

impl Trainer {
    /// Starts with nothing counted; the options are checked.
    pub fn new(options: &TrainOptions) -> Result<Self, TokenizerError> {
        options.check()?;
        Ok(Self {
            options: *options,
            words: SeededMap::default(),
            words_bytes: 0,
            forgotten_up_to: 0,
            chars: FastMap::default(),
            word: String::new(),
            word_chars: 0,
            word_class: Class::Control,
            carry: Vec::new(),
            at_start: true,
            bytes: 0,
        })
    }

    /// Takes the next bytes of the current document. Bytes that are no UTF-8 separate words and are not counted: when
    /// they occur again, they are encoded as bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            if self.options.dummy_prefix {
                self.character(' ');
            }
        }
        let joined;
        let bytes = if self.carry.is_empty() {
            bytes
        } else {
            joined = [std::mem::take(&mut self.carry).as_slice(), bytes].concat();
            &joined
        };
        // A character that the end of this part cuts is completed by the next part. `error_len` is none only there.
        let tail_start = bytes.len().saturating_sub(3);
        let tail = bytes.get(tail_start..).unwrap_or_default();
        let cut = (0..tail.len()).find(|at| {
            let rest = tail.get(*at..).unwrap_or_default();
            matches!(std::str::from_utf8(rest), Err(e) if e.valid_up_to() == 0 && e.error_len().is_none())
        });
        let end = cut.map_or(bytes.len(), |at| tail_start + at);
        let (whole, rest) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
        self.carry.extend_from_slice(rest);
        for chunk in whole.utf8_chunks() {
            chunk.valid().chars().for_each(|c| self.character(c));
            if !chunk.invalid().is_empty() {
                self.end_word();
            }
        }
    }

    /// The next bytes belong to another document.
    pub fn end_document(&mut self) {
        self.carry.clear();
        self.end_word();
        self.at_start = true;
    }

    fn character(&mut self, c: char) {
        let class = class(c);
        if class == Class::Control {
            return self.end_word();
        }
        if class != self.word_class {
            let starts_after_space = self.word_class == Class::Space && class != Class::Digit;
            if starts_after_space && self.word_chars > 0 {
                // "a   b" is a, two spaces, and b with the last one.
                self.word.truncate(self.word.len() - SPACE.len_utf8());
                self.word_chars -= 1;
                self.end_word();
                self.word.push(SPACE);
                self.word_chars = 1;
            } else {
                self.end_word();
            }
        } else if class == Class::Digit || self.word_chars >= WORD_CHARS_MAX {
            self.end_word();
        }
        self.word_class = class;
        let c = if class == Class::Space { SPACE } else { c };
        *self.chars.entry(c).or_default() += 1;
        self.word.push(c);
        self.word_chars += 1;
    }

    fn end_word(&mut self) {
        // A word of one character has no pair.
        if self.word_chars > 1 {
            if let Some(count) = self.words.get_mut(self.word.as_str()) {
                *count += 1;
            } else {
                self.words.insert(self.word.as_str().into(), 1);
                self.words_bytes += self.word.len() + WORD_OVERHEAD_BYTES;
                self.forget_rare_words();
            }
        }
        self.word.clear();
        self.word_chars = 0;
        self.word_class = Class::Control;
    }

    /// Keeps the words within their memory. Which ones go depends on the documents and their order alone.
    fn forget_rare_words(&mut self) {
        while self.words_bytes > self.options.memory_bytes {
            self.forgotten_up_to = self.forgotten_up_to.saturating_mul(2).max(1);
            let limit = self.forgotten_up_to;
            self.words.retain(|_, count| *count > limit);
            self.words_bytes = self.words.keys().map(|w| w.len() + WORD_OVERHEAD_BYTES).sum();
            if self.words_bytes <= self.options.memory_bytes / 2 {
                // Room for many more: the next shortage starts from once-seen words again.
                self.forgotten_up_to = 0;
            }
        }
    }

    /// Learns the vocabulary.
    pub fn finish(mut self, progress: &mut dyn FnMut(Progress)) -> Result<Tokenizer, TokenizerError> {
        self.end_document();
        let characters = self.covering_characters()?;
        let asked = self.options.vocab;
        let merges = usize::try_from(asked - FIRST_LEARNED)
            .ok()
            .and_then(|learned| learned.checked_sub(characters.len()))
            .ok_or(TokenizerError::VocabularyTooSmall {
                asked,
                characters: characters.len(),
            })?;
        let mut merger = Merger::new(&characters, self.options.piece_chars_max as usize, self.words);
        let mut learned: Vec<String> = Vec::with_capacity(merges);
        while learned.len() < merges {
            let Some(piece) = merger.next_piece() else {
                return Err(TokenizerError::CorpusTooSmall {
                    asked,
                    possible: FIRST_LEARNED as usize + characters.len() + learned.len(),
                });
            };
            learned.push(piece);
            if learned.len().is_multiple_of(100) || learned.len() == merges {
                progress(Progress::Merge {
                    done: learned.len() as u32,
                    total: merges as u32,
                });
            }
        }
        let mut pieces = fixed_pieces();
        let texts = learned.into_iter().chain(characters.iter().map(char::to_string));
        pieces.extend(texts.enumerate().map(|(number, text)| Piece {
            text,
            // Not −0: the first score must have the bits of zero.
            score: 0.0 - number as f32,
            kind: PieceKind::Normal,
        }));
        let normalizer = Normalizer {
            dummy_prefix: self.options.dummy_prefix,
            escape_spaces: true,
        };
        let coverage = f64::from(self.options.coverage_millionths) / 1e6;
        Ok(Tokenizer::new(
            pieces,
            normalizer,
            coverage as f32,
            self.options.piece_chars_max,
        ))
    }

    /// The most frequent characters that make up the coverage, by falling count. The space is always one of them.
    fn covering_characters(&self) -> Result<Vec<char>, TokenizerError> {
        let total: u128 = self.chars.values().map(|n| u128::from(*n)).sum();
        if total == 0 {
            return Err(TokenizerError::NoText { bytes: self.bytes });
        }
        let mut counted: Vec<(u64, char)> = self.chars.iter().map(|(c, n)| (*n, *c)).collect();
        counted.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        let wanted = total * u128::from(self.options.coverage_millionths);
        let mut covered = 0u128;
        let mut characters = Vec::new();
        for (count, c) in counted {
            if covered * 1_000_000 >= wanted {
                break;
            }
            covered += u128::from(count);
            characters.push(c);
        }
        if !characters.contains(&SPACE) {
            characters.push(SPACE);
        }
        Ok(characters)
    }
}

/// The words while they are merged. Symbols are interned texts: two ways to the same text are the same symbol.
struct Merger {
    texts: Vec<Box<str>>,
    symbols: FastMap<Box<str>, u32>,
    words: Vec<(Vec<u32>, i64)>,
    pairs: FastMap<(u32, u32), PairCount>,
    queue: BinaryHeap<Proposal>,
    piece_chars_max: usize,
    /// Texts that may not become pieces: names of the special ones and of bytes.
    reserved: FastSet<String>,
    /// For every accepted piece with overlapping halves: the three parts that must not all be pieces.
    triples: FastMap<String, Vec<[String; 3]>>,
}

#[derive(Default)]
struct PairCount {
    count: i64,
    /// Words in which the pair was seen; some may have lost it since.
    words: Vec<u32>,
}

#[derive(PartialEq, Eq)]
struct Proposal {
    count: i64,
    chars: usize,
    text: Box<str>,
    pair: (u32, u32),
    left_len: usize,
}

impl Ord for Proposal {
    /// Greatest first: count, then shorter, then lesser text, then shorter left part.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let by_count = self.count.cmp(&other.count).then(other.chars.cmp(&self.chars));
        by_count
            .then_with(|| other.text.cmp(&self.text))
            .then(other.left_len.cmp(&self.left_len))
    }
}

impl PartialOrd for Proposal {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Merger {
    fn new(characters: &[char], piece_chars_max: usize, counted: SeededMap<Box<str>, u64>) -> Self {
        let texts: Vec<Box<str>> = characters.iter().map(|c| c.to_string().into()).collect();
        let symbols: FastMap<Box<str>, u32> = texts.iter().cloned().zip(0..).collect();
        let by_char: FastMap<char, u32> = characters.iter().copied().zip(0..).collect();
        let mut words = Vec::new();
        for (word, count) in counted {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            let mut part = Vec::new();
            // A character outside the coverage is bytes, so it ends what can be merged.
            for c in word.chars().map(Some).chain([None]) {
                match c.and_then(|c| by_char.get(&c)) {
                    Some(symbol) => part.push(*symbol),
                    None => match std::mem::take(&mut part) {
                        part if part.len() > 1 => words.push((part, count)),
                        _ => {}
                    },
                }
            }
        }
        let mut merger = Self {
            texts,
            symbols,
            words,
            pairs: FastMap::default(),
            queue: BinaryHeap::new(),
            piece_chars_max,
            reserved: fixed_pieces().into_iter().map(|p| p.text).collect(),
            triples: FastMap::default(),
        };
        let words = std::mem::take(&mut merger.words);
        for ((word, count), index) in words.iter().zip(0u32..) {
            for pair in word.windows(2) {
                let &[left, right] = pair else { continue };
                merger.count((left, right), *count, index);
            }
        }
        merger.words = words;
        let pairs: Vec<(u32, u32)> = merger.pairs.keys().copied().collect();
        for pair in pairs {
            merger.propose(pair);
        }
        merger
    }

    fn count(&mut self, pair: (u32, u32), count: i64, word: u32) {
        let entry = self.pairs.entry(pair).or_default();
        entry.count += count;
        if count > 0 && entry.words.last() != Some(&word) {
            entry.words.push(word);
        }
    }

    fn text(&self, symbol: u32) -> &str {
        self.texts.get(symbol as usize).map_or("", |t| t)
    }

    fn propose(&mut self, pair: (u32, u32)) {
        let Some(count) = self.pairs.get(&pair).map(|p| p.count) else {
            return;
        };
        if count < COUNT_MIN {
            return;
        }
        let (left, right) = (self.text(pair.0), self.text(pair.1));
        let left_len = left.len();
        let text: Box<str> = [left, right].concat().into();
        // Neighbours whose concatenation is a piece already are merged by any encoder, so before all else.
        let known = self.symbols.contains_key(&text);
        let proposal = Proposal {
            count: if known { i64::MAX } else { count },
            chars: text.chars().count(),
            text,
            pair,
            left_len,
        };
        if proposal.chars <= self.piece_chars_max {
            self.queue.push(proposal);
        }
    }

    /// Merges until a piece is found that is not there yet; none when no pair is frequent enough.
    fn next_piece(&mut self) -> Option<String> {
        while let Some(proposal) = self.queue.pop() {
            let Some(current) = self.pairs.get(&proposal.pair).map(|p| p.count) else {
                continue;
            };
            let known = self.symbols.get(&proposal.text).copied();
            if known.is_none() && current != proposal.count {
                // The count has changed since; the pair comes again with the right one.
                self.propose(proposal.pair);
                continue;
            }
            let text = String::from(proposal.text);
            match known {
                Some(symbol) => self.merge(proposal.pair, symbol),
                None if self.allowed(&text) => {
                    let symbol = self.texts.len() as u32;
                    self.texts.push(text.as_str().into());
                    self.symbols.insert(text.as_str().into(), symbol);
                    self.merge(proposal.pair, symbol);
                    // Other neighbours that make the same text are merged too, as any encoder does.
                    for (left, right) in splits(&text) {
                        if let (Some(left), Some(right)) = (self.symbols.get(left), self.symbols.get(right)) {
                            self.merge((*left, *right), symbol);
                        }
                    }
                    return Some(text);
                }
                None => drop(self.pairs.remove(&proposal.pair)),
            }
        }
        None
    }

    /// Whether a text may become a piece. Refused are names of special pieces, and a piece that would let two encoders
    /// differ: where P = A·B = B·C with pieces A, B, C and A shorter than B, the symbols A B C can be merged to P·C or
    /// A·P. SentencePiece takes the left one; Hugging Face ranks the two merges, and the longer left part goes first.
    fn allowed(&mut self, text: &str) -> bool {
        if self.reserved.contains(text) {
            return false;
        }
        let is_piece = |part: &str| part == text || self.symbols.contains_key(part);
        let completes = |triple: &[String; 3]| triple.iter().all(|part| is_piece(part));
        if self.triples.get(text).is_some_and(|t| t.iter().any(completes)) {
            return false;
        }
        let mut found = Vec::new();
        for (a, b) in splits(text) {
            if a.len() < b.len() && text.starts_with(b) {
                let c = text.get(b.len()..).unwrap_or_default();
                found.push([a, b, c].map(String::from));
            }
        }
        if found.iter().any(completes) {
            return false;
        }
        for triple in found {
            for part in &triple {
                self.triples.entry(part.clone()).or_default().push(triple.clone());
            }
        }
        true
    }

    /// Replaces a pair by its symbol in every word.
    fn merge(&mut self, pair: (u32, u32), symbol: u32) {
        let Some(PairCount { words, .. }) = self.pairs.remove(&pair) else {
            return;
        };
        let mut changed: FastSet<(u32, u32)> = FastSet::default();
        for index in words {
            let Some((word, count)) = self.words.get_mut(index as usize) else {
                continue;
            };
            let (mut word, count) = (std::mem::take(word), *count);
            let mut at = 0;
            while at + 1 < word.len() {
                if (word[at], word[at + 1]) != pair {
                    at += 1;
                    continue;
                }
                let before = at.checked_sub(1).map(|i| word[i]);
                let after = word.get(at + 2).copied();
                if let Some(before) = before {
                    self.uncount((before, pair.0), count);
                    self.count((before, symbol), count, index);
                    changed.insert((before, symbol));
                }
                if let Some(after) = after {
                    self.uncount((pair.1, after), count);
                    self.count((symbol, after), count, index);
                    changed.insert((symbol, after));
                }
                word[at] = symbol;
                word.remove(at + 1);
                at += 1;
            }
            if let Some((place, _)) = self.words.get_mut(index as usize) {
                *place = word;
            }
        }
        // The pair itself may have been counted anew where it overlapped itself; it is gone from every word.
        self.pairs.remove(&pair);
        // In any order: the queue sorts them.
        for pair in changed {
            self.propose(pair);
        }
    }

    fn uncount(&mut self, pair: (u32, u32), count: i64) {
        if let Some(entry) = self.pairs.get_mut(&pair) {
            entry.count -= count;
            if entry.count <= 0 {
                self.pairs.remove(&pair);
            }
        }
    }
}
