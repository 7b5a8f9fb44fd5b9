//! What a manifest says about the text in its shards, beside the shards themselves: docs/spec/corpus.md.

use serde::{Deserialize, Serialize};

/// Version of [`About`].
pub const CORPUS_FORMAT: &str = "alice-corpus/1";

/// Where the tokens of a manifest come from. The root does not cover it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// [`CORPUS_FORMAT`].
    pub format: String,
    /// Which part of the documents this is.
    pub part: PartName,
    /// Generation of the reserve, from 0; none for the other parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// How documents were divided.
    pub split: SplitRule,
    /// As `data.tokenizer` of the run specification: `bytes`, or the BLAKE3 of `tokenizer.model`.
    pub tokenizer: String,
    /// Number of ids.
    pub vocab: u32,
    /// Documents in the shards.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// What the documents come from, in the order in which it was read.
    pub sources: Vec<SourceEntry>,
}

/// A part of the documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartName {
    /// Miners train on it.
    Training,
    /// Submissions are scored on it; private until it is retired.
    Reserve,
    /// Anybody can measure any model on it; nobody trains on it.
    Yardstick,
}

/// How documents are divided. Every document's place follows from its hash and these numbers alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SplitRule {
    /// Documents of a thousand that go to the reserve.
    pub reserve_permille: u32,
    /// Documents of a thousand that go to the public yardstick.
    pub yardstick_permille: u32,
    /// Generations that the reserve is divided into.
    pub generations: u32,
    /// The first so many generations are retired: their documents are training text.
    pub retired: u32,
}

impl Default for SplitRule {
    fn default() -> Self {
        Self {
            reserve_permille: 20,
            yardstick_permille: 5,
            generations: 1,
            retired: 0,
        }
    }
}

/// One source's share of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceEntry {
    /// Its name.
    pub name: String,
    /// SPDX expression of its licence.
    pub license: String,
    /// Where it can be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Documents of it in this manifest's shards.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Documents of it that are in no part; only in the training manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<LeftOut>,
}

/// Why documents were left out, with their counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The same text came before, in this or an earlier source.
    pub duplicate: u64,
    /// Nothing but white space, or no value.
    pub empty: u64,
    /// Longer than the limit.
    pub too_large: u64,
    /// A NUL in it: binary data or UTF-16.
    pub with_nul: u64,
    /// No UTF-8.
    pub not_utf8: u64,
}

impl LeftOut {
    /// The sums of both.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            duplicate: self.duplicate + other.duplicate,
            empty: self.empty + other.empty,
            too_large: self.too_large + other.too_large,
            with_nul: self.with_nul + other.with_nul,
            not_utf8: self.not_utf8 + other.not_utf8,
        }
    }

    /// All together.
    pub fn total(&self) -> u64 {
        self.duplicate + self.empty + self.too_large + self.with_nul + self.not_utf8
    }
}
