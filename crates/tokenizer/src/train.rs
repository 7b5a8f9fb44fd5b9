//! Learns a vocabulary from a stream of documents: counts words and characters, then gives them to the merger.
//!
//! The text itself is not kept. Memory is bounded by [`TrainOptions::memory_bytes`] for the words; where it is not
//! enough, the rarest words are forgotten, by a rule that depends on the documents and their order alone.

use crate::hash::{FastMap, SeededMap};
use crate::merger::Merger;
use crate::vocabulary::{FIRST_LEARNED, Normalizer, SPACE, VOCABULARY_MAX, fixed_pieces};
use crate::{Piece, PieceKind, Tokenizer, TokenizerError};
use std::io::Read;

/// Maximum length of a word that is counted as one, characters; longer ones are cut, so that a text without spaces
/// takes no memory.
const WORD_CHARS_MAX: usize = 128;
/// Memory that a word takes in the table of counts in addition to its text, bytes (estimate: key, count, bucket,
/// allocation).
const WORD_OVERHEAD_BYTES: usize = 64;
/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;
/// Merges between two reports of progress.
const MERGES_PER_REPORT: usize = 100;

/// Size of a vocabulary, and the rules for its pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainOptions {
    /// Number of ids, special ones and bytes included.
    pub vocab: u32,
    /// Share of the text, millionths of its characters, whose most frequent characters become pieces; the rest are
    /// bytes. SentencePiece's default is 999500.
    pub coverage_millionths: u32,
    /// Maximum length of a piece, characters. SentencePiece's default is 16.
    pub piece_chars_max: u32,
    /// Whether a space is put before every text, as Llama 2 does. Alice's models do not: encoding then needs no rule
    /// for the start of a text, and every loader gives the same ids.
    pub dummy_prefix: bool,
    /// Maximum memory for counting words, bytes. Where it is not enough, the rarest words are forgotten.
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

/// Progress of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Documents are being read.
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
///
/// ```
/// use alice_tokenizer::{TrainOptions, train};
///
/// let documents = ["one document ".repeat(300), "and another ".repeat(300)];
/// let readers = documents.iter().map(|text| Ok(text.as_bytes()));
/// let tokenizer = train(readers, &TrainOptions::new(285), &mut |_| ())?;
/// assert_eq!(tokenizer.vocab(), 285);
/// # Ok::<(), alice_tokenizer::TokenizerError>(())
/// ```
///
/// # Errors
/// Options outside their bounds, a document that cannot be read, or a text that cannot give the vocabulary asked for.
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

/// Class of a character for the cutting of words: a piece never spans two classes, except that the last space of a run
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
    /// A trainer that has counted nothing.
    ///
    /// # Errors
    /// Options outside their bounds.
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
        // A character that the end of this part cuts is completed by the next part; an unfinished one has at most three
        // bytes. `error_len` is none only there.
        let tail_start = bytes.len().saturating_sub(3);
        let tail = bytes.get(tail_start..).unwrap_or_default();
        let cut = (0..tail.len()).find(|position| {
            let rest = tail.get(*position..).unwrap_or_default();
            matches!(std::str::from_utf8(rest), Err(e) if e.valid_up_to() == 0 && e.error_len().is_none())
        });
        let end = cut.map_or(bytes.len(), |position| tail_start + position);
        let (whole, rest) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
        self.carry.extend_from_slice(rest);
        for chunk in whole.utf8_chunks() {
            chunk.valid().chars().for_each(|c| self.character(c));
            if !chunk.invalid().is_empty() {
                self.end_word();
            }
        }
    }

    /// Ends the document: the next bytes belong to another one.
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
            // Digits stand alone even after a space, so that numbers have few forms.
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

    /// Keeps the words within their memory. Which ones go depends on the documents and their order alone: a word's
    /// count decides, and all words of one count go together.
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

    /// Learns the vocabulary from the words counted so far.
    ///
    /// # Errors
    /// No text, or a vocabulary that is too small or too large for it.
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
            if learned.len().is_multiple_of(MERGES_PER_REPORT) || learned.len() == merges {
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
            // As SentencePiece's trainer does: the number of the merge, negated, so that earlier merges go first.
            // 0 − 0 and not −0: the first score must have the bits of zero.
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
        // Ties by code point: the order of a hash map must not show.
        counted.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        // In u128: a count of 2^64 times a million must not overflow.
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
        // Encoders write every space as this character, whether the corpus has one or not.
        if !characters.contains(&SPACE) {
            characters.push(SPACE);
        }
        Ok(characters)
    }
}
