use crate::{self as pallet_emission, EpochIssuance, Error, Issued, IssuedByEpoch, HISTORY_EPOCHS};
use alice_primitives::emission::{budget, cumulative, CAP};
use frame_support::{
    assert_noop, assert_ok, derive_impl, parameter_types,
    traits::{ConstU128, Hooks, Imbalance},
    weights::Weight,
};
use sp_runtime::BuildStorage;

type Block = frame_system::mocking::MockBlock<Test>;

frame_support::construct_runtime!(
    pub enum Test { System: frame_system, Balances: pallet_balances, Emission: pallet_emission }
);

parameter_types! {
    pub static CurrentEpoch: u32 = 1;
}

#[derive_impl(frame_system::config_preludes::TestDefaultConfig)]
impl frame_system::Config for Test {
    type Block = Block;
    type AccountData = pallet_balances::AccountData<u128>;
}

#[derive_impl(pallet_balances::config_preludes::TestDefaultConfig)]
impl pallet_balances::Config for Test {
    type Balance = u128;
    type ExistentialDeposit = ConstU128<1_000>;
    type AccountStore = System;
}

impl pallet_emission::Config for Test {
    type Currency = Balances;
    type CurrentEpoch = CurrentEpoch;
}

fn run(epoch: u32, test: impl FnOnce()) {
    let storage = frame_system::GenesisConfig::<Test>::default().build_storage().unwrap();
    sp_io::TestExternalities::from(storage).execute_with(|| {
        CurrentEpoch::set(epoch);
        System::set_block_number(1);
        test();
        assert_eq!(Emission::check_invariants(), Ok(()));
    });
}

#[test]
fn issue_should_create_the_amount_when_within_the_budget() {
    run(1, || {
        let mut credit = Emission::issue(0, budget(0)).unwrap();
        assert_eq!(credit.peek(), budget(0));
        assert_eq!(Emission::deposit(&mut credit, &7, 5_000), 5_000);
        drop(credit);
        assert_eq!(Balances::free_balance(7), 5_000);
        assert_eq!(Balances::total_issuance(), 5_000);
        // A dropped credit is burnt and stays counted.
        assert_eq!(Issued::<Test>::get(), budget(0));
        System::assert_has_event(
            pallet_emission::Event::Issued {
                epoch: 0,
                amount: budget(0),
            }
            .into(),
        );
    });
}

#[test]
fn issue_should_refuse_when_the_budget_is_exceeded() {
    run(3, || {
        assert_ok!(Emission::issue(1, budget(1) - 1).map(drop));
        assert_noop!(Emission::issue(1, 2).map(drop), Error::<Test>::EpochBudgetExceeded);
        assert_noop!(
            Emission::issue(1, u128::MAX).map(drop),
            Error::<Test>::EpochBudgetExceeded
        );
        assert_ok!(Emission::issue(1, 1).map(drop));
        assert_noop!(Emission::issue(1, 1).map(drop), Error::<Test>::EpochBudgetExceeded);
    });
}

#[test]
fn issue_should_refuse_when_the_epoch_is_not_over() {
    run(1, || {
        assert_noop!(Emission::issue(1, 1).map(drop), Error::<Test>::FutureEpoch);
        assert_noop!(Emission::issue(u32::MAX, 1).map(drop), Error::<Test>::FutureEpoch);
    });
}

#[test]
fn issue_should_refuse_when_the_epoch_is_too_old() {
    run(HISTORY_EPOCHS + 1, || {
        assert_noop!(Emission::issue(0, 1).map(drop), Error::<Test>::PastEpoch);
        assert_ok!(Emission::issue(1, 1).map(drop));
    });
}

#[test]
fn issue_should_refuse_when_the_cap_or_the_schedule_is_exceeded() {
    run(1, || {
        Issued::<Test>::put(CAP);
        assert_noop!(Emission::issue(0, 1).map(drop), Error::<Test>::CapExceeded);
        Issued::<Test>::put(cumulative(1));
        assert_noop!(Emission::issue(0, 1).map(drop), Error::<Test>::ScheduleExceeded);
    });
}

#[test]
fn deposit_should_put_nothing_when_below_the_existential_deposit() {
    run(1, || {
        assert!(!Emission::can_deposit(&7, 999));
        assert!(Emission::can_deposit(&7, 1_000));
        let mut credit = Emission::issue(0, 10_000).unwrap();
        assert_eq!(Emission::deposit(&mut credit, &7, 999), 0);
        assert_eq!(Emission::deposit(&mut credit, &7, 1_000), 1_000);
        assert!(Emission::can_deposit(&7, 1));
        drop(credit);
        assert_eq!(Balances::total_issuance(), 1_000);
    });
}

#[test]
fn on_idle_should_remove_counters_when_they_are_old() {
    run(1, || {
        assert_ok!(Emission::issue(0, 1).map(drop));
        Emission::on_idle(1, Weight::MAX);
        assert!(IssuedByEpoch::<Test>::contains_key(0));
        CurrentEpoch::set(HISTORY_EPOCHS + 1);
        assert_eq!(Emission::on_idle(2, Weight::zero()), Weight::zero());
        Emission::on_idle(2, Weight::MAX);
        assert!(!IssuedByEpoch::<Test>::contains_key(0));
    });
}

#[test]
fn supply_should_name_the_next_halving() {
    run(17_520, || {
        let supply = Emission::supply();
        assert_eq!(supply.next_halving, 2 * 17_520);
        assert_eq!(supply.scheduled, cumulative(17_520));
        assert_eq!((supply.issued, supply.total_issuance, supply.cap), (0, 0, CAP));
        assert_eq!(Emission::schedule(0), 2 * Emission::schedule(17_520));
    });
}

#[test]
fn issue_should_keep_the_invariants_when_called_at_random() {
    run(1, || {
        // A small generator instead of a dependency.
        let mut seed = 7u64;
        let mut next = move || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            seed >> 33
        };
        for _ in 0..2_000 {
            CurrentEpoch::mutate(|epoch| *epoch += (next() % 2) as u32);
            let current = CurrentEpoch::get();
            let epoch = (next() % (u64::from(current) + 2)) as u32;
            let amount = u128::from(next()) * u128::from(next()) % (budget(0) + budget(0) / 2);
            if let Ok(mut credit) = Emission::issue(epoch, amount) {
                Emission::deposit(&mut credit, &(next() % 5), amount / 2);
            }
            assert_eq!(Emission::check_invariants(), Ok(()));
        }
        assert!(Issued::<Test>::get() > 0);
    });
}
