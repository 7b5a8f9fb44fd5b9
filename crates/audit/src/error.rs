//! Why a command ended, and with which exit code.

use alice_api::{ClientError, Hex32, ss58::Ss58Error};
use alice_chain::{ChainError, proof::ProofError};
use alice_export::ExportError;
use alice_program::{exit, system};
use alice_spec::SpecError;
use alice_store::StoreError;
use alice_tokenizer::TokenizerError;
use alice_update::DecodeError;
use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a command ended.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A file or folder.
    #[error("cannot {action} {}: {}", .path.display(), system::reason(source))]
    File {
        /// Attempted action.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A run specification that is not valid.
    #[error("{}: {source}", .path.display())]
    Spec {
        /// The file.
        path: PathBuf,
        /// First mistake in it.
        source: SpecError,
    },
    /// A file of the first state with another size than the run's.
    #[error("{} has {found} bytes, the first state of run {run} has {expected}; give the file that alice-ps upcycle wrote \
        for this run", .path.display())]
    FirstStateSize {
        /// The file.
        path: PathBuf,
        /// Name of the run.
        run: String,
        /// Size of the file, bytes.
        found: u64,
        /// Size of the run's weights, bytes.
        expected: u64,
    },
    /// A run that names the root of its first state, without the file.
    #[error(
        "run {run} starts from the model with root {root}; give its file with --start FILE (alice-ps upcycle makes it)"
    )]
    FirstStateMissing {
        /// Name of the run.
        run: String,
        /// Root of its first state.
        root: Hex32,
    },
    /// A file of the first state for a run that draws it.
    #[error(
        "run {run} draws its first state from block 0; leave --start out, or write the root of the file into [start] \
        of the run specification before the network starts"
    )]
    FirstStateDrawn {
        /// Name of the run.
        run: String,
    },
    /// A first state with another root than the run names.
    #[error(
        "the model root of the first state is {found}, expected {expected}; give the file that alice-ps upcycle wrote \
        for this run, or get it from who started the run"
    )]
    FirstStateRoot {
        /// Root of the file.
        found: Hex32,
        /// Root in the run specification.
        expected: Hex32,
    },
    /// A folder of the first state, without what the first state follows from.
    #[error(
        "this folder is the first state, which the chain has no commitment of; give --run FILE too, and it is computed \
        from block 0"
    )]
    FirstStateUnknown,
    /// A tokenizer, or tokens, of another run.
    #[error("{what} in {} is not the run's: {problem}", .place.display())]
    OtherTokenizer {
        /// The tokenizer, or what made the shards.
        what: &'static str,
        /// Where it is.
        place: PathBuf,
        /// Difference, and what to do.
        problem: String,
    },
    /// An epoch without a published model.
    #[error("epoch {epoch} is not scored; {hint}, or leave --epoch out for the last one")]
    NotScored {
        /// The epoch.
        epoch: u32,
        /// How to find those that are.
        hint: &'static str,
    },
    /// A type of numbers that the format does not have.
    #[error("--type q8_0 is a type of GGUF files; use --format gguf, or --type bf16 or f32")]
    TypeOfGguf,
    /// A file that is too large for a chain's specification.
    #[error("{} is larger than {bytes_max} bytes: not a chain's specification", .path.display())]
    ChainSpecSize {
        /// The file.
        path: PathBuf,
        /// Maximum size, bytes.
        bytes_max: u64,
    },
    /// A folder without a chain proof, for a check that needs one.
    #[error(
        "this folder's ALICE.json holds no chain proof; ask a node with --chain, or have the folder exported with \
        --chain"
    )]
    NoChainProof,
    /// An epoch without a commitment on the chain.
    #[error(
        "the chain has no accepted commitment of epoch {epoch}: nobody earned in it, it is not attested yet, or it is \
        older than the 720 epochs that are kept, and the folder holds no proof from when it was there; ask a server with \
        --ps, or take the root from an audit and give it with --root"
    )]
    NoCommitment {
        /// The epoch.
        epoch: u32,
    },
    /// Something published is not what it should be.
    #[error("{0}; keep what you have downloaded and show it to others: nothing here can be explained by your machine")]
    Finding(#[from] Finding),
    /// Weights that are not the model that was asked for.
    #[error("{0}; do not use these weights")]
    Weights(#[from] OtherWeights),
    /// The recomputed model was lost in a step that failed.
    #[error("the recomputed weights are gone after a failed step; start again")]
    WeightsLost,
    /// Chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A chain proof that does not hold.
    #[error(transparent)]
    ChainProof(#[from] ProofError),
    /// A parameter server that was asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Weights for other programs.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Recomputed weights.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Vocabularies.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Something that is no address.
    #[error(transparent)]
    Address(#[from] Ss58Error),
    /// A key file.
    #[error(transparent)]
    KeyFile(#[from] alice_api::keyfile::KeyFileError),
    /// A result that cannot be written as JSON.
    #[error("cannot write the result as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Standard output.
    #[error("cannot print: {}", system::reason(.0))]
    Print(io::Error),
    /// Signals of the operating system.
    #[error("cannot wait for signals: {}", system::reason(.0))]
    Signals(io::Error),
    /// Ctrl-C or SIGTERM.
    #[error("stopped")]
    Stopped,
}

/// A difference between what a parameter server publishes and what follows from it.
#[derive(Debug, thiserror::Error)]
pub enum Finding {
    /// A value that is another one when it is computed again.
    #[error("{}{what} is published as {published}, recomputed as {computed}", of_epoch(*epoch))]
    Differs {
        /// Name of the value.
        what: &'static str,
        /// Epoch of the value; `None` for one of the whole run.
        epoch: Option<u32>,
        /// As published.
        published: String,
        /// As recomputed.
        computed: String,
    },
    /// The run specification.
    #[error("the run specification is not valid: {0}")]
    Specification(SpecError),
    /// The list of epochs.
    #[error("the list of epochs repeats epoch {epoch}")]
    EpochRepeated {
        /// The epoch.
        epoch: u32,
    },
    /// A manifest that is no manifest.
    #[error("epoch {epoch}: the manifest cannot be read: {problem}")]
    Manifest {
        /// Its epoch.
        epoch: u32,
        /// Why not.
        problem: serde_json::Error,
    },
    /// Submissions in another order than by identifier.
    #[error("epoch {epoch}: the submissions are not in ascending order")]
    Order {
        /// Epoch of the submissions.
        epoch: u32,
    },
    /// A submission for a task that does not exist.
    #[error("epoch {epoch}: submission {submission} answers task {task}, which the manifest does not list")]
    UnknownTask {
        /// Epoch of the submission.
        epoch: u32,
        /// Its identifier.
        submission: Hex32,
        /// Identifier of the task.
        task: Hex32,
    },
    /// An accepted update that is no update.
    #[error("epoch {epoch}: accepted update {submission} does not decode: {problem}")]
    Update {
        /// Epoch of the submission.
        epoch: u32,
        /// Its identifier.
        submission: Hex32,
        /// Why not.
        problem: DecodeError,
    },
    /// An aggregate that is none.
    #[error("epoch {epoch}: the aggregate does not decode: {problem}")]
    Aggregate {
        /// Epoch of the aggregate.
        epoch: u32,
        /// Why not.
        problem: DecodeError,
    },
    /// A step size that the step guard cannot choose.
    #[error("epoch {epoch}: the guard cannot have used the step size {alpha}")]
    StepSize {
        /// Epoch of the step.
        epoch: u32,
        /// The published step size.
        alpha: f32,
    },
    /// A score for nothing.
    #[error("epoch {epoch}: submission {submission} was refused and has a score")]
    RefusedWithScore {
        /// Epoch of the submission.
        epoch: u32,
        /// Its identifier.
        submission: Hex32,
    },
    /// Payout entries that do not follow from the scores.
    #[error("epoch {epoch}: the payout entries are not the accepted scores")]
    Entries {
        /// Epoch of the entries.
        epoch: u32,
    },
    /// More pay than the schedule has.
    #[error("epoch {epoch}: {paid:?} planck were paid, the shares are {shares}")]
    Paid {
        /// The epoch that was paid.
        epoch: u32,
        /// Planck that the chain paid; `None` if it says nothing.
        paid: Option<u128>,
        /// Sum of the shares, planck.
        shares: u128,
    },
}

/// Weights that are not the model that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum OtherWeights {
    /// The quorum signed something else.
    #[error("epoch {epoch}: {what} is {found}, that of the quorum's commitment {expected}")]
    NotSigned {
        /// Epoch of the weights.
        epoch: u32,
        /// Name of the value that differs.
        what: &'static str,
        /// The value of the weights.
        found: Hex32,
        /// The value that was signed.
        expected: Hex32,
    },
    /// A source outside the folder names another model.
    #[error("{what} of the folder is {found}, that of epoch {epoch} by the {source_name} is {expected}")]
    Differs {
        /// Epoch of the weights.
        epoch: u32,
        /// Name of the value that differs.
        what: &'static str,
        /// The value in the folder.
        found: Hex32,
        /// The value of the source.
        expected: Hex32,
        /// Name of the source.
        source_name: &'static str,
    },
    /// The server's run specification.
    #[error("the server's run specification is not valid: {0}")]
    Specification(SpecError),
    /// The server's manifest is no manifest.
    #[error("the server's manifest of epoch {epoch} cannot be read: {problem}")]
    Manifest {
        /// Epoch that was asked for.
        epoch: u32,
        /// Why not.
        problem: serde_json::Error,
    },
    /// The server's manifest is of another epoch.
    #[error("the server's manifest of epoch {epoch} is of epoch {found}")]
    ManifestEpoch {
        /// Epoch that was asked for.
        epoch: u32,
        /// Epoch in the manifest.
        found: u32,
    },
    /// A proof of a block that the chain does not have.
    #[error("the chain proof in ALICE.json is of block {number} ({hash}), which is not a final block of this chain")]
    ForeignBlock {
        /// Number of the block.
        number: u32,
        /// Hash of the block.
        hash: Hex32,
    },
}

fn of_epoch(epoch: Option<u32>) -> String {
    epoch.map(|epoch| format!("epoch {epoch}: ")).unwrap_or_default()
}

impl AuditError {
    /// An error about a file.
    pub fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            action,
            path: path.to_path_buf(),
            source,
        }
    }

    /// Exit code of the program that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Spec { .. }
            | Self::FirstStateSize { .. }
            | Self::FirstStateMissing { .. }
            | Self::FirstStateDrawn { .. }
            | Self::FirstStateUnknown
            | Self::NotScored { .. }
            | Self::TypeOfGguf
            | Self::ChainSpecSize { .. }
            | Self::NoChainProof
            | Self::Address(_)
            | Self::KeyFile(_)
            | Self::Client(ClientError::Url { .. })
            | Self::ChainProof(ProofError::Spec(_))
            | Self::Tokenizer(TokenizerError::Option { .. })
            | Self::Export(ExportError::TargetExists(_) | ExportError::Option { .. }) => exit::USAGE,
            Self::FirstStateRoot { .. } | Self::OtherTokenizer { .. } => exit::MISMATCH,
            Self::Chain(error) => chain_exit_code(error),
            Self::Finding(_) => exit::AUDIT,
            Self::File { .. }
            | Self::NoCommitment { .. }
            | Self::Weights(_)
            | Self::WeightsLost
            | Self::ChainProof(_)
            | Self::Client(_)
            | Self::Export(_)
            | Self::Store(_)
            | Self::Tokenizer(_)
            | Self::Json(_)
            | Self::Print(_)
            | Self::Signals(_)
            | Self::Stopped => exit::FAILURE,
        }
    }
}

/// Exit code for an error of the chain: only an address that is none is the user's mistake, and only a node that does
/// not answer may do so at the next start.
pub fn chain_exit_code(error: &ChainError) -> u8 {
    match error {
        ChainError::BadUrl { .. } => exit::USAGE,
        ChainError::OtherChain { .. } => exit::MISMATCH,
        _ => exit::CHAIN,
    }
}
