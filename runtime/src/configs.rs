//! Configuration of the pallets.

use crate::{
    author_pot, AccountId, AuthorPot, Babe, Balance, Balances, Block, BlockNumber, Emission, Epoch, Hash, Historical,
    Nonce, Offences, PalletInfo, Runtime, RuntimeCall, RuntimeEvent, RuntimeFreezeReason, RuntimeHoldReason,
    RuntimeOrigin, RuntimeTask, Session, SessionKeys, System, UncheckedExtrinsic, EXISTENTIAL_DEPOSIT, VERSION,
};
use alloc::vec::Vec;
use frame_support::{
    derive_impl,
    dispatch::DispatchClass,
    parameter_types,
    traits::{ConstU128, ConstU32, ConstU64, ConstU8, KeyOwnerProofSystem},
    weights::{
        constants::{ParityDbWeight, WEIGHT_REF_TIME_PER_SECOND},
        ConstantMultiplier, IdentityFee, Weight,
    },
};
use frame_system::limits::{BlockLength, BlockWeights};
use pallet_transaction_payment::{FungibleAdapter, Multiplier, TargetedFeeAdjustment};
use sp_core::{crypto::KeyTypeId, sr25519, H256};
use sp_runtime::{
    traits::{Bounded, OpaqueKeys},
    type_with_default::TypeWithDefault,
    FixedPointNumber, Perbill, Perquintill,
};
use sp_version::RuntimeVersion;

/// Ordinary transactions get three quarters of a block; attestations and vetoes can use all of it, so that a full
/// transaction pool cannot stop settlement.
const NORMAL_DISPATCH_RATIO: Perbill = Perbill::from_percent(75);
/// Execution of a block takes at most a third of a slot of the main network.
const MAXIMUM_BLOCK_WEIGHT: Weight = Weight::from_parts(WEIGHT_REF_TIME_PER_SECOND.saturating_mul(2), u64::MAX);
/// Maximum size of a block, bytes. A runtime upgrade must fit into three quarters of it.
const MAXIMUM_BLOCK_LENGTH: u32 = 5 * 1024 * 1024;
/// Maximum number of validators.
pub const MAX_VALIDATORS: u32 = pallet_epoch::VALIDATORS_MAX;
/// Fee for a byte of a transaction, planck. The shortest signed transaction has 105 bytes: with this no fee is below
/// the existential deposit, on which the author pot relies.
pub const BYTE_FEE: Balance = 10_000_000;
/// Sessions in which an equivocation can be reported: a week of one-hour sessions.
const REPORT_SESSIONS: u64 = 168;

parameter_types! {
    // Four hours on the main network: the longest life of a mortal transaction.
    pub const BlockHashCount: BlockNumber = 2400;
    pub const Version: RuntimeVersion = VERSION;
    pub const SS58Prefix: u16 = alice_primitives::SS58_PREFIX;
    pub RuntimeBlockWeights: BlockWeights =
        BlockWeights::with_sensible_defaults(MAXIMUM_BLOCK_WEIGHT, NORMAL_DISPATCH_RATIO);
    pub RuntimeBlockLength: BlockLength = BlockLength::builder()
        .max_length(MAXIMUM_BLOCK_LENGTH)
        .modify_max_length_for_class(DispatchClass::Normal, |length| *length = NORMAL_DISPATCH_RATIO * *length)
        .build();
}

/// The nonce of a new account is the block number: an account that was reaped and comes back can't be robbed with its
/// old transactions.
#[derive(Debug)]
pub struct DefaultNonce;
impl frame_support::traits::Get<Nonce> for DefaultNonce {
    fn get() -> Nonce {
        System::block_number()
    }
}

/// Session keys can be replaced, not removed: a validator without keys leaves the set at once and, as long as nobody
/// can join, for good, while GRANDPA may still count its vote.
pub struct KeysStay;
impl frame_support::traits::Contains<RuntimeCall> for KeysStay {
    fn contains(call: &RuntimeCall) -> bool {
        !matches!(call, RuntimeCall::Session(pallet_session::Call::purge_keys { .. }))
    }
}

#[derive_impl(frame_system::config_preludes::SolochainDefaultConfig)]
impl frame_system::Config for Runtime {
    type Block = Block;
    type BlockWeights = RuntimeBlockWeights;
    type BlockLength = RuntimeBlockLength;
    type AccountId = AccountId;
    type Nonce = TypeWithDefault<Nonce, DefaultNonce>;
    type Hash = Hash;
    type BlockHashCount = BlockHashCount;
    type DbWeight = ParityDbWeight;
    type Version = Version;
    type AccountData = pallet_balances::AccountData<Balance>;
    type SystemWeightInfo = frame_system::weights::SubstrateWeight<Runtime>;
    type ExtensionsWeightInfo = frame_system::SubstrateExtensionsWeight<Runtime>;
    type SS58Prefix = SS58Prefix;
    type BaseCallFilter = KeysStay;
    type MaxConsumers = ConstU32<16>;
}

impl pallet_timestamp::Config for Runtime {
    type Moment = u64;
    type OnTimestampSet = Babe;
    type MinimumPeriod = pallet_epoch::MinimumPeriod<Runtime>;
    type WeightInfo = pallet_timestamp::weights::SubstrateWeight<Runtime>;
}

/// Blocks in which an equivocation can be reported.
pub struct ReportLongevity;
impl frame_support::traits::Get<u64> for ReportLongevity {
    fn get() -> u64 {
        <pallet_epoch::SessionSlots<Runtime> as frame_support::traits::Get<u64>>::get().saturating_mul(REPORT_SESSIONS)
    }
}

impl pallet_babe::Config for Runtime {
    type EpochDuration = pallet_epoch::SessionSlots<Runtime>;
    type ExpectedBlockTime = pallet_epoch::SlotDuration<Runtime>;
    // Sessions, not BABE, decide when the authorities change.
    type EpochChangeTrigger = pallet_babe::ExternalTrigger;
    type DisabledValidators = Session;
    // The pallet's own values. They are for RocksDb, whose accesses are the more expensive ones.
    type WeightInfo = ();
    type MaxAuthorities = ConstU32<MAX_VALIDATORS>;
    // There is no staking.
    type MaxNominators = ConstU32<0>;
    type KeyOwnerProof = <Historical as KeyOwnerProofSystem<(KeyTypeId, sp_consensus_babe::AuthorityId)>>::Proof;
    type EquivocationReportSystem = pallet_babe::EquivocationReportSystem<Self, Offences, Historical, ReportLongevity>;
}

impl pallet_grandpa::Config for Runtime {
    type RuntimeEvent = RuntimeEvent;
    type WeightInfo = ();
    type MaxAuthorities = ConstU32<MAX_VALIDATORS>;
    type MaxNominators = ConstU32<0>;
    // Sets are looked up for reports of equivocations only, so they are kept for as long as one is accepted.
    type MaxSetIdSessionEntries = ConstU64<REPORT_SESSIONS>;
    type KeyOwnerProof = <Historical as KeyOwnerProofSystem<(KeyTypeId, sp_consensus_grandpa::AuthorityId)>>::Proof;
    type EquivocationReportSystem =
        pallet_grandpa::EquivocationReportSystem<Self, Offences, Historical, ReportLongevity>;
}

impl pallet_authorship::Config for Runtime {
    type FindAuthor = pallet_session::FindAccountFromAuthorIndex<Self, Babe>;
    type EventHandler = ();
}

impl pallet_balances::Config for Runtime {
    type RuntimeEvent = RuntimeEvent;
    type RuntimeHoldReason = RuntimeHoldReason;
    type RuntimeFreezeReason = RuntimeFreezeReason;
    type WeightInfo = pallet_balances::weights::SubstrateWeight<Runtime>;
    type Balance = Balance;
    // Burnt: the schedule bounds the supply from above only.
    type DustRemoval = ();
    type ExistentialDeposit = ConstU128<EXISTENTIAL_DEPOSIT>;
    type AccountStore = System;
    type ReserveIdentifier = [u8; 8];
    type FreezeIdentifier = RuntimeFreezeReason;
    type MaxLocks = ConstU32<50>;
    type MaxReserves = ConstU32<50>;
    type MaxFreezes = ConstU32<50>;
    type DoneSlashHandler = ();
}

parameter_types! {
    /// Fullness of blocks at which the fee stays the same.
    pub const TargetBlockFullness: Perquintill = Perquintill::from_percent(25);
    /// Speed at which the fee follows the fullness.
    pub AdjustmentVariable: Multiplier = Multiplier::saturating_from_rational(75, 1_000_000);
    /// The fee for weight does not fall below the plain price.
    pub MinimumMultiplier: Multiplier = Multiplier::saturating_from_integer(1);
    pub MaximumMultiplier: Multiplier = Bounded::max_value();
}

impl pallet_transaction_payment::Config for Runtime {
    type RuntimeEvent = RuntimeEvent;
    type OnChargeTransaction = FungibleAdapter<Balances, AuthorPot>;
    type WeightToFee = IdentityFee<Balance>;
    type LengthToFee = ConstantMultiplier<Balance, ConstU128<BYTE_FEE>>;
    type FeeMultiplierUpdate =
        TargetedFeeAdjustment<Self, TargetBlockFullness, AdjustmentVariable, MinimumMultiplier, MaximumMultiplier>;
    type OperationalFeeMultiplier = ConstU8<5>;
    type WeightInfo = pallet_transaction_payment::weights::SubstrateWeight<Runtime>;
}

impl author_pot::Config for Runtime {}

impl pallet_offences::Config for Runtime {
    type RuntimeEvent = RuntimeEvent;
    type IdentificationTuple = pallet_session::historical::IdentificationTuple<Self>;
    // Offences are recorded only: there is no stake to slash yet.
    type OnOffenceHandler = ();
}

/// Identifies a validator by its account alone: there is no stake to record.
pub struct NoIdentification;
impl sp_runtime::traits::Convert<AccountId, Option<()>> for NoIdentification {
    fn convert(_: AccountId) -> Option<()> {
        Some(())
    }
}

impl pallet_session::historical::Config for Runtime {
    type RuntimeEvent = RuntimeEvent;
    type FullIdentification = ();
    type FullIdentificationOf = NoIdentification;
}

/// The validators of genesis stay; at the end of each session authors are paid.
pub struct GenesisValidators;
impl pallet_session::SessionManager<AccountId> for GenesisValidators {
    fn new_session(_: u32) -> Option<Vec<AccountId>> {
        // The same validators; named only when one has new keys, so that the keys' root is noted for equivocation
        // proofs. Naming them always would make GRANDPA change its set in every session.
        let rotated = Session::queued_keys()
            .into_iter()
            .any(|(validator, keys)| pallet_session::NextKeys::<Runtime>::get(&validator) != Some(keys));
        rotated.then(Session::validators)
    }
    fn new_session_genesis(_: u32) -> Option<Vec<AccountId>> {
        // The accounts with keys. Naming them makes pallet-session record their keys' root for equivocation proofs.
        let validators: Vec<_> = pallet_session::NextKeys::<Runtime>::iter_keys().collect();
        (!validators.is_empty()).then_some(validators)
    }
    fn end_session(index: u32) {
        AuthorPot::pay_out();
        // Equivocations of older sessions can no longer be reported, so their roots are of no use.
        if let Some(oldest) = index.checked_sub(REPORT_SESSIONS as u32) {
            Historical::prune_up_to(oldest);
        }
    }
    fn start_session(_: u32) {}
}
impl pallet_session::historical::SessionManager<AccountId, ()> for GenesisValidators {
    fn new_session(index: u32) -> Option<Vec<(AccountId, ())>> {
        with_unit(<Self as pallet_session::SessionManager<_>>::new_session(index))
    }
    fn new_session_genesis(index: u32) -> Option<Vec<(AccountId, ())>> {
        with_unit(<Self as pallet_session::SessionManager<_>>::new_session_genesis(index))
    }
    fn start_session(index: u32) {
        <Self as pallet_session::SessionManager<_>>::start_session(index)
    }
    fn end_session(index: u32) {
        <Self as pallet_session::SessionManager<_>>::end_session(index)
    }
}

fn with_unit(validators: Option<Vec<AccountId>>) -> Option<Vec<(AccountId, ())>> {
    validators.map(|validators| validators.into_iter().map(|validator| (validator, ())).collect())
}

/// Only a validator may set session keys: nobody else's would ever be used.
pub struct OnlyValidators;
impl sp_runtime::traits::Convert<AccountId, Option<AccountId>> for OnlyValidators {
    fn convert(account: AccountId) -> Option<AccountId> {
        Session::validators().contains(&account).then_some(account)
    }
}

impl pallet_session::Config for Runtime {
    type RuntimeEvent = RuntimeEvent;
    type ValidatorId = AccountId;
    type ValidatorIdOf = OnlyValidators;
    type ShouldEndSession = Babe;
    type NextSessionRotation = Babe;
    type SessionManager = pallet_session::historical::NoteHistoricalRoot<Self, GenesisValidators>;
    type SessionHandler = <SessionKeys as OpaqueKeys>::KeyTypeIdProviders;
    type Keys = SessionKeys;
    type DisablingStrategy = pallet_session::disabling::UpToLimitDisablingStrategy;
    type WeightInfo = pallet_session::weights::SubstrateWeight<Runtime>;
    type Currency = Balances;
    // Validators have no coins at genesis.
    type KeyDeposit = ConstU128<0>;
}

impl pallet_authority_discovery::Config for Runtime {
    type MaxAuthorities = ConstU32<MAX_VALIDATORS>;
}

parameter_types! {
    /// BLAKE2-256 of `chain-spec/genesis-message.txt`.
    pub const GenesisMessageHash: H256 = H256(GENESIS_MESSAGE_HASH);
}

/// BLAKE2-256 of the genesis message, written out: a changed text does not build a genesis.
pub const GENESIS_MESSAGE_HASH: [u8; 32] = [
    0x13, 0xe2, 0x9a, 0xe2, 0x44, 0x8f, 0x4d, 0xfe, 0x93, 0x77, 0x9a, 0x4d, 0xfc, 0xf0, 0x76, 0xaa, 0x54, 0x92, 0x30,
    0x57, 0xda, 0x02, 0x16, 0x2b, 0x8b, 0x02, 0xfc, 0x21, 0x5e, 0x6d, 0x37, 0xdd,
];

impl pallet_genesis::Config for Runtime {
    type MessageHash = GenesisMessageHash;
}

/// The validators by the keys they author blocks with.
pub struct BabeKeys;
impl pallet_epoch::Validators for BabeKeys {
    fn keys() -> Vec<sr25519::Public> {
        pallet_babe::Authorities::<Runtime>::get()
            .into_iter()
            .map(|(key, _)| key.into())
            .collect()
    }
}

impl pallet_epoch::Config for Runtime {
    type Validators = BabeKeys;
}

impl pallet_emission::Config for Runtime {
    type Currency = Balances;
    type CurrentEpoch = pallet_epoch::CurrentEpoch<Runtime>;
}

impl pallet_reward::Config for Runtime {
    type Issuance = Emission;
    type Outcomes = Epoch;
    type CurrentEpoch = pallet_epoch::CurrentEpoch<Runtime>;
}

// Equivocation reports are bare transactions that the offchain part of BABE and GRANDPA submits.
impl<C> frame_system::offchain::CreateTransactionBase<C> for Runtime
where
    RuntimeCall: From<C>,
{
    type Extrinsic = UncheckedExtrinsic;
    type RuntimeCall = RuntimeCall;
}

impl<C> frame_system::offchain::CreateBare<C> for Runtime
where
    RuntimeCall: From<C>,
{
    fn create_bare(call: RuntimeCall) -> UncheckedExtrinsic {
        sp_runtime::generic::UncheckedExtrinsic::new_bare(call)
    }
}
