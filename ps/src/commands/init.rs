//! `alice-ps init`: from a run specification and a chain to the first state.

use crate::{
    PsError,
    config::Config,
    corpus::Corpus,
    db::Db,
    files::Files,
    initial_state::FirstState,
    round::publish::published,
    run_context::{RunContext, read_spec},
    run_tokenizer,
};
use alice_api::Hex32;
use alice_chain::{Chain, ChainParameters};
use alice_primitives::Hash;
use alice_spec::RunSpec;
use alice_store::BlobStore;
use std::path::Path;

/// Result of `init`.
#[derive(Debug)]
pub struct Initialised {
    /// Root of θ(0).
    pub model_root: Hash,
    /// Whether the state was made now; otherwise it was there.
    pub created: bool,
}

/// Makes the first state unless it is there. `start` is its file, for a run that names a root.
///
/// # Errors
/// Run, corpus, chain and data directory do not belong together, or the state cannot be written.
pub async fn init(config: &Config, start: Option<&Path>) -> Result<Initialised, PsError> {
    let (text, spec) = read_spec(&config.run_spec)?;
    Corpus::open(&spec, &config.corpus_dir)?;
    run_tokenizer::from_folder(&spec, &config.corpus_dir)?;
    let chain = Chain::connect(&config.chain_url).await?;
    let genesis = chain.genesis_hash();
    check_chain(&spec, &genesis, &genesis, &chain.parameters().await?)?;
    // Locked last: a refused command leaves no new directory behind.
    let _lock = lock(&config.data_dir)?;
    create_state_from(&config.data_dir, genesis, text, spec, start).await
}

/// The part of `init` that needs no chain, for a run whose first state is drawn.
pub async fn create_state(data_dir: &Path, genesis: Hash, text: String, spec: RunSpec) -> Result<Initialised, PsError> {
    create_state_from(data_dir, genesis, text, spec, None).await
}

/// The part of `init` that needs no chain.
pub async fn create_state_from(
    data_dir: &Path,
    genesis: Hash,
    text: String,
    spec: RunSpec,
    start: Option<&Path>,
) -> Result<Initialised, PsError> {
    let files = Files::create(data_dir)?;
    let db = Db::open(&files.database()).await?;
    let net = RunContext::new(genesis, text, spec);
    let created = match stored(&db).await? {
        Some(found) => {
            same(&net, found)?;
            false
        }
        None => {
            let path = files.theta();
            let start = FirstState::new(&net, start)?;
            let theta = start.create(&path, &mut |_, _| ())?;
            let blobs = BlobStore::open(&files.blobs())?;
            let first = published(0, theta.publish(&blobs).await?);
            // The database last: after a crash before this, `init` finds no state and makes the same weights again.
            db.init(&genesis, &net.run_hash, &net.run_text, &first).await?;
            true
        }
    };
    let step = db
        .model_step()
        .await?
        .ok_or_else(|| PsError::NotInitialised(data_dir.to_path_buf()))?;
    db.close().await;
    Ok(Initialised {
        model_root: step.root,
        created,
    })
}

/// Opens a state that `init` made, for the run of `spec`.
///
/// # Errors
/// There is no state, or it belongs to another run.
pub async fn open_state(data_dir: &Path, text: String, spec: RunSpec) -> Result<(RunContext, Files, Db), PsError> {
    let files = Files::create(data_dir)?;
    let db = Db::open(&files.database()).await?;
    let Some((genesis, run_hash)) = stored(&db).await? else {
        return Err(PsError::NotInitialised(data_dir.to_path_buf()));
    };
    let net = RunContext::new(genesis, text, spec);
    same(&net, (genesis, run_hash))?;
    let theta = files.theta();
    // Missing weights are reported at the start, and not when a round's submissions wait to be scored.
    std::fs::metadata(&theta).map_err(|e| PsError::io("open the weights", &theta, &e))?;
    Ok((net, files, db))
}

/// Ties a data directory to the key of its first start. Attestations and receipts are sent again after a crash, and
/// their signatures would not verify under another key.
pub async fn bind_key(db: &Db, key: Hex32) -> Result<(), PsError> {
    let bound = db.bind("ps_key", &key.0).await?;
    if bound == key.0 {
        return Ok(());
    }
    let bound = Hash::try_from(bound).map_or_else(|_| "damaged".into(), |key| Hex32(key).to_string());
    Err(PsError::Mismatch {
        what: "the public key of key_file",
        found: key.to_string(),
        expected: bound,
        hint: "this data_dir holds attestations and receipts of that key; use its key_file, or another data_dir",
    })
}

async fn stored(db: &Db) -> Result<Option<(Hash, Hash)>, PsError> {
    let (genesis, run) = (db.meta("genesis").await?, db.meta("run_hash").await?);
    Ok(genesis
        .zip(run)
        .and_then(|(g, r)| Some((Hash::try_from(g).ok()?, Hash::try_from(r).ok()?))))
}

fn same(net: &RunContext, (genesis, run_hash): (Hash, Hash)) -> Result<(), PsError> {
    let checks = [
        ("the network of data_dir", genesis, net.genesis),
        ("the run of data_dir", run_hash, net.run_hash),
    ];
    for (what, found, expected) in checks {
        if found != expected {
            return Err(PsError::Mismatch {
                what,
                found: Hex32(found).to_string(),
                expected: Hex32(expected).to_string(),
                hint: "give this run and network a data_dir of their own; nothing was changed",
            });
        }
    }
    Ok(())
}

/// Whether a chain and a specification belong together: the network, and the run that the chain pays for.
pub fn check_chain(spec: &RunSpec, ours: &Hash, chains: &Hash, parameters: &ChainParameters) -> Result<(), PsError> {
    check_network(spec, ours, chains, parameters)?;
    // A chain that names no run yet takes any.
    if parameters.run_hash != [0; 32] && parameters.run_hash != spec.run_hash() {
        return Err(PsError::Mismatch {
            what: "the hash of run_spec",
            found: Hex32(spec.run_hash()).to_string(),
            expected: Hex32(parameters.run_hash).to_string(),
            hint: "use the run specification that the chain pays for",
        });
    }
    Ok(())
}

/// Whether a chain is the one that a data directory was made for.
pub fn check_network(spec: &RunSpec, ours: &Hash, chains: &Hash, parameters: &ChainParameters) -> Result<(), PsError> {
    let mismatch = |what, found: String, expected: String, hint| {
        Err(PsError::Mismatch {
            what,
            found,
            expected,
            hint,
        })
    };
    if chains != ours {
        let hint = "chain_url leads to another network than data_dir was made for";
        return mismatch(
            "the chain's genesis",
            Hex32(*chains).to_string(),
            Hex32(*ours).to_string(),
            hint,
        );
    }
    if parameters.epoch_blocks != spec.round.epoch_blocks {
        let (found, expected) = (spec.round.epoch_blocks.to_string(), parameters.epoch_blocks.to_string());
        return mismatch(
            "round.epoch_blocks of run_spec",
            found,
            expected,
            "the chain's epoch length must agree",
        );
    }
    Ok(())
}

/// Keeps a second process out of a data directory until the returned file is dropped. The operating system releases the
/// lock when the process ends, however it ends.
///
/// # Errors
/// Another process has the lock, or the file cannot be made.
pub fn lock(data_dir: &Path) -> Result<std::fs::File, PsError> {
    std::fs::create_dir_all(data_dir).map_err(|e| PsError::io("make", data_dir, &e))?;
    let path = data_dir.join("lock");
    let file = std::fs::File::create(&path).map_err(|e| PsError::io("write", &path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => Err(PsError::DataDirInUse(data_dir.to_path_buf())),
    }
}
