//! The chain proof of an `ALICE.json`: fetched for an export, read for a check.

use crate::{AuditError, error::OtherWeights};
use alice_api::Hex32;
use alice_chain::{
    Chain, EpochStatus,
    proof::{CommitmentProof, Genesis, Proven, SPEC_BYTES_MAX},
};
use alice_export::{AliceFile, ChainProof, HexBytes};
use alice_primitives::{Commitment, Hash};
use std::io::Read;
use std::path::Path;

/// Statement about the model of an epoch: by a folder, by the commitment on the chain, or by a server's manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Epoch.
    pub epoch: u32,
    /// Hash of the run.
    pub run_hash: Hash,
    /// Root of the f32 weights.
    pub model_root: Hash,
    /// BLAKE3 of the epoch's manifest, if it is known.
    pub manifest_hash: Option<Hash>,
}

/// A value in which two claims differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Name of the value.
    pub what: &'static str,
    /// The value of this claim.
    pub found: Hex32,
    /// The value of the other claim.
    pub expected: Hex32,
}

impl Claim {
    /// The claim of a folder.
    pub fn of(alice: &AliceFile) -> Self {
        Self {
            epoch: alice.epoch,
            run_hash: alice.run.hash,
            model_root: alice.model_root,
            manifest_hash: alice.manifest_hash,
        }
    }

    /// The claim that the quorum signed.
    pub fn signed(commitment: &Commitment) -> Self {
        Self {
            epoch: commitment.epoch,
            run_hash: commitment.run_hash,
            model_root: commitment.model_root,
            manifest_hash: Some(commitment.manifest_hash),
        }
    }

    /// The first value in which another claim of the same epoch differs; `None` if there is none.
    pub fn difference(&self, other: &Self) -> Option<Difference> {
        // A folder of the first state has no manifest, and one that was written by hand may name none.
        let manifest = self.manifest_hash.zip(other.manifest_hash);
        let pairs = [
            Some(("the run hash", self.run_hash, other.run_hash)),
            Some(("the model root", self.model_root, other.model_root)),
            manifest.map(|(found, expected)| ("the manifest's hash", found, expected)),
        ];
        let mut pairs = pairs.into_iter().flatten();
        let (what, found, expected) = pairs.find(|(_, found, expected)| found != expected)?;
        Some(Difference {
            what,
            found: Hex32(found),
            expected: Hex32(expected),
        })
    }
}

/// Proves an epoch's commitment, which must agree with the claim. `None`, with the reason on standard error, if the
/// chain has no final one or its node cannot prove it now: the folder is worth having without.
///
/// # Errors
/// The proof does not hold, or the quorum signed another model.
pub async fn fetch(chain: &Chain, claim: &Claim) -> Result<Option<ChainProof>, AuditError> {
    let epoch = claim.epoch;
    // Finalised state only: a proof from a block that is replaced later would convince nobody.
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
        Err(reason) => {
            eprintln!("no chain proof of epoch {epoch}: {reason}");
            return Ok(None);
        }
    };
    let signed = Claim::signed(&proof.open(epoch)?.commitment);
    if let Some(Difference { what, found, expected }) = claim.difference(&signed) {
        return Err(OtherWeights::NotSigned {
            epoch,
            what,
            found,
            expected,
        }
        .into());
    }
    // The proof holds whether the node answers this or not, so a failure here must not cost the export.
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

/// Block 0 of a raw chain specification.
///
/// # Errors
/// The file cannot be read, is too large, or is no raw specification.
pub fn genesis(path: &Path) -> Result<Genesis, AuditError> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?
            // One byte more tells a file that is too large from one that just fits.
            .take(SPEC_BYTES_MAX + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|e| AuditError::file("read", path, e))?;
    if bytes.len() as u64 > SPEC_BYTES_MAX {
        return Err(AuditError::ChainSpecSize {
            path: path.to_path_buf(),
            bytes_max: SPEC_BYTES_MAX,
        });
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

/// Checks a folder's proof with nothing but block 0.
///
/// # Errors
/// The folder holds no proof, or the proof does not hold.
pub fn check(alice: &AliceFile, genesis: &Genesis) -> Result<Proven, AuditError> {
    let proof = of(alice).ok_or(AuditError::NoChainProof)?;
    Ok(proof.check(alice.epoch, genesis)?)
}

/// Checks a folder's proof by asking a node whether its block is one of the chain's, also for an epoch that the chain
/// has forgotten since. `None` if the folder has no proof.
///
/// # Errors
/// The proof does not hold, or its block is not a final one of this chain.
pub async fn check_with(alice: &AliceFile, chain: &Chain) -> Result<Option<Proven>, AuditError> {
    let Some(proof) = of(alice) else { return Ok(None) };
    let proven = proof.open(alice.epoch)?;
    let (block, finalized) = (proven.block, chain.finalized().await?.number);
    // A proof names its own chain; the node says whether that chain is this one and has this block for good.
    let ours = proven.genesis == chain.genesis_hash() && block.number <= finalized;
    if !ours || chain.block_hash(block.number).await? != Some(block.hash) {
        return Err(OtherWeights::ForeignBlock {
            number: block.number,
            hash: Hex32(block.hash),
        }
        .into());
    }
    Ok(Some(proven))
}
