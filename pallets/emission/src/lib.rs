//! Issuance of ALICE: the only pallet that creates coins.
//!
//! Every other pallet receives a [`Credit`](EpochIssuance::Credit), which only [`EpochIssuance::issue`] creates, and
//! that function asserts, together: the epoch's budget, the cap, and the schedule up to now. A credit that is dropped
//! is burnt, never re-issued: the counters only grow.
//!
//! There are no calls. The schedule itself is [`alice_primitives::emission`], a pure function of the epoch number.
#![cfg_attr(not(feature = "std"), no_std)]
// Not `expect_used`: the macros of FRAME write such calls.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing))]

pub use alice_primitives::history::HISTORY_EPOCHS;
pub use pallet::*;

#[cfg(test)]
mod tests;

use frame_support::pallet_prelude::DispatchError;

/// An amount, planck.
pub type Balance = u128;

/// Issuance of an epoch's budget, as other pallets see it. They get credits, never the right to create them.
pub trait EpochIssuance<AccountId> {
    /// Coins that exist but belong to nobody yet. Dropping them burns them.
    type Credit;

    /// Budget of `epoch`, planck.
    fn budget(epoch: u32) -> Balance;

    /// Whether `amount` can be put on the account: false below the existential deposit of a new account.
    fn can_deposit(who: &AccountId, amount: Balance) -> bool;

    /// Creates `amount` on account of `epoch`'s budget.
    fn issue(epoch: u32, amount: Balance) -> Result<Self::Credit, DispatchError>;

    /// Takes `amount` out of the credit and puts it on the account; returns what was put there, zero if that failed.
    fn deposit(credit: &mut Self::Credit, who: &AccountId, amount: Balance) -> Balance;
}

#[frame_support::pallet]
pub mod pallet {
    use super::*;
    use alice_primitives::{emission, history};
    use frame_support::{
        pallet_prelude::*,
        traits::{
            fungible::{Balanced, Credit, Inspect},
            tokens::{DepositConsequence, Provenance},
            Imbalance,
        },
        weights::WeightMeter,
    };
    use frame_system::pallet_prelude::BlockNumberFor;

    /// Epochs pruned in one block. One epoch ends in a block at most, so any number above one catches up.
    const PRUNED_PER_BLOCK: u32 = 16;

    #[pallet::pallet]
    pub struct Pallet<T>(_);

    #[pallet::config]
    pub trait Config: frame_system::Config<RuntimeEvent: From<Event<Self>>> {
        /// The ledger of coins. No other pallet of this runtime has it with the right to issue.
        type Currency: Balanced<Self::AccountId> + Inspect<Self::AccountId, Balance = Balance>;

        /// The running epoch.
        type CurrentEpoch: Get<u32>;
    }

    /// Total ever issued, planck. Never decreases, not even when coins are burnt: a burnt coin is not issued again.
    #[pallet::storage]
    pub type Issued<T: Config> = StorageValue<_, Balance, ValueQuery>;

    /// Issued of each epoch's budget, planck.
    #[pallet::storage]
    pub type IssuedByEpoch<T: Config> = StorageMap<_, Twox64Concat, u32, Balance, ValueQuery>;

    /// All counters before this epoch have been removed.
    #[pallet::storage]
    pub type PrunedBefore<T: Config> = StorageValue<_, u32, ValueQuery>;

    #[pallet::event]
    #[pallet::generate_deposit(pub(super) fn deposit_event)]
    pub enum Event<T: Config> {
        /// Coins were created.
        Issued {
            /// On account of this epoch's budget.
            epoch: u32,
            /// Planck.
            amount: Balance,
        },
    }

    #[pallet::error]
    #[derive(PartialEq)]
    pub enum Error<T> {
        /// The epoch has not ended.
        FutureEpoch,
        /// The epoch ended more than `HISTORY_EPOCHS` ago.
        PastEpoch,
        /// More than the epoch's budget.
        EpochBudgetExceeded,
        /// More than the cap.
        CapExceeded,
        /// More than the schedule allows up to now.
        ScheduleExceeded,
    }

    /// The supply in numbers, planck.
    #[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, DecodeWithMemTracking, TypeInfo, MaxEncodedLen)]
    pub struct Supply {
        /// Maximum supply.
        pub cap: Balance,
        /// Issued since genesis.
        pub issued: Balance,
        /// Sum of the budgets of all ended epochs.
        pub scheduled: Balance,
        /// In existence now.
        pub total_issuance: Balance,
        /// The first epoch with half of today's budget.
        pub next_halving: u32,
    }

    #[pallet::view_functions]
    impl<T: Config> Pallet<T> {
        /// Budget of an epoch, planck.
        pub fn schedule(epoch: u32) -> Balance {
            emission::budget(epoch)
        }

        /// The current supply.
        pub fn supply() -> Supply {
            let epoch = T::CurrentEpoch::get();
            Supply {
                cap: emission::CAP,
                issued: Issued::<T>::get(),
                scheduled: emission::cumulative(epoch),
                total_issuance: T::Currency::total_issuance(),
                next_halving: emission::era(epoch)
                    .saturating_add(1)
                    .saturating_mul(emission::EPOCHS_PER_ERA),
            }
        }
    }

    impl<T: Config> EpochIssuance<T::AccountId> for Pallet<T> {
        type Credit = Credit<T::AccountId, T::Currency>;

        fn budget(epoch: u32) -> Balance {
            emission::budget(epoch)
        }

        fn can_deposit(who: &T::AccountId, amount: Balance) -> bool {
            matches!(
                T::Currency::can_deposit(who, amount, Provenance::Minted),
                DepositConsequence::Success
            )
        }

        fn issue(epoch: u32, amount: Balance) -> Result<Self::Credit, DispatchError> {
            let current = T::CurrentEpoch::get();
            // The running epoch's contributions are not known yet.
            ensure!(epoch < current, Error::<T>::FutureEpoch);
            // Counters older than this may be gone, and with them the proof that the budget is not exhausted.
            ensure!(current - epoch <= HISTORY_EPOCHS, Error::<T>::PastEpoch);
            // All three limits in one place: no caller can pass one by.
            let of_epoch = IssuedByEpoch::<T>::get(epoch)
                .checked_add(amount)
                .ok_or(Error::<T>::EpochBudgetExceeded)?;
            let of_all = Issued::<T>::get().checked_add(amount).ok_or(Error::<T>::CapExceeded)?;
            ensure!(of_epoch <= emission::budget(epoch), Error::<T>::EpochBudgetExceeded);
            ensure!(of_all <= emission::CAP, Error::<T>::CapExceeded);
            ensure!(of_all <= emission::cumulative(current), Error::<T>::ScheduleExceeded);
            // Counted before the coins exist; a caller that fails afterwards is rolled back with its call.
            IssuedByEpoch::<T>::insert(epoch, of_epoch);
            Issued::<T>::put(of_all);
            if amount > 0 {
                Self::deposit_event(Event::Issued { epoch, amount });
            }
            Ok(T::Currency::issue(amount))
        }

        fn deposit(credit: &mut Self::Credit, who: &T::AccountId, amount: Balance) -> Balance {
            let part = credit.extract(amount);
            let value = part.peek();
            match T::Currency::resolve(who, part) {
                Ok(()) => value,
                // The credit comes back in the error, and dropping it burns its coins.
                Err(_) => 0,
            }
        }
    }

    #[pallet::hooks]
    impl<T: Config> Hooks<BlockNumberFor<T>> for Pallet<T> {
        fn integrity_test() {
            const { assert!(emission::TOTAL <= emission::CAP) };
            assert_eq!(emission::cumulative(64 * emission::EPOCHS_PER_ERA), emission::TOTAL);
        }

        /// Removes counters that can no longer be used, a few per block.
        fn on_idle(_: BlockNumberFor<T>, remaining: Weight) -> Weight {
            let mut meter = WeightMeter::with_limit(remaining);
            // The current epoch and the bound are read, the bound may be written.
            if meter.try_consume(T::DbWeight::get().reads_writes(2, 1)).is_err() {
                return Weight::zero();
            }
            let pruned = history::prune(
                PrunedBefore::<T>::get(),
                T::CurrentEpoch::get(),
                PRUNED_PER_BLOCK,
                |epoch| {
                    let affordable = meter.try_consume(T::DbWeight::get().writes(1)).is_ok();
                    if affordable {
                        IssuedByEpoch::<T>::remove(epoch);
                    }
                    affordable
                },
            );
            if let Some(before) = pruned {
                PrunedBefore::<T>::put(before);
            }
            meter.consumed()
        }
    }

    impl<T: Config> Pallet<T> {
        /// Checks what must hold after every block.
        #[cfg(any(test, feature = "std"))]
        pub fn check_invariants() -> Result<(), &'static str> {
            let issued = Issued::<T>::get();
            let current = T::CurrentEpoch::get();
            if T::Currency::total_issuance() > issued {
                return Err("more coins than were issued");
            }
            if issued > emission::cumulative(current) {
                return Err("issued more than the schedule until now");
            }
            let mut sum: Balance = 0;
            for (epoch, amount) in IssuedByEpoch::<T>::iter() {
                if amount > emission::budget(epoch) {
                    return Err("an epoch issued more than its budget");
                }
                sum = sum.saturating_add(amount);
            }
            if sum > issued {
                return Err("the epochs' sum is more than what was issued");
            }
            Ok(())
        }
    }
}
