//! `alice-ps verify`: whether a downloaded folder is the model of an epoch.

use crate::{
    PsError,
    cli::to_json,
    commands::audit::{self, EpochAudit, Replayed},
    commands::chain_proof::{self, Claim},
    commands::export::percent,
    run_context::read_spec,
};
use alice_api::{Client, EpochManifest, Hex32};
use alice_chain::{Chain, ChainError, Commitment};
use alice_export::{AliceFile, Proof, ThetaSlice, VerifyOptions, Weights, read_alice_file};
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
    /// Parameter server whose manifest names the model root; its word is taken, audit it to know better
    #[arg(long, value_name = "URL", group = "outside")]
    pub ps: Option<String>,
    /// A node's WebSocket: the model root must be the one that the quorum signed for the epoch
    #[arg(long, value_name = "WS_URL", group = "outside")]
    pub chain: Option<String>,
    /// The chain's raw specification: the proof in ALICE.json must show, without any node, that the chain of its block 0 has
    /// finalised the model root
    #[arg(long, value_name = "FILE", group = "outside")]
    pub chain_spec: Option<PathBuf>,
    /// Model root that it must have, 64 hexadecimal digits
    #[arg(long, value_name = "HEX", group = "outside")]
    pub root: Option<Hex32>,
    /// Recompute the run up to the folder's epoch first, as audit does: shows that bf16 shards are the rounding of its weights
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

/// What a source outside the folder says about an epoch.
struct Said {
    who: &'static str,
    claim: Claim,
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
    /// Where the model root was compared with: `first state`, `ps`, `chain`, `proof`, `root`; none: nowhere.
    root_from: Option<&'static str>,
    /// Whether configuration and tokenizer files are those of the run.
    files_of_run: bool,
    bytes: u64,
}

/// Does what the flags say and returns what is printed. What does not hold is the error.
pub async fn run(args: &VerifyArgs) -> Result<String, PsError> {
    let client = args.ps.as_deref().map(Client::new).transpose()?;
    let chain = match &args.chain {
        Some(url) => Some(Chain::connect(url).await?),
        None => None,
    };
    let mut spec = match &args.run {
        Some(path) => Some(read_spec(path)?.1),
        None => None,
    };
    let block_zero = args.chain_spec.as_deref().map(chain_proof::genesis).transpose()?;
    let mut genesis = chain.as_ref().map(Chain::genesis_hash);
    genesis = genesis.or(block_zero.as_ref().map(|genesis| genesis.hash));
    if let Some(client) = &client {
        genesis = Some(client.status().await?.genesis_hash.0);
        if spec.is_none() {
            let text = client.run().await?;
            let parsed = RunSpec::parse(&text)
                .map_err(|e| PsError::OtherWeights(format!("the server's run specification is not valid: {e}")))?;
            spec = Some(parsed);
        }
    }
    let replayed = match client.as_ref().filter(|_| args.recompute) {
        Some(client) => Some(recompute(args, client).await?),
        None => None,
    };
    let mut weights = match &replayed {
        Some(replayed) => Some(ThetaSlice::new(&replayed.net.tensors, replayed.theta.theta())?),
        None => None,
    };
    let options = VerifyOptions {
        spec: spec.as_ref(),
        model_root: args
            .root
            .map(|root| root.0)
            .or(replayed.as_ref().map(|r| r.theta.root())),
        genesis_hash: genesis,
        weights: weights.as_mut().map(|weights| weights as &mut dyn Weights),
    };
    let report = tokio::task::block_in_place(|| alice_export::verify(&args.model, options, &mut percent("read")))?;
    let alice = &report.alice;
    let said = match (&client, &chain, &block_zero) {
        (None, None, None) => None,
        _ if is_first(alice) => Some(first_state(spec.as_ref(), genesis)?),
        (Some(client), _, _) => Some(by_server(client, alice.epoch).await?),
        (None, Some(chain), _) => Some(by_chain(chain, alice).await?),
        (None, None, Some(genesis)) => Some(signed("proof", chain_proof::check(alice, genesis)?.commitment)),
    };
    if let Some(said) = &said {
        compare(alice, said)?;
    }
    let root_from = said.as_ref().map(|s| s.who).or(args.root.map(|_| "root"));
    let found = Verified {
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
    };
    if args.json {
        return to_json(&found);
    }
    Ok(describe(&found))
}

/// The model that the folder says it is, from the run's first state on.
async fn recompute(args: &VerifyArgs, client: &Client) -> Result<Replayed, PsError> {
    let alice = read_alice_file(&args.model)?;
    let source = audit::Source {
        client,
        chain: None,
        start: args.start.as_deref(),
        work: args.work.as_deref(),
    };
    if is_first(&alice) {
        return audit::first_state(source).await;
    }
    let mut report = |found: &EpochAudit| eprintln!("recomputed epoch {}: model {}", found.epoch, found.model_root);
    audit::audit(source, alice.epoch, &mut report).await
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

/// The first state follows from run and block 0, or the run names its root: nobody needs to be asked.
fn first_state(spec: Option<&RunSpec>, genesis: Option<Hash>) -> Result<Said, PsError> {
    let (Some(spec), Some(genesis)) = (spec, genesis) else {
        return Err(PsError::Setting(
            "this folder is the first state, which the chain has no commitment of; give --run FILE too, and it is \
             computed from block 0"
                .into(),
        ));
    };
    // A run that names the root of its first state needs no weights to know it.
    let root = spec.start_root();
    let root = root.unwrap_or_else(|| model_root(&spec.tensors(), &alice_model::init_theta(spec, &genesis)));
    Ok(Said {
        who: "first state",
        claim: Claim {
            epoch: 0,
            run_hash: spec.run_hash(),
            model_root: root,
            manifest_hash: None,
        },
    })
}

async fn by_server(client: &Client, epoch: u32) -> Result<Said, PsError> {
    let bytes = client.manifest_bytes(epoch).await?;
    let manifest: EpochManifest = serde_json::from_slice(&bytes)
        .map_err(|e| PsError::OtherWeights(format!("the server's manifest of epoch {epoch} cannot be read: {e}")))?;
    if manifest.epoch != epoch {
        return Err(PsError::OtherWeights(format!(
            "the server's manifest of epoch {epoch} is of epoch {}",
            manifest.epoch
        )));
    }
    Ok(Said {
        who: "ps",
        claim: Claim {
            epoch,
            run_hash: manifest.run_hash.0,
            model_root: manifest.model_root.0,
            manifest_hash: Some(*blake3::hash(&bytes).as_bytes()),
        },
    })
}

async fn by_chain(chain: &Chain, alice: &AliceFile) -> Result<Said, PsError> {
    let epoch = alice.epoch;
    if let Some(commitment) = chain.commitment(epoch).await? {
        return Ok(signed("chain", commitment));
    }
    // Of an epoch that the chain has forgotten, and of no other, a proof shows the state of then.
    let proven = match chain.epoch_status(epoch).await {
        Err(ChainError::Forgotten { .. }) => chain_proof::check_with(alice, chain).await?,
        Err(error) => return Err(error.into()),
        Ok(_) => None,
    };
    let proven = proven.ok_or_else(|| {
        PsError::Setting(format!(
            "the chain has no accepted commitment of epoch {epoch}: nobody earned in it, it is not attested yet, or it \
             is older than the 720 epochs that are kept, and the folder holds no proof from when it was there; ask a \
             server with --ps, or take the root from alice-ps audit and give it with --root"
        ))
    })?;
    Ok(signed("chain", proven.commitment))
}

fn signed(who: &'static str, commitment: Commitment) -> Said {
    Said {
        who,
        claim: Claim::signed(&commitment),
    }
}

fn compare(alice: &AliceFile, said: &Said) -> Result<(), PsError> {
    match Claim::of(alice).differs(&said.claim) {
        None => Ok(()),
        Some([what, found, expected]) => Err(PsError::OtherWeights(format!(
            "{what} of the folder is {found}, that of epoch {} by the {} is {expected}",
            alice.epoch, said.who
        ))),
    }
}

/// The state before all epochs has no manifest.
fn is_first(alice: &AliceFile) -> bool {
    alice.epoch == 0 && alice.manifest_hash.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alice_export::{Dtype, FORMAT, RunRef};

    #[test]
    fn a_folder_should_be_refused_when_anything_differs_from_what_is_said_outside() {
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
        let said = |run, root, manifest| Said {
            who: "chain",
            claim: Claim {
                epoch: 3,
                run_hash: [run; 32],
                model_root: [root; 32],
                manifest_hash: Some([manifest; 32]),
            },
        };
        assert!(compare(&alice, &said(1, 2, 3)).is_ok());
        for (other, what) in [
            (said(9, 2, 3), "the run hash"),
            (said(1, 9, 3), "the model root"),
            (said(1, 2, 9), "the manifest's hash"),
        ] {
            let error = compare(&alice, &other).unwrap_err();
            assert_eq!(error.exit_code(), crate::error::EXIT_FAILURE);
            assert!(error.to_string().starts_with(what), "{error}");
            assert!(error.to_string().contains(&Hex32([9; 32]).to_string()), "{error}");
        }
    }
}
