//! Payment of transaction fees to the authors of blocks.
//!
//! Fees are moved, never burnt and minted again, so that the supply follows the schedule. They are collected in one
//! account and paid to the authors once in a session: an author's account need not exist before. Every fee is at least
//! the existential deposit (see `configs::BYTE_FEE`), so neither the pot nor an author is ever offered less than an
//! account needs.

extern crate alloc;

pub use pallet::*;

#[frame_support::pallet]
pub mod pallet {
    use crate::{AccountId, Balance, Balances};
    use frame_support::{
        pallet_prelude::*,
        traits::{
            fungible::{Balanced, Credit, Mutate},
            tokens::Preservation,
            Imbalance, OnUnbalanced,
        },
        PalletId,
    };
    use sp_runtime::traits::AccountIdConversion;

    type TotalIssuance = pallet_balances::TotalIssuance<crate::Runtime>;

    /// Identifier from which the pot's account is derived.
    pub const POT: PalletId = PalletId(*b"al/authr");

    #[pallet::pallet]
    pub struct Pallet<T>(_);

    #[pallet::config]
    pub trait Config:
        frame_system::Config<AccountId = AccountId, RuntimeEvent: From<Event<Self>>> + pallet_authorship::Config
    {
    }

    /// Fees that each author has earned and not been paid yet, planck.
    #[pallet::storage]
    pub type Earned<T: Config> = StorageMap<_, Twox64Concat, AccountId, Balance, ValueQuery>;

    #[pallet::event]
    #[pallet::generate_deposit(pub(super) fn deposit_event)]
    pub enum Event<T: Config> {
        /// An author was paid the fees of its blocks.
        Paid {
            /// The author.
            author: AccountId,
            /// Planck.
            amount: Balance,
        },
    }

    #[pallet::genesis_config]
    #[derive(frame_support::DefaultNoBound)]
    pub struct GenesisConfig<T: Config> {
        #[serde(skip)]
        #[allow(missing_docs)]
        pub _config: core::marker::PhantomData<T>,
    }

    #[pallet::genesis_build]
    impl<T: Config> BuildGenesisConfig for GenesisConfig<T> {
        fn build(&self) {
            // The pot's account exists from the start and is never reaped.
            frame_system::Pallet::<T>::inc_providers(&Pallet::<T>::account());
            // Balances writes a zero at genesis. An absent value is the stronger proof: no coin has ever existed.
            assert_eq!(TotalIssuance::get(), 0, "nobody has coins at genesis");
            TotalIssuance::kill();
        }
    }

    impl<T: Config> Pallet<T> {
        /// The pot's account.
        pub fn account() -> AccountId {
            POT.into_account_truncating()
        }

        /// Pays every author the fees of its blocks. Called at the end of a session.
        pub fn pay_out() {
            // Collected first: entries are removed while they are paid.
            let earned: alloc::vec::Vec<_> = Earned::<T>::iter().collect();
            for (author, amount) in earned {
                let paid = <Balances as Mutate<AccountId>>::transfer(
                    &Self::account(),
                    &author,
                    amount,
                    // The pot may be emptied: its provider keeps the account.
                    Preservation::Expendable,
                );
                // A failed payment stays owed until the next session.
                if paid.is_ok() {
                    Earned::<T>::remove(&author);
                    Self::deposit_event(Event::Paid { author, amount });
                }
            }
        }

        /// Checks what must hold after every block.
        #[cfg(feature = "std")]
        pub fn check_invariants() -> Result<(), &'static str> {
            let owed: Balance = Earned::<T>::iter_values().sum();
            if owed > <Balances as frame_support::traits::fungible::Inspect<AccountId>>::balance(&Self::account()) {
                return Err("the authors are owed more than there is");
            }
            Ok(())
        }
    }

    impl<T: Config> OnUnbalanced<Credit<AccountId, Balances>> for Pallet<T> {
        fn on_nonzero_unbalanced(fee: Credit<AccountId, Balances>) {
            let amount = fee.peek();
            // Without an author (outside of blocks), or if the pot refuses, the fee is burnt with the credit.
            let Some(author) = pallet_authorship::Pallet::<T>::author() else {
                return;
            };
            // The coins before the entry: authors are never owed more than there is in the pot.
            if <Balances as Balanced<AccountId>>::resolve(&Self::account(), fee).is_ok() {
                Earned::<T>::mutate(author, |earned| *earned = earned.saturating_add(amount));
            }
        }
    }
}
