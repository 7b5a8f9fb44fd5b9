//! The chain proof of an `ALICE.json`: fetched for an export, read for a check.

use crate::PsError;
use alice_api::Hex32;
use alice_chain::{
    Chain, ChainError, EpochStatus,
    proof::{CommitmentProof, Genesis, Proven, SPEC_BYTES_MAX},
};
use alice_export::{AliceFile, ChainProof, HexBytes};
use alice_primitives::Hash;
use std::io::Read;
use std::path::Path;

/// Proves an epoch's commitment, which must name this model; none, and why on stderr, where the chain has none that stands.
pub async fn fetch(chain: &Chain, epoch: u32, model_root: Hash) -> Result<Option<ChainProof>, PsError> {
    let proved = match chain.finalized_epoch_status(epoch).await {
        Ok(EpochStatus::Final { .. } | EpochStatus::Settled { .. }) => {
            let proof = chain.prove_commitment(epoch).await?;
            proof.ok_or("the node cannot justify a block that is new enough yet; export again in a while")
        }
        Ok(EpochStatus::Accepted { .. }) => Err("its dispute window is open; export again in a while"),
        Ok(EpochStatus::Open) => Err("it is not attested yet; export again in a while"),
        Ok(EpochStatus::Forfeited) => Err("it was not attested: nobody earned in it, or it came too late"),
        Err(ChainError::Forgotten { .. }) => Err("the chain keeps 720 epochs"),
        Err(error) => return Err(error.into()),
    };
    let proof = match proved {
        Ok(proof) => proof,
        Err(why) => {
            eprintln!("no chain proof of epoch {epoch}: {why}");
            return Ok(None);
        }
    };
    let found = proof.open(epoch)?.commitment.model_root;
    if found != model_root {
        return Err(PsError::Audit(format!(
            "epoch {epoch}: the quorum signed the model root {}, recomputed is {}",
            Hex32(found),
            Hex32(model_root)
        )));
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
    proof.check_final(genesis)?;
    Ok(proof.open(alice.epoch)?)
}

/// What a folder's proof shows to who can ask a node whether its block is one of the chain's: also of an epoch that the
/// chain has forgotten since. None where the folder has no proof.
pub async fn check_with(alice: &AliceFile, chain: &Chain) -> Result<Option<Proven>, PsError> {
    let Some(proof) = of(alice) else { return Ok(None) };
    let proven = proof.open(alice.epoch)?;
    let (block, finalized) = (proven.block, chain.finalized().await?.number);
    if block.number > finalized || chain.block_hash(block.number).await? != Some(block.hash) {
        return Err(PsError::OtherWeights(format!(
            "the chain proof in ALICE.json is of block {} ({}), which is not a final block of this chain",
            block.number,
            Hex32(block.hash)
        )));
    }
    Ok(Some(proven))
}
