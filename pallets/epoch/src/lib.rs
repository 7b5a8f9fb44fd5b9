//! Epochs and the attestations of the parameter servers.
//!
//! An epoch is a fixed number of blocks; its number follows from the block number and is never stored. After an epoch
//! has ended, each parameter server signs a [`Commitment`] to its outcome; a quorum on one hash makes it *accepted*.
//! Until the dispute window ends the validators may veto it, which opens the epoch for another round; after the window
//! it is *final* and can be paid.
//!
//! ```text
//! Open ── quorum ──▶ Accepted ── window, no veto ──▶ Final ── all pages paid ──▶ Settled
//!  │ ▲                   │
//!  │ └─ veto, round + 1 ─┘
//!  └─ late window over, or a later epoch accepted, or too many rounds ──▶ Forfeited
//! ```
//!
//! * Commitments are accepted in the order of epochs. Each names the hash of its predecessor, whose dispute window must
//!   have ended: a veto never has to undo two commitments.
//! * Neither call needs an account: both are general transactions, authorised by the signature inside.
#![cfg_attr(not(feature = "std"), no_std)]
// Not `expect_used`: the macros of FRAME write such calls.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing))]

extern crate alloc;

pub use alice_primitives::history::HISTORY_EPOCHS;
pub use alice_primitives::SettlementStatus as Status;
pub use pallet::*;

#[cfg(test)]
mod tests;
mod weights;

use alice_primitives::Commitment;
use alloc::vec::Vec;
use codec::{Decode, DecodeWithMemTracking, Encode, MaxEncodedLen};
use frame_support::traits::Get;
use scale_info::TypeInfo;
use sp_core::sr25519;

/// Maximum rounds of attestation of an epoch. After as many vetoes it is forfeited: a quorum and a majority of
/// validators that disagree for good must not block the epochs after it.
pub const ROUNDS_MAX: u32 = 3;
/// Maximum number of validators.
pub const VALIDATORS_MAX: u32 = 100;
/// Maximum number of pages in a commitment, set by the maximum depth of a page's Merkle proof.
pub const PAGES_MAX: u32 = 1 << alice_primitives::pages::MAX_DEPTH;

/// Settlement of epochs, as the paying pallet sees it.
pub trait Outcomes {
    /// The commitment of an epoch that may be paid now; `None` in every other status.
    fn payable(epoch: u32) -> Option<Commitment>;

    /// Notes that all pages of the epoch are paid.
    fn settled(epoch: u32);
}

/// The validators, who may veto, by the keys that they author blocks with.
pub trait Validators {
    /// Keys of the current session's validators.
    fn keys() -> Vec<sr25519::Public>;
}

/// Parameters of a network. They are genesis storage, so that all networks run the same runtime.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Eq,
    Encode,
    Decode,
    DecodeWithMemTracking,
    TypeInfo,
    MaxEncodedLen,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Parameters {
    /// Length of a slot, and so of a block, milliseconds.
    pub slot_ms: u64,
    /// Blocks in an epoch.
    pub epoch_blocks: u32,
    /// Blocks in which an accepted commitment can be vetoed.
    pub window_blocks: u32,
    /// Epochs after its end in which an epoch can still be attested.
    pub late_epochs: u32,
    /// Slots in a session.
    pub session_slots: u32,
}

impl Default for Parameters {
    /// Parameters of the main network: epochs of one hour, a dispute window of ten minutes.
    fn default() -> Self {
        Self {
            slot_ms: 6_000,
            epoch_blocks: 600,
            window_blocks: 100,
            late_epochs: 24,
            session_slots: 600,
        }
    }
}

impl Parameters {
    /// Parameters of a development network: epochs of one minute.
    pub fn development() -> Self {
        Self {
            slot_ms: 2_000,
            epoch_blocks: 30,
            window_blocks: 2,
            late_epochs: 24,
            session_slots: 60,
        }
    }

    /// Checks that a chain can run with these parameters.
    pub fn validate(&self) -> Result<(), &'static str> {
        // Even, because half a slot is the minimum time between two blocks. Ten minutes at most: longer slots would be
        // a mistake in the unit.
        if self.slot_ms < 2 || self.slot_ms > 600_000 || self.slot_ms % 2 == 1 {
            return Err("slot length must be an even number of milliseconds from 2 to 600,000");
        }
        if self.epoch_blocks == 0 {
            return Err("an epoch must have blocks");
        }
        if self.window_blocks >= self.epoch_blocks {
            return Err("the dispute window must be shorter than an epoch");
        }
        if self.session_slots < 4 {
            return Err("a session must have at least 4 slots");
        }
        if self.late_epochs == 0 || self.late_epochs > HISTORY_EPOCHS / 2 {
            return Err("the late window must be 1 to 360 epochs");
        }
        Ok(())
    }
}

/// One parameter server.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Eq,
    Encode,
    Decode,
    DecodeWithMemTracking,
    TypeInfo,
    MaxEncodedLen,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParameterServer<AccountId> {
    /// Account of the operator.
    pub account: AccountId,
    /// Key of its attestations.
    pub key: sr25519::Public,
}

/// The running epoch.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, DecodeWithMemTracking, TypeInfo, MaxEncodedLen)]
pub struct Current {
    /// Number of the running epoch.
    pub epoch: u32,
    /// Its first block.
    pub first_block: u32,
    /// The first block of the next one.
    pub next_block: u32,
    /// The last block executed.
    pub block: u32,
    /// The network's parameters.
    pub parameters: Parameters,
}

/// The accepted commitment of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, DecodeWithMemTracking, TypeInfo, MaxEncodedLen)]
pub struct Accepted {
    /// The commitment that the quorum signed.
    pub commitment: Commitment,
    /// Round of attestation.
    pub round: u32,
    /// Block of acceptance.
    pub at: u32,
    /// Whether all its pages are paid.
    pub settled: bool,
    /// The latest accepted commitment before it.
    pub previous: Option<(u32, alice_primitives::Hash)>,
}

/// An epoch that was vetoed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, DecodeWithMemTracking, TypeInfo, MaxEncodedLen)]
pub struct Reopened {
    /// The round that is open.
    pub round: u32,
    /// Model root of the vetoed commitment. Later epochs have trained on that model, so it must not change.
    pub model_root: alice_primitives::Hash,
}

#[frame_support::pallet]
pub mod pallet {
    use super::*;
    use alice_primitives::{commitment::veto_payload, history, quorum, Hash, PARAMETER_SERVERS_MAX};
    use frame_support::{pallet_prelude::*, weights::WeightMeter};
    use frame_system::{ensure_authorized, pallet_prelude::*};
    use sp_runtime::{traits::SaturatedConversion, transaction_validity::TransactionValidityWithRefund};

    /// Codes of [`InvalidTransaction::Custom`] with which the calls refuse a transaction.
    pub mod refusal {
        /// The epoch has not ended.
        pub const NOT_ENDED: u8 = 1;
        /// The late window is over, or a later epoch was accepted.
        pub const TOO_LATE: u8 = 2;
        /// Another round is open.
        pub const WRONG_ROUND: u8 = 3;
        /// Another set of parameter servers signs.
        pub const WRONG_SET: u8 = 4;
        /// The commitment is for another run.
        pub const WRONG_RUN: u8 = 5;
        /// The commitment before is still in its dispute window.
        pub const PARENT_NOT_FINAL: u8 = 6;
        /// `parent` is not the latest accepted commitment.
        pub const WRONG_PARENT: u8 = 7;
        /// Pages, entries and total don't fit together.
        pub const MALFORMED: u8 = 8;
        /// A reopened epoch keeps its model root.
        pub const MODEL_ROOT_CHANGED: u8 = 9;
        /// There is no such parameter server or validator.
        pub const NOT_MEMBER: u8 = 10;
        /// The epoch has no such commitment in its dispute window.
        pub const NOT_DISPUTABLE: u8 = 11;
    }

    const LOG_TARGET: &str = "runtime::epoch";
    /// Blocks for which a pool keeps an attestation or a veto before it validates it anew.
    const LONGEVITY_BLOCKS: u64 = 64;

    /// Epochs pruned in one block. One epoch ends in a block at most, so any number above one catches up.
    const PRUNED_PER_BLOCK: u32 = 8;

    #[pallet::pallet]
    pub struct Pallet<T>(_);

    #[pallet::config]
    pub trait Config: frame_system::Config<RuntimeEvent: From<Event<Self>>, Hash: Into<Hash>> {
        /// Who may veto.
        type Validators: Validators;
    }

    /// The network's parameters, from genesis.
    #[pallet::storage]
    pub type NetworkParameters<T: Config> = StorageValue<_, Parameters, ValueQuery>;

    /// Hash of the run that the network trains; `None` accepts commitments of any run.
    #[pallet::storage]
    pub type RunHash<T: Config> = StorageValue<_, Hash>;

    /// The parameter servers, who attest.
    #[pallet::storage]
    pub type ParameterServers<T: Config> =
        StorageValue<_, BoundedVec<ParameterServer<T::AccountId>, ConstU32<PARAMETER_SERVERS_MAX>>, ValueQuery>;

    /// Number of the set of parameter servers.
    #[pallet::storage]
    pub type SetId<T: Config> = StorageValue<_, u32, ValueQuery>;

    /// Epoch and hash of the latest accepted commitment.
    #[pallet::storage]
    pub type Latest<T: Config> = StorageValue<_, (u32, Hash)>;

    /// No epoch before this one can be attested any more. Never decreases.
    #[pallet::storage]
    pub type ClosedBefore<T: Config> = StorageValue<_, u32, ValueQuery>;

    /// Accepted commitments of the last `HISTORY_EPOCHS` epochs.
    #[pallet::storage]
    pub type Commitments<T: Config> = StorageMap<_, Twox64Concat, u32, Accepted>;

    /// Attestations in the open round of an epoch: index of the parameter server and hash of the commitment.
    #[pallet::storage]
    pub type Attestations<T: Config> =
        StorageMap<_, Twox64Concat, u32, BoundedVec<(u32, Hash), ConstU32<PARAMETER_SERVERS_MAX>>, ValueQuery>;

    /// Keys of the validators that vetoed an epoch's accepted commitment.
    #[pallet::storage]
    pub type Vetoes<T: Config> =
        StorageMap<_, Twox64Concat, u32, BoundedVec<sr25519::Public, ConstU32<VALIDATORS_MAX>>, ValueQuery>;

    /// Epochs that were vetoed.
    #[pallet::storage]
    pub type ReopenedEpochs<T: Config> = StorageMap<_, Twox64Concat, u32, Reopened>;

    /// Everything about epochs before this one has been removed.
    #[pallet::storage]
    pub type PrunedBefore<T: Config> = StorageValue<_, u32, ValueQuery>;

    #[pallet::genesis_config]
    #[derive(frame_support::DefaultNoBound)]
    pub struct GenesisConfig<T: Config> {
        /// The network's parameters.
        pub parameters: Parameters,
        /// The first parameter servers.
        pub parameter_servers: Vec<ParameterServer<T::AccountId>>,
        /// Hash of the run specification.
        pub run_hash: Option<sp_core::H256>,
    }

    #[pallet::genesis_build]
    impl<T: Config> BuildGenesisConfig for GenesisConfig<T> {
        fn build(&self) {
            if let Err(why) = self.parameters.validate() {
                panic!("the network's parameters are unusable: {why}");
            }
            NetworkParameters::<T>::put(&self.parameters);
            // A key in two seats would have two votes.
            let mut keys: Vec<_> = self.parameter_servers.iter().map(|server| server.key).collect();
            keys.sort();
            keys.dedup();
            assert_eq!(
                keys.len(),
                self.parameter_servers.len(),
                "two parameter servers have the same key"
            );
            let servers = BoundedVec::try_from(self.parameter_servers.clone())
                .unwrap_or_else(|_| panic!("more than {PARAMETER_SERVERS_MAX} parameter servers"));
            ParameterServers::<T>::put(servers);
            if let Some(run) = self.run_hash {
                RunHash::<T>::put(run.0);
            }
        }
    }

    #[pallet::event]
    #[pallet::generate_deposit(pub(super) fn deposit_event)]
    pub enum Event<T: Config> {
        /// A parameter server signed a commitment.
        Attested {
            /// Epoch of the commitment.
            epoch: u32,
            /// Round of attestation.
            round: u32,
            /// Index in the set of parameter servers.
            ps_index: u32,
            /// Hash of the commitment.
            hash: Hash,
        },
        /// A quorum signed the same commitment.
        Accepted {
            /// Epoch of the commitment.
            epoch: u32,
            /// Round of attestation.
            round: u32,
            /// Hash of the commitment.
            hash: Hash,
            /// From this block on it is final.
            final_at: u32,
        },
        /// Epochs that can no longer be attested: their budgets are never minted.
        Forfeited {
            /// The first.
            first: u32,
            /// The last.
            last: u32,
        },
        /// A validator vetoed a commitment.
        Vetoed {
            /// Epoch of the commitment.
            epoch: u32,
            /// Hash of the commitment.
            hash: Hash,
            /// Index among the session's validators.
            validator_index: u32,
        },
        /// More than half of the validators vetoed: the epoch can be attested again.
        Reopened {
            /// The epoch.
            epoch: u32,
            /// The round that is open now.
            round: u32,
        },
        /// Every page of the epoch is paid.
        Settled {
            /// The epoch.
            epoch: u32,
        },
    }

    #[pallet::error]
    #[derive(PartialEq)]
    pub enum Error<T> {
        /// The transaction was not authorised for this state.
        Unauthorised,
        /// More votes than there can be voters.
        TooMany,
    }

    #[pallet::hooks]
    impl<T: Config> Hooks<BlockNumberFor<T>> for Pallet<T> {
        /// Removes what is older than the history, a few epochs per block.
        fn on_idle(_: BlockNumberFor<T>, remaining: Weight) -> Weight {
            let mut meter = WeightMeter::with_limit(remaining);
            // The parameters and the bound are read, the bound may be written.
            if meter.try_consume(T::DbWeight::get().reads_writes(2, 1)).is_err() {
                return Weight::zero();
            }
            let pruned = history::prune(PrunedBefore::<T>::get(), Self::epoch(), PRUNED_PER_BLOCK, |epoch| {
                let affordable = meter.try_consume(T::DbWeight::get().writes(4)).is_ok();
                if affordable {
                    Commitments::<T>::remove(epoch);
                    Attestations::<T>::remove(epoch);
                    Vetoes::<T>::remove(epoch);
                    ReopenedEpochs::<T>::remove(epoch);
                }
                affordable
            });
            if let Some(before) = pruned {
                PrunedBefore::<T>::put(before);
            }
            meter.consumed()
        }
    }

    #[pallet::call]
    impl<T: Config> Pallet<T> {
        /// One parameter server's signature on an epoch's commitment.
        ///
        /// A general transaction without sender or fee; the signature is over
        /// [`Commitment::attest_payload`] with the genesis hash and the epoch's open round. Each parameter server
        /// counts once in a round: a second transaction of the same one is stale.
        #[pallet::call_index(0)]
        #[pallet::weight((weights::attest::<T::DbWeight>(), DispatchClass::Operational))]
        #[pallet::weight_of_authorize(weights::authorize_attest::<T::DbWeight>())]
        #[pallet::authorize(Pallet::<T>::authorize_attest)]
        pub fn attest(
            origin: OriginFor<T>,
            commitment: Commitment,
            round: u32,
            ps_index: u32,
            signature: sr25519::Signature,
        ) -> DispatchResultWithPostInfo {
            ensure_authorized(origin)?;
            // Checked in `authorize_attest`.
            let _ = signature;
            let (epoch, hash) = (commitment.epoch, commitment.hash());
            // Servers may disagree: only attestations of the same hash make a quorum.
            let votes = Attestations::<T>::try_mutate(epoch, |votes| {
                votes.try_push((ps_index, hash)).map_err(|_| Error::<T>::TooMany)?;
                Ok::<_, Error<T>>(votes.iter().filter(|(_, of)| *of == hash).count() as u32)
            })?;
            Self::deposit_event(Event::Attested {
                epoch,
                round,
                ps_index,
                hash,
            });
            let servers = ParameterServers::<T>::decode_len().unwrap_or(0) as u32;
            if votes >= quorum(servers) {
                Self::accept(commitment, hash, round);
            }
            Ok(Pays::No.into())
        }

        /// One validator's refusal of an accepted commitment, inside the dispute window.
        ///
        /// A general transaction without sender or fee; the signature is over `veto_payload` with the key that the
        /// validator authors blocks with.
        #[pallet::call_index(1)]
        #[pallet::weight((weights::veto::<T::DbWeight>(), DispatchClass::Operational))]
        #[pallet::weight_of_authorize(weights::authorize_veto::<T::DbWeight>())]
        #[pallet::authorize(Pallet::<T>::authorize_veto)]
        pub fn veto(
            origin: OriginFor<T>,
            epoch: u32,
            hash: Hash,
            validator_index: u32,
            signature: sr25519::Signature,
        ) -> DispatchResultWithPostInfo {
            ensure_authorized(origin)?;
            // Checked in `authorize_veto`.
            let _ = signature;
            let keys = T::Validators::keys();
            let key = *keys.get(validator_index as usize).ok_or(Error::<T>::Unauthorised)?;
            let vetoes = Vetoes::<T>::try_mutate(epoch, |vetoes| {
                // Vetoes of validators that have left no longer count: the majority is one of today's validators.
                vetoes.retain(|key| keys.contains(key));
                vetoes.try_push(key).map_err(|_| Error::<T>::TooMany)?;
                Ok::<_, Error<T>>(vetoes.len())
            })?;
            Self::deposit_event(Event::Vetoed {
                epoch,
                hash,
                validator_index,
            });
            // More than half, so that a single validator of two cannot stop all payouts alone.
            if vetoes.saturating_mul(2) > keys.len() {
                Self::reopen(epoch)?;
            }
            Ok(Pays::No.into())
        }
    }

    #[pallet::view_functions]
    impl<T: Config> Pallet<T> {
        /// How far an epoch has come.
        pub fn status(epoch: u32) -> Status {
            if let Some(accepted) = Commitments::<T>::get(epoch) {
                if accepted.settled {
                    return Status::Settled;
                }
                if !Self::is_final(&accepted) {
                    return Status::Accepted;
                }
                // Nothing to pay, so no payout would ever settle it.
                return if accepted.commitment.total_score == 0 {
                    Status::Settled
                } else {
                    Status::Final
                };
            }
            // Before the next check: a pruned epoch may have been settled.
            if epoch < PrunedBefore::<T>::get() {
                return Status::Forgotten;
            }
            if epoch < ClosedBefore::<T>::get() || Self::is_late(epoch) {
                return Status::Forfeited;
            }
            Status::Open
        }

        /// The running epoch.
        pub fn current() -> Current {
            let parameters = NetworkParameters::<T>::get();
            let epoch = Self::epoch();
            let first_block = epoch.saturating_mul(parameters.epoch_blocks);
            let next_block = first_block.saturating_add(parameters.epoch_blocks);
            Current {
                epoch,
                first_block,
                next_block,
                block: Self::block(),
                parameters,
            }
        }

        /// The commitment that was accepted for an epoch, vetoed ones not included.
        pub fn accepted(epoch: u32) -> Option<Commitment> {
            Commitments::<T>::get(epoch).map(|accepted| accepted.commitment)
        }

        /// Epoch and hash of the latest accepted commitment: what the next one names as its parent.
        pub fn latest() -> Option<(u32, Hash)> {
            Latest::<T>::get()
        }

        /// The round in which an epoch can be attested.
        pub fn round(epoch: u32) -> u32 {
            ReopenedEpochs::<T>::get(epoch).unwrap_or_default().round
        }
    }

    impl<T: Config> Pallet<T> {
        fn block() -> u32 {
            frame_system::Pallet::<T>::block_number().saturated_into()
        }

        /// Number of the running epoch.
        pub fn epoch() -> u32 {
            // Genesis refuses zero; a division by zero would stop the chain.
            Self::block() / NetworkParameters::<T>::get().epoch_blocks.max(1)
        }

        /// Hash of block 0, to which every signature is bound.
        pub fn genesis_hash() -> Hash {
            frame_system::Pallet::<T>::block_hash(BlockNumberFor::<T>::from(0u32)).into()
        }

        fn is_late(epoch: u32) -> bool {
            Self::epoch().saturating_sub(epoch) > NetworkParameters::<T>::get().late_epochs
        }

        fn final_at(at: u32) -> u32 {
            at.saturating_add(NetworkParameters::<T>::get().window_blocks)
        }

        fn is_final(accepted: &Accepted) -> bool {
            Self::block() >= Self::final_at(accepted.at)
        }

        fn accept(commitment: Commitment, hash: Hash, round: u32) {
            let epoch = commitment.epoch;
            let closed = ClosedBefore::<T>::get();
            let previous = Latest::<T>::get();
            let first = closed.max(previous.map_or(0, |(latest, _)| latest.saturating_add(1)));
            if first < epoch {
                Self::deposit_event(Event::Forfeited { first, last: epoch - 1 });
            }
            // The epoch itself stays open for a further round.
            ClosedBefore::<T>::put(closed.max(epoch));
            let at = Self::block();
            Commitments::<T>::insert(
                epoch,
                Accepted {
                    commitment,
                    round,
                    at,
                    settled: false,
                    previous,
                },
            );
            Latest::<T>::put((epoch, hash));
            // They have had their effect; a reopened epoch begins without votes.
            Attestations::<T>::remove(epoch);
            Vetoes::<T>::remove(epoch);
            Self::deposit_event(Event::Accepted {
                epoch,
                round,
                hash,
                final_at: Self::final_at(at),
            });
        }

        fn reopen(epoch: u32) -> DispatchResult {
            let accepted = Commitments::<T>::take(epoch).ok_or(Error::<T>::Unauthorised)?;
            let round = accepted.round.saturating_add(1);
            log::warn!(target: LOG_TARGET, "epoch {epoch}: vetoed by the validators in round {}", accepted.round);
            Vetoes::<T>::remove(epoch);
            Attestations::<T>::remove(epoch);
            // Nothing can have been accepted after it: the next commitment waits until this one is final.
            Latest::<T>::set(accepted.previous);
            ReopenedEpochs::<T>::insert(
                epoch,
                Reopened {
                    round,
                    model_root: accepted.commitment.model_root,
                },
            );
            if round < ROUNDS_MAX {
                Self::deposit_event(Event::Reopened { epoch, round });
            } else {
                // Closed, or it would stay open until the late window ends and be attested once more.
                ClosedBefore::<T>::put(epoch.saturating_add(1));
                Self::deposit_event(Event::Forfeited {
                    first: epoch,
                    last: epoch,
                });
            }
            Ok(())
        }

        /// The cheap checks come first, the signature last: a transaction that is refused pays nothing, so refusing
        /// must cost little.
        #[allow(clippy::too_many_arguments)]
        fn authorize_attest(
            _: TransactionSource,
            commitment: &Commitment,
            round: &u32,
            ps_index: &u32,
            signature: &sr25519::Signature,
        ) -> TransactionValidityWithRefund {
            let epoch = commitment.epoch;
            let latest = Latest::<T>::get();
            Self::check_attestable(epoch, latest)?;
            Self::check_terms(commitment, *round, latest)?;
            let servers = ParameterServers::<T>::get();
            let Some(server) = servers.get(*ps_index as usize) else {
                return refuse(refusal::NOT_MEMBER);
            };
            if Attestations::<T>::get(epoch).iter().any(|(index, _)| index == ps_index) {
                return Err(InvalidTransaction::Stale.into());
            }
            let payload = commitment.attest_payload(&Self::genesis_hash(), *round);
            if !sp_io::crypto::sr25519_verify(signature, &payload, &server.key) {
                return Err(InvalidTransaction::BadProof.into());
            }
            Self::valid("AliceAttest", (epoch, round, ps_index))
        }

        /// Whether an epoch can be attested now, by whatever commitment.
        fn check_attestable(epoch: u32, latest: Option<(u32, Hash)>) -> Result<(), TransactionValidityError> {
            if epoch >= Self::epoch() {
                return refuse(refusal::NOT_ENDED);
            }
            if Self::is_late(epoch) {
                return refuse(refusal::TOO_LATE);
            }
            // Accepted already, or a later epoch was: the same bytes can never become valid again.
            if latest.is_some_and(|(latest, _)| epoch <= latest) {
                return Err(InvalidTransaction::Stale.into());
            }
            if epoch < ClosedBefore::<T>::get() {
                return refuse(refusal::TOO_LATE);
            }
            Ok(())
        }

        /// Whether a commitment is made for the set, run, round and parent that the chain knows, and fits together.
        fn check_terms(
            commitment: &Commitment,
            round: u32,
            latest: Option<(u32, Hash)>,
        ) -> Result<(), TransactionValidityError> {
            if commitment.set_id != SetId::<T>::get() {
                return refuse(refusal::WRONG_SET);
            }
            if commitment.parent != latest.map_or([0; 32], |(_, hash)| hash) {
                return refuse(refusal::WRONG_PARENT);
            }
            let reopened = ReopenedEpochs::<T>::get(commitment.epoch);
            if round != reopened.as_ref().map_or(0, |reopened| reopened.round) {
                return refuse(refusal::WRONG_ROUND);
            }
            if reopened.is_some_and(|reopened| reopened.model_root != commitment.model_root) {
                return refuse(refusal::MODEL_ROOT_CHANGED);
            }
            if RunHash::<T>::get().is_some_and(|run| run != commitment.run_hash) {
                return refuse(refusal::WRONG_RUN);
            }
            let pages = commitment
                .entries
                .div_ceil(alice_primitives::pages::PAGE_ENTRIES as u32);
            if commitment.pages != pages || pages > PAGES_MAX || (commitment.total_score > 0 && pages == 0) {
                return refuse(refusal::MALFORMED);
            }
            // A veto takes back one commitment only: nothing may be built on one that can still be vetoed.
            if latest
                .and_then(|(epoch, _)| Commitments::<T>::get(epoch))
                .is_some_and(|parent| !Self::is_final(&parent))
            {
                return refuse(refusal::PARENT_NOT_FINAL);
            }
            Ok(())
        }

        /// Validity of an attestation or veto. A pool holds one transaction per `provides`. The priority is above
        /// that of every fee: a full block must not delay settlement.
        fn valid(tag: &'static str, provides: impl Encode) -> TransactionValidityWithRefund {
            ValidTransaction::with_tag_prefix(tag)
                .priority(TransactionPriority::MAX / 2)
                .and_provides(provides)
                .longevity(LONGEVITY_BLOCKS)
                .propagate(true)
                .build()
                .map(|valid| (valid, Weight::zero()))
        }

        fn authorize_veto(
            _: TransactionSource,
            epoch: &u32,
            hash: &Hash,
            validator_index: &u32,
            signature: &sr25519::Signature,
        ) -> TransactionValidityWithRefund {
            let Some(accepted) = Commitments::<T>::get(epoch) else {
                return refuse(refusal::NOT_DISPUTABLE);
            };
            // Only the latest commitment can be in its window: its successor waits for the window's end.
            if Self::is_final(&accepted) || Latest::<T>::get() != Some((*epoch, *hash)) {
                return refuse(refusal::NOT_DISPUTABLE);
            }
            let keys = T::Validators::keys();
            let Some(key) = keys.get(*validator_index as usize) else {
                return refuse(refusal::NOT_MEMBER);
            };
            if Vetoes::<T>::get(epoch).contains(key) {
                return Err(InvalidTransaction::Stale.into());
            }
            // The round is signed too: a veto must not count against the commitment of a later round.
            let payload = veto_payload(&Self::genesis_hash(), accepted.round, *epoch, hash);
            if !sp_io::crypto::sr25519_verify(signature, &payload, key) {
                return Err(InvalidTransaction::BadProof.into());
            }
            Self::valid("AliceVeto", (epoch, hash, validator_index))
        }

        /// Checks what must hold after every block.
        #[cfg(any(test, feature = "std"))]
        pub fn check_invariants() -> Result<(), &'static str> {
            let servers = ParameterServers::<T>::decode_len().unwrap_or(0) as u32;
            for (_, votes) in Attestations::<T>::iter() {
                let mut indices: Vec<_> = votes.iter().map(|(index, _)| *index).collect();
                if indices.iter().any(|index| *index >= servers) {
                    return Err("an attestation of nobody");
                }
                indices.sort();
                indices.dedup();
                if indices.len() != votes.len() {
                    return Err("a parameter server attested twice");
                }
            }
            for (epoch, accepted) in Commitments::<T>::iter() {
                if accepted.commitment.epoch != epoch {
                    return Err("a commitment under another epoch");
                }
                if epoch > ClosedBefore::<T>::get() {
                    return Err("an accepted epoch that is not closed");
                }
                if accepted.commitment.parent != accepted.previous.map_or([0; 32], |(_, hash)| hash) {
                    return Err("a commitment that is not chained to the one before");
                }
            }
            Ok(())
        }
    }

    fn refuse<R>(code: u8) -> Result<R, TransactionValidityError> {
        Err(InvalidTransaction::Custom(code).into())
    }

    impl<T: Config> Outcomes for Pallet<T> {
        fn payable(epoch: u32) -> Option<Commitment> {
            (Self::status(epoch) == Status::Final)
                .then(|| Self::accepted(epoch))
                .flatten()
        }

        fn settled(epoch: u32) {
            Commitments::<T>::mutate(epoch, |accepted| {
                if let Some(accepted) = accepted {
                    accepted.settled = true;
                    Self::deposit_event(Event::Settled { epoch });
                }
            });
        }
    }
}

/// The running epoch, for other pallets.
pub struct CurrentEpoch<T>(core::marker::PhantomData<T>);
impl<T: Config> Get<u32> for CurrentEpoch<T> {
    fn get() -> u32 {
        Pallet::<T>::epoch()
    }
}

/// Length of a slot in milliseconds, for BABE.
pub struct SlotDuration<T>(core::marker::PhantomData<T>);
impl<T: Config> Get<u64> for SlotDuration<T> {
    fn get() -> u64 {
        NetworkParameters::<T>::get().slot_ms
    }
}

/// Least time between two blocks in milliseconds, for pallet-timestamp: half a slot.
pub struct MinimumPeriod<T>(core::marker::PhantomData<T>);
impl<T: Config> Get<u64> for MinimumPeriod<T> {
    fn get() -> u64 {
        NetworkParameters::<T>::get().slot_ms / 2
    }
}

/// Slots in a session, for BABE.
pub struct SessionSlots<T>(core::marker::PhantomData<T>);
impl<T: Config> Get<u64> for SessionSlots<T> {
    fn get() -> u64 {
        NetworkParameters::<T>::get().session_slots.into()
    }
}
