//! `alice-ps export`: a run's weights for other programs, see [`alice_audit::commands::export`].
//!
//! From a parameter server the run is recomputed. From a data directory the weights of its newest epoch are written,
//! and they must have the root that the epoch's manifest names.

use crate::{PsError, commands::init, corpus, db::Db, error::FlagsError, files::Files, run_tokenizer};
use alice_api::{EpochManifest, Hex32, Outcome};
use alice_audit::commands::export::{self as library, Model, ModelOf, OutputArgs};
use alice_chain::Chain;
use alice_export::About;
use alice_spec::RunSpec;
use alice_store::{BlobStore, Master};
use clap::Args;
use std::path::{Path, PathBuf};

/// Flags of `export`.
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// Parameter server whose run is recomputed and exported
    #[arg(long, value_name = "URL", conflicts_with = "data", required_unless_present = "data")]
    pub ps: Option<String>,
    /// Data directory of a stopped parameter server: its newest epoch
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// File of the first state, for a run that names its root
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub start: Option<PathBuf>,
    /// Model, format and target
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Writes the weights and returns what is printed.
///
/// # Errors
/// The flags do not fit, a difference is found, or the weights cannot be read or written.
pub async fn run(args: &ExportArgs) -> Result<String, PsError> {
    let (output, start) = (&args.output, args.start.as_deref());
    if let Some(dir) = &args.data {
        // Before the chain is asked, and before the directory's lock: nothing must be made if no state is there.
        if !dir.join("state.sqlite").is_file() {
            return Err(PsError::NotInitialised(dir.clone()));
        }
    }
    let chain = library::prepare(output, start).await?;
    // Held until the file is written: a server that starts meanwhile would replace the weights.
    let _lock;
    let model = match (&args.ps, &args.data) {
        (_, Some(dir)) => {
            _lock = init::lock(dir)?;
            from_data(dir, output.epoch, chain.as_ref()).await?
        }
        (Some(url), None) => library::from_server(url, start, output, chain.as_ref()).await?,
        (None, None) => return Err(FlagsError::NoSource.into()),
    };
    Ok(library::finish(output, chain.as_ref(), model).await?)
}

/// Reads a data directory, which must be locked.
async fn from_data(dir: &Path, epoch: Option<ModelOf>, chain: Option<&Chain>) -> Result<Model, PsError> {
    let not_initialised = || PsError::NotInitialised(dir.to_path_buf());
    let files = Files::create(dir)?;
    let db = Db::open(&files.database()).await?;
    // The run as it was when the state was made: the specification's file may have changed since.
    let text = db.meta("run_text").await?;
    let text = text
        .and_then(|text| String::from_utf8(text).ok())
        .ok_or_else(not_initialised)?;
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
    let step = db.model_step().await?.ok_or_else(not_initialised)?;
    let mut summaries = db.epochs(u32::MAX, u32::MAX).await?;
    db.close().await;
    // Newest first from the database; tokens add up from the oldest on.
    summaries.reverse();
    let blobs = BlobStore::open(&files.blobs())?;
    let mut about = About::new(0);
    about.genesis_hash = Some(net.genesis);
    about.text = sources
        .and_then(|text| String::from_utf8(text).ok())
        .unwrap_or_default();
    let mut root = None;
    for summary in &summaries {
        let hash = summary.manifest_hash.0;
        let manifest: EpochManifest = serde_json::from_slice(&blobs.get(&hash).await?)
            .map_err(|e| PsError::file("read", &blobs.file(&hash), &e))?;
        let accepted = manifest.submissions.iter();
        let accepted = accepted.filter(|s| s.verdict.outcome == Outcome::Accepted).count();
        let loss = manifest.loss_after_nano_nats;
        library::add_epoch(&mut about, &net, manifest.epoch, accepted, loss, hash);
        root = Some(manifest.model_root.0);
    }
    check_epoch(dir, epoch, library::newest(&about))?;
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
        context: net,
        weights,
        work: None,
        about,
    })
}

/// A data directory holds the newest model and no others.
fn check_epoch(dir: &Path, wanted: Option<ModelOf>, newest: Option<u32>) -> Result<(), PsError> {
    let fits = match wanted {
        None => true,
        Some(ModelOf::First) => newest.is_none(),
        Some(ModelOf::Epoch(epoch)) => newest == Some(epoch),
    };
    match fits {
        true => Ok(()),
        false => Err(PsError::EpochNotKept {
            dir: dir.to_path_buf(),
            newest,
        }),
    }
}
