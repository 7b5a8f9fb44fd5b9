//! `config.json` and `generation_config.json` of Hugging Face folders.
//!
//! Fields that this program computes are read; fields that would change the computation and are not computed (biases,
//! scaled rotary embeddings, sliding windows, quantised weights) are refused by name. All others are ignored.

use crate::GenerateError;
use alice_model::{DecoderConfig, Experts};
use alice_tokenizer::{BEGIN, TOKENIZER_CONFIG_FILE, is_lfs_pointer};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// File with the model's shape and constants.
pub const CONFIG_FILE: &str = "config.json";
/// File with the sampling options of the model's authors.
pub const GENERATION_CONFIG_FILE: &str = "generation_config.json";
/// The architectures that are computed here, by their names in `transformers`.
const DENSE: &str = "LlamaForCausalLM";
const SPARSE: &str = "MixtralForCausalLM";
/// Maximum size of a configuration that is read, bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// The fields of `config.json` that are used or refused, with the defaults of `LlamaConfig`.
#[derive(Deserialize)]
struct Raw {
    vocab_size: i64,
    hidden_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    intermediate_size: i64,
    max_position_embeddings: i64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    /// The next three are Mixtral's, with the defaults of `MixtralConfig`.
    num_local_experts: Option<i64>,
    num_experts_per_tok: Option<i64>,
    sliding_window: Option<i64>,
    quantization_config: Option<Value>,
    eos_token_id: Option<Ids>,
}

/// One id or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Ids {
    One(u32),
    Several(Vec<u32>),
}

impl Ids {
    fn list(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Several(ids) => ids,
        }
    }
}

/// Sampling options of `generation_config.json`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Generation {
    #[serde(default)]
    pub do_sample: bool,
    pub temperature: Option<f64>,
    pub top_k: Option<usize>,
    pub top_p: Option<f64>,
    pub repetition_penalty: Option<f64>,
    eos_token_id: Option<Ids>,
}

/// A folder's configuration.
#[derive(Debug)]
pub(crate) struct Config {
    pub model: DecoderConfig,
    pub generation: Generation,
    /// Ids at which a text ends.
    pub end: Vec<u32>,
    /// Id that is put before every text. `None` if the tokenizer puts none.
    pub begin: Option<u32>,
}

impl Config {
    /// Reads and checks the configuration of a folder.
    pub fn read(dir: &Path) -> Result<Self, GenerateError> {
        let path = dir.join(CONFIG_FILE);
        let missing = || GenerateError::NoModel(dir.to_path_buf());
        let value: Value = read_json(&path)?.ok_or_else(missing)?;
        // The architecture first: another one's fields have other names.
        let sparse = check_architecture(&path, &value)?;
        let raw: Raw = serde_json::from_value(value).map_err(|e| GenerateError::malformed(&path, e.to_string()))?;
        let model = model(&path, &raw, sparse)?;
        let generation: Generation = read_json(&dir.join(GENERATION_CONFIG_FILE))?.unwrap_or_default();
        // `transformers` lets the generation's configuration win.
        let end = generation.eos_token_id.clone().or(raw.eos_token_id);
        Ok(Self {
            model,
            generation,
            end: end.map(Ids::list).unwrap_or_default(),
            begin: begin(dir)?,
        })
    }
}

/// Whether the model has experts.
///
/// # Errors
/// An architecture that is not computed here.
fn check_architecture(path: &Path, value: &Value) -> Result<bool, GenerateError> {
    #[derive(Deserialize)]
    struct Head {
        architectures: Option<Vec<String>>,
        model_type: Option<String>,
    }
    let head: Head =
        serde_json::from_value(value.clone()).map_err(|e| GenerateError::malformed(path, e.to_string()))?;
    let is = |architecture: &str, model_type: &str| match (&head.architectures, &head.model_type) {
        (Some(names), _) => names.iter().any(|name| name == architecture),
        (None, kind) => kind.as_deref() == Some(model_type),
    };
    if is(DENSE, "llama") {
        return Ok(false);
    }
    if is(SPARSE, "mixtral") {
        return Ok(true);
    }
    let names = head.architectures.unwrap_or_default().join(", ");
    let kind = head.model_type.unwrap_or_else(|| "none".into());
    Err(GenerateError::Unsupported {
        path: path.to_path_buf(),
        what: format!("the architecture '{names}' (model_type '{kind}'), not {DENSE} or {SPARSE}"),
    })
}

fn model(path: &Path, raw: &Raw, sparse: bool) -> Result<DecoderConfig, GenerateError> {
    let unsupported = |what: String| {
        Err(GenerateError::Unsupported {
            path: path.to_path_buf(),
            what,
        })
    };
    if raw.attention_bias || raw.mlp_bias {
        return unsupported("biases (attention_bias or mlp_bias)".into());
    }
    if let Some(act) = raw.hidden_act.as_deref().filter(|act| !["silu", "swish"].contains(act)) {
        return unsupported(format!("the activation '{act}'"));
    }
    if raw.quantization_config.is_some() {
        return unsupported("quantised weights (quantization_config)".into());
    }
    // A window as long as the context changes nothing.
    if let Some(window) = raw
        .sliding_window
        .filter(|window| *window < raw.max_position_embeddings)
    {
        return unsupported(format!("attention to the last {window} tokens only (sliding_window)"));
    }
    let mut rope_theta = raw.rope_theta;
    // `transformers` 5 writes `rope_parameters`, older versions `rope_scaling` and `rope_theta`.
    for rope in [&raw.rope_scaling, &raw.rope_parameters].into_iter().flatten() {
        let kind = rope.get("rope_type").or_else(|| rope.get("type"));
        // `rope_scaling` without a type, `{"factor": …}`, scales as well.
        let plain = match kind {
            Some(kind) => kind == "default",
            None => rope.get("factor").is_none(),
        };
        if !plain {
            return unsupported(format!("scaled rotary embeddings ({rope})"));
        }
        rope_theta = rope.get("rope_theta").and_then(Value::as_f64).or(rope_theta);
    }
    let heads = raw.num_attention_heads;
    let config = DecoderConfig {
        vocab: raw.vocab_size,
        hidden: raw.hidden_size,
        layers: raw.num_hidden_layers,
        heads,
        kv_heads: raw.num_key_value_heads.unwrap_or(heads),
        head_dim: raw.head_dim.unwrap_or(raw.hidden_size.checked_div(heads).unwrap_or(0)),
        ffn: raw.intermediate_size,
        experts: sparse.then(|| Experts {
            count: raw.num_local_experts.unwrap_or(8),
            top_k: raw.num_experts_per_tok.unwrap_or(2),
        }),
        context: raw.max_position_embeddings,
        // The defaults of `LlamaConfig` and `MixtralConfig`, which differ.
        rope_theta: rope_theta.unwrap_or(if sparse { 1e6 } else { 1e4 }),
        rms_norm_eps: raw.rms_norm_eps.unwrap_or(if sparse { 1e-5 } else { 1e-6 }),
        tied: raw.tie_word_embeddings,
    };
    config
        .check()
        .map_err(|e| GenerateError::malformed(path, e.to_string()))?;
    Ok(config)
}

/// The id that is put before every text: Llama's own tokenizers have one, Alice's have none.
fn begin(dir: &Path) -> Result<Option<u32>, GenerateError> {
    #[derive(Default, Deserialize)]
    struct TokenizerConfig {
        add_bos_token: Option<bool>,
        tokenizer_class: Option<String>,
    }
    let config: TokenizerConfig = read_json(&dir.join(TOKENIZER_CONFIG_FILE))?.unwrap_or_default();
    // `LlamaTokenizer` and `LlamaTokenizerFast` add it by default.
    let class_adds = config
        .tokenizer_class
        .is_some_and(|class| class.starts_with("LlamaTokenizer"));
    Ok(config.add_bos_token.unwrap_or(class_adds).then_some(BEGIN))
}

/// A JSON file of bounded size. `None` if it does not exist.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, GenerateError> {
    read_json_up_to(path, CONFIG_BYTES_MAX)
}

pub(crate) fn read_json_up_to<T: DeserializeOwned>(path: &Path, bytes_max: u64) -> Result<Option<T>, GenerateError> {
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(GenerateError::io("open", path))?,
    };
    // One byte more than allowed tells a file of the maximum size from a larger one.
    let mut bytes = Vec::new();
    let read = file.take(bytes_max + 1).read_to_end(&mut bytes);
    read.map_err(GenerateError::io("read", path))?;
    if bytes.len() as u64 > bytes_max {
        return Err(GenerateError::malformed(
            path,
            format!("it is larger than {bytes_max} bytes"),
        ));
    }
    if is_lfs_pointer(&bytes) {
        return Err(GenerateError::LfsPointer(path.to_path_buf()));
    }
    let value = serde_json::from_slice(&bytes).map_err(|e| GenerateError::malformed(path, e.to_string()))?;
    Ok(Some(value))
}
