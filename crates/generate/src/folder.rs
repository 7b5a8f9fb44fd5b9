//! A model's folder: configuration, tokenizer, weights.

use crate::config::Config;
use crate::safetensors_shards::Shards;
use crate::{GenerateError, Sampling, Stored};
use alice_model::{Decoder, DecoderConfig, Device, Precision};
use alice_tokenizer::{TOKENIZER_MODEL_FILE, Tokenizer, TokenizerError};
use std::path::Path;

/// Minimum number of weights for which bf16 is faster than f32 on a CPU, if the folder has them in bf16. Fewer fit into
/// the caches, where f32 needs no conversion.
const BF16_PARAMETERS_MIN: u64 = 100_000_000;

/// A folder whose files have been checked; only the weights have not been read.
#[derive(Debug)]
pub struct Folder {
    config: Config,
    tokenizer: Tokenizer,
    shards: Shards,
}

impl Folder {
    /// Reads everything but the weights, and checks that they are there with the right shapes.
    pub fn open(dir: &Path) -> Result<Self, GenerateError> {
        let config = Config::read(dir)?;
        let path = dir.join(TOKENIZER_MODEL_FILE);
        let tokenizer = Tokenizer::read_model(&path).map_err(unreadable)?;
        if i64::from(tokenizer.vocab()) != config.model.vocab {
            return Err(GenerateError::Vocabulary {
                path,
                tokenizer: tokenizer.vocab(),
                model: config.model.vocab,
            });
        }
        let shards = Shards::open(dir)?;
        let tied = config.model.tied;
        shards.check(&config.model.tensors(), |name| {
            // Older folders carry the rotary frequencies, and some a head that is the embedding; nobody reads either.
            name.ends_with(".rotary_emb.inv_freq") || (tied && name == "lm_head.weight")
        })?;
        Ok(Self {
            config,
            tokenizer,
            shards,
        })
    }

    /// Shape and constants of the model.
    pub fn model(&self) -> &DecoderConfig {
        &self.config.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Ids at which a text ends.
    pub fn end(&self) -> &[u32] {
        &self.config.end
    }

    /// Sampling options of the model's authors (`generation_config.json`); greedy if they give none.
    pub fn sampling(&self) -> Sampling {
        let g = &self.config.generation;
        if !g.do_sample {
            return Sampling::greedy();
        }
        Sampling {
            temperature: g.temperature.unwrap_or(1.0),
            top_k: g.top_k.unwrap_or(0),
            top_p: g.top_p.unwrap_or(1.0),
            repetition_penalty: g.repetition_penalty.unwrap_or(1.0),
        }
    }

    /// Ids of a prompt, with the begin token where this tokenizer has one.
    pub fn encode(&self, prompt: &[u8]) -> Result<Vec<u32>, GenerateError> {
        let mut ids: Vec<u32> = self.config.begin.into_iter().collect();
        self.tokenizer.encoder().encode(prompt, &mut ids);
        match ids.is_empty() {
            true => Err(GenerateError::EmptyPrompt),
            false => Ok(ids),
        }
    }

    /// The precision that is fastest: bf16 for large models that are stored so, f32 for all others.
    pub fn precision(&self) -> Precision {
        let stored = self.shards.stored("model.embed_tokens.weight");
        match stored {
            Some(Stored::Bf16) if self.config.model.parameters() >= BF16_PARAMETERS_MIN => Precision::Bf16,
            _ => Precision::F32,
        }
    }

    /// Reads the weights onto a device, one tensor at a time.
    ///
    /// # Errors
    /// A shard cannot be read, or the device has too little memory.
    pub fn load(&mut self, precision: Precision, device: Device) -> Result<Decoder, GenerateError> {
        let Self { config, shards, .. } = self;
        Decoder::load(config.model.clone(), precision, device, &mut |tensor| {
            shards.read(&tensor.name)
        })
    }
}

/// Folders of other tokenizers than SentencePiece's have no such file.
fn unreadable(error: TokenizerError) -> GenerateError {
    match error {
        TokenizerError::Io { source, path, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            GenerateError::Missing(path)
        }
        error => error.into(),
    }
}
