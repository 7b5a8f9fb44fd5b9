//! `export`: a run's weights as a Hugging Face folder or a GGUF file.
//!
//! Nothing that the server publishes about the weights is believed: the run is recomputed from its first state by
//! [`crate::replay`], and the result is what is written.

use super::{percent, to_json};
use crate::{
    AuditError, RunContext,
    chain_proof::{self, Claim},
    replay::{self, EpochAudit, Source},
    tokenizer,
};
use alice_api::{Client, Hex32, TextSource};
use alice_chain::Chain;
use alice_export::{
    About, Dtype, ExportError, GgufOptions, GgufType, HfOptions, LossRow, SHARD_BYTES, ThetaSlice, export_gguf,
    export_hf,
};
use alice_primitives::Hash;
use alice_store::Master;
use alice_tokenizer::Tokenizer;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Maximum length of [`describe_texts`], bytes, less the words at its end: a model card takes 4,096.
const TEXTS_BYTES_MAX: usize = 4000;

/// Flags of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Parameter server whose run is recomputed and exported
    #[arg(long, value_name = "URL")]
    pub ps: String,
    /// File of the first state, for a run that names its root
    #[arg(long, value_name = "FILE")]
    pub start: Option<PathBuf>,
    /// Model, format and target
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Flags that do not depend on the source of the weights.
#[derive(Clone, Debug, Args)]
pub struct OutputArgs {
    /// A node's WebSocket: the manifests must be those that were signed, and ALICE.json gets the proof of it
    #[arg(long, value_name = "WS_URL")]
    pub chain: Option<String>,
    /// Epoch after which the model is taken, or `first` for the state before all epochs [default: the last that is
    /// scored]
    #[arg(long, value_name = "EPOCH")]
    pub epoch: Option<ModelOf>,
    /// Format to write
    #[arg(long, value_enum, default_value = "hf")]
    pub format: Format,
    /// Numbers of the matrices; q8_0 only in GGUF
    #[arg(long = "type", value_enum, default_value = "bf16")]
    pub numbers: Numbers,
    /// Folder (hf) or file (gguf) to make; it must not exist
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// One of a run's models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelOf {
    /// The state before all epochs.
    First,
    /// The one after an epoch.
    Epoch(u32),
}

impl std::str::FromStr for ModelOf {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "first" => Ok(Self::First),
            number => number
                .parse()
                .map(Self::Epoch)
                .map_err(|_| "give the number of an epoch, or 'first'"),
        }
    }
}

/// Formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Hugging Face folder: transformers, vLLM and what reads safetensors
    Hf,
    /// GGUF file: llama.cpp and what is built on it
    Gguf,
}

/// Types of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Numbers {
    /// The weights themselves
    F32,
    /// bfloat16, half the size
    Bf16,
    /// Blocks of 32 numbers of 8 bits with one scale
    #[value(name = "q8_0")]
    Q8_0,
}

/// A model, and what its files say about it.
#[derive(Debug)]
pub struct Model {
    /// Network and run.
    pub context: RunContext,
    /// The weights.
    pub weights: Master,
    /// Folder of recomputed weights, kept until they are written.
    pub work: Option<TempDir>,
    /// The run's tokenizer.
    pub tokenizer: Tokenizer,
    /// Provenance, for `ALICE.json` and the model card.
    pub about: About,
}

/// Summary for programs.
#[derive(Serialize)]
struct Exported {
    out: String,
    format: Format,
    r#type: Numbers,
    run: String,
    run_hash: Hex32,
    epoch: u32,
    tokens_trained: u64,
    model_root: Hex32,
    bytes: u64,
    /// BLAKE3 of `ALICE.json` (hf) or of the file (gguf).
    blake3: Hex32,
}

/// Recomputes the run and writes the weights; returns what is printed.
///
/// # Errors
/// The flags do not fit, a difference is found, or the weights cannot be written.
pub async fn run(args: &ExportArgs) -> Result<String, AuditError> {
    let chain = prepare(&args.output, args.start.as_deref()).await?;
    let model = from_server(&args.ps, args.start.as_deref(), &args.output, chain.as_ref()).await?;
    finish(&args.output, chain.as_ref(), model).await
}

/// Checks the flags and connects to the chain if one is named. Everything that can be refused is refused here, before
/// the hours in which a run is recomputed.
///
/// # Errors
/// The flags do not fit, the target exists, or the chain cannot be reached.
pub async fn prepare(args: &OutputArgs, start: Option<&Path>) -> Result<Option<Chain>, AuditError> {
    if args.format == Format::Hf && args.numbers == Numbers::Q8_0 {
        return Err(AuditError::TypeOfGguf);
    }
    // Never over something: the weights of another epoch under this name would be gone.
    if args.out.exists() {
        return Err(ExportError::TargetExists(args.out.clone()).into());
    }
    replay::check_paths(start, None)?;
    match args.chain.as_deref() {
        Some(url) => Ok(Some(Chain::connect(url).await?)),
        None => Ok(None),
    }
}

/// Fetches the chain proof if there is a chain, and writes the weights; returns what is printed.
///
/// # Errors
/// The quorum signed another model, or the weights cannot be written.
pub async fn finish(args: &OutputArgs, chain: Option<&Chain>, mut model: Model) -> Result<String, AuditError> {
    // The first state has no commitment, and a GGUF file no place for a proof.
    if let (Some(chain), Some(epoch), Format::Hf) = (chain, newest(&model.about), args.format) {
        let claim = Claim {
            epoch,
            run_hash: model.context.run_hash,
            // The root that was computed here: a claim made of the server's numbers would only show that the server
            // agrees with the quorum.
            model_root: model.weights.root(),
            manifest_hash: model.about.manifest_hash,
        };
        model.about.chain_proof = chain_proof::fetch(chain, &claim).await?;
    }
    tokio::task::block_in_place(|| write(args, model))
}

/// Recomputes the run up to an epoch.
///
/// # Errors
/// The epoch is not scored, the server does not answer, or a difference is found.
pub async fn from_server(
    url: &str,
    start: Option<&Path>,
    args: &OutputArgs,
    chain: Option<&Chain>,
) -> Result<Model, AuditError> {
    let client = Client::new(url)?;
    if let Some(ModelOf::Epoch(epoch)) = args.epoch
        && let Err(error) = client.epoch(epoch).await
    {
        let hint = "see GET /v1/epochs for the epochs that are";
        return Err(match error.code().map(|code| code.code()) {
            Some("not_found") => AuditError::NotScored { epoch, hint },
            _ => error.into(),
        });
    }
    let mut history: Vec<EpochAudit> = Vec::new();
    let mut report = |found: &EpochAudit| {
        eprintln!("recomputed epoch {}: model {}", found.epoch, found.model_root);
        history.push(found.clone());
    };
    // In the folder of the target, and not in the system's temporary folder, which may be in memory.
    let parent = args.out.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        std::fs::create_dir_all(parent).map_err(|e| AuditError::file("make", parent, e))?;
    }
    let source = Source {
        client: &client,
        chain,
        start,
        work: Some(parent.unwrap_or(Path::new("."))),
    };
    // Asked before the hours of work, though it is for the card only.
    let text = describe_texts(&client.corpus().await?.sources);
    let replayed = match args.epoch {
        Some(ModelOf::First) => replay::first_state(source).await?,
        Some(ModelOf::Epoch(epoch)) => replay::audit(source, epoch, &mut report).await?,
        None => replay::audit(source, u32::MAX, &mut report).await?,
    };
    let mut about = About::new(0);
    about.genesis_hash = Some(replayed.context.genesis);
    about.text = text;
    for found in &history {
        let manifest = found.manifest_hash.0;
        let loss = found.loss_after_nano_nats;
        add_epoch(
            &mut about,
            &replayed.context,
            found.epoch,
            found.accepted,
            loss,
            manifest,
        );
    }
    // The epoch was there when it was asked for; a list without it contradicts that.
    if let Some(ModelOf::Epoch(epoch)) = args.epoch
        && Some(epoch) != newest(&about)
    {
        let hint = "the server's list of epochs does not have it";
        return Err(AuditError::NotScored { epoch, hint });
    }
    Ok(Model {
        tokenizer: tokenizer::from_server(&replayed.context.spec, &client).await?,
        context: replayed.context,
        weights: replayed.theta,
        work: Some(replayed.work),
        about,
    })
}

/// The newest epoch that a model was trained in; `None` for the first state.
pub fn newest(about: &About) -> Option<u32> {
    about.losses.last().map(|row| row.epoch)
}

/// Adds an epoch to a model's history: its accepted updates, its loss in nano-nats per token, and its manifest.
pub fn add_epoch(
    about: &mut About,
    context: &RunContext,
    epoch: u32,
    accepted: usize,
    loss_nano_nats: i64,
    manifest: Hash,
) {
    let tokens = context.spec.cost().task_tokens.saturating_mul(accepted as u64);
    about.epoch = epoch;
    // Numbers for the model card: a server that publishes absurd ones must not end the export with an overflow.
    about.tokens_trained = about.tokens_trained.saturating_add(tokens);
    about.manifest_hash = Some(manifest);
    about.losses.push(LossRow {
        epoch,
        tokens: about.tokens_trained,
        loss: loss_nano_nats as f64 / 1e9,
    });
}

/// One line for a model card: names and licences of the texts, as given by whoever built the corpus. Empty without
/// texts.
pub fn describe_texts(sources: &[TextSource]) -> String {
    // A card is Markdown with a table: a control character of a stranger could end its line.
    let plain = |text: &str| text.replace(char::is_control, " ");
    let mut line = String::new();
    for source in sources.iter().filter(|source| source.documents > 0) {
        let url = source.url.as_deref().map_or(String::new(), |url| format!(", {url}"));
        let next = plain(&format!("{} ({}{url})", source.name, source.license));
        if line.len() + next.len() > TEXTS_BYTES_MAX {
            line += ", and others";
            break;
        }
        if !line.is_empty() {
            line += ", ";
        }
        line += &next;
    }
    line
}

fn write(args: &OutputArgs, model: Model) -> Result<String, AuditError> {
    let spec = &model.context.spec;
    let root = model.weights.root();
    let mut weights = ThetaSlice::new(&model.context.tensors, model.weights.theta())?;
    let (epoch, tokens_trained, is_first) = (
        model.about.epoch,
        model.about.tokens_trained,
        newest(&model.about).is_none(),
    );
    let mut progress = percent("written");
    let (bytes, blake3) = match args.format {
        Format::Hf => {
            let options = HfOptions {
                dtype: match args.numbers {
                    Numbers::F32 => Dtype::F32,
                    _ => Dtype::Bf16,
                },
                shard_bytes: SHARD_BYTES,
                about: model.about,
                model_root: Some(root),
            };
            let done = export_hf(&args.out, spec, &model.tokenizer, &mut weights, &options, &mut progress)?;
            (done.bytes, done.alice_hash)
        }
        Format::Gguf => {
            let options = GgufOptions {
                kind: match args.numbers {
                    Numbers::F32 => GgufType::F32,
                    Numbers::Bf16 => GgufType::Bf16,
                    Numbers::Q8_0 => GgufType::Q8_0,
                },
                about: model.about,
                model_root: root,
            };
            let done = export_gguf(&args.out, spec, &model.tokenizer, &mut weights, &options, &mut progress)?;
            (done.bytes, done.blake3)
        }
    };
    let done = Exported {
        out: args.out.display().to_string(),
        format: args.format,
        r#type: args.numbers,
        run: spec.name.clone(),
        run_hash: Hex32(model.context.run_hash),
        epoch,
        tokens_trained,
        model_root: Hex32(root),
        bytes,
        blake3: Hex32(blake3),
    };
    match args.json {
        true => to_json(&done),
        false => Ok(describe(&done, is_first)),
    }
}

/// `is_first` tells the state before all epochs from the model after epoch 0: both have the number 0.
fn describe(done: &Exported, is_first: bool) -> String {
    let of = match done.format {
        Format::Hf => "ALICE.json",
        Format::Gguf => "the file",
    };
    let model = match is_first {
        true => "the first state, before all epochs".to_owned(),
        false => format!("epoch {}, {} tokens trained", done.epoch, done.tokens_trained),
    };
    format!(
        "run {}, {model}: {} ({} bytes)\n  model root  {}\n  BLAKE3 of {of}  {}\n",
        done.run, done.out, done.bytes, done.model_root, done.blake3
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_state_should_not_be_called_by_an_epochs_number() {
        let mut done = Exported {
            out: "alice".into(),
            format: Format::Hf,
            r#type: Numbers::Bf16,
            run: "tiny".into(),
            run_hash: Hex32([1; 32]),
            epoch: 0,
            tokens_trained: 0,
            model_root: Hex32([2; 32]),
            bytes: 5,
            blake3: Hex32([3; 32]),
        };
        let first = describe(&done, true);
        assert!(
            first.starts_with("run tiny, the first state, before all epochs: alice"),
            "{first}"
        );
        assert!(!first.contains("epoch 0"), "{first}");
        done.tokens_trained = 7;
        let epoch = describe(&done, false);
        assert!(
            epoch.starts_with("run tiny, epoch 0, 7 tokens trained: alice (5 bytes)"),
            "{epoch}"
        );
    }

    fn source(name: &str, url: Option<&str>, documents: u64) -> TextSource {
        TextSource {
            name: name.into(),
            license: "CC0-1.0".into(),
            url: url.map(Into::into),
            documents,
            bytes: 1,
        }
    }

    #[test]
    fn a_cards_line_should_name_texts_and_licences_and_end() {
        assert_eq!(describe_texts(&[]), "");
        let two = [
            source("a", Some("https://example.org"), 1),
            source("none of it", None, 0),
            source("b\nc", None, 2),
        ];
        assert_eq!(describe_texts(&two), "a (CC0-1.0, https://example.org), b c (CC0-1.0)");
        let many: Vec<_> = (0..1000).map(|n| source(&format!("source {n}"), None, 1)).collect();
        let line = describe_texts(&many);
        assert!(line.len() <= 4096 && line.ends_with(", and others"), "{}", line.len());
    }
}
