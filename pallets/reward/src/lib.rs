//! Payout of attested epochs, page by page.
//!
//! Anybody who has a page and its Merkle proof may submit it: no account, no fee, each page is valid once. An entry's
//! amount is `⌊budget · score / total⌋`. A page is refused if the scores paid so far would exceed the attested total.
//! An amount below the existential deposit of a new account is skipped, counted, and never minted.
#![cfg_attr(not(feature = "std"), no_std)]
// Not `expect_used`: the macros of FRAME write such calls.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing))]

extern crate alloc;

pub use alice_primitives::history::HISTORY_EPOCHS;
pub use pallet::*;

#[cfg(test)]
mod tests;
mod weights;

#[frame_support::pallet]
pub mod pallet {
    use super::*;
    use alice_primitives::{
        emission, history,
        pages::{self, Entry},
        Hash,
    };
    use alloc::vec::Vec;
    use frame_support::{pallet_prelude::*, weights::WeightMeter};
    use frame_system::{ensure_authorized, pallet_prelude::*};
    use pallet_emission::{Balance, EpochIssuance};
    use pallet_epoch::Outcomes;
    use sp_runtime::transaction_validity::TransactionValidityWithRefund;

    /// Maximum entries in a page.
    pub const ENTRIES_MAX: u32 = pages::PAGE_ENTRIES as u32;
    /// Maximum hashes in a proof.
    pub const PROOF_MAX: u32 = pages::MAX_DEPTH as u32;
    /// Maximum size of the bitmap of paid pages, bytes.
    pub const BITMAP_MAX: u32 = pallet_epoch::PAGES_MAX / 8;

    /// Codes of [`InvalidTransaction::Custom`] with which a page is refused.
    pub mod refusal {
        /// The epoch is not final, or is settled.
        pub const NOT_PAYABLE: u8 = 32;
        /// There is no such page.
        pub const NO_SUCH_PAGE: u8 = 33;
        /// The page does not belong to the epoch's commitment.
        pub const BAD_PAGE_PROOF: u8 = 34;
        /// The scores are more than the attested total.
        pub const SCORE_OVERFLOW: u8 = 35;
    }

    /// Epochs pruned in one block. One epoch ends in a block at most, so any number above one catches up.
    const PRUNED_PER_BLOCK: u32 = 16;

    #[pallet::pallet]
    pub struct Pallet<T>(_);

    #[pallet::config]
    pub trait Config: frame_system::Config<RuntimeEvent: From<Event<Self>>, AccountId: From<[u8; 32]>> {
        /// Source of coins.
        type Issuance: EpochIssuance<Self::AccountId>;

        /// Settlement of epochs.
        type Outcomes: Outcomes;

        /// The running epoch.
        type CurrentEpoch: Get<u32>;
    }

    /// Payout of an epoch so far.
    #[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, DecodeWithMemTracking, TypeInfo, MaxEncodedLen)]
    pub struct Ledger {
        /// Budget of the epoch, planck.
        pub budget: Balance,
        /// Sum of all scores as attested, billionths.
        pub total_score: u128,
        /// Sum of the scores on the paid pages, billionths.
        pub score_seen: u128,
        /// Paid so far, planck.
        pub paid: Balance,
        /// Pages of the commitment.
        pub pages: u32,
        /// Pages that are paid.
        pub pages_paid: u32,
        /// One bit for each page, least significant first.
        pub paid_bitmap: BoundedVec<u8, ConstU32<BITMAP_MAX>>,
        /// Entries that were paid.
        pub recipients: u32,
        /// Entries skipped: the amount is too small for a new account.
        pub skipped: u32,
    }

    impl Ledger {
        fn new(budget: Balance, total_score: u128, pages: u32) -> Self {
            // Full length from the start, so that the value does not grow with each page.
            let bytes = pages.div_ceil(8).min(BITMAP_MAX) as usize;
            let paid_bitmap = BoundedVec::truncate_from(alloc::vec![0; bytes]);
            Self {
                budget,
                total_score,
                pages,
                paid_bitmap,
                ..Default::default()
            }
        }

        /// Whether the page has been paid.
        pub fn is_paid(&self, index: u32) -> bool {
            self.paid_bitmap
                .get(index as usize / 8)
                .is_some_and(|byte| byte >> (index % 8) & 1 == 1)
        }

        fn mark_paid(&mut self, index: u32) {
            if let Some(byte) = self.paid_bitmap.get_mut(index as usize / 8) {
                *byte |= 1 << (index % 8);
                self.pages_paid = self.pages_paid.saturating_add(1);
            }
        }
    }

    /// Ledgers of the last `HISTORY_EPOCHS` epochs, from their first page on.
    #[pallet::storage]
    pub type Ledgers<T: Config> = StorageMap<_, Twox64Concat, u32, Ledger>;

    /// All ledgers before this epoch have been removed.
    #[pallet::storage]
    pub type PrunedBefore<T: Config> = StorageValue<_, u32, ValueQuery>;

    #[pallet::event]
    #[pallet::generate_deposit(pub(super) fn deposit_event)]
    pub enum Event<T: Config> {
        /// A page was paid.
        PagePaid {
            /// Its epoch.
            epoch: u32,
            /// Its index.
            index: u32,
            /// Paid with it, planck.
            paid: Balance,
            /// Entries that were paid.
            recipients: u32,
            /// Entries skipped: the amount is too small for a new account.
            skipped: u32,
        },
        /// All pages are paid.
        EpochSettled {
            /// The epoch.
            epoch: u32,
            /// Minted for it, planck.
            minted: Balance,
        },
    }

    #[pallet::error]
    #[derive(PartialEq)]
    pub enum Error<T> {
        /// The epoch is not final, or is settled.
        NotPayable,
        /// The page has been paid.
        AlreadyPaid,
    }

    #[pallet::hooks]
    impl<T: Config> Hooks<BlockNumberFor<T>> for Pallet<T> {
        /// Removes what is older than the history, a few ledgers per block.
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
                        Ledgers::<T>::remove(epoch);
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

    #[pallet::call]
    impl<T: Config> Pallet<T> {
        /// Pays one page of a final epoch.
        ///
        /// A general transaction without sender or fee: the Merkle proof authorises it.
        #[pallet::call_index(0)]
        #[pallet::weight(weights::payout_page::<T::DbWeight>(entries.len() as u32))]
        #[pallet::weight_of_authorize(weights::authorize_payout_page::<T::DbWeight>(entries.len() as u32))]
        #[pallet::authorize(Pallet::<T>::authorize_payout_page)]
        pub fn payout_page(
            origin: OriginFor<T>,
            epoch: u32,
            index: u32,
            entries: BoundedVec<Entry, ConstU32<ENTRIES_MAX>>,
            proof: BoundedVec<Hash, ConstU32<PROOF_MAX>>,
        ) -> DispatchResultWithPostInfo {
            ensure_authorized(origin)?;
            // Checked in `authorize_payout_page`.
            let _ = proof;
            let mut ledger = Self::current_ledger(epoch).ok_or(Error::<T>::NotPayable)?;
            // Authorisation has checked this. Once more, because a mistake there must not pay a page twice.
            ensure!(!ledger.is_paid(index), Error::<T>::AlreadyPaid);

            // Only the sum of what can be paid is created, so that a skipped amount is never minted.
            let mut payments = Vec::with_capacity(entries.len());
            let (mut sum, mut skipped) = (0, 0u32);
            for entry in &entries {
                let amount = emission::share(ledger.budget, entry.score, ledger.total_score);
                let who = T::AccountId::from(entry.account);
                if amount > 0 && T::Issuance::can_deposit(&who, amount) {
                    sum += amount;
                    payments.push((who, amount));
                } else {
                    skipped += 1;
                }
                ledger.score_seen = ledger.score_seen.saturating_add(entry.score.into());
            }
            let mut credit = T::Issuance::issue(epoch, sum)?;
            let (mut paid, mut recipients) = (0, 0u32);
            for (who, amount) in payments {
                let deposited = T::Issuance::deposit(&mut credit, &who, amount);
                if deposited == 0 {
                    skipped += 1;
                } else {
                    paid += deposited;
                    recipients += 1;
                }
            }
            // A remainder is burnt with the credit: a deposit can still fail, and its coins must not stay without
            // owner.
            drop(credit);

            ledger.mark_paid(index);
            ledger.paid = ledger.paid.saturating_add(paid);
            ledger.recipients = ledger.recipients.saturating_add(recipients);
            ledger.skipped = ledger.skipped.saturating_add(skipped);
            Self::deposit_event(Event::PagePaid {
                epoch,
                index,
                paid,
                recipients,
                skipped,
            });
            if ledger.pages_paid >= ledger.pages {
                Self::deposit_event(Event::EpochSettled {
                    epoch,
                    minted: ledger.paid,
                });
                T::Outcomes::settled(epoch);
            }
            Ledgers::<T>::insert(epoch, ledger);
            Ok(Pays::No.into())
        }
    }

    #[pallet::view_functions]
    impl<T: Config> Pallet<T> {
        /// Payout of an epoch so far; `None` before its first page.
        pub fn ledger(epoch: u32) -> Option<Ledger> {
            Ledgers::<T>::get(epoch)
        }

        /// Pages of a final epoch that are not paid yet.
        pub fn pending_pages(epoch: u32) -> Vec<u32> {
            match Self::current_ledger(epoch) {
                Some(ledger) => (0..ledger.pages).filter(|index| !ledger.is_paid(*index)).collect(),
                None => Vec::new(),
            }
        }

        /// Amount that a score earns in a final or settled epoch, planck.
        pub fn share(epoch: u32, score: u64) -> Balance {
            match Ledgers::<T>::get(epoch).or_else(|| Self::current_ledger(epoch)) {
                Some(ledger) => emission::share(ledger.budget, score, ledger.total_score),
                None => 0,
            }
        }
    }

    impl<T: Config> Pallet<T> {
        /// Ledger of an epoch that can be paid now; `None` in every other status.
        fn current_ledger(epoch: u32) -> Option<Ledger> {
            let commitment = T::Outcomes::payable(epoch)?;
            Some(
                Ledgers::<T>::get(epoch).unwrap_or_else(|| {
                    Ledger::new(T::Issuance::budget(epoch), commitment.total_score, commitment.pages)
                }),
            )
        }

        fn authorize_payout_page(
            _: TransactionSource,
            epoch: &u32,
            index: &u32,
            entries: &BoundedVec<Entry, ConstU32<ENTRIES_MAX>>,
            proof: &BoundedVec<Hash, ConstU32<PROOF_MAX>>,
        ) -> TransactionValidityWithRefund {
            let refuse = |code| Err(InvalidTransaction::Custom(code).into());
            if Ledgers::<T>::get(epoch).is_some_and(|ledger| ledger.is_paid(*index)) {
                return Err(InvalidTransaction::Stale.into());
            }
            // Pruning may lag behind by a block: the commitment can still be there when nothing can be issued for it.
            if T::CurrentEpoch::get().saturating_sub(*epoch) > HISTORY_EPOCHS {
                return refuse(refusal::NOT_PAYABLE);
            }
            let Some(commitment) = T::Outcomes::payable(*epoch) else {
                return refuse(refusal::NOT_PAYABLE);
            };
            if *index >= commitment.pages || entries.is_empty() {
                return refuse(refusal::NO_SUCH_PAGE);
            }
            let leaf = pages::leaf(*epoch, *index, entries);
            if !pages::verify(&commitment.contributions_root, commitment.pages, *index, &leaf, proof) {
                return refuse(refusal::BAD_PAGE_PROOF);
            }
            let seen = Ledgers::<T>::get(epoch).map_or(0, |ledger| ledger.score_seen);
            let scores = entries
                .iter()
                .fold(seen, |sum, entry| sum.saturating_add(entry.score.into()));
            // A total that is too small would pay more than the budget in sum.
            if scores > commitment.total_score {
                return refuse(refusal::SCORE_OVERFLOW);
            }
            ValidTransaction::with_tag_prefix("AlicePayout")
                // Below all that pay a fee: pages have hundreds of epochs until they lapse.
                .priority(1)
                .and_provides((epoch, index))
                .longevity(64)
                .propagate(true)
                .build()
                .map(|valid| (valid, Weight::zero()))
        }

        /// Checks what must hold after every block.
        #[cfg(any(test, feature = "std"))]
        pub fn check_invariants() -> Result<(), &'static str> {
            for (_, ledger) in Ledgers::<T>::iter() {
                if ledger.paid > ledger.budget {
                    return Err("an epoch paid more than its budget");
                }
                if ledger.score_seen > ledger.total_score {
                    return Err("the pages' scores are more than the total");
                }
                let bits: u32 = ledger.paid_bitmap.iter().map(|byte| byte.count_ones()).sum();
                if bits != ledger.pages_paid || bits > ledger.pages {
                    return Err("the bitmap does not fit the number of paid pages");
                }
            }
            Ok(())
        }
    }
}
