use crate::{self as pallet_reward, pallet::refusal, Call, Error, Ledgers, HISTORY_EPOCHS};
use alice_primitives::{
    emission, fixtures,
    pages::{self, Entry},
    Commitment,
};
use codec::Encode;
use frame_support::{
    assert_noop, derive_impl,
    dispatch::RawOrigin,
    pallet_prelude::{InvalidTransaction, TransactionSource, TransactionValidityError, ValidTransaction},
    parameter_types,
    traits::{Authorize, ConstU128, Hooks, UnfilteredDispatchable},
    weights::Weight,
};
use sp_runtime::{traits::IdentityLookup, AccountId32, BuildStorage, DispatchError};

type Block = frame_system::mocking::MockBlock<Test>;

frame_support::construct_runtime!(
    pub enum Test {
        System: frame_system,
        Balances: pallet_balances,
        Emission: pallet_emission,
        Reward: pallet_reward,
    }
);

const EXISTENTIAL_DEPOSIT: u128 = 1_000_000_000;

parameter_types! {
    pub static CurrentEpoch: u32 = 5;
    pub static Payable: Option<Commitment> = None;
    pub static Settled: Vec<u32> = Vec::new();
}

#[derive_impl(frame_system::config_preludes::TestDefaultConfig)]
impl frame_system::Config for Test {
    type Block = Block;
    type AccountId = AccountId32;
    type Lookup = IdentityLookup<AccountId32>;
    type AccountData = pallet_balances::AccountData<u128>;
    // That of the runtime: with none at all, access to storage would cost nothing.
    type DbWeight = frame_support::weights::constants::ParityDbWeight;
}

#[derive_impl(pallet_balances::config_preludes::TestDefaultConfig)]
impl pallet_balances::Config for Test {
    type Balance = u128;
    type ExistentialDeposit = ConstU128<EXISTENTIAL_DEPOSIT>;
    type AccountStore = System;
}

impl pallet_emission::Config for Test {
    type Currency = Balances;
    type CurrentEpoch = CurrentEpoch;
}

pub struct TestOutcomes;
impl pallet_epoch::Outcomes for TestOutcomes {
    fn payable(epoch: u32) -> Option<Commitment> {
        Payable::get().filter(|commitment| commitment.epoch == epoch && !Settled::get().contains(&epoch))
    }
    fn settled(epoch: u32) {
        Settled::mutate(|epochs| epochs.push(epoch));
    }
}

impl pallet_reward::Config for Test {
    type Issuance = Emission;
    type Outcomes = TestOutcomes;
    type CurrentEpoch = CurrentEpoch;
}

const EPOCH: u32 = 3;

fn account(index: u32) -> [u8; 32] {
    let mut account = [1; 32];
    account[..4].copy_from_slice(&index.to_be_bytes());
    account
}

fn entries(count: u32, score: u64) -> Vec<Entry> {
    (0..count)
        .map(|index| Entry {
            account: account(index),
            score,
        })
        .collect()
}

fn balance(index: u32) -> u128 {
    Balances::free_balance(AccountId32::from(account(index)))
}

/// Makes the epoch payable with these entries; `total` instead of their sum where it is given.
fn attested(entries: &[Entry], total: Option<u128>) -> Vec<(Vec<Entry>, Vec<[u8; 32]>)> {
    let paged: Vec<Vec<Entry>> = pages::paginate(entries).map(<[_]>::to_vec).collect();
    let leaves: Vec<_> = paged
        .iter()
        .zip(0..)
        .map(|(page, index)| pages::leaf(EPOCH, index, page))
        .collect();
    Payable::set(Some(Commitment {
        epoch: EPOCH,
        contributions_root: pages::root(&leaves),
        pages: paged.len() as u32,
        entries: entries.len() as u32,
        total_score: total.unwrap_or_else(|| entries.iter().map(|entry| u128::from(entry.score)).sum()),
        ..fixtures::commitment()
    }));
    let proofs = (0..paged.len() as u32).map(|index| pages::proof(&leaves, index).unwrap());
    paged.iter().cloned().zip(proofs).collect()
}

fn call(index: u32, page: &(Vec<Entry>, Vec<[u8; 32]>)) -> Call<Test> {
    Call::payout_page {
        epoch: EPOCH,
        index,
        entries: page.0.clone().try_into().unwrap(),
        proof: page.1.clone().try_into().unwrap(),
    }
}

fn validate(call: &Call<Test>) -> Result<ValidTransaction, TransactionValidityError> {
    RuntimeCall::from(call.clone())
        .authorize(TransactionSource::External)
        .unwrap()
        .map(|(valid, _)| valid)
}

fn submit(call: Call<Test>) -> Result<(), TransactionValidityError> {
    validate(&call)?;
    call.dispatch_bypass_filter(RawOrigin::Authorized.into()).unwrap();
    Ok(())
}

fn refused(code: u8) -> Result<(), TransactionValidityError> {
    Err(InvalidTransaction::Custom(code).into())
}

fn run(test: impl FnOnce()) {
    let storage = frame_system::GenesisConfig::<Test>::default().build_storage().unwrap();
    sp_io::TestExternalities::from(storage).execute_with(|| {
        CurrentEpoch::set(5);
        Payable::set(None);
        Settled::set(Vec::new());
        System::set_block_number(1);
        test();
        assert_eq!(Reward::check_invariants(), Ok(()));
        assert_eq!(Emission::check_invariants(), Ok(()));
        // The amount issued is the amount paid.
        let paid: u128 = Ledgers::<Test>::iter_values().map(|ledger| ledger.paid).sum();
        assert_eq!(pallet_emission::Issued::<Test>::get(), paid);
        assert_eq!(Balances::total_issuance(), paid);
    });
}

#[test]
fn page_should_pay_each_entry_its_share() {
    run(|| {
        let pages = attested(
            &[
                Entry {
                    account: account(1),
                    score: 1,
                },
                Entry {
                    account: account(2),
                    score: 3,
                },
            ],
            None,
        );
        assert_eq!(Reward::pending_pages(EPOCH), vec![0]);
        assert_eq!(submit(call(0, &pages[0])), Ok(()));
        let budget = emission::budget(EPOCH);
        assert_eq!((balance(1), balance(2)), (budget / 4, budget * 3 / 4));
        let paid = balance(1) + balance(2);
        System::assert_has_event(
            pallet_reward::Event::PagePaid {
                epoch: EPOCH,
                index: 0,
                paid,
                recipients: 2,
                skipped: 0,
            }
            .into(),
        );
        System::assert_has_event(
            pallet_reward::Event::EpochSettled {
                epoch: EPOCH,
                minted: paid,
            }
            .into(),
        );
        assert_eq!(Settled::get(), vec![EPOCH]);
        let ledger = Reward::ledger(EPOCH).unwrap();
        assert_eq!(
            (ledger.paid, ledger.pages_paid, ledger.recipients, ledger.skipped),
            (paid, 1, 2, 0)
        );
        assert_eq!(Reward::share(EPOCH, 1), budget / 4);
        assert!(Reward::pending_pages(EPOCH).is_empty());
    });
}

#[test]
fn epoch_should_settle_when_the_last_of_its_pages_is_paid() {
    run(|| {
        let pages = attested(&entries(600, 7), None);
        assert_eq!(pages.len(), 3);
        assert_eq!(submit(call(2, &pages[2])), Ok(()));
        assert_eq!(Reward::pending_pages(EPOCH), vec![0, 1]);
        assert_eq!(submit(call(2, &pages[2])), Err(InvalidTransaction::Stale.into()));
        assert_eq!(submit(call(0, &pages[0])), Ok(()));
        assert!(Settled::get().is_empty());
        assert_eq!(submit(call(1, &pages[1])), Ok(()));
        assert_eq!(Settled::get(), vec![EPOCH]);
        let ledger = Reward::ledger(EPOCH).unwrap();
        assert_eq!((ledger.recipients, ledger.score_seen), (600, 4_200));
        assert_eq!(ledger.paid, 600 * (emission::budget(EPOCH) / 600));
    });
}

#[test]
fn entry_should_be_skipped_when_it_is_too_little_for_a_new_account() {
    run(|| {
        let total = emission::budget(EPOCH);
        let small = EXISTENTIAL_DEPOSIT as u64 - 1;
        let pages = attested(
            &[
                Entry {
                    account: account(1),
                    score: small,
                },
                Entry {
                    account: account(2),
                    score: total as u64 - small,
                },
                Entry {
                    account: account(3),
                    score: 0,
                },
            ],
            None,
        );
        assert_eq!(submit(call(0, &pages[0])), Ok(()));
        assert_eq!((balance(1), balance(2), balance(3)), (0, total - u128::from(small), 0));
        let ledger = Reward::ledger(EPOCH).unwrap();
        assert_eq!((ledger.recipients, ledger.skipped), (1, 2));
    });
}

#[test]
fn small_entry_should_be_paid_when_the_account_exists() {
    run(|| {
        let total = emission::budget(EPOCH);
        let pages = attested(
            &[
                Entry {
                    account: account(2),
                    score: total as u64 - 5,
                },
                Entry {
                    account: account(2),
                    score: 5,
                },
            ],
            None,
        );
        // The same account twice: judged before the page, it does not exist yet.
        assert_eq!(submit(call(0, &pages[0])), Ok(()));
        assert_eq!(balance(2), total - 5);

        Settled::set(Vec::new());
        Ledgers::<Test>::remove(EPOCH);
        // In another epoch it does.
        pallet_emission::IssuedByEpoch::<Test>::remove(EPOCH);
        let before = balance(2);
        let pages = attested(
            &[Entry {
                account: account(2),
                score: 5,
            }],
            Some(total),
        );
        assert_eq!(submit(call(0, &pages[0])), Ok(()));
        assert_eq!(balance(2), before + 5);
        Ledgers::<Test>::mutate(EPOCH, |ledger| ledger.as_mut().unwrap().paid += before);
    });
}

#[test]
fn page_should_be_refused_when_the_epoch_is_not_payable() {
    run(|| {
        let pages = attested(&entries(2, 1), None);
        Payable::set(None);
        assert_eq!(submit(call(0, &pages[0])), refused(refusal::NOT_PAYABLE));
        assert_noop!(
            call(0, &pages[0])
                .dispatch_bypass_filter(RawOrigin::Authorized.into())
                .map_err(|error| error.error),
            Error::<Test>::NotPayable
        );
    });
}

#[test]
fn page_should_be_refused_when_it_is_not_the_attested_one() {
    run(|| {
        let pages = attested(&entries(600, 7), None);
        assert_eq!(submit(call(3, &pages[0])), refused(refusal::NO_SUCH_PAGE));
        assert_eq!(submit(call(1, &pages[0])), refused(refusal::BAD_PAGE_PROOF));
        let mut changed = pages[0].clone();
        changed.0[0].score += 1;
        assert_eq!(submit(call(0, &changed)), refused(refusal::BAD_PAGE_PROOF));
        let mut short = pages[0].clone();
        short.1.pop();
        assert_eq!(submit(call(0, &short)), refused(refusal::BAD_PAGE_PROOF));
        assert_eq!(
            submit(call(0, &(Vec::new(), Vec::new()))),
            refused(refusal::NO_SUCH_PAGE)
        );
    });
}

#[test]
fn page_should_be_refused_when_the_scores_exceed_the_attested_total() {
    run(|| {
        let pages = attested(&entries(300, 10), Some(2_999));
        assert_eq!(submit(call(0, &pages[0])), Ok(()));
        assert_eq!(submit(call(1, &pages[1])), refused(refusal::SCORE_OVERFLOW));
        let pages = attested(
            &[Entry {
                account: account(1),
                score: u64::MAX,
            }],
            Some(1),
        );
        Ledgers::<Test>::mutate(EPOCH, |ledger| ledger.as_mut().unwrap().paid_bitmap[0] = 0);
        assert_eq!(submit(call(0, &pages[0])), refused(refusal::SCORE_OVERFLOW));
        Ledgers::<Test>::mutate(EPOCH, |ledger| ledger.as_mut().unwrap().paid_bitmap[0] = 1);
    });
}

#[test]
fn page_should_not_be_paid_when_it_has_been() {
    run(|| {
        let pages = attested(&entries(300, 10), None);
        assert_eq!(submit(call(0, &pages[0])), Ok(()));
        assert_noop!(
            call(0, &pages[0])
                .dispatch_bypass_filter(RawOrigin::Authorized.into())
                .map_err(|error| error.error),
            Error::<Test>::AlreadyPaid
        );
    });
}

#[test]
fn page_should_be_tagged_by_epoch_and_index_with_low_priority() {
    run(|| {
        let pages = attested(&entries(300, 10), None);
        let valid = validate(&call(1, &pages[1])).unwrap();
        assert_eq!(valid.provides, vec![("AlicePayout", (EPOCH, 1u32)).encode()]);
        assert_eq!((valid.priority, valid.propagate), (1, true));
    });
}

#[test]
fn call_should_fail_when_the_origin_is_not_authorised() {
    run(|| {
        let pages = attested(&entries(3, 10), None);
        for origin in [
            RawOrigin::None,
            RawOrigin::Root,
            RawOrigin::Signed(AccountId32::from([1; 32])),
        ] {
            assert_noop!(
                call(0, &pages[0])
                    .dispatch_bypass_filter(origin.into())
                    .map_err(|error| error.error),
                DispatchError::BadOrigin
            );
        }
    });
}

#[test]
fn on_idle_should_remove_ledgers_when_they_are_old() {
    run(|| {
        let pages = attested(&entries(3, 10), None);
        assert_eq!(submit(call(0, &pages[0])), Ok(()));
        let paid = Reward::ledger(EPOCH).unwrap().paid;
        CurrentEpoch::set(EPOCH + HISTORY_EPOCHS);
        Reward::on_idle(1, Weight::MAX);
        assert!(Reward::ledger(EPOCH).is_some());
        CurrentEpoch::set(EPOCH + HISTORY_EPOCHS + 1);
        Reward::on_idle(2, Weight::MAX);
        assert!(Reward::ledger(EPOCH).is_none());
        // For the sum at the end of the test.
        Ledgers::<Test>::insert(
            EPOCH,
            pallet_reward::Ledger {
                budget: paid,
                paid,
                ..Default::default()
            },
        );
    });
}

#[test]
fn full_page_should_fit_into_a_block() {
    use frame_support::dispatch::GetDispatchInfo;
    run(|| {
        let pages = attested(&entries(256, 10), None);
        let info = call(0, &pages[0]).get_dispatch_info();
        // A fifth of a block of two seconds.
        assert!(info.total_weight().ref_time() < 400_000_000_000, "{info:?}");
        assert!(call(0, &pages[0]).encode().len() < 16_384);
    });
}
