//! `alice-ps export`: a model's weights for other programs.
//!
//! From a parameter server nothing is taken on trust: the run is recomputed from its first state by the code of
//! [`crate::commands::audit`], and the result is what is written. From a data directory the weights of its newest epoch are
//! written, and they must have the root that the epoch's manifest names.

use crate::{
    PsError,
    cli::to_json,
    commands::audit,
    commands::chain_proof::{self, Claim},
    commands::init,
    corpus,
    db::Db,
    files::Files,
    run_context::Network,
    run_tokenizer,
};
use alice_api::{Client, EpochManifest, Hex32, Outcome};
use alice_chain::Chain;
use alice_export::{
    About, Dtype, GgufOptions, GgufType, HfOptions, LossRow, Progress, SHARD_BYTES, ThetaSlice, export_gguf, export_hf,
};
use alice_primitives::Hash;
use alice_spec::RunSpec;
use alice_store::{BlobStore, Master};
use alice_tokenizer::Tokenizer;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Flags of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Parameter server whose run is recomputed and exported
    #[arg(long, value_name = "URL", conflicts_with = "data", required_unless_present = "data")]
    pub ps: Option<String>,
    /// Data directory of a stopped parameter server: its newest epoch
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// A node's WebSocket: the manifests must be those that were signed, and ALICE.json gets the proof of it
    #[arg(long, value_name = "WS_URL")]
    pub chain: Option<String>,
    /// File of the first state, for a run that names its root
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub start: Option<PathBuf>,
    /// Epoch after which the model is taken, or `first` for the state before all epochs [default: the last that is
    /// scored]
    #[arg(long, value_name = "EPOCH")]
    pub epoch: Option<Which>,
    /// What to write
    #[arg(long, value_enum, default_value = "hf")]
    pub format: Format,
    /// Numbers of the matrices; q8_0 only in GGUF
    #[arg(long = "type", value_enum, default_value = "bf16")]
    pub kind: Kind,
    /// Folder (hf) or file (gguf) to make; it must not exist
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// Which of a run's models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The state before all epochs.
    First,
    /// The one after an epoch.
    After(u32),
}

impl std::str::FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "first" => Ok(Self::First),
            number => number
                .parse()
                .map(Self::After)
                .map_err(|_| "give the number of an epoch, or 'first'".into()),
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

/// Numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The weights themselves
    F32,
    /// bfloat16, half the size
    Bf16,
    /// Blocks of 32 numbers of 8 bits with one scale
    #[value(name = "q8_0")]
    Q8_0,
}

/// A model and what is known about it.
struct Model {
    net: Network,
    weights: Master,
    /// Folder of recomputed weights, for as long as they are needed.
    _replayed: Option<TempDir>,
    tokenizer: Tokenizer,
    about: About,
}

/// Summary for programs.
#[derive(Serialize)]
struct Exported {
    out: String,
    format: Format,
    r#type: Kind,
    run: String,
    run_hash: Hex32,
    epoch: u32,
    tokens_trained: u64,
    model_root: Hex32,
    bytes: u64,
    /// BLAKE3 of `ALICE.json` (hf) or of the file (gguf).
    blake3: Hex32,
}

/// Does what the flags say and returns what is printed.
pub async fn run(args: &ExportArgs) -> Result<String, PsError> {
    if args.format == Format::Hf && args.kind == Kind::Q8_0 {
        return Err(PsError::Setting(
            "--type q8_0 is a type of GGUF files; use --format gguf, or --type bf16 or f32".into(),
        ));
    }
    if args.out.exists() {
        // Before the run is recomputed, which can take hours.
        return Err(alice_export::ExportError::TargetExists(args.out.clone()).into());
    }
    let chain = match args.chain.as_deref() {
        Some(url) => Some(Chain::connect(url).await?),
        None => None,
    };
    // Held until the file is written: a server that starts meanwhile would replace the weights.
    let _lock;
    let mut model = match (&args.ps, &args.data) {
        (_, Some(dir)) => {
            // Nothing is made where no state is.
            if !dir.join("state.sqlite").is_file() {
                return Err(PsError::NotInitialised(dir.clone()));
            }
            _lock = init::lock(dir)?;
            from_data(dir, args.epoch, chain.as_ref()).await?
        }
        (Some(url), None) => from_server(url, args, chain.as_ref()).await?,
        (None, None) => return Err(PsError::Setting("give --ps URL or --data DIR".into())),
    };
    if let (Some(chain), Some(epoch), Format::Hf) = (&chain, newest(&model.about), args.format) {
        let claim = Claim {
            epoch,
            run_hash: model.net.run_hash,
            model_root: model.weights.root(),
            manifest_hash: model.about.manifest_hash,
        };
        model.about.chain_proof = chain_proof::fetch(chain, &claim).await?;
    }
    tokio::task::block_in_place(|| write(args, model))
}

/// Recomputes the run up to an epoch.
async fn from_server(url: &str, args: &ExportArgs, chain: Option<&Chain>) -> Result<Model, PsError> {
    let (epoch, start) = (args.epoch, args.start.as_deref());
    let client = Client::new(url)?;
    if let Some(Which::After(epoch)) = epoch
        && let Err(error) = client.epoch(epoch).await
    {
        return Err(match error.code().map(|code| code.code()) {
            Some("not_found") => not_scored(epoch, "see GET /v1/epochs for the epochs that are"),
            _ => error.into(),
        });
    }
    let mut history: Vec<audit::EpochAudit> = Vec::new();
    let mut report = |found: &audit::EpochAudit| {
        eprintln!("recomputed epoch {}: model {}", found.epoch, found.model_root);
        history.push(found.clone());
    };
    // Beside what is made of them: the system's temporary folder may lie in memory.
    let beside = args.out.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = beside {
        std::fs::create_dir_all(parent).map_err(|e| PsError::file("make", parent, &e))?;
    }
    let source = audit::Source {
        client: &client,
        chain,
        start,
        work: Some(beside.unwrap_or(Path::new("."))),
    };
    // Asked before the hours of work, for the card only.
    let text = corpus::described(&client.corpus().await?.sources);
    let replayed = match epoch {
        Some(Which::First) => audit::first_state(source).await?,
        Some(Which::After(epoch)) => audit::audit(source, epoch, &mut report).await?,
        None => audit::audit(source, u32::MAX, &mut report).await?,
    };
    let task_tokens = replayed.net.spec.cost().task_tokens;
    let mut about = About::new(0);
    about.genesis_hash = Some(replayed.net.genesis);
    about.text = text;
    for found in &history {
        add_epoch(
            &mut about,
            found.epoch,
            found.accepted,
            task_tokens,
            found.loss_after_nano_nats,
            found.manifest_hash.0,
        );
    }
    if let Some(Which::After(epoch)) = epoch
        && Some(epoch) != newest(&about)
    {
        return Err(not_scored(epoch, "the server's list of epochs does not have it"));
    }
    Ok(Model {
        tokenizer: run_tokenizer::from_server(&replayed.net.spec, &client).await?,
        net: replayed.net,
        weights: replayed.theta,
        _replayed: Some(replayed.work),
        about,
    })
}

/// Reads a data directory, which must be locked.
async fn from_data(dir: &Path, epoch: Option<Which>, chain: Option<&Chain>) -> Result<Model, PsError> {
    let files = Files::create(dir)?;
    let db = Db::open(&files.database()).await?;
    let text = db
        .meta("run_text")
        .await?
        .and_then(|text| String::from_utf8(text).ok())
        .ok_or_else(|| PsError::NotInitialised(dir.to_path_buf()))?;
    let sources = db.meta(corpus::META).await?;
    db.close().await;
    let spec = RunSpec::parse(&text).map_err(|source| PsError::Spec {
        path: files.database(),
        source,
    })?;
    let (net, files, db) = init::open_state(dir, text, spec).await?;
    if let Some(chain) = chain.filter(|chain| chain.genesis_hash() != net.genesis) {
        return Err(PsError::Mismatch {
            what: "the chain's genesis",
            found: Hex32(chain.genesis_hash()).to_string(),
            expected: Hex32(net.genesis).to_string(),
            hint: "--chain leads to another network than --data is of",
        });
    }
    let step = db
        .model_step()
        .await?
        .ok_or_else(|| PsError::NotInitialised(dir.to_path_buf()))?;
    let mut summaries = db.epochs(u32::MAX, u32::MAX).await?;
    db.close().await;
    summaries.reverse();
    let blobs = BlobStore::open(&files.blobs())?;
    let task_tokens = net.spec.cost().task_tokens;
    let mut about = About::new(0);
    about.genesis_hash = Some(net.genesis);
    about.text = sources
        .and_then(|text| String::from_utf8(text).ok())
        .unwrap_or_default();
    let mut root = None;
    for summary in &summaries {
        let bytes = blobs.get(&summary.manifest_hash.0).await?;
        let manifest: EpochManifest = serde_json::from_slice(&bytes)
            .map_err(|e| PsError::file("read", &blobs.file(&summary.manifest_hash.0), &e))?;
        let accepted = manifest.submissions.iter();
        let accepted = accepted.filter(|s| s.verdict.outcome == Outcome::Accepted).count();
        add_epoch(
            &mut about,
            manifest.epoch,
            accepted,
            task_tokens,
            manifest.loss_after_nano_nats,
            summary.manifest_hash.0,
        );
        root = Some(manifest.model_root.0);
    }
    let fits = match epoch {
        None => true,
        Some(Which::First) => newest(&about).is_none(),
        Some(Which::After(epoch)) => newest(&about) == Some(epoch),
    };
    if !fits {
        let held = newest(&about).map_or("the first state".into(), |epoch| {
            format!("the weights after epoch {epoch}")
        });
        return Err(PsError::Setting(format!(
            "{} holds {held} and no others; leave --epoch out for those, or recompute others with --ps URL",
            dir.display()
        )));
    }
    if let Some(root) = root.filter(|root| *root != step.root) {
        return Err(PsError::Mismatch {
            what: "the model root of the data directory",
            found: Hex32(step.root).to_string(),
            expected: Hex32(root).to_string(),
            hint: "the newest manifest names another model: the directory is damaged; export with --ps URL",
        });
    }
    let path = files.theta();
    let weights = tokio::task::block_in_place(|| Master::open_at(&path, &net.tensors, &step.root, &mut |_, _| ()))?;
    Ok(Model {
        tokenizer: run_tokenizer::from_blobs(&net.spec, &blobs).await?,
        net,
        weights,
        _replayed: None,
        about,
    })
}

/// The newest epoch; none for the first state.
fn newest(about: &About) -> Option<u32> {
    about.losses.last().map(|row| row.epoch)
}

fn not_scored(epoch: u32, hint: &str) -> PsError {
    PsError::Setting(format!(
        "epoch {epoch} is not scored; {hint}, or leave --epoch out for the last one"
    ))
}

fn add_epoch(about: &mut About, epoch: u32, accepted: usize, task_tokens: u64, loss_nano_nats: i64, manifest: Hash) {
    about.epoch = epoch;
    about.tokens_trained = about
        .tokens_trained
        .saturating_add(task_tokens.saturating_mul(accepted as u64));
    about.manifest_hash = Some(manifest);
    about.losses.push(LossRow {
        epoch,
        tokens: about.tokens_trained,
        loss: loss_nano_nats as f64 / 1e9,
    });
}

fn write(args: &ExportArgs, model: Model) -> Result<String, PsError> {
    let spec = &model.net.spec;
    let root = model.weights.root();
    let mut weights = ThetaSlice::new(&model.net.tensors, model.weights.theta())?;
    let (epoch, tokens_trained) = (model.about.epoch, model.about.tokens_trained);
    let mut progress = percent("written");
    let (bytes, blake3) = match args.format {
        Format::Hf => {
            let options = HfOptions {
                dtype: match args.kind {
                    Kind::F32 => Dtype::F32,
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
                kind: match args.kind {
                    Kind::F32 => GgufType::F32,
                    Kind::Bf16 => GgufType::Bf16,
                    Kind::Q8_0 => GgufType::Q8_0,
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
        r#type: args.kind,
        run: spec.name.clone(),
        run_hash: Hex32(model.net.run_hash),
        epoch,
        tokens_trained,
        model_root: Hex32(root),
        bytes,
        blake3: Hex32(blake3),
    };
    if args.json {
        return to_json(&done);
    }
    let of = match args.format {
        Format::Hf => "ALICE.json",
        Format::Gguf => "the file",
    };
    Ok(format!(
        "run {}, epoch {epoch}, {tokens_trained} tokens trained: {} ({bytes} bytes)\n  model root  {}\n  \
         BLAKE3 of {of}  {}\n",
        done.run, done.out, done.model_root, done.blake3
    ))
}

/// Says on stderr how far it is, each tenth.
pub(crate) fn percent(what: &'static str) -> impl FnMut(Progress) {
    let mut said = 0;
    move |at: Progress| {
        let tenths = u128::from(at.done_bytes) * 10 / u128::from(at.total_bytes.max(1));
        if tenths > said {
            said = tenths;
            eprintln!("{what} {} %", tenths * 10);
        }
    }
}
