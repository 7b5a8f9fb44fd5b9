//! Reads of the chain's state, by the names in its metadata.

use crate::{
    AttestationTerms, Block, Chain, ChainError, ChainParameters, EpochStatus, Ledger, ParameterServers,
    client::chained,
    layout::{Accepted, AccountInfo, LedgerFields, NetworkParameters, ParameterServer, Reopened},
};
use alice_primitives::{Commitment, Hash};
use subxt::{
    OnlineClientAtBlock, SubstrateConfig, dynamic,
    error::StorageError,
    ext::{
        frame_decode::storage::{IntoDecodableValues, IntoEncodableValues},
        scale_decode::DecodeAsType,
    },
};

/// The state behind one block.
pub(crate) type State = OnlineClientAtBlock<SubstrateConfig>;

impl Chain {
    /// Parameters of the network, and the run that it pays for.
    pub async fn parameters(&self) -> Result<ChainParameters, ChainError> {
        let what = "network parameters";
        let state = self.at_best(what).await?;
        // One state for both reads, so that they fit together.
        let network = self.network(&state, what).await?;
        let run_hash: Option<Hash> = self.fetch(&state, what, ("Epoch", "RunHash"), ()).await?;
        Ok(ChainParameters {
            epoch_blocks: network.epoch_blocks,
            window_blocks: network.window_blocks,
            late_window_epochs: network.late_epochs,
            slot_ms: network.slot_ms,
            run_hash: run_hash.unwrap_or_default(),
        })
    }

    /// The parameter servers whose signatures count now.
    pub async fn parameter_servers(&self) -> Result<ParameterServers, ChainError> {
        let what = "parameter servers";
        let state = self.at_best(what).await?;
        let set_id: Option<u32> = self.fetch(&state, what, ("Epoch", "SetId"), ()).await?;
        let servers: Option<Vec<ParameterServer>> = self.fetch(&state, what, ("Epoch", "ParameterServers"), ()).await?;
        let keys = servers
            .unwrap_or_default()
            .into_iter()
            .map(|server| server.key)
            .collect();
        Ok(ParameterServers {
            set_id: set_id.unwrap_or_default(),
            keys,
        })
    }

    /// Number of the current set and the key's position in it; `None` if it is not one of the parameter servers.
    pub async fn ps_index(&self, key: Hash) -> Result<Option<(u32, u32)>, ChainError> {
        let servers = self.parameter_servers().await?;
        let position = servers.keys.iter().position(|k| *k == key);
        Ok(position.and_then(|index| Some((servers.set_id, u32::try_from(index).ok()?))))
    }

    /// Epoch and hash of the last accepted commitment: what the next one names as its parent.
    pub async fn latest_accepted(&self) -> Result<Option<(u32, Hash)>, ChainError> {
        let what = "last accepted commitment";
        let state = self.at_best(what).await?;
        self.fetch(&state, what, ("Epoch", "Latest"), ()).await
    }

    /// Round in which an epoch is attested: 0, and one more for each time the validators reopened it.
    pub async fn round(&self, epoch: u32) -> Result<u32, ChainError> {
        let what = "round of attestation";
        let state = self.at_best(what).await?;
        let reopened: Option<Reopened> = self.fetch(&state, what, ("Epoch", "ReopenedEpochs"), (epoch,)).await?;
        Ok(reopened.map_or(0, |reopened| reopened.round))
    }

    /// The accepted commitment of an epoch.
    pub async fn commitment(&self, epoch: u32) -> Result<Option<Commitment>, ChainError> {
        let what = "accepted commitment";
        let state = self.at_best(what).await?;
        Ok(self
            .accepted(&state, what, epoch)
            .await?
            .map(|accepted| accepted.commitment.into()))
    }

    /// Settlement of an epoch in the best block.
    pub async fn epoch_status(&self, epoch: u32) -> Result<EpochStatus, ChainError> {
        self.epoch_status_at(epoch, self.best().await?).await
    }

    /// Settlement of an epoch in the last finalised block, which no fork can take back.
    pub async fn finalized_epoch_status(&self, epoch: u32) -> Result<EpochStatus, ChainError> {
        self.epoch_status_at(epoch, self.finalized().await?).await
    }

    /// Values that an attestation of an epoch is bound to. All are of the last finalised block: a signature that is
    /// bound to an abandoned fork is worthless, and the server signs only once in a round.
    pub async fn attestation_terms(&self, epoch: u32, key: Hash) -> Result<AttestationTerms, ChainError> {
        let what = "terms of an attestation";
        let block = self.finalized().await?;
        let state = self.at(what, block).await?;
        let set_id: Option<u32> = self.fetch(&state, what, ("Epoch", "SetId"), ()).await?;
        let servers: Option<Vec<ParameterServer>> = self.fetch(&state, what, ("Epoch", "ParameterServers"), ()).await?;
        let position = servers.unwrap_or_default().iter().position(|server| server.key == key);
        let reopened: Option<Reopened> = self.fetch(&state, what, ("Epoch", "ReopenedEpochs"), (epoch,)).await?;
        Ok(AttestationTerms {
            set_id: set_id.unwrap_or_default(),
            ps_index: position.and_then(|index| u32::try_from(index).ok()),
            round: reopened.map_or(0, |reopened| reopened.round),
            latest: self.fetch(&state, what, ("Epoch", "Latest"), ()).await?,
        })
    }

    async fn epoch_status_at(&self, epoch: u32, best: Block) -> Result<EpochStatus, ChainError> {
        let what = "status of an epoch";
        let state = self.at(what, best).await?;
        let network = self.network(&state, what).await?;
        let Some(accepted) = self.accepted(&state, what, epoch).await? else {
            return self.unaccepted(&state, what, epoch, best, &network).await;
        };
        let (at_block, round) = (accepted.at, accepted.round);
        // No page is paid before this block.
        let final_at = at_block.saturating_add(network.window_blocks);
        if accepted.settled {
            let block = self.settled_in(what, epoch, final_at, best).await?;
            return Ok(EpochStatus::Settled { block });
        }
        // Without payouts the runtime never sets `settled`; such an epoch is settled when its window ends.
        let nothing_to_pay = accepted.commitment.total_score == 0;
        let hash = Commitment::from(accepted.commitment).hash();
        Ok(match best.number >= final_at {
            false => EpochStatus::Accepted { hash, at_block, round },
            true if nothing_to_pay => EpochStatus::Settled { block: final_at },
            true => EpochStatus::Final { hash, at_block },
        })
    }

    /// Payout of an epoch so far; `None` before its first page.
    pub async fn ledger(&self, epoch: u32) -> Result<Option<Ledger>, ChainError> {
        let what = "ledger of an epoch";
        let state = self.at_best(what).await?;
        let ledger = self.ledger_fields(&state, what, epoch).await?;
        Ok(ledger.map(|l| Ledger {
            budget: l.budget,
            total_score: l.total_score,
            paid: l.paid,
            pages: l.pages,
            pages_paid: l.pages_paid,
        }))
    }

    /// Free balance of an account, planck; zero if there is no such account.
    pub async fn balance(&self, account: Hash) -> Result<u128, ChainError> {
        let what = "balance";
        let state = self.at_best(what).await?;
        let info: Option<AccountInfo> = self.fetch(&state, what, ("System", "Account"), (account,)).await?;
        Ok(info.map_or(0, |info| info.data.free))
    }

    /// All ALICE in existence, planck.
    pub async fn total_issuance(&self) -> Result<u128, ChainError> {
        let what = "total issuance";
        let state = self.at_best(what).await?;
        Ok(self
            .fetch(&state, what, ("Balances", "TotalIssuance"), ())
            .await?
            .unwrap_or_default())
    }

    /// Status of an epoch without an accepted commitment, classified as by the runtime (`Epoch::status`).
    async fn unaccepted(
        &self,
        state: &State,
        what: &'static str,
        epoch: u32,
        best: Block,
        network: &NetworkParameters,
    ) -> Result<EpochStatus, ChainError> {
        // First: without its records a pruned epoch would count as forfeited.
        let pruned: Option<u32> = self.fetch(state, what, ("Epoch", "PrunedBefore"), ()).await?;
        if pruned.is_some_and(|before| epoch < before) {
            return Err(ChainError::Forgotten { epoch });
        }
        let closed: Option<u32> = self.fetch(state, what, ("Epoch", "ClosedBefore"), ()).await?;
        // The runtime refuses a network without blocks in its epochs.
        let now = best.number / network.epoch_blocks.max(1);
        let late = now.saturating_sub(epoch) > network.late_epochs;
        let forfeited = late || closed.is_some_and(|before| epoch < before);
        Ok(if forfeited {
            EpochStatus::Forfeited
        } else {
            EpochStatus::Open
        })
    }

    /// Block in which a settled epoch's last page was paid: the first in whose state the epoch is settled, found by
    /// bisection because the state does not record it. If the node has pruned the states around it, the oldest block
    /// whose state still shows it.
    async fn settled_in(&self, what: &'static str, epoch: u32, from: u32, best: Block) -> Result<u32, ChainError> {
        // Invariant: not settled before `low`; settled in `high`.
        let (mut low, mut high) = (from.min(best.number), best.number);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.settled_at(what, epoch, middle).await {
                Ok(true) => high = middle,
                Ok(false) => low = middle + 1,
                // Pruned. Nodes prune from the oldest state on, so everything below is gone too.
                Err(ChainError::Refused { .. }) => low = middle + 1,
                Err(other) => return Err(other),
            }
        }
        Ok(high)
    }

    async fn settled_at(&self, what: &'static str, epoch: u32, number: u32) -> Result<bool, ChainError> {
        let hash = self.block_hash(number).await?.ok_or(ChainError::NoBlock { number })?;
        let state = self.at(what, Block { number, hash }).await?;
        Ok(self
            .accepted(&state, what, epoch)
            .await?
            .is_some_and(|accepted| accepted.settled))
    }

    async fn network(&self, state: &State, what: &'static str) -> Result<NetworkParameters, ChainError> {
        let network: Option<NetworkParameters> = self.fetch(state, what, ("Epoch", "NetworkParameters"), ()).await?;
        network.ok_or_else(|| ChainError::Decode {
            what,
            detail: "the chain has no network parameters".into(),
        })
    }

    pub(crate) async fn accepted(
        &self,
        state: &State,
        what: &'static str,
        epoch: u32,
    ) -> Result<Option<Accepted>, ChainError> {
        self.fetch(state, what, ("Epoch", "Commitments"), (epoch,)).await
    }

    /// Place and hash of every attestation of an epoch's open round.
    pub(crate) async fn attestations(
        &self,
        state: &State,
        what: &'static str,
        epoch: u32,
    ) -> Result<Vec<(u32, Hash)>, ChainError> {
        Ok(self
            .fetch(state, what, ("Epoch", "Attestations"), (epoch,))
            .await?
            .unwrap_or_default())
    }

    pub(crate) async fn ledger_fields(
        &self,
        state: &State,
        what: &'static str,
        epoch: u32,
    ) -> Result<Option<LedgerFields>, ChainError> {
        self.fetch(state, what, ("Reward", "Ledgers"), (epoch,)).await
    }

    /// A storage value; `None` if nothing is stored.
    async fn fetch<K, V>(
        &self,
        state: &State,
        what: &'static str,
        (pallet, item): (&str, &str),
        key: K,
    ) -> Result<Option<V>, ChainError>
    where
        K: IntoEncodableValues + IntoDecodableValues,
        V: DecodeAsType,
    {
        let fetching = async {
            let storage = state.storage();
            let value = storage
                .try_fetch(dynamic::storage::<K, V>(pallet, item), key)
                .await
                .map_err(|e| match e {
                    StorageError::CannotFetchValue(_) => self.refused(what, &chained(&e)),
                    // Everything else is a difference between the metadata and this program.
                    _ => ChainError::Decode {
                        what,
                        detail: chained(&e),
                    },
                })?;
            let Some(value) = value else { return Ok(None) };
            value.decode().map(Some).map_err(|e| ChainError::Decode {
                what,
                detail: chained(&e),
            })
        };
        self.within(what, fetching).await
    }
}
