//! Attestation and payout of a scored epoch.

use crate::{
    PsError,
    db::{Attestation, DbError},
    service::Service,
};
use alice_chain::{Chain, ChainError, Entry};
use alice_primitives::{Commitment, Hash};
use alice_round::ChainStatus;

/// The signed commitment of an epoch and attestation round: the stored one if there is one, whatever the chain says by
/// now, otherwise a new one, **stored before it is returned**. So a second signature for the same epoch and round is
/// never made, and never sent. None where nobody is to be paid.
pub async fn attestation(
    service: &Service,
    epoch: u32,
    round: u32,
    set_id: u32,
    parent: Hash,
) -> Result<Option<Attestation>, DbError> {
    if let Some(stored) = service.db.attestation(epoch, round).await? {
        return Ok(Some(stored));
    }
    let Some(row) = service.db.epoch(epoch).await?.filter(|row| row.entries > 0) else {
        return Ok(None);
    };
    let commitment = Commitment {
        epoch,
        set_id,
        run_hash: service.net.run_hash,
        contributions_root: row.contributions_root,
        pages: row.pages,
        entries: row.entries,
        total_score: row.total_score,
        manifest_hash: row.summary.manifest_hash.0,
        model_root: row.summary.model_root.0,
        parent,
    };
    let payload = commitment.attest_payload(&service.net.genesis, round);
    let signature = service.key.sign(&payload).0;
    service
        .db
        .store_attestation(&Attestation {
            commitment,
            round,
            signature,
        })
        .await
        .map(Some)
}

/// Sends the attestation of an epoch.
pub async fn attest(service: &Service, chain: &Chain, epoch: u32) -> Result<(), PsError> {
    // Finalised: a parent or a round that a fork takes away would make the one signature worthless.
    let terms = chain.attestation_terms(epoch, service.key.public().0).await?;
    let Some(index) = terms.ps_index else {
        return Err(PsError::Mismatch {
            what: "the server's key",
            found: service.key.public().to_string(),
            expected: "one of the chain's parameter servers".into(),
            hint: "governance has to add it; scores are kept and attested later if that happens in time",
        });
    };
    if terms.latest.is_some_and(|(latest, _)| latest >= epoch) {
        // Accepted already, or passed by: the next look at the chain tells which.
        return Ok(());
    }
    let (round, parent) = (terms.round, terms.latest.map_or([0; 32], |(_, hash)| hash));
    let Some(signed) = attestation(service, epoch, round, terms.set_id, parent).await? else {
        return Ok(());
    };
    chain
        .submit_attest(&signed.commitment, signed.round, index, signed.signature)
        .await?;
    tracing::info!(epoch, round, commitment = %alice_api::Hex32(signed.commitment.hash()), "attestation sent");
    service.db.set_settlement(epoch, "attested", None).await?;
    Ok(())
}

/// Sends all payout pages. Pages that are paid already are no error.
pub async fn pay(service: &Service, chain: &Chain, epoch: u32) -> Result<(), PsError> {
    let Some(row) = service.db.epoch(epoch).await? else {
        return Ok(());
    };
    let mut first = None;
    for index in 0..row.pages {
        let Some(page) = service.db.page(epoch, index).await? else {
            continue;
        };
        let entries: Vec<Entry> = page
            .entries
            .iter()
            .map(|e| Entry {
                account: e.account.0,
                score: e.score,
            })
            .collect();
        let proof: Vec<Hash> = page.proof.iter().map(|h| h.0).collect();
        // One page that is refused does not keep the others from being paid.
        match chain.submit_payout(epoch, index, &entries, &proof).await {
            Ok(()) => {}
            // The other pages would wait for the same node.
            Err(error @ ChainError::Unreachable { .. }) => return Err(error.into()),
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    if let Some(error) = first {
        return Err(error.into());
    }
    tracing::info!(epoch, pages = row.pages, "payout pages sent");
    Ok(())
}

/// Stores what the chain says.
pub async fn record(service: &Service, epoch: u32, status: ChainStatus) -> Result<(), DbError> {
    let (name, block) = match status {
        ChainStatus::Open => ("open", None),
        ChainStatus::Accepted => ("accepted", None),
        ChainStatus::Final => ("final", None),
        ChainStatus::Settled { block } => ("settled", Some(block)),
        ChainStatus::Forfeited => ("forfeited", None),
    };
    service.db.set_settlement(epoch, name, block).await?;
    tracing::info!(epoch, settlement = name, block, "settlement");
    Ok(())
}
