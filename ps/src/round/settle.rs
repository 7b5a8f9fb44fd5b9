//! Attestation and payout of a scored epoch.

use crate::{
    PsError,
    db::{Attestation, DbError},
    state::ServerState,
};
use alice_chain::{Chain, ChainError, Entry};
use alice_primitives::{Commitment, Hash, SettlementStatus};
use alice_round::ChainStatus;

/// The signed commitment of an epoch and attestation round: the stored one if there is one, even if the chain has moved
/// on, otherwise a new one, **stored before it is returned**. So a second signature for the same epoch and round is
/// never made, and never sent: anybody could report the two as a fault of this server. `None` if nobody is to be paid.
pub async fn attestation(
    state: &ServerState,
    epoch: u32,
    round: u32,
    set_id: u32,
    parent: Hash,
) -> Result<Option<Attestation>, DbError> {
    if let Some(stored) = state.db().attestation(epoch, round).await? {
        return Ok(Some(stored));
    }
    let Some(row) = state.db().epoch(epoch).await?.filter(|row| row.entries > 0) else {
        return Ok(None);
    };
    let commitment = Commitment {
        epoch,
        set_id,
        run_hash: state.run().run_hash,
        contributions_root: row.contributions_root,
        pages: row.pages,
        entries: row.entries,
        total_score: row.total_score,
        manifest_hash: row.summary.manifest_hash.0,
        model_root: row.summary.model_root.0,
        parent,
    };
    let payload = commitment.attest_payload(&state.run().genesis, round);
    let signature = state.key().sign(&payload).0;
    state
        .db()
        .store_attestation(&Attestation {
            commitment,
            round,
            signature,
        })
        .await
        .map(Some)
}

/// Sends the attestation of an epoch.
///
/// # Errors
/// The chain does not take it, this key is no parameter server of the chain, or the database fails.
pub async fn attest(state: &ServerState, chain: &Chain, epoch: u32) -> Result<(), PsError> {
    // Of the finalised state: a parent or a round that a fork reverts would make the only signature worthless.
    let terms = chain.attestation_terms(epoch, state.key().public().0).await?;
    let Some(index) = terms.ps_index else {
        return Err(PsError::Mismatch {
            what: "the server's key",
            found: state.key().public().to_string(),
            expected: "one of the chain's parameter servers".into(),
            hint: "governance has to add it; scores are kept and attested later if that happens in time",
        });
    };
    if terms.latest.is_some_and(|(latest, _)| latest >= epoch) {
        // Accepted already, or overtaken by a later epoch; the next `Follow` finds out which.
        return Ok(());
    }
    let (round, parent) = (terms.round, terms.latest.map_or([0; 32], |(_, hash)| hash));
    let Some(signed) = attestation(state, epoch, round, terms.set_id, parent).await? else {
        return Ok(());
    };
    chain
        .submit_attest(&signed.commitment, signed.round, index, signed.signature)
        .await?;
    tracing::info!(epoch, round, commitment = %alice_api::Hex32(signed.commitment.hash()), "attestation sent");
    state
        .db()
        .set_settlement(epoch, SettlementStatus::Attested, None)
        .await?;
    Ok(())
}

/// Sends all payout pages. Pages that are paid already are no error.
///
/// # Errors
/// The first page that the chain refused, after all were sent; at once if the node does not answer.
pub async fn pay(state: &ServerState, chain: &Chain, epoch: u32) -> Result<(), PsError> {
    let Some(row) = state.db().epoch(epoch).await? else {
        return Ok(());
    };
    let mut first = None;
    for index in 0..row.pages {
        let Some(page) = state.db().page(epoch, index).await? else {
            continue;
        };
        let entries: Vec<Entry> = page.entries.iter().map(|entry| (*entry).into()).collect();
        let proof: Vec<Hash> = page.proof.iter().map(|h| h.0).collect();
        // A page that is refused must not keep the accounts of the others from being paid.
        match chain.submit_payout(epoch, index, &entries, &proof).await {
            Ok(()) => {}
            // Every other page would run into the same timeout.
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

/// Stores the chain's answer about an epoch.
///
/// # Errors
/// The database fails.
pub async fn record(state: &ServerState, epoch: u32, status: ChainStatus) -> Result<(), DbError> {
    let (settlement, block) = match status {
        ChainStatus::Open => (SettlementStatus::Open, None),
        ChainStatus::Accepted => (SettlementStatus::Accepted, None),
        ChainStatus::Final => (SettlementStatus::Final, None),
        ChainStatus::Settled { block } => (SettlementStatus::Settled, Some(block)),
        ChainStatus::Forfeited => (SettlementStatus::Forfeited, None),
    };
    state.db().set_settlement(epoch, settlement, block).await?;
    tracing::info!(epoch, %settlement, block, "settlement");
    Ok(())
}
