use crate::{
    self as pallet_epoch, pallet::refusal, Attestations, Call, Commitments, Error, Event, Outcomes, ParameterServer,
    Parameters, ReopenedEpochs, Status, Vetoes, HISTORY_EPOCHS, ROUNDS_MAX,
};
use alice_primitives::{commitment::veto_payload, fixtures, Commitment};
use codec::Encode;
use frame_support::{
    assert_noop, assert_ok, derive_impl,
    dispatch::RawOrigin,
    pallet_prelude::{InvalidTransaction, TransactionSource, TransactionValidityError, ValidTransaction},
    parameter_types,
    traits::{Authorize, Hooks},
    weights::Weight,
};
use sp_core::{sr25519, Pair};
use sp_runtime::{BuildStorage, DispatchError};

type Block = frame_system::mocking::MockBlock<Test>;

frame_support::construct_runtime!(
    pub enum Test { System: frame_system, Epoch: pallet_epoch }
);

parameter_types! {
    pub static ValidatorKeys: Vec<sr25519::Public> = Vec::new();
}

#[derive_impl(frame_system::config_preludes::TestDefaultConfig)]
impl frame_system::Config for Test {
    type Block = Block;
}

pub struct TestValidators;
impl pallet_epoch::Validators for TestValidators {
    fn keys() -> Vec<sr25519::Public> {
        ValidatorKeys::get()
    }
}

impl pallet_epoch::Config for Test {
    type Validators = TestValidators;
}

const PARAMETERS: Parameters = Parameters {
    slot_ms: 2_000,
    epoch_blocks: 10,
    window_blocks: 3,
    late_epochs: 4,
    session_slots: 10,
};

fn ps(index: u32) -> sr25519::Pair {
    sr25519::Pair::from_string(&format!("//ps{index}"), None).unwrap()
}

fn validator(index: u32) -> sr25519::Pair {
    sr25519::Pair::from_string(&format!("//validator{index}"), None).unwrap()
}

fn run(servers: u32, test: impl FnOnce()) {
    ValidatorKeys::set((0..3).map(|index| validator(index).public()).collect());
    let config = pallet_epoch::GenesisConfig::<Test> {
        parameters: PARAMETERS,
        parameter_servers: (0..servers)
            .map(|index| ParameterServer {
                account: index.into(),
                key: ps(index).public(),
            })
            .collect(),
        run_hash: Some([9; 32].into()),
    };
    sp_io::TestExternalities::from(config.build_storage().unwrap()).execute_with(|| {
        System::set_block_number(11);
        test();
        assert_eq!(Epoch::check_invariants(), Ok(()));
    });
}

fn commitment(epoch: u32) -> Commitment {
    Commitment {
        epoch,
        set_id: 0,
        run_hash: [9; 32],
        parent: Epoch::latest().map_or([0; 32], |(_, hash)| hash),
        ..fixtures::commitment()
    }
}

fn attest_call(commitment: &Commitment, round: u32, index: u32) -> Call<Test> {
    let signature = ps(index).sign(&commitment.attest_payload(&Epoch::genesis_hash(), round));
    Call::attest {
        commitment: commitment.clone(),
        round,
        ps_index: index,
        signature,
    }
}

fn veto_call(epoch: u32, index: u32) -> Call<Test> {
    let accepted = Commitments::<Test>::get(epoch).unwrap();
    let hash = accepted.commitment.hash();
    let signature = validator(index).sign(&veto_payload(&Epoch::genesis_hash(), accepted.round, epoch, &hash));
    Call::veto {
        epoch,
        hash,
        validator_index: index,
        signature,
    }
}

fn validate(call: &Call<Test>) -> Result<ValidTransaction, TransactionValidityError> {
    RuntimeCall::from(call.clone())
        .authorize(TransactionSource::External)
        .unwrap()
        .map(|(valid, _)| valid)
}

/// Authorises the call, then executes it.
fn submit(call: Call<Test>) -> Result<(), TransactionValidityError> {
    validate(&call)?;
    use frame_support::traits::UnfilteredDispatchable;
    call.dispatch_bypass_filter(RawOrigin::Authorized.into()).unwrap();
    Ok(())
}

fn attest(commitment: &Commitment, round: u32, index: u32) -> Result<(), TransactionValidityError> {
    submit(attest_call(commitment, round, index))
}

fn refused(code: u8) -> Result<(), TransactionValidityError> {
    Err(InvalidTransaction::Custom(code).into())
}

fn stale() -> Result<(), TransactionValidityError> {
    Err(InvalidTransaction::Stale.into())
}

#[test]
fn attest_should_accept_the_commitment_when_one_server_is_the_quorum() {
    run(1, || {
        let commitment = commitment(0);
        assert_eq!(Epoch::status(0), Status::Open);
        assert_eq!(attest(&commitment, 0, 0), Ok(()));
        assert_eq!(Epoch::status(0), Status::Accepted);
        assert_eq!(Epoch::accepted(0), Some(commitment.clone()));
        assert_eq!(Epoch::latest(), Some((0, commitment.hash())));
        System::assert_last_event(
            Event::Accepted {
                epoch: 0,
                round: 0,
                hash: commitment.hash(),
                final_at: 14,
            }
            .into(),
        );
        assert_eq!(Epoch::payable(0), None);
        System::set_block_number(14);
        assert_eq!(Epoch::status(0), Status::Final);
        assert_eq!(Epoch::payable(0), Some(commitment));
        Epoch::settled(0);
        assert_eq!(Epoch::status(0), Status::Settled);
        assert_eq!(Epoch::payable(0), None);
    });
}

#[test]
fn attest_should_wait_for_the_quorum_when_there_are_four_servers() {
    run(4, || {
        let (one, other) = (
            commitment(0),
            Commitment {
                model_root: [8; 32],
                ..commitment(0)
            },
        );
        assert_eq!(attest(&one, 0, 3), Ok(()));
        assert_eq!(attest(&other, 0, 0), Ok(()));
        assert_eq!(attest(&one, 0, 2), Ok(()));
        assert_eq!(Epoch::status(0), Status::Open);
        // No change of mind, neither for the same commitment nor for another.
        assert_eq!(attest(&one, 0, 0), stale());
        assert_eq!(attest(&one, 0, 2), stale());
        assert_eq!(attest(&one, 0, 1), Ok(()));
        assert_eq!(Epoch::status(0), Status::Accepted);
        assert!(Attestations::<Test>::get(0).is_empty());
    });
}

#[test]
fn attest_should_be_stale_when_the_epoch_is_accepted() {
    run(1, || {
        let commitment = commitment(0);
        assert_eq!(attest(&commitment, 0, 0), Ok(()));
        assert_eq!(attest(&commitment, 0, 0), stale());
    });
}

#[test]
fn attest_should_be_refused_when_anything_is_wrong() {
    run(4, || {
        System::set_block_number(65);
        let good = commitment(5);
        let with = |change: fn(&mut Commitment)| {
            let mut commitment = good.clone();
            change(&mut commitment);
            attest(&commitment, 0, 0)
        };
        assert_eq!(with(|c| c.epoch = 6), refused(refusal::NOT_ENDED));
        assert_eq!(with(|c| c.epoch = u32::MAX), refused(refusal::NOT_ENDED));
        assert_eq!(with(|c| c.epoch = 1), refused(refusal::TOO_LATE));
        assert_eq!(with(|c| c.set_id = 1), refused(refusal::WRONG_SET));
        assert_eq!(with(|c| c.parent = [1; 32]), refused(refusal::WRONG_PARENT));
        assert_eq!(with(|c| c.run_hash = [1; 32]), refused(refusal::WRONG_RUN));
        assert_eq!(with(|c| c.pages = 2), refused(refusal::MALFORMED));
        assert_eq!(with(|c| c.entries = u32::MAX), refused(refusal::MALFORMED));
        assert_eq!(
            with(|c| {
                c.entries = 0;
                c.pages = 0;
            }),
            refused(refusal::MALFORMED)
        );
        assert_eq!(attest(&good, 1, 0), refused(refusal::WRONG_ROUND));
        assert_eq!(attest(&good, 0, 4), refused(refusal::NOT_MEMBER));
        let Call::attest {
            commitment,
            round,
            signature,
            ..
        } = attest_call(&good, 0, 0)
        else {
            unreachable!()
        };
        let of_another = Call::attest {
            commitment,
            round,
            ps_index: 1,
            signature,
        };
        assert_eq!(submit(of_another), Err(InvalidTransaction::BadProof.into()));
        assert_eq!(attest(&good, 0, 0), Ok(()));
    });
}

#[test]
fn attest_should_be_tagged_by_epoch_round_and_server() {
    run(4, || {
        let valid = validate(&attest_call(&commitment(0), 0, 2)).unwrap();
        assert_eq!(valid.provides, vec![("AliceAttest", (0u32, 0u32, 2u32)).encode()]);
        assert!(valid.propagate);
    });
}

#[test]
fn attest_should_wait_when_the_parent_is_in_its_window() {
    run(1, || {
        System::set_block_number(20);
        assert_eq!(attest(&commitment(0), 0, 0), Ok(()));
        System::set_block_number(22);
        assert_eq!(attest(&commitment(1), 0, 0), refused(refusal::PARENT_NOT_FINAL));
        System::set_block_number(23);
        assert_eq!(attest(&commitment(1), 0, 0), Ok(()));
    });
}

#[test]
fn epochs_should_be_forfeited_when_a_later_one_is_accepted() {
    run(1, || {
        System::set_block_number(41);
        assert_eq!(attest(&commitment(0), 0, 0), Ok(()));
        System::set_block_number(44);
        assert_eq!(attest(&commitment(3), 0, 0), Ok(()));
        let states = [0, 1, 2, 3, 4].map(Epoch::status);
        assert_eq!(
            states,
            [
                Status::Final,
                Status::Forfeited,
                Status::Forfeited,
                Status::Accepted,
                Status::Open
            ]
        );
        System::set_block_number(47);
        assert_eq!(attest(&commitment(1), 0, 0), stale());
    });
}

#[test]
fn epochs_should_be_reported_as_forfeited_once() {
    run(1, || {
        System::set_block_number(41);
        assert_eq!(attest(&commitment(1), 0, 0), Ok(()));
        System::assert_has_event(Event::Forfeited { first: 0, last: 0 }.into());
        System::reset_events();
        System::set_block_number(51);
        assert_eq!(attest(&commitment(2), 0, 0), Ok(()));
        assert!(!System::events()
            .iter()
            .any(|record| matches!(record.event, RuntimeEvent::Epoch(Event::Forfeited { .. }))));
        System::set_block_number(61);
        assert_eq!(attest(&commitment(4), 0, 0), Ok(()));
        System::assert_has_event(Event::Forfeited { first: 3, last: 3 }.into());
    });
}

#[test]
fn epoch_should_be_forfeited_when_the_late_window_is_over() {
    run(1, || {
        System::set_block_number(49);
        assert_eq!(Epoch::status(0), Status::Open);
        System::set_block_number(50);
        assert_eq!(Epoch::status(0), Status::Forfeited);
        assert_eq!(attest(&commitment(0), 0, 0), refused(refusal::TOO_LATE));
    });
}

#[test]
fn epoch_should_settle_by_itself_when_nobody_scored() {
    run(1, || {
        let nothing = Commitment {
            pages: 0,
            entries: 0,
            total_score: 0,
            ..commitment(0)
        };
        assert_eq!(attest(&nothing, 0, 0), Ok(()));
        System::set_block_number(14);
        assert_eq!(Epoch::status(0), Status::Settled);
        assert_eq!(Epoch::payable(0), None);
    });
}

#[test]
fn veto_should_reopen_the_epoch_when_more_than_half_agree() {
    run(1, || {
        let first = commitment(0);
        assert_eq!(attest(&first, 0, 0), Ok(()));
        assert_eq!(submit(veto_call(0, 0)), Ok(()));
        assert_eq!(submit(veto_call(0, 0)), stale());
        assert_eq!(Epoch::status(0), Status::Accepted);
        assert_eq!(submit(veto_call(0, 2)), Ok(()));
        assert_eq!(
            (Epoch::status(0), Epoch::round(0), Epoch::latest()),
            (Status::Open, 1, None)
        );
        assert!(Vetoes::<Test>::get(0).is_empty());

        // Another round; the scores may change, the model may not.
        assert_eq!(attest(&first, 0, 0), refused(refusal::WRONG_ROUND));
        let other_model = Commitment {
            model_root: [7; 32],
            ..first.clone()
        };
        assert_eq!(attest(&other_model, 1, 0), refused(refusal::MODEL_ROOT_CHANGED));
        let other_scores = Commitment {
            contributions_root: [7; 32],
            ..first
        };
        assert_eq!(attest(&other_scores, 1, 0), Ok(()));
        assert_eq!(Epoch::accepted(0), Some(other_scores));
    });
}

#[test]
fn veto_should_forfeit_the_epoch_when_the_rounds_are_used_up() {
    run(1, || {
        for round in 0..ROUNDS_MAX {
            assert_eq!(attest(&commitment(0), round, 0), Ok(()));
            assert_eq!(submit(veto_call(0, 0)), Ok(()));
            assert_eq!(submit(veto_call(0, 1)), Ok(()));
        }
        assert_eq!(Epoch::status(0), Status::Forfeited);
        assert_eq!(attest(&commitment(0), ROUNDS_MAX, 0), refused(refusal::TOO_LATE));
        // The next epoch chains to what was accepted before.
        System::set_block_number(21);
        assert_eq!(attest(&commitment(1), 0, 0), Ok(()));
        assert_eq!(Epoch::accepted(1).unwrap().parent, [0; 32]);
    });
}

#[test]
fn veto_should_be_refused_when_it_is_late_or_not_a_validators() {
    run(1, || {
        assert_eq!(attest(&commitment(0), 0, 0), Ok(()));
        let late = veto_call(0, 0);
        let Call::veto {
            epoch, hash, signature, ..
        } = veto_call(0, 0)
        else {
            unreachable!()
        };
        let call = |epoch, hash, validator_index| Call::veto {
            epoch,
            hash,
            validator_index,
            signature,
        };
        assert_eq!(submit(call(epoch, [0; 32], 0)), refused(refusal::NOT_DISPUTABLE));
        assert_eq!(submit(call(1, hash, 0)), refused(refusal::NOT_DISPUTABLE));
        assert_eq!(submit(call(epoch, hash, 3)), refused(refusal::NOT_MEMBER));
        assert_eq!(submit(call(epoch, hash, 1)), Err(InvalidTransaction::BadProof.into()));
        System::set_block_number(14);
        assert_eq!(submit(late), refused(refusal::NOT_DISPUTABLE));
    });
}

#[test]
fn vetoes_should_not_count_when_their_validators_have_left() {
    run(1, || {
        assert_eq!(attest(&commitment(0), 0, 0), Ok(()));
        assert_eq!(submit(veto_call(0, 0)), Ok(()));
        ValidatorKeys::set((1..4).map(|index| validator(index).public()).collect());
        let accepted = Commitments::<Test>::get(0).unwrap();
        let hash = accepted.commitment.hash();
        let signature = validator(1).sign(&veto_payload(&Epoch::genesis_hash(), 0, 0, &hash));
        assert_eq!(
            submit(Call::veto {
                epoch: 0,
                hash,
                validator_index: 0,
                signature
            }),
            Ok(())
        );
        assert_eq!(Epoch::status(0), Status::Accepted);
    });
}

#[test]
fn calls_should_fail_when_the_origin_is_not_authorised() {
    run(1, || {
        let Call::attest {
            commitment,
            round,
            ps_index,
            signature,
        } = attest_call(&commitment(0), 0, 0)
        else {
            unreachable!()
        };
        for origin in [RawOrigin::None, RawOrigin::Root, RawOrigin::Signed(1)] {
            assert_noop!(
                Epoch::attest(origin.into(), commitment.clone(), round, ps_index, signature)
                    .map_err(|error| error.error),
                DispatchError::BadOrigin
            );
        }
    });
}

#[test]
fn veto_should_fail_when_there_is_no_such_validator() {
    run(1, || {
        let result = Epoch::veto(
            RawOrigin::Authorized.into(),
            0,
            [0; 32],
            9,
            sr25519::Signature::default(),
        );
        assert_noop!(result.map_err(|error| error.error), Error::<Test>::Unauthorised);
    });
}

#[test]
fn current_should_follow_the_block_number() {
    run(1, || {
        let current = Epoch::current();
        assert_eq!(
            (current.epoch, current.first_block, current.next_block, current.block),
            (1, 10, 20, 11)
        );
        assert_eq!(current.parameters, PARAMETERS);
        System::set_block_number(20);
        assert_eq!(Epoch::epoch(), 2);
    });
}

#[test]
fn on_idle_should_remove_epochs_when_they_are_old() {
    run(1, || {
        assert_eq!(attest(&commitment(0), 0, 0), Ok(()));
        assert_eq!(submit(veto_call(0, 0)), Ok(()));
        assert_eq!(submit(veto_call(0, 1)), Ok(()));
        assert_eq!(attest(&commitment(0), 1, 0), Ok(()));
        System::set_block_number(u64::from((HISTORY_EPOCHS + 1) * 10));
        Epoch::on_idle(0, Weight::MAX);
        assert!(!Commitments::<Test>::contains_key(0));
        assert!(!ReopenedEpochs::<Test>::contains_key(0));
        assert_eq!(Epoch::status(0), Status::Forgotten);
        // The chain of commitments continues.
        assert_eq!(attest(&commitment(HISTORY_EPOCHS), 0, 0), Ok(()));
    });
}

#[test]
#[should_panic(expected = "same key")]
fn genesis_should_panic_when_two_servers_have_the_same_key() {
    let server = ParameterServer {
        account: 1,
        key: ps(0).public(),
    };
    let _ = pallet_epoch::GenesisConfig::<Test> {
        parameters: PARAMETERS,
        parameter_servers: vec![server.clone(), server],
        run_hash: None,
    }
    .build_storage();
}

#[test]
fn parameters_should_be_refused_when_no_chain_can_run_with_them() {
    assert_ok!(Parameters::default().validate());
    assert_ok!(Parameters::development().validate());
    for parameters in [
        Parameters {
            slot_ms: 0,
            ..PARAMETERS
        },
        Parameters {
            slot_ms: 2_001,
            ..PARAMETERS
        },
        Parameters {
            epoch_blocks: 0,
            ..PARAMETERS
        },
        Parameters {
            session_slots: 1,
            ..PARAMETERS
        },
        Parameters {
            late_epochs: 0,
            ..PARAMETERS
        },
        Parameters {
            late_epochs: 400,
            ..PARAMETERS
        },
    ] {
        assert!(parameters.validate().is_err());
    }
}
