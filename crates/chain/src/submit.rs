//! Feeless transactions of settlement. Each is valid once. Sending one again is harmless, and succeeds if the chain
//! already holds its content.

use crate::{
    Chain, ChainError,
    client::chained,
    extensions,
    layout::{CommitmentFields, EntryFields},
    state::State,
};
use alice_primitives::{
    Commitment, Hash,
    pages::{Entry, MAX_DEPTH, PAGE_ENTRIES},
};
use subxt::{
    ext::{frame_decode::extrinsics::ExtrinsicEncodeError, scale_encode::EncodeAsFields},
    rpcs::{Error as RpcError, UserError},
    tx::{TransactionInvalid, ValidationResult},
};

const ATTEST: &str = "the attestation";
const PAYOUT: &str = "the payout page";

/// Validity of a transaction on top of the best block, by the runtime.
#[derive(Debug, PartialEq, Eq)]
enum Validity {
    Valid,
    /// The chain holds its content already, or can no longer take it; the state shows which.
    Stale,
    Invalid(Refusal),
}

/// Why a transaction is refused, and whether waiting helps.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    reason: String,
    retry: bool,
}

impl Chain {
    /// Sends a parameter server's signature over a commitment ([`Commitment::attest_payload`]). Success means that the
    /// node has it in its pool or the chain already counts it, not that it is in a block: ask
    /// [`Chain::epoch_status`].
    pub async fn submit_attest(
        &self,
        commitment: &Commitment,
        round: u32,
        ps_index: u32,
        signature: [u8; 64],
    ) -> Result<(), ChainError> {
        let arguments = (CommitmentFields::from(commitment), round, ps_index, signature);
        let state = self.at_best(ATTEST).await?;
        let Err(refusal) = self.send(ATTEST, ("Epoch", "attest"), &arguments, &state).await? else {
            return Ok(());
        };
        // A server counts once in a round: an earlier attestation of its own may be the reason for the refusal.
        let (epoch, hash) = (commitment.epoch, commitment.hash());
        if let Some(accepted) = self.accepted(&state, ATTEST, epoch).await? {
            let of_chain = Commitment::from(accepted.commitment).hash();
            if of_chain == hash {
                return Ok(());
            }
            let reason = format!(
                "epoch {epoch} is accepted with another commitment, 0x{}",
                hex::encode(of_chain)
            );
            return Err(ChainError::Rejected {
                call: ATTEST,
                reason,
                retry: false,
            });
        }
        let sent = self.attestations(&state, ATTEST, epoch).await?;
        match sent.iter().find(|(index, _)| *index == ps_index) {
            Some((_, earlier)) if *earlier == hash => Ok(()),
            Some((_, earlier)) => {
                let reason = format!(
                    "this server has already signed another commitment for epoch {epoch}, 0x{}",
                    hex::encode(earlier)
                );
                Err(ChainError::Rejected {
                    call: ATTEST,
                    reason,
                    retry: false,
                })
            }
            None => Err(ChainError::Rejected {
                call: ATTEST,
                reason: refusal.reason,
                retry: refusal.retry,
            }),
        }
    }

    /// Sends page `index` of a final epoch with its Merkle proof. Anybody may; the page can only pay the accounts that
    /// are in it. Success means that the node has it in its pool or the page is paid.
    pub async fn submit_payout(
        &self,
        epoch: u32,
        index: u32,
        entries: &[Entry],
        proof: &[Hash],
    ) -> Result<(), ChainError> {
        // Longer ones do not fit the runtime's bounded types, and the node would only answer that it cannot decode
        // them.
        if entries.is_empty() || entries.len() > PAGE_ENTRIES || proof.len() > MAX_DEPTH {
            let reason = format!(
                "a page has 1 to {PAGE_ENTRIES} entries and at most {MAX_DEPTH} hashes of proof, this one has {} and {}",
                entries.len(),
                proof.len()
            );
            return Err(ChainError::Rejected {
                call: PAYOUT,
                reason,
                retry: false,
            });
        }
        let entries: Vec<EntryFields> = entries.iter().map(EntryFields::from).collect();
        let state = self.at_best(PAYOUT).await?;
        let arguments = (epoch, index, entries, proof.to_vec());
        let Err(refusal) = self.send(PAYOUT, ("Reward", "payout_page"), &arguments, &state).await? else {
            return Ok(());
        };
        // Others submit pages too: a refused page may be paid already.
        match self.ledger_fields(&state, PAYOUT, epoch).await? {
            Some(ledger) if ledger.is_paid(index) => Ok(()),
            _ => Err(ChainError::Rejected {
                call: PAYOUT,
                reason: refusal.reason,
                retry: refusal.retry,
            }),
        }
    }

    /// Sends a call if the runtime finds it valid on `state`. The inner error is the refusal of the runtime or the
    /// pool; whether the chain already holds the call's content is for the caller to find out.
    async fn send(
        &self,
        what: &'static str,
        (pallet, call): (&str, &str),
        arguments: &impl EncodeAsFields,
        state: &State,
    ) -> Result<Result<(), Refusal>, ChainError> {
        let metadata = state.metadata_ref();
        let bytes = extensions::general(pallet, call, arguments, metadata, metadata.types()).map_err(
            |e: ExtrinsicEncodeError| ChainError::Decode {
                what,
                detail: chained(&e),
            },
        )?;
        let transaction = state.transactions().from_bytes(bytes);
        // The runtime first, because its refusals are codes; the pool passes them on as text.
        let asking = async {
            transaction
                .validate()
                .await
                .map_err(|e| self.refused(what, &chained(&e)))
        };
        match validity(self.within(what, asking).await?) {
            Validity::Valid => {}
            Validity::Stale => return Ok(Err(refusal("the chain can no longer take it", false))),
            Validity::Invalid(refusal) => return Ok(Err(refusal)),
        }
        let submitting = || async {
            match self.rpc.author_submit_extrinsic(transaction.encoded()).await {
                Ok(_) => Ok(Ok(())),
                Err(RpcError::User(answer)) => Ok(pool_answer(&answer)),
                Err(other) => Err(other),
            }
        };
        let answer = self.ask(what, submitting).await?;
        tracing::debug!(call, ?answer, "transaction sent");
        Ok(answer)
    }
}

fn refusal(reason: impl Into<String>, retry: bool) -> Refusal {
    Refusal {
        reason: reason.into(),
        retry,
    }
}

fn validity(result: ValidationResult) -> Validity {
    // `retry` is set if time alone can change the answer.
    let (reason, retry) = match result {
        ValidationResult::Valid(_) => return Validity::Valid,
        ValidationResult::Invalid(TransactionInvalid::Stale) => return Validity::Stale,
        ValidationResult::Invalid(TransactionInvalid::Custom(code)) => return Validity::Invalid(by_code(code)),
        ValidationResult::Invalid(TransactionInvalid::BadProof) => (
            "the signature is not that server's over this commitment, round and genesis hash".to_owned(),
            false,
        ),
        ValidationResult::Invalid(TransactionInvalid::ExhaustsResources) => ("the block is full".to_owned(), true),
        ValidationResult::Invalid(other) => (format!("the transaction is invalid ({other:?})"), false),
        ValidationResult::Unknown(other) => (format!("the node cannot judge it now ({other:?})"), true),
    };
    Validity::Invalid(Refusal { reason, retry })
}

/// The codes of `pallet_epoch::refusal` and `pallet_reward::refusal`.
fn by_code(code: u8) -> Refusal {
    // Numbers, because the pallets are no dependency of this crate: they would bring all of FRAME into the programs.
    let (reason, retry) = match code {
        1 => ("the epoch has not ended", true),
        2 => (
            "the epoch is closed: its late window is over, or a later epoch was accepted",
            false,
        ),
        3 => ("the epoch is attested in another round", false),
        4 => ("another set of parameter servers signs now", false),
        5 => ("the chain pays for another run", false),
        6 => ("the commitment before it is still in its dispute window", true),
        7 => ("its parent is not the last accepted commitment", false),
        8 => ("its pages, entries and total do not fit together", false),
        9 => ("a reopened epoch keeps its model root", false),
        10 => ("there is no such parameter server", false),
        32 => ("the epoch is not final yet, or already settled", true),
        33 => ("the epoch has no such page", false),
        34 => ("the page does not belong to the epoch's commitment", false),
        35 => ("the scores on the pages are more than the attested total", false),
        _ => {
            return refusal(
                format!("the runtime refuses it with code {code}, which this program does not know"),
                false,
            );
        }
    };
    refusal(reason, retry)
}

/// Answers of the node's transaction pool (`sc_rpc_api::author::error`).
fn pool_answer(answer: &UserError) -> Result<(), Refusal> {
    /// In the pool already.
    const ALREADY_IMPORTED: i32 = 1013;
    /// Another transaction that provides the same (this server's signature, this page) is in the pool.
    const TOO_LOW_PRIORITY: i32 = 1014;
    match answer.code {
        ALREADY_IMPORTED | TOO_LOW_PRIORITY => Ok(()),
        _ => {
            let data = answer
                .data
                .as_ref()
                .map(|data| format!(": {}", data.get()))
                .unwrap_or_default();
            // The runtime found it valid a moment ago, so the pool's reasons (full, banned for a while, overtaken by
            // a new block) pass.
            Err(refusal(format!("{} ({}){data}", answer.message, answer.code), true))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use subxt::tx::TransactionUnknown;

    fn answer(code: i32) -> UserError {
        UserError {
            code,
            message: "Words".into(),
            data: None,
        }
    }

    #[test]
    fn transactions_in_the_pool_should_be_a_success() {
        assert_eq!(pool_answer(&answer(1013)), Ok(()));
        assert_eq!(pool_answer(&answer(1014)), Ok(()));
    }

    #[test]
    fn refusals_of_the_pool_should_be_tried_again() {
        for code in [1010, 1011, 1012, 1016, -32000] {
            let refusal = pool_answer(&answer(code)).unwrap_err();
            assert!(refusal.retry && refusal.reason.contains("Words"), "{refusal:?}");
        }
    }

    #[test]
    fn refusals_of_the_runtime_should_be_explained() {
        let invalid = |why| validity(ValidationResult::Invalid(why));
        assert_eq!(invalid(TransactionInvalid::Stale), Validity::Stale);
        let Validity::Invalid(wait) = invalid(TransactionInvalid::Custom(6)) else {
            panic!("not refused")
        };
        assert!(wait.retry && wait.reason.contains("dispute window"));
        let Validity::Invalid(never) = invalid(TransactionInvalid::Custom(34)) else {
            panic!("not refused")
        };
        assert!(!never.retry && never.reason.contains("does not belong"));
        let Validity::Invalid(new) = invalid(TransactionInvalid::Custom(200)) else {
            panic!("not refused")
        };
        assert!(!new.retry && new.reason.contains("200"));
        let Validity::Invalid(forged) = invalid(TransactionInvalid::BadProof) else {
            panic!("not refused")
        };
        assert!(!forged.retry && forged.reason.contains("signature"));
        let unknown = validity(ValidationResult::Unknown(TransactionUnknown::CannotLookup));
        assert!(matches!(unknown, Validity::Invalid(Refusal { retry: true, .. })));
    }
}
