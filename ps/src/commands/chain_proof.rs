//! The chain proof of an `ALICE.json`: fetched for an export, read for a check.

use crate::PsError;
use alice_api::Hex32;
use alice_chain::{
    Chain, EpochStatus,
    proof::{CommitmentProof, Genesis, Proven, SPEC_BYTES_MAX},
};
use alice_export::{AliceFile, ChainProof, HexBytes};
use alice_primitives::{Commitment, Hash};
use std::io::Read;
use std::path::Path;

/// What is said about an epoch's model: by a folder, by the commitment on the chain, by a server's manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Epoch.
    pub epoch: u32,
    /// Hash of the run.
    pub run_hash: Hash,
    /// Root of the f32 weights.
    pub model_root: Hash,
    /// BLAKE3 of the epoch's manifest, where it is known.
    pub manifest_hash: Option<Hash>,
}

impl Claim {
    /// What a folder says.
    pub fn of(alice: &AliceFile) -> Self {
        Self {
            epoch: alice.epoch,
            run_hash: alice.run.hash,
            model_root: alice.model_root,
            manifest_hash: alice.manifest_hash,
        }
    }

    /// What the quorum signed.
    pub fn signed(commitment: &Commitment) -> Self {
        Self {
            epoch: commitment.epoch,
            run_hash: commitment.run_hash,
            model_root: commitment.model_root,
            manifest_hash: Some(commitment.manifest_hash),
        }
    }

    /// The first thing that differs from what is said elsewhere of the same epoch: its name, here, there.
    pub fn differs(&self, there: &Self) -> Option<[String; 3]> {
        let manifest = self.manifest_hash.zip(there.manifest_hash);
        let pairs = [
            Some(("the run hash", self.run_hash, there.run_hash)),
            Some(("the model root", self.model_root, there.model_root)),
            manifest.map(|(found, expected)| ("the manifest's hash", found, expected)),
        ];
        let (what, found, expected) = pairs.into_iter().flatten().find(|(_, found, said)| found != said)?;
        Some([what.to_owned(), Hex32(found).to_string(), Hex32(expected).to_string()])
    }
}

/// Proves an epoch's commitment, which must say what the claim says; none, and why on stderr, where the chain has none that
/// stands or its node cannot prove it now: the folder is worth having without.
pub async fn fetch(chain: &Chain, claim: &Claim) -> Result<Option<ChainProof>, PsError> {
    let epoch = claim.epoch;
    let proved = match chain.finalized_epoch_status(epoch).await {
        Ok(EpochStatus::Final { .. } | EpochStatus::Settled { .. }) => match chain.prove_commitment(epoch).await {
            Ok(Some(proof)) => Ok(proof),
            Ok(None) => Err("the node's finalised blocks do not show it yet; export again in a while".into()),
            Err(error) => Err(error.to_string()),
        },
        Ok(EpochStatus::Accepted { .. }) => Err("its dispute window is open; export again in a while".into()),
        Ok(EpochStatus::Open) => Err("it is not attested yet; export again in a while".into()),
        Ok(EpochStatus::Forfeited) => Err("it was not attested: nobody earned in it, or it came too late".into()),
        Err(error) => Err(error.to_string()),
    };
    let proof = match proved {
        Ok(proof) => proof,
        Err(why) => {
            eprintln!("no chain proof of epoch {epoch}: {why}");
            return Ok(None);
        }
    };
    let signed = Claim::signed(&proof.open(epoch)?.commitment);
    if let Some([what, found, expected]) = claim.differs(&signed) {
        return Err(PsError::OtherWeights(format!(
            "epoch {epoch}: {what} is {found}, that of the quorum's commitment {expected}"
        )));
    }
    // No reason to lose an export: the proof is as good as it is.
    let set = chain.authority_set().await.unwrap_or_default();
    if set > 0 {
        eprintln!(
            "the validators' keys have changed {set} times since block 0: the chain proof convinces who asks a node (verify \
             --chain), not who has the specification alone (verify --chain-spec)"
        );
    }
    Ok(Some(ChainProof {
        header: proof.header,
        storage: proof.storage.into_iter().map(HexBytes).collect(),
        justification: proof.justification,
    }))
}

/// What block 0 of a raw specification says.
pub fn genesis(path: &Path) -> Result<Genesis, PsError> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?
            .take(SPEC_BYTES_MAX + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|e| PsError::file("read", path, &e))?;
    if bytes.len() as u64 > SPEC_BYTES_MAX {
        return Err(PsError::Setting(format!(
            "{} is larger than {SPEC_BYTES_MAX} bytes: not a chain's specification",
            path.display()
        )));
    }
    Ok(Genesis::from_raw_spec(&bytes)?)
}

/// The proof of a folder.
pub fn of(alice: &AliceFile) -> Option<CommitmentProof> {
    let proof = alice.chain_proof.clone()?;
    Some(CommitmentProof {
        header: proof.header,
        storage: proof.storage.into_iter().map(|node| node.0).collect(),
        justification: proof.justification,
    })
}

/// What a folder's proof shows to who has nothing but block 0.
pub fn check(alice: &AliceFile, genesis: &Genesis) -> Result<Proven, PsError> {
    let proof = of(alice).ok_or_else(|| {
        PsError::Setting(
            "this folder's ALICE.json holds no chain proof; ask a node with --chain, or have the folder exported with \
             --chain"
                .into(),
        )
    })?;
    Ok(proof.check(alice.epoch, genesis)?)
}

/// What a folder's proof shows to who can ask a node whether its block is one of the chain's: also of an epoch that the
/// chain has forgotten since. None where the folder has no proof.
pub async fn check_with(alice: &AliceFile, chain: &Chain) -> Result<Option<Proven>, PsError> {
    let Some(proof) = of(alice) else { return Ok(None) };
    let proven = proof.open(alice.epoch)?;
    let (block, finalized) = (proven.block, chain.finalized().await?.number);
    let ours = proven.genesis == chain.genesis_hash() && block.number <= finalized;
    if !ours || chain.block_hash(block.number).await? != Some(block.hash) {
        return Err(PsError::OtherWeights(format!(
            "the chain proof in ALICE.json is of block {} ({}), which is not a final block of this chain",
            block.number,
            Hex32(block.hash)
        )));
    }
    Ok(Some(proven))
}
