//! Encoding as SentencePiece's BPE does it (`bpe_model.cc`): start from characters, always merge the adjacent pair
//! whose concatenation is the piece of the highest score, the leftmost first among equals, until no pair is a piece; a
//! part that is then no piece becomes its bytes.
//!
//! Two facts make it fast and change no result. A boundary between two characters that are neighbours in no piece
//! is never merged over, so a text falls into short words that are merged one by one; and the ids of a word are always
//! the same, so they are remembered.

use crate::Tokenizer;
use crate::hash::SeededMap;
use crate::vocabulary::BYTE_FIRST;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Maximum length of a word, symbols, that is merged by scanning for the best pair each time; longer ones use a queue.
/// A scan of a few symbols is cheaper than the queue's allocations and stale entries.
const SCAN_MAX: usize = 24;
/// Maximum number of words whose ids are remembered.
const CACHE_WORDS_MAX: usize = 1 << 16;
/// Maximum length of a remembered word, bytes: longer ones seldom come again.
const CACHE_WORD_BYTES_MAX: usize = 64;

/// Encodes texts and remembers frequent words.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Word → start and number of its ids in `known_ids`.
    known: SeededMap<Box<[u8]>, (u32, u32)>,
    known_ids: Vec<u32>,
    work: Work,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            known: SeededMap::default(),
            known_ids: Vec::new(),
            work: Work::default(),
        }
    }

    /// Appends the ids of a text to `out`, without begin and end.
    pub fn encode(&mut self, text: &[u8], out: &mut Vec<u32>) {
        if self.tokenizer.dummy_prefix() && !text.is_empty() {
            let mut prefixed = Vec::with_capacity(text.len() + 1);
            prefixed.push(b' ');
            prefixed.extend_from_slice(text);
            return self.encode_all(&prefixed, out);
        }
        self.encode_all(text, out);
    }

    fn encode_all(&mut self, text: &[u8], out: &mut Vec<u32>) {
        // Nothing to merge, and run `dev` tokenises all of its corpus this way.
        if self.tokenizer.is_bytes() {
            out.extend(text.iter().map(|b| u32::from(*b) + BYTE_FIRST));
            return;
        }
        for chunk in text.utf8_chunks() {
            let valid = chunk.valid();
            let (mut start, mut before) = (0, None);
            for (position, c) in valid.char_indices() {
                if before.is_some_and(|before| !self.tokenizer.joined(before, c)) {
                    self.word(valid.get(start..position).unwrap_or_default(), out);
                    start = position;
                }
                before = Some(c);
            }
            self.word(valid.get(start..).unwrap_or_default(), out);
            out.extend(chunk.invalid().iter().map(|b| self.tokenizer.byte_id(*b)));
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
        let mut start = 0;
        for (symbol, len) in self.work.symbols.iter().zip(&self.work.lens) {
            let end = start + *len as usize;
            if *symbol < pieces {
                out.push(*symbol);
            } else {
                let bytes = bytes.get(start..end).unwrap_or_default();
                out.extend(bytes.iter().map(|b| self.tokenizer.byte_id(*b)));
            }
            start = end;
        }
        // The first words of a text are the frequent ones, so a full cache need not replace any.
        if word.len() <= CACHE_WORD_BYTES_MAX && self.known.len() < CACHE_WORDS_MAX {
            let ids = out.get(first..).unwrap_or_default();
            let place = (self.known_ids.len() as u32, ids.len() as u32);
            self.known_ids.extend_from_slice(ids);
            self.known.insert(bytes.into(), place);
        }
    }
}

/// The symbols of one word and their lengths in bytes, while they are merged.
///
/// All indices are positions of symbols that these vectors got in [`Work::load`], which gives them one length.
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
    /// Symbols when the pair was found; the candidate is stale if they have changed.
    pair: (u32, u32),
    merged: u32,
}

#[allow(
    clippy::indexing_slicing,
    reason = "the hottest loop of encoding; positions come from the vectors themselves, never from the text"
)]
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
            for (position, pair) in self.symbols.windows(2).enumerate() {
                let &[left, right] = pair else { continue };
                if let Some((rank, merged)) = tokenizer.pair((left, right))
                    && best.is_none_or(|(best, ..)| rank < best)
                {
                    best = Some((rank, position, merged));
                }
            }
            let Some((_, position, merged)) = best else { return };
            self.symbols.remove(position + 1);
            let len = self.lens.remove(position + 1);
            self.symbols[position] = merged;
            self.lens[position] += len;
        }
    }

    /// [`Work::merge_by_scan`] in O(n log n): a linked list of symbols and a queue of candidates. A symbol that was
    /// merged into its left neighbour has length 0.
    fn merge_by_queue(&mut self, tokenizer: &Tokenizer) {
        // Positions are u32 to keep candidates small. A word of 2^32 characters would take 32 GiB here alone; it is
        // left unmerged, which is a valid encoding, because its characters are symbols too.
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
            // Removing candidates from a heap costs more than skipping those whose symbols have changed since.
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
        for position in 0..self.symbols.len() {
            if self.lens[position] > 0 {
                self.symbols[kept] = self.symbols[position];
                self.lens[kept] = self.lens[position];
                kept += 1;
            }
        }
        self.symbols.truncate(kept);
        self.lens.truncate(kept);
    }

    fn propose(&mut self, left: u32, right: u32, tokenizer: &Tokenizer) {
        let pair = (self.symbols[left as usize], self.symbols[right as usize]);
        if let Some((rank, merged)) = tokenizer.pair(pair) {
            self.queue.push(Reverse(Candidate {
                rank,
                left,
                right,
                pair,
                merged,
            }));
        }
    }
}
