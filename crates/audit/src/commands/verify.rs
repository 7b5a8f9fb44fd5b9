//! `verify`: whether a downloaded folder is the model of an epoch.

use super::{percent, to_json};
use crate::{
    AuditError,
    chain_proof::{self, Claim, Difference},
    error::OtherWeights,
    replay::{self, EpochAudit, Replayed, Source},
    run_context::read_spec,
};
use alice_api::{Client, EpochManifest, Hex32};
use alice_chain::{Chain, ChainError, Commitment, proof::Genesis};
use alice_export::{AliceFile, Proof, ThetaSlice, VerifyOptions, VerifyReport, Weights, read_alice_file};
use alice_primitives::Hash;
use alice_spec::RunSpec;
use alice_store::model_root;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Flags of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Hugging Face folder with its ALICE.json
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Run specification that it must be of; configuration and tokenizer files are then checked as well
    #[arg(long, value_name = "FILE")]
    pub run: Option<PathBuf>,
    /// Parameter server whose manifest names the model root; it is believed, audit it to know better
    #[arg(long, value_name = "URL", group = "outside")]
    pub ps: Option<String>,
    /// A node's WebSocket: the model root must be the one that the quorum signed for the epoch
    #[arg(long, value_name = "WS_URL", group = "outside")]
    pub chain: Option<String>,
    /// The chain's raw specification: the proof in ALICE.json must show, without any node, that the chain of its block
    /// 0 has finalised the model root
    #[arg(long, value_name = "FILE", group = "outside")]
    pub chain_spec: Option<PathBuf>,
    /// Model root that it must have, 64 hexadecimal digits
    #[arg(long, value_name = "HEX", group = "outside")]
    pub root: Option<Hex32>,
    /// Recompute the run up to the folder's epoch first, as audit does: shows that bf16 shards are the rounding of its
    /// weights
    #[arg(long, requires = "ps")]
    pub recompute: bool,
    /// With --recompute: file of the first state, for a run that names its root
    #[arg(long, value_name = "FILE", requires = "recompute")]
    pub start: Option<PathBuf>,
    /// With --recompute: folder for the weights meanwhile, 4 bytes a parameter [default: the system's temporary folder]
    #[arg(long, value_name = "DIR", requires = "recompute")]
    pub work: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// An epoch's model by a source outside the folder.
struct Reference {
    source: &'static str,
    claim: Claim,
}

/// The sources outside the folder that the flags name.
struct Sources {
    client: Option<Client>,
    chain: Option<Chain>,
    block_zero: Option<Genesis>,
    spec: Option<RunSpec>,
    /// Genesis hash by the first source that knows it.
    genesis: Option<Hash>,
}

#[derive(Serialize)]
struct Verified {
    run: String,
    run_hash: Hex32,
    epoch: u32,
    tokens_trained: u64,
    model_root: Hex32,
    /// `root`, `rounding` or `listed`, see `docs/spec/weights.md`.
    numbers: &'static str,
    /// Source that the model root was compared with: `first state`, `ps`, `chain`, `proof` or `root`; `None` if with
    /// none.
    root_from: Option<&'static str>,
    /// Whether configuration and tokenizer files are those of the run.
    files_of_run: bool,
    bytes: u64,
}

/// Checks the folder and returns what is printed.
///
/// # Errors
/// Whatever does not hold, or keeps it from being checked.
pub async fn run(args: &VerifyArgs) -> Result<String, AuditError> {
    // The folder and the files of the flags first: nobody should wait for a node to hear that a path is wrong.
    args.model
        .metadata()
        .map_err(|e| AuditError::file("read", &args.model, e))?;
    read_alice_file(&args.model)?;
    replay::check_paths(args.start.as_deref(), args.work.as_deref())?;
    let sources = sources(args).await?;
    let replayed = match sources.client.as_ref().filter(|_| args.recompute) {
        Some(client) => Some(recompute(args, client).await?),
        None => None,
    };
    // With recomputed weights the check can show that bf16 shards are their rounding; else only that they are listed.
    let mut weights = match &replayed {
        Some(replayed) => Some(ThetaSlice::new(&replayed.context.tensors, replayed.theta.theta())?),
        None => None,
    };
    let recomputed = replayed.as_ref().map(|replayed| replayed.theta.root());
    let options = VerifyOptions {
        spec: sources.spec.as_ref(),
        model_root: args.root.map(|root| root.0).or(recomputed),
        genesis_hash: sources.genesis,
        weights: weights.as_mut().map(|weights| weights as &mut dyn Weights),
    };
    let report = tokio::task::block_in_place(|| alice_export::verify(&args.model, options, &mut percent("read")))?;
    let reference = reference(&sources, &report.alice).await?;
    if let Some(reference) = &reference {
        compare(&report.alice, reference)?;
    }
    let root_from = reference.map(|r| r.source).or(args.root.map(|_| "root"));
    let found = verified(&report, root_from);
    if args.json {
        return to_json(&found);
    }
    Ok(describe(&found))
}

/// Files before servers, so that a wrong path is reported at once.
async fn sources(args: &VerifyArgs) -> Result<Sources, AuditError> {
    let mut spec = match &args.run {
        Some(path) => Some(read_spec(path)?.1),
        None => None,
    };
    let block_zero = args.chain_spec.as_deref().map(chain_proof::genesis).transpose()?;
    let client = args.ps.as_deref().map(Client::new).transpose()?;
    let chain = match &args.chain {
        Some(url) => Some(Chain::connect(url).await?),
        None => None,
    };
    let mut genesis = chain.as_ref().map(Chain::genesis_hash);
    genesis = genesis.or(block_zero.as_ref().map(|genesis| genesis.hash));
    if let Some(client) = &client {
        // clap admits one source only, so this replaces nothing.
        genesis = Some(client.status().await?.genesis_hash.0);
        if spec.is_none() {
            let text = client.run().await?;
            spec = Some(RunSpec::parse(&text).map_err(OtherWeights::Specification)?);
        }
    }
    Ok(Sources {
        client,
        chain,
        block_zero,
        spec,
        genesis,
    })
}

/// The model of the folder's epoch by the source that the flags name; `None` if they name none.
async fn reference(sources: &Sources, alice: &AliceFile) -> Result<Option<Reference>, AuditError> {
    Ok(Some(match (&sources.client, &sources.chain, &sources.block_zero) {
        (None, None, None) => return Ok(None),
        // Before the sources that are asked: none of them has a manifest or commitment of the first state.
        _ if is_first(alice) => first_state(sources.spec.as_ref(), sources.genesis)?,
        (Some(client), _, _) => by_server(client, alice.epoch).await?,
        (None, Some(chain), _) => by_chain(chain, alice).await?,
        (None, None, Some(genesis)) => signed("proof", chain_proof::check(alice, genesis)?.commitment),
    }))
}

fn verified(report: &VerifyReport, root_from: Option<&'static str>) -> Verified {
    let alice = &report.alice;
    Verified {
        run: alice.run.name.clone(),
        run_hash: Hex32(alice.run.hash),
        epoch: alice.epoch,
        tokens_trained: alice.tokens_trained,
        model_root: Hex32(alice.model_root),
        numbers: match report.proof {
            Proof::Root => "root",
            Proof::Rounding => "rounding",
            Proof::Listed => "listed",
        },
        root_from,
        files_of_run: report.derived_from_run,
        bytes: report.bytes,
    }
}

/// Recomputes the model of the folder's epoch, from the run's first state on.
async fn recompute(args: &VerifyArgs, client: &Client) -> Result<Replayed, AuditError> {
    let alice = read_alice_file(&args.model)?;
    let source = Source {
        client,
        chain: None,
        start: args.start.as_deref(),
        work: args.work.as_deref(),
    };
    if is_first(&alice) {
        return replay::first_state(source).await;
    }
    let mut report = |found: &EpochAudit| eprintln!("recomputed epoch {}: model {}", found.epoch, found.model_root);
    replay::audit(source, alice.epoch, &mut report).await
}

fn describe(found: &Verified) -> String {
    let numbers = match found.numbers {
        "root" => "the shards hold the f32 weights of the model root",
        "rounding" => "the shards hold the rounding of the weights of the model root",
        _ => {
            "the shards are those that ALICE.json lists; that they are the rounding of the weights of the model root \
              was not computed (--ps URL --recompute does; a folder of export --type f32 needs neither)"
        }
    };
    let root = match found.root_from {
        Some("chain") => "the one that the quorum signed on the chain",
        Some("proof") => "the one that the quorum signed on the chain, by the proof in ALICE.json and block 0",
        Some("ps") => "the one in the parameter server's manifest",
        Some("first state") => "the one of the run's first state",
        Some(_) => "the one that was given",
        None => "compared with nothing outside the folder: give --chain, --chain-spec, --ps or --root",
    };
    let files = match found.files_of_run {
        true => "those of the run",
        false => "as listed, not compared with the run: give --run",
    };
    format!(
        "run {}, epoch {}, {} bytes: all files as listed\n  model root     {}\n                 {root}\n  \
         numbers        {numbers}\n  configuration  {files}\n",
        found.run, found.epoch, found.bytes, found.model_root
    )
}

/// The first state follows from run and block 0, or the run names its root: no source needs to be believed.
fn first_state(spec: Option<&RunSpec>, genesis: Option<Hash>) -> Result<Reference, AuditError> {
    let (spec, genesis) = spec.zip(genesis).ok_or(AuditError::FirstStateUnknown)?;
    // A run that names the root of its first state needs no weights to know it.
    let root = spec.start_root();
    let root = root.unwrap_or_else(|| model_root(&spec.tensors(), &alice_init::init_theta(spec, &genesis)));
    Ok(Reference {
        source: "first state",
        claim: Claim {
            epoch: 0,
            run_hash: spec.run_hash(),
            model_root: root,
            manifest_hash: None,
        },
    })
}

async fn by_server(client: &Client, epoch: u32) -> Result<Reference, AuditError> {
    let bytes = client.manifest_bytes(epoch).await?;
    let manifest: EpochManifest =
        serde_json::from_slice(&bytes).map_err(|problem| OtherWeights::Manifest { epoch, problem })?;
    if manifest.epoch != epoch {
        let found = manifest.epoch;
        return Err(OtherWeights::ManifestEpoch { epoch, found }.into());
    }
    Ok(Reference {
        source: "ps",
        claim: Claim {
            epoch,
            run_hash: manifest.run_hash.0,
            model_root: manifest.model_root.0,
            manifest_hash: Some(*blake3::hash(&bytes).as_bytes()),
        },
    })
}

async fn by_chain(chain: &Chain, alice: &AliceFile) -> Result<Reference, AuditError> {
    let epoch = alice.epoch;
    if let Some(commitment) = chain.commitment(epoch).await? {
        return Ok(signed("chain", commitment));
    }
    // A proof is believed for an epoch that the chain has forgotten, and for no other: of a younger one without a
    // commitment the chain itself says that nothing was signed.
    let proven = match chain.epoch_status(epoch).await {
        Err(ChainError::Forgotten { .. }) => chain_proof::check_with(alice, chain).await?,
        Err(error) => return Err(error.into()),
        Ok(_) => None,
    };
    let proven = proven.ok_or(AuditError::NoCommitment { epoch })?;
    Ok(signed("chain", proven.commitment))
}

fn signed(source: &'static str, commitment: Commitment) -> Reference {
    Reference {
        source,
        claim: Claim::signed(&commitment),
    }
}

fn compare(alice: &AliceFile, reference: &Reference) -> Result<(), OtherWeights> {
    match Claim::of(alice).difference(&reference.claim) {
        None => Ok(()),
        Some(Difference { what, found, expected }) => Err(OtherWeights::Differs {
            epoch: alice.epoch,
            what,
            found,
            expected,
            source_name: reference.source,
        }),
    }
}

/// Whether a folder is the state before all epochs, which has no manifest.
fn is_first(alice: &AliceFile) -> bool {
    alice.epoch == 0 && alice.manifest_hash.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alice_export::{Dtype, FORMAT, RunRef};

    #[test]
    fn a_folder_should_be_refused_when_anything_differs_from_the_outside_source() {
        let alice = AliceFile {
            format: FORMAT.into(),
            architecture: "llama".into(),
            dtype: Dtype::Bf16,
            run: RunRef {
                name: "tiny".into(),
                hash: [1; 32],
            },
            epoch: 3,
            tokens_trained: 0,
            genesis_hash: None,
            manifest_hash: Some([3; 32]),
            chain_proof: None,
            model_root: [2; 32],
            tensors: Vec::new(),
            files: Default::default(),
        };
        let named = |run, root, manifest| Reference {
            source: "chain",
            claim: Claim {
                epoch: 3,
                run_hash: [run; 32],
                model_root: [root; 32],
                manifest_hash: Some([manifest; 32]),
            },
        };
        assert!(compare(&alice, &named(1, 2, 3)).is_ok());
        for (other, what) in [
            (named(9, 2, 3), "the run hash"),
            (named(1, 9, 3), "the model root"),
            (named(1, 2, 9), "the manifest's hash"),
        ] {
            let error = AuditError::from(compare(&alice, &other).unwrap_err());
            assert_eq!(error.exit_code(), alice_program::exit::FAILURE);
            assert!(error.to_string().starts_with(what), "{error}");
            assert!(error.to_string().contains(&Hex32([9; 32]).to_string()), "{error}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn wrong_paths_should_be_reported_before_a_node_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("nowhere");
        let args = |model: PathBuf| VerifyArgs {
            model,
            run: Some(missing.clone()),
            ps: None,
            chain: Some("ws://127.0.0.1:1".into()),
            chain_spec: None,
            root: None,
            recompute: false,
            start: None,
            work: None,
            json: false,
        };
        let error = run(&args(missing.clone())).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot read"), "{error}");
        assert!(error.to_string().contains("nowhere: there is no such"), "{error}");
        let error = run(&args(dir.path().to_path_buf())).await.unwrap_err();
        assert!(matches!(error, AuditError::Export(_)), "an empty folder: {error}");
    }
}
