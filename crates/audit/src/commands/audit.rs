//! `audit`: recomputes a run and reports every epoch.

use crate::{
    AuditError,
    replay::{self, EpochAudit, Source},
};
use alice_api::{Client, Hex32};
use alice_chain::Chain;
use alice_program::output;
use clap::Args;
use std::path::PathBuf;

/// Flags of `audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Parameter server whose run is checked
    #[arg(long, value_name = "URL")]
    pub ps: String,
    /// A node's WebSocket: the manifests must be those that were signed, and the pay their shares
    #[arg(long, value_name = "WS_URL")]
    pub chain: Option<String>,
    /// File of the first state, for a run that names its root
    #[arg(long, value_name = "FILE")]
    pub start: Option<PathBuf>,
    /// Folder for the weights meanwhile, 4 bytes a parameter [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// Last epoch to check [default: all that are scored]
    #[arg(long, value_name = "EPOCH", default_value_t = u32::MAX, hide_default_value = true)]
    pub until: u32,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// Recomputes the run and prints one line for each epoch.
///
/// # Errors
/// The first difference, or whatever keeps the run from being recomputed.
pub async fn run(args: &AuditArgs) -> Result<(), AuditError> {
    // Local mistakes first: nobody should wait for a server to hear that a file does not exist.
    let client = Client::new(&args.ps)?;
    replay::check_paths(args.start.as_deref(), args.work.as_deref())?;
    let chain = match &args.chain {
        Some(url) => Some(Chain::connect(url).await?),
        None => None,
    };
    let source = Source {
        client: &client,
        chain: chain.as_ref(),
        start: args.start.as_deref(),
        work: args.work.as_deref(),
    };
    let mut checked = 0u32;
    // The exit code says whether the run is as published, so a reader that has closed the pipe must not end the check.
    let mut printed = Ok(());
    let mut report = |found: &EpochAudit| {
        checked += 1;
        if printed.is_ok() {
            printed = output::print_while_read(&(line(found, args.json) + "\n"));
        }
    };
    let root = Hex32(replay::audit(source, args.until, &mut report).await?.theta.root());
    if !args.json && printed.is_ok() {
        printed = output::print_while_read(&format!(
            "{checked} epochs recomputed, all as published; model root {root}\n"
        ));
    }
    printed.map_err(AuditError::Print)
}

fn line(found: &EpochAudit, json: bool) -> String {
    if json {
        // A struct of numbers and strings has a form in JSON.
        return serde_json::to_string(found).unwrap_or_default();
    }
    format!(
        "epoch {:<6} {} of {} accepted  model {}  chain {}",
        found.epoch,
        found.accepted,
        found.submissions,
        found.model_root,
        found.chain.as_deref().unwrap_or("not asked")
    )
}
