//! Learns merges from counted words: takes the most frequent pair of neighbours again and again (Sennrich et al. 2016,
//! algorithm 1).
//!
//! The counts of all pairs are kept up to date while pairs are merged, with the words of each pair, so that a merge
//! touches only the words that have it. A heap proposes the next pair; a proposal whose count has changed since is put
//! back with the right one. Ties follow [`Proposal`]'s order, which has no two equal proposals, so neither hash maps
//! nor the heap decide anything.

use crate::hash::{FastMap, FastSet, SeededMap};
use crate::tokenizer::splits;
use crate::vocabulary::fixed_pieces;
use std::collections::BinaryHeap;

/// Minimum count of a pair that becomes a piece: once is not a pattern.
const COUNT_MIN: i64 = 2;

/// The words while they are merged. Symbols are interned texts: two ways to the same text are the same symbol.
pub(crate) struct Merger {
    texts: Vec<Box<str>>,
    symbols: FastMap<Box<str>, u32>,
    words: Vec<(Vec<u32>, i64)>,
    pairs: FastMap<(u32, u32), PairCount>,
    queue: BinaryHeap<Proposal>,
    piece_chars_max: usize,
    /// Texts that may not become pieces: names of control pieces and of bytes, which would then have two meanings.
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
    pub(crate) fn new(characters: &[char], piece_chars_max: usize, counted: SeededMap<Box<str>, u64>) -> Self {
        let texts: Vec<Box<str>> = characters.iter().map(|c| c.to_string().into()).collect();
        let symbols: FastMap<Box<str>, u32> = texts.iter().cloned().zip(0..).collect();
        let by_char: FastMap<char, u32> = characters.iter().copied().zip(0..).collect();
        let mut words = Vec::new();
        for (word, count) in counted {
            // Counts are signed, because merges subtract from them.
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
        // In any order: the heap sorts them, and no two proposals are equal.
        let pairs: Vec<(u32, u32)> = merger.pairs.keys().copied().collect();
        for pair in pairs {
            merger.propose(pair);
        }
        merger
    }

    fn count(&mut self, pair: (u32, u32), count: i64, word: u32) {
        let entry = self.pairs.entry(pair).or_default();
        entry.count += count;
        // Words are visited in ascending order, so a repetition within one word is the last entry.
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
        // A pair above the limit is never proposed, and neither is anything that contains it.
        if proposal.chars <= self.piece_chars_max {
            self.queue.push(proposal);
        }
    }

    /// Merges until a piece is found that is not there yet. `None` when no pair is frequent enough.
    pub(crate) fn next_piece(&mut self) -> Option<String> {
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
                // Refused for good: whatever its count becomes, the reason stays.
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
            // Out of the table while it changes: the counts are changed through the same `self`.
            let (mut word, count) = (std::mem::take(word), *count);
            let mut position = 0;
            while let Some(&[left, right]) = word.get(position..position + 2) {
                if (left, right) != pair {
                    position += 1;
                    continue;
                }
                let before = position.checked_sub(1).and_then(|i| word.get(i)).copied();
                let after = word.get(position + 2).copied();
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
                if let Some(place) = word.get_mut(position) {
                    *place = symbol;
                }
                word.remove(position + 1);
                position += 1;
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
