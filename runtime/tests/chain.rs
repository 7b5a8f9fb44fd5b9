//! The whole runtime: blocks through `Executive`, transactions through the pool's validation.
#![allow(missing_docs)]

use alice_primitives::{
    emission, fixtures,
    pages::{self, Entry},
    Commitment,
};
use alice_runtime::{
    genesis, AccountId, AuthorPot, Balances, Emission, Epoch, Executive, Hash, Header, Reward, Runtime, RuntimeCall,
    RuntimeEvent, RuntimeGenesisConfig, SignedPayload, System, TxExtension, UncheckedExtrinsic, EXISTENTIAL_DEPOSIT,
};
use codec::Encode;
use frame_support::{hypothetically, traits::BuildGenesisConfig};
use pallet_epoch::Status;
use serde_json::Value;
use sp_consensus_babe::{
    digests::{CompatibleDigestItem, PreDigest, SecondaryPlainPreDigest},
    Slot,
};
use sp_core::{sr25519, Pair, H256};
use sp_genesis_builder::DEV_RUNTIME_PRESET;
use sp_keyring::Sr25519Keyring;
use sp_runtime::{
    generic::Era,
    traits::{Block as _, Header as _},
    transaction_validity::{InvalidTransaction, TransactionSource, TransactionValidityError, ValidTransaction},
    ApplyExtrinsicResult, Digest, DigestItem, MultiSignature,
};

const SLOT_MS: u64 = 2_000;
const FIRST_SLOT: u64 = 900_000_000;

fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

/// State after genesis with a preset, made as the node makes it.
fn ext(preset: &str) -> sp_io::TestExternalities {
    let mut config = serde_json::to_value(RuntimeGenesisConfig::default()).unwrap();
    merge(
        &mut config,
        serde_json::from_slice(&genesis::preset(&preset.into()).unwrap()).unwrap(),
    );
    let config: RuntimeGenesisConfig = serde_json::from_value(config).unwrap();
    let mut ext = sp_io::TestExternalities::new_empty();
    ext.execute_with(|| config.build());
    ext
}

/// Executes block `number` with these transactions.
fn block(number: u32, transactions: Vec<UncheckedExtrinsic>) -> Vec<ApplyExtrinsicResult> {
    let slot = Slot::from(FIRST_SLOT + u64::from(number));
    let digest = PreDigest::SecondaryPlain(SecondaryPlainPreDigest {
        authority_index: 0,
        slot,
    });
    let parent = if number == 1 {
        H256::repeat_byte(7)
    } else {
        H256::from_low_u64_be(number.into())
    };
    let header = Header::new(
        number,
        Default::default(),
        Default::default(),
        parent,
        Digest {
            logs: vec![DigestItem::babe_pre_digest(digest)],
        },
    );
    Executive::initialize_block(&header);
    let timestamp = pallet_timestamp::Call::set { now: *slot * SLOT_MS };
    Executive::apply_extrinsic(UncheckedExtrinsic::new_bare(timestamp.into()))
        .unwrap()
        .unwrap();
    let results = transactions.into_iter().map(Executive::apply_extrinsic).collect();
    Executive::finalize_block();
    check_invariants();
    results
}

fn blocks(from: u32, to: u32) {
    (from..=to).for_each(|number| {
        block(number, Vec::new());
    });
}

fn check_invariants() {
    assert_eq!(Epoch::check_invariants(), Ok(()));
    assert_eq!(Emission::check_invariants(), Ok(()));
    assert_eq!(Reward::check_invariants(), Ok(()));
    assert_eq!(AuthorPot::check_invariants(), Ok(()));
}

fn extension(nonce: u32) -> TxExtension {
    (
        frame_system::AuthorizeCall::new(),
        frame_system::CheckNonZeroSender::new(),
        frame_system::CheckSpecVersion::new(),
        frame_system::CheckTxVersion::new(),
        frame_system::CheckGenesis::new(),
        frame_system::CheckEra::from(Era::Immortal),
        frame_system::CheckNonce::from(nonce.into()),
        frame_system::CheckWeight::new(),
        pallet_transaction_payment::ChargeTransactionPayment::from(0),
        frame_metadata_hash_extension::CheckMetadataHash::new(false),
        frame_system::WeightReclaim::new(),
    )
}

fn general(call: impl Into<RuntimeCall>) -> UncheckedExtrinsic {
    UncheckedExtrinsic::new_transaction(call.into(), extension(0))
}

fn signed(from: &sr25519::Pair, nonce: u32, call: impl Into<RuntimeCall>) -> UncheckedExtrinsic {
    let payload = SignedPayload::new(call.into(), extension(nonce)).unwrap();
    let signature = payload.using_encoded(|bytes| from.sign(bytes));
    let (call, extension, _) = payload.deconstruct();
    let account = AccountId::from(from.public());
    UncheckedExtrinsic::new_signed(call, account.into(), MultiSignature::Sr25519(signature), extension)
}

fn validate(transaction: UncheckedExtrinsic) -> Result<ValidTransaction, TransactionValidityError> {
    hypothetically!(Executive::validate_transaction(
        TransactionSource::External,
        transaction,
        Hash::repeat_byte(9)
    ))
}

fn commitment(epoch: u32, entries: &[Entry]) -> Commitment {
    let leaves: Vec<_> = pages::paginate(entries)
        .zip(0..)
        .map(|(page, index)| pages::leaf(epoch, index, page))
        .collect();
    Commitment {
        epoch,
        set_id: 0,
        contributions_root: pages::root(&leaves),
        pages: leaves.len() as u32,
        entries: entries.len() as u32,
        total_score: entries.iter().map(|entry| u128::from(entry.score)).sum(),
        parent: Epoch::latest().map_or([0; 32], |(_, hash)| hash),
        ..fixtures::commitment()
    }
}

fn attest(commitment: &Commitment, key: Sr25519Keyring) -> UncheckedExtrinsic {
    let signature = key.sign(&commitment.attest_payload(&Epoch::genesis_hash(), 0));
    general(pallet_epoch::Call::attest {
        commitment: commitment.clone(),
        round: 0,
        ps_index: 0,
        signature,
    })
}

fn payout(epoch: u32, entries: &[Entry]) -> UncheckedExtrinsic {
    assert!(entries.len() <= pages::PAGE_ENTRIES);
    let entries = entries.to_vec().try_into().unwrap();
    general(pallet_reward::Call::payout_page {
        epoch,
        index: 0,
        entries,
        proof: Default::default(),
    })
}

fn miner() -> sr25519::Pair {
    sr25519::Pair::from_string("//miner", None).unwrap()
}

/// Until the miner has been paid epoch 0: block 33 is the last one executed.
fn with_paid_miner(test: impl FnOnce(u128)) {
    ext(DEV_RUNTIME_PRESET).execute_with(|| {
        blocks(1, 30);
        let entries = [Entry {
            account: miner().public().0,
            score: 1,
        }];
        let commitment = commitment(0, &entries);
        assert_eq!(
            block(31, vec![attest(&commitment, Sr25519Keyring::One)]),
            vec![Ok(Ok(()))]
        );
        blocks(32, 32);
        assert_eq!(block(33, vec![payout(0, &entries)]), vec![Ok(Ok(()))]);
        test(emission::budget(0));
    });
}

#[test]
fn genesis_should_have_no_coins_in_any_preset() {
    for preset in genesis::preset_names() {
        ext(preset.as_ref()).execute_with(|| {
            let issuance = pallet_balances::TotalIssuance::<Runtime>::hashed_key();
            assert!(sp_io::storage::get(&issuance).is_none(), "{preset:?}");
            for (account, info) in frame_system::Account::<Runtime>::iter() {
                assert_eq!(info.data, Default::default(), "{preset:?}: {account} has coins");
            }
            let message = alice_primitives::GENESIS_MESSAGE.as_bytes();
            assert_eq!(pallet_genesis::Message::<Runtime>::get().as_slice(), message);
        });
    }
}

#[test]
fn mainnet_should_have_the_published_parameters() {
    ext(genesis::MAINNET_PRESET).execute_with(|| {
        let parameters = pallet_epoch::NetworkParameters::<Runtime>::get();
        assert_eq!(parameters, pallet_epoch::Parameters::default());
        assert_eq!(
            (parameters.slot_ms, parameters.epoch_blocks, parameters.window_blocks),
            (6_000, 600, 100)
        );
        assert_eq!(alice_runtime::Babe::slot_duration(), 6_000);
    });
}

#[test]
fn message_hash_should_be_the_constant() {
    let hash = sp_io::hashing::blake2_256(alice_primitives::GENESIS_MESSAGE.as_bytes());
    assert_eq!(hash, alice_runtime::configs::GENESIS_MESSAGE_HASH);
}

#[test]
fn genesis_validators_should_hold_keys_without_coins() {
    ext(DEV_RUNTIME_PRESET).execute_with(|| {
        assert_eq!(
            alice_runtime::Session::validators(),
            vec![Sr25519Keyring::Alice.to_account_id()]
        );
        assert_eq!(alice_runtime::Babe::authorities().len(), 1);
        assert_eq!(alice_runtime::Grandpa::grandpa_authorities().len(), 1);
        blocks(1, 200);
        assert_eq!(alice_runtime::Session::current_index(), 3);
        assert_eq!(alice_runtime::Babe::authorities().len(), 1);
    });
}

#[test]
fn epoch_should_be_attested_and_paid_by_general_transactions() {
    ext(DEV_RUNTIME_PRESET).execute_with(|| {
        blocks(1, 30);
        let entries = [
            Entry {
                account: [1; 32],
                score: 1_000_000_000,
            },
            Entry {
                account: [2; 32],
                score: 3_000_000_000,
            },
        ];
        let commitment = commitment(0, &entries);
        let attestation = attest(&commitment, Sr25519Keyring::One);
        let valid = validate(attestation.clone()).unwrap();
        assert_eq!(valid.provides, vec![("AliceAttest", (0u32, 0u32, 0u32)).encode()]);
        assert_eq!(block(31, vec![attestation.clone()]), vec![Ok(Ok(()))]);
        assert_eq!(Epoch::status(0), Status::Accepted);

        // The same again is stale, in the pool and in a block.
        assert_eq!(validate(attestation.clone()), Err(InvalidTransaction::Stale.into()));
        let page = payout(0, &entries);
        let not_payable = InvalidTransaction::Custom(pallet_reward::pallet::refusal::NOT_PAYABLE);
        assert_eq!(validate(page.clone()), Err(not_payable.into()));
        assert_eq!(
            block(32, vec![attestation]),
            vec![Err(InvalidTransaction::Stale.into())]
        );

        assert_eq!(Epoch::status(0), Status::Accepted);
        assert_eq!(Balances::total_issuance(), 0);
        // The window is two blocks: in block 33 the epoch is final. The pool judges by the next block.
        assert!(validate(page.clone()).is_ok());
        assert_eq!(
            block(33, vec![page.clone(), page]),
            vec![Ok(Ok(())), Err(InvalidTransaction::Stale.into())]
        );
        assert_eq!(Epoch::status(0), Status::Settled);
        let budget = emission::budget(0);
        assert_eq!(Balances::free_balance(AccountId::from([1; 32])), budget / 4);
        assert_eq!(Balances::free_balance(AccountId::from([2; 32])), budget * 3 / 4);
        assert_eq!(Balances::total_issuance(), budget / 4 + budget * 3 / 4);
        assert!(System::events().iter().any(|record| matches!(
            record.event,
            RuntimeEvent::Reward(pallet_reward::Event::EpochSettled { epoch: 0, .. })
        )));
    });
}

#[test]
fn general_transaction_should_be_refused_when_nothing_authorises_it() {
    ext(DEV_RUNTIME_PRESET).execute_with(|| {
        blocks(1, 1);
        let remark = frame_system::Call::remark { remark: vec![1] };
        assert_eq!(validate(general(remark)), Err(InvalidTransaction::UnknownOrigin.into()));
    });
}

#[test]
fn attestation_should_be_refused_when_another_key_signed() {
    ext(DEV_RUNTIME_PRESET).execute_with(|| {
        blocks(1, 31);
        let commitment = commitment(0, &[]);
        assert_eq!(
            validate(attest(&commitment, Sr25519Keyring::Two)),
            Err(InvalidTransaction::BadProof.into())
        );
        assert!(validate(attest(&commitment, Sr25519Keyring::One)).is_ok());
    });
}

#[test]
fn fee_should_be_paid_to_the_author_when_the_session_ends() {
    with_paid_miner(|budget| {
        let nonce = System::account_nonce(AccountId::from(miner().public()));
        // A new account starts with the number of its block: old transactions of a reaped one can't come back.
        assert_eq!(*nonce, 33);
        let to = AccountId::from([5; 32]);
        let transfer = pallet_balances::Call::transfer_keep_alive {
            dest: to.clone().into(),
            value: EXISTENTIAL_DEPOSIT,
        };
        assert_eq!(block(34, vec![signed(&miner(), *nonce, transfer)]), vec![Ok(Ok(()))]);
        assert_eq!(Balances::free_balance(to), EXISTENTIAL_DEPOSIT);
        let fee = budget - EXISTENTIAL_DEPOSIT - Balances::free_balance(AccountId::from(miner().public()));
        // About two thousandths of a coin, and no less than an account needs.
        assert!(
            (EXISTENTIAL_DEPOSIT..3 * EXISTENTIAL_DEPOSIT).contains(&fee),
            "fee {fee}"
        );
        assert_eq!(Balances::free_balance(AuthorPot::account()), fee);
        assert_eq!(Balances::total_issuance(), budget);

        blocks(35, 65);
        assert_eq!(Balances::free_balance(Sr25519Keyring::Alice.to_account_id()), fee);
        assert_eq!(Balances::free_balance(AuthorPot::account()), 0);
        assert_eq!(Balances::total_issuance(), budget);
    });
}

#[test]
fn smallest_transaction_should_pay_no_less_than_the_existential_deposit() {
    with_paid_miner(|budget| {
        let nonce = *System::account_nonce(AccountId::from(miner().public()));
        let remark = frame_system::Call::remark { remark: Vec::new() };
        assert_eq!(block(34, vec![signed(&miner(), nonce, remark)]), vec![Ok(Ok(()))]);
        let fee = budget - Balances::free_balance(AccountId::from(miner().public()));
        assert!(fee >= EXISTENTIAL_DEPOSIT, "fee {fee}");
    });
}

#[test]
fn stranger_should_not_set_session_keys() {
    with_paid_miner(|_| {
        let nonce = *System::account_nonce(AccountId::from(miner().public()));
        let keys = genesis::test_validators(1).remove(0).1;
        let call = pallet_session::Call::set_keys {
            keys,
            proof: Vec::new(),
        };
        let result = block(34, vec![signed(&miner(), nonce, call)]);
        assert!(matches!(result[..], [Ok(Err(_))]), "{result:?}");
    });
}

#[test]
fn block_type_should_encode_general_transactions_as_documented() {
    // docs/spec: length, 0x45 (version 5, general), extension version 0, era, nonce, tip, metadata mode, call.
    let call = RuntimeCall::from(frame_system::Call::remark { remark: vec![7] });
    let encoded = general(call.clone()).encode();
    let mut expected = vec![0x45, 0, 0, 0, 0, 0];
    expected.extend(call.encode());
    assert_eq!(encoded, expected.encode());
    assert!(alice_runtime::Block::new(
        Header::new(0, H256::zero(), H256::zero(), H256::zero(), Digest::default()),
        vec![]
    )
    .extrinsics()
    .is_empty());
}
