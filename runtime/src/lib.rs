//! The chain's state transition: one wasm for every network.
//!
//! The differences between networks (slot time, epoch length, dispute window, sessions, validators, parameter servers)
//! are genesis storage, so `dev` differs from the main network by its chain specification only. There is no sudo key
//! and no account has coins at genesis.
#![cfg_attr(not(feature = "std"), no_std)]
#![recursion_limit = "512"]
// The frame macros write items that nobody can document.
#![allow(missing_docs)]

extern crate alloc;

mod apis;
pub mod author_pot;
pub mod configs;
pub mod genesis;

#[cfg(feature = "std")]
include!(concat!(env!("OUT_DIR"), "/wasm_binary.rs"));

use alloc::vec::Vec;
use sp_runtime::{
    generic, impl_opaque_keys,
    traits::{BlakeTwo256, IdentifyAccount, Verify},
    MultiAddress, MultiSignature,
};
use sp_version::RuntimeVersion;

pub use apis::api;
pub use apis::RuntimeApi;

/// Signature of a transaction.
pub type Signature = MultiSignature;
/// Public key of an account.
pub type AccountId = <<Signature as Verify>::Signer as IdentifyAccount>::AccountId;
/// Planck.
pub type Balance = u128;
/// Transactions of an account.
pub type Nonce = u32;
/// Hash of a block.
pub type Hash = sp_core::H256;
/// Number of a block.
pub type BlockNumber = u32;
/// Form in which a call names an account.
pub type Address = MultiAddress<AccountId, ()>;
/// Header of a block.
pub type Header = generic::Header<BlockNumber, BlakeTwo256>;
/// Block.
pub type Block = generic::Block<Header, UncheckedExtrinsic>;
/// Blocks as the node sees them: transactions are bytes, whose meaning changes with the runtime.
pub mod opaque {
    pub use sp_runtime::OpaqueExtrinsic as UncheckedExtrinsic;
    /// Block.
    pub type Block = sp_runtime::generic::Block<super::Header, UncheckedExtrinsic>;
}
/// Block that is decoded when it is executed.
pub type LazyBlock = generic::LazyBlock<Header, UncheckedExtrinsic>;
/// Block with its signature.
pub type SignedBlock = generic::SignedBlock<Block>;

/// `Pallet::Item` of a storage key; `None` if no pallet of the runtime has such an item. For tools: the names are not
/// part of the blob.
#[cfg(feature = "std")]
pub fn storage_item_name(key: &[u8]) -> Option<alloc::string::String> {
    use alloc::string::String;
    use frame_support::traits::StorageInfoTrait;
    AllPalletsWithSystem::storage_info()
        .into_iter()
        .find(|item| key.starts_with(&item.prefix))
        .map(|item| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            alloc::format!("{}::{}", text(&item.pallet_name), text(&item.storage_name))
        })
}

/// Extensions of a transaction, in the order of their checks. The first authorises general transactions, for which the
/// others then find no sender.
pub type TxExtension = (
    frame_system::AuthorizeCall<Runtime>,
    frame_system::CheckNonZeroSender<Runtime>,
    frame_system::CheckSpecVersion<Runtime>,
    frame_system::CheckTxVersion<Runtime>,
    frame_system::CheckGenesis<Runtime>,
    frame_system::CheckEra<Runtime>,
    frame_system::CheckNonce<Runtime>,
    frame_system::CheckWeight<Runtime>,
    pallet_transaction_payment::ChargeTransactionPayment<Runtime>,
    // No hash is embedded yet (docs/decisions/0001-wasm-build.md). It has its place all the same: adding it later would
    // change the form of every transaction.
    frame_metadata_hash_extension::CheckMetadataHash<Runtime>,
    frame_system::WeightReclaim<Runtime>,
);

/// Transaction.
pub type UncheckedExtrinsic = generic::UncheckedExtrinsic<Address, RuntimeCall, Signature, TxExtension>;
/// Bytes that are signed for a transaction.
pub type SignedPayload = generic::SignedPayload<RuntimeCall, TxExtension>;

/// Executes blocks.
pub type Executive =
    frame_executive::Executive<Runtime, Block, frame_system::ChainContext<Runtime>, Runtime, AllPalletsWithSystem>;

impl_opaque_keys! {
    /// Keys of a validator.
    pub struct SessionKeys {
        pub grandpa: Grandpa,
        pub babe: Babe,
        pub authority_discovery: AuthorityDiscovery,
    }
}

/// Version of the runtime. `spec_version` grows with every change of behaviour.
#[sp_version::runtime_version]
pub const VERSION: RuntimeVersion = RuntimeVersion {
    spec_name: alloc::borrow::Cow::Borrowed("alice"),
    impl_name: alloc::borrow::Cow::Borrowed("alice-node"),
    authoring_version: 1,
    spec_version: 1,
    impl_version: 1,
    apis: apis::RUNTIME_API_VERSIONS,
    transaction_version: 1,
    system_version: 3,
};

/// One ALICE in planck.
pub const ALICE: Balance = alice_primitives::emission::UNIT;
/// An account with less does not exist: 0.001 ALICE.
pub const EXISTENTIAL_DEPOSIT: Balance = ALICE / 1_000;

/// BABE's first configuration: a quarter of the slots has a primary author, the others a secondary one, all with VRF.
/// Parameter servers draw their validation sets from the VRF outputs, so plain secondary slots would not do.
pub const BABE_GENESIS_EPOCH_CONFIG: sp_consensus_babe::BabeEpochConfiguration =
    sp_consensus_babe::BabeEpochConfiguration {
        c: (1, 4),
        allowed_slots: sp_consensus_babe::AllowedSlots::PrimaryAndSecondaryVRFSlots,
    };

#[frame_support::runtime]
mod runtime {
    use super::*;

    #[runtime::runtime]
    #[runtime::derive(
        RuntimeCall,
        RuntimeEvent,
        RuntimeError,
        RuntimeOrigin,
        RuntimeFreezeReason,
        RuntimeHoldReason,
        RuntimeSlashReason,
        RuntimeLockId,
        RuntimeTask,
        RuntimeViewFunction
    )]
    pub struct Runtime;

    // An index is a byte of every call and event of its pallet: none moves, and a new pallet takes a free one.
    #[runtime::pallet_index(0)]
    pub type System = frame_system::Pallet<Runtime>;
    #[runtime::pallet_index(1)]
    pub type Timestamp = pallet_timestamp::Pallet<Runtime>;
    #[runtime::pallet_index(2)]
    pub type Babe = pallet_babe::Pallet<Runtime>;
    #[runtime::pallet_index(3)]
    pub type Authorship = pallet_authorship::Pallet<Runtime>;
    #[runtime::pallet_index(4)]
    pub type Balances = pallet_balances::Pallet<Runtime>;
    #[runtime::pallet_index(5)]
    pub type TransactionPayment = pallet_transaction_payment::Pallet<Runtime>;
    #[runtime::pallet_index(6)]
    pub type AuthorPot = author_pot::Pallet<Runtime>;
    #[runtime::pallet_index(8)]
    pub type Offences = pallet_offences::Pallet<Runtime>;
    #[runtime::pallet_index(9)]
    pub type Historical = pallet_session::historical::Pallet<Runtime>;
    #[runtime::pallet_index(10)]
    pub type Session = pallet_session::Pallet<Runtime>;
    #[runtime::pallet_index(11)]
    pub type Grandpa = pallet_grandpa::Pallet<Runtime>;
    #[runtime::pallet_index(12)]
    pub type AuthorityDiscovery = pallet_authority_discovery::Pallet<Runtime>;

    #[runtime::pallet_index(20)]
    pub type Genesis = pallet_genesis::Pallet<Runtime>;
    #[runtime::pallet_index(21)]
    pub type Epoch = pallet_epoch::Pallet<Runtime>;
    #[runtime::pallet_index(22)]
    pub type Emission = pallet_emission::Pallet<Runtime>;
    #[runtime::pallet_index(23)]
    pub type Reward = pallet_reward::Pallet<Runtime>;
}
