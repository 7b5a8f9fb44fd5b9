//! Descriptions of weights: `ALICE.json`, `config.json`, `generation_config.json` and the model card.

use crate::ExportError;
use alice_primitives::Hash;
use alice_spec::{RMS_NORM_EPSILON, RunSpec, TensorShape};
use alice_store::root_of;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Name of the file that lists the others.
pub const ALICE_FILE: &str = "ALICE.json";
/// Version of the folder's format. Raised when any derived file changes for the same run.
pub const FORMAT: &str = "alice-weights/2";

/// Number format of safetensors shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// The f32 weights themselves.
    F32,
}

impl Dtype {
    /// Bytes of a value.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// Name in safetensors headers.
    pub(crate) fn safetensors(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::F32 => "F32",
        }
    }

    /// Name in `config.json`.
    pub(crate) fn torch(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F32 => "float32",
        }
    }
}

/// One row of the loss curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossRow {
    /// Epoch.
    pub epoch: u32,
    /// Tokens trained up to its end.
    pub tokens: u64,
    /// Held-out loss after it, nats per token.
    pub loss: f64,
}

/// Origin of the weights. Unknown fields stay empty.
#[derive(Clone, Debug, PartialEq)]
pub struct About {
    /// Epoch whose model this is.
    pub epoch: u32,
    /// Tokens trained so far, over all accepted updates.
    pub tokens_trained: u64,
    /// Loss curve for the model card.
    pub losses: Vec<LossRow>,
    /// Genesis hash of the chain that recorded the run.
    pub genesis_hash: Option<Hash>,
    /// BLAKE3 of the epoch's manifest, which names the model root and is in the chain's commitment.
    pub manifest_hash: Option<Hash>,
    /// That the chain has finalised the epoch's commitment, which names the model root.
    pub chain_proof: Option<ChainProof>,
    /// SPDX identifier of the weights' licence, in Hugging Face's spelling, for example `apache-2.0`.
    pub license: String,
    /// One line about the text that was trained on and its licence, for the model card.
    pub text: String,
}

impl About {
    /// Weights of an epoch under Apache-2.0, with nothing else known.
    pub fn new(epoch: u32) -> Self {
        Self {
            epoch,
            tokens_trained: 0,
            losses: Vec::new(),
            genesis_hash: None,
            manifest_hash: None,
            chain_proof: None,
            license: "apache-2.0".into(),
            text: String::new(),
        }
    }

    /// Whether this is the state before all epochs. The model after epoch 0 has the same number, but a manifest.
    pub fn is_first_state(&self) -> bool {
        self.epoch == 0 && self.tokens_trained == 0 && self.manifest_hash.is_none() && self.losses.is_empty()
    }

    /// The model among those of its run, for people: `epoch 7`, or `first state`.
    pub(crate) fn model_name(&self) -> String {
        match self.is_first_state() {
            true => "first state".into(),
            false => format!("epoch {}", self.epoch),
        }
    }
}

/// Proof that the chain has finalised a commitment, as its node encodes it. This crate only carries it; `alice-chain`
/// checks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainProof {
    /// Header of a finalised block.
    #[serde(with = "hex::serde")]
    pub header: Vec<u8>,
    /// Nodes of the trie from the header's state root to the epoch's commitment.
    pub storage: Vec<HexBytes>,
    /// GRANDPA justification of the block.
    #[serde(with = "hex::serde")]
    pub justification: Vec<u8>,
}

/// Bytes, in hexadecimal where they are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HexBytes(#[serde(with = "hex::serde")] pub Vec<u8>);

/// Run of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRef {
    /// Its name.
    pub name: String,
    /// Hash of its specification.
    #[serde(with = "hex::serde")]
    pub hash: Hash,
}

/// One tensor of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// The shard that holds it.
    pub file: String,
    /// BLAKE3 of its f32 little-endian bytes: the content of the model root's leaf.
    #[serde(with = "hex::serde")]
    pub f32_blake3: Hash,
    /// BLAKE3 of its bytes in the shard.
    #[serde(with = "hex::serde")]
    pub stored_blake3: Hash,
}

/// One file of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of its bytes.
    #[serde(with = "hex::serde")]
    pub blake3: Hash,
}

/// The contents of `ALICE.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AliceFile {
    /// [`FORMAT`].
    pub format: String,
    /// `llama` or `mixtral`.
    pub architecture: String,
    /// Number format of the shards.
    pub dtype: Dtype,
    /// The run.
    pub run: RunRef,
    /// Epoch whose model this is.
    pub epoch: u32,
    /// Tokens trained so far.
    pub tokens_trained: u64,
    /// Genesis hash of the chain, if known.
    #[serde(with = "hex_option", default, skip_serializing_if = "Option::is_none")]
    pub genesis_hash: Option<Hash>,
    /// BLAKE3 of the epoch's manifest, if known.
    #[serde(with = "hex_option", default, skip_serializing_if = "Option::is_none")]
    pub manifest_hash: Option<Hash>,
    /// Proof that the chain has finalised the epoch's commitment, if the folder was made with a node at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain_proof: Option<ChainProof>,
    /// Root of the f32 weights.
    #[serde(with = "hex::serde")]
    pub model_root: Hash,
    /// All tensors in canonical order.
    pub tensors: Vec<TensorEntry>,
    /// All files but this one.
    pub files: BTreeMap<String, FileEntry>,
}

impl AliceFile {
    /// Reads an `ALICE.json`, without comparing it with anything; `path` is for the error.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, ExportError> {
        let bad = |e: serde_json::Error| ExportError::malformed(path, e.to_string());
        // Version and architecture first, so that a newer file is not called broken.
        #[derive(serde::Deserialize)]
        struct Head {
            format: String,
            architecture: String,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(bad)?;
        if head.format != FORMAT {
            return Err(ExportError::Unknown {
                what: "format",
                found: head.format,
                known: FORMAT,
            });
        }
        check_architecture(&head.architecture)?;
        serde_json::from_slice(bytes).map_err(bad)
    }

    /// The model root that the listed f32 hashes give.
    pub fn listed_root(&self) -> Hash {
        root_of(self.tensors.iter().map(|t| (&t.name, &t.shape, t.f32_blake3)))
    }
}

mod hex_option {
    use alice_primitives::Hash;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(hash: &Option<Hash>, s: S) -> Result<S::Ok, S::Error> {
        match hash {
            Some(hash) => s.serialize_str(&hex::encode(hash)),
            None => s.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Hash>, D::Error> {
        let Some(text) = Option::<String>::deserialize(d)? else {
            return Ok(None);
        };
        let mut hash = [0; 32];
        hex::decode_to_slice(text, &mut hash).map_err(D::Error::custom)?;
        Ok(Some(hash))
    }
}

/// The `config.json` of a run: everything `LlamaForCausalLM` or `MixtralForCausalLM` needs. `dtype` is the newer name
/// of `torch_dtype`.
pub fn config_json(spec: &RunSpec, dtype: Dtype) -> String {
    let m = &spec.model;
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": alice_tokenizer::BEGIN,
        "dtype": dtype.torch(),
        "eos_token_id": alice_tokenizer::END,
        "head_dim": m.hidden / m.heads.max(1),
        "hidden_act": "silu",
        "hidden_size": m.hidden,
        // As written in the run; alice-model draws its own first state.
        "initializer_range": f64::from(m.init_std_millionths) / 1e6,
        "intermediate_size": m.ffn,
        "max_position_embeddings": m.context,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": m.heads,
        "num_hidden_layers": m.layers,
        "num_key_value_heads": m.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": RMS_NORM_EPSILON,
        "rope_parameters": {"rope_theta": f64::from(m.rope_theta), "rope_type": "default"},
        "rope_scaling": null,
        "rope_theta": f64::from(m.rope_theta),
        "tie_word_embeddings": false,
        "torch_dtype": dtype.torch(),
        "use_cache": true,
        "vocab_size": m.vocab,
    });
    if let (Some(moe), Some(config)) = (&m.moe, config.as_object_mut()) {
        // Fields of `LlamaConfig` that `MixtralConfig` does not have.
        for of_llama in ["attention_bias", "mlp_bias", "pretraining_tp", "rope_scaling"] {
            config.remove(of_llama);
        }
        let of_mixtral = [
            ("architectures", json!(["MixtralForCausalLM"])),
            ("model_type", json!("mixtral")),
            ("num_experts_per_tok", json!(moe.top_k)),
            ("num_local_experts", json!(moe.experts)),
            ("output_router_logits", json!(false)),
            ("router_aux_loss_coef", json!(moe.router_aux_loss)),
            ("router_jitter_noise", json!(0.0)),
            ("sliding_window", json!(null)),
        ];
        config.extend(of_mixtral.map(|(key, value)| (key.to_owned(), value)));
    }
    format!("{config:#}\n")
}

/// Architecture in words, for the model card.
fn architecture(spec: &RunSpec) -> String {
    let m = &spec.model;
    let (family, feed_forward) = match &m.moe {
        None => ("Llama", format!("feed-forward {}", m.ffn)),
        Some(moe) => {
            let part = format!(
                "{} experts of width {} in each block, {} for each token",
                moe.experts, m.ffn, moe.top_k
            );
            ("Mixtral", part)
        }
    };
    format!(
        "{family}: {} blocks, width {}, {} heads ({} key/value), {feed_forward}",
        m.layers, m.hidden, m.heads, m.kv_heads
    )
}

/// Parameters in words, for the model card.
fn parameters(spec: &RunSpec) -> String {
    match (spec.parameters(), spec.active_parameters()) {
        (all, active) if all == active => all.to_string(),
        (all, active) => format!("{all}, of which {active} for each token"),
    }
}

/// The `generation_config.json` file.
pub fn generation_config_json() -> String {
    let config = json!({
        "bos_token_id": alice_tokenizer::BEGIN,
        "do_sample": true,
        "eos_token_id": alice_tokenizer::END,
        "temperature": 0.8,
        "top_p": 0.95,
    });
    format!("{config:#}\n")
}

/// The model card.
pub(crate) fn card(spec: &RunSpec, about: &About, dtype: Dtype, model_root: &Hash) -> String {
    let m = &spec.model;
    let hash = |hash: &Option<Hash>| hash.map_or("not given".into(), hex::encode);
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "---\nlicense: {license}\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- alice\n- {family}\n---\n\n\
         # Alice, run {name}, {model}\n\n\
         A language model trained in public from random weights by the Alice network: whoever trains sends what they\n\
         learned, everybody can recompute every step.\n\n\
         | | |\n|---|---|\n\
         | run | `{name}` |\n| run hash | `{run_hash}` |\n| {epoch_row} |\n| tokens trained | {tokens} |\n\
         | parameters | {parameters} |\n\
         | architecture | {architecture} |\n\
         | context | {context} tokens |\n| vocabulary | {vocab} |\n| numbers | {dtype} |\n\
         | model root | `{root}` |\n| chain genesis | `{genesis}` |\n| epoch manifest | `{manifest}` |\n\
         | training text | `{corpus}` |\n| validation reserve | `{reserve}` |\n| tokenizer | `{tokenizer}` |\n\
         | licence of the weights | {license} |\n",
        license = about.license,
        family = m.architecture,
        name = spec.name,
        model = about.model_name(),
        epoch_row = match about.is_first_state() {
            true => "model | first state, before all epochs".into(),
            false => format!("epoch | {}", about.epoch),
        },
        run_hash = hex::encode(spec.run_hash()),
        tokens = about.tokens_trained,
        parameters = parameters(spec),
        architecture = architecture(spec),
        context = m.context,
        vocab = m.vocab,
        dtype = dtype.torch(),
        root = hex::encode(model_root),
        genesis = hash(&about.genesis_hash),
        manifest = hash(&about.manifest_hash),
        corpus = hex::encode(spec.corpus_root()),
        reserve = hex::encode(spec.reserve_root()),
        tokenizer = spec.data.tokenizer,
    );
    if !about.text.is_empty() {
        let _ = write!(out, "\nText, as who built the corpus describes it: {}\n", about.text);
    }
    if !about.losses.is_empty() {
        out += "\n## Held-out loss\n\n| epoch | tokens | loss, nats a token |\n|---|---|---|\n";
        for row in &about.losses {
            let _ = writeln!(out, "| {} | {} | {:.4} |", row.epoch, row.tokens, row.loss);
        }
    }
    let special = "No begin token is put before a text: the model was trained on documents that each end with `</s>`.";
    let _ = write!(
        out,
        "\n## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
         tokenizer = AutoTokenizer.from_pretrained(\"this/folder\")\n\
         model = AutoModelForCausalLM.from_pretrained(\"this/folder\")\n\
         ids = tokenizer(\"The\", return_tensors=\"pt\")\n\
         print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0]))\n```\n\n{special}\n\
         It was not trained to follow instructions, and nobody filtered what it may say.\n\n\
         `{ALICE_FILE}` lists the BLAKE3 of every file and tensor, and says how the model root follows from them.\n"
    );
    out
}

/// The run's tensors, after checks of architecture, tokenizer and description.
pub(crate) fn checked(
    spec: &RunSpec,
    tokenizer: &alice_tokenizer::Tokenizer,
    about: &About,
) -> Result<Vec<TensorShape>, crate::ExportError> {
    let all = tensors(spec)?;
    check_tokenizer(spec, tokenizer)?;
    check_about(about)?;
    Ok(all)
}

/// Refuses an architecture that this program cannot write.
pub(crate) fn check_architecture(found: &str) -> Result<(), crate::ExportError> {
    match found {
        "llama" | "mixtral" => Ok(()),
        other => Err(crate::ExportError::Unknown {
            what: "architecture",
            found: other.to_owned(),
            known: "'llama' and 'mixtral'",
        }),
    }
}

/// A run's tensors, if the program can write its architecture.
fn tensors(spec: &RunSpec) -> Result<Vec<TensorShape>, crate::ExportError> {
    check_architecture(&spec.model.architecture)?;
    Ok(spec.tensors())
}

/// Refuses a tokenizer that is not the run's.
pub(crate) fn check_tokenizer(
    spec: &RunSpec,
    tokenizer: &alice_tokenizer::Tokenizer,
) -> Result<(), crate::ExportError> {
    let problem = if tokenizer.vocab() != spec.model.vocab {
        format!(
            "it has {} ids, the model has {} rows; give the tokenizer of the run",
            tokenizer.vocab(),
            spec.model.vocab
        )
    } else if let Some(problem) = spec.tokenizer_problem(&tokenizer.spec_name(), tokenizer.vocab()) {
        problem
    } else {
        return Ok(());
    };
    Err(crate::ExportError::Tokenizer {
        run: spec.name.clone(),
        problem,
    })
}

/// Refuses text that would break the card's front matter or its tables.
fn check_about(about: &About) -> Result<(), crate::ExportError> {
    let option = |option, problem: &str| {
        Err(crate::ExportError::Option {
            option,
            problem: problem.into(),
        })
    };
    // The licence goes into the card's YAML, where quotes or line breaks would end the field.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    if about.license.is_empty() || about.license.len() > 64 || !about.license.chars().all(plain) {
        return option(
            "license",
            "1 to 64 letters, digits, '-' and '.', for example apache-2.0",
        );
    }
    // The text goes into Markdown as one paragraph.
    if about.text.len() > 4096 || about.text.chars().any(char::is_control) {
        return option("text", "one line of at most 4096 bytes");
    }
    if about.losses.iter().any(|row| !row.loss.is_finite()) {
        return option("losses", "a loss is no number");
    }
    Ok(())
}
