//! Training shards and the text that they come from.

use crate::Hex32;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/corpus`: the training shards; `GET /v1/yardstick`: those of the public yardstick. A shard is a blob of u16
/// little-endian token ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CorpusManifest {
    /// Root over the shards; for the training text it equals the run specification's `data.corpus_root`.
    pub root: Hex32,
    /// Shards in order.
    pub shards: Vec<Shard>,
    /// Sources of the text as declared by the corpus's builder; no root covers them. Empty if none was declared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<TextSource>,
}

/// A source of text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TextSource {
    /// Its name.
    pub name: String,
    /// SPDX expression of its licence.
    pub license: String,
    /// Address from which it can be downloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Documents of it in the shards.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
}

/// One shard of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Shard {
    /// BLAKE3 of the shard's bytes.
    pub blob: Hex32,
    /// Tokens in it (two bytes each).
    pub tokens: u64,
}
