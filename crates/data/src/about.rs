//! Origin of the text in a manifest's shards: sources, licences, counts (docs/spec/corpus.md).

use serde::{Deserialize, Serialize};

/// Version of [`About`].
pub const CORPUS_FORMAT: &str = "alice-corpus/1";

/// Origin of a manifest's tokens. The root does not cover it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// [`CORPUS_FORMAT`].
    pub format: String,
    /// Which part of the documents this is.
    pub part: PartName,
    /// Generation of the reserve, from 0; `None` for the other parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// Rule by which documents were divided.
    pub split: SplitRule,
    /// As `data.tokenizer` of the run specification: `bytes`, or the BLAKE3 of `tokenizer.model`.
    pub tokenizer: String,
    /// Number of ids.
    pub vocab: u32,
    /// Documents in the shards.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Sources in the order in which they were read.
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

/// Rule by which documents are divided. A document's part follows from its hash and these numbers alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SplitRule {
    /// Documents that go to the reserve (the held-out text that submissions are scored on), thousandths.
    pub reserve_permille: u32,
    /// Documents that go to the yardstick (the public evaluation set), thousandths.
    pub yardstick_permille: u32,
    /// Generations that the reserve is divided into.
    pub generations: u32,
    /// Number of retired generations, the first ones: their documents are training text.
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
    /// Address from which it can be downloaded.
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

/// Documents and files of a source that are in no part, counted by reason. The last two are written only where they are
/// not 0, so that the manifest of a source without such lines and files is the same as before they were counted.
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
    /// Not UTF-8.
    pub not_utf8: u64,
    /// A line of JSON lines that is not a JSON object with a string under the text's key.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub malformed: u64,
    /// Files (not documents) that were not read: of another format, or broken links.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unread_files: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
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
            malformed: self.malformed + other.malformed,
            unread_files: self.unread_files + other.unread_files,
        }
    }

    /// Documents left out, for any reason. Unread files are not documents.
    pub fn total(&self) -> u64 {
        self.duplicate + self.empty + self.too_large + self.with_nul + self.not_utf8 + self.malformed
    }
}
