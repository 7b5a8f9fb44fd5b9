use crate as pallet_genesis;
use frame_support::{derive_impl, parameter_types};
use sp_core::H256;
use sp_runtime::BuildStorage;

type Block = frame_system::mocking::MockBlock<Test>;

frame_support::construct_runtime!(
    pub enum Test { System: frame_system, Genesis: pallet_genesis }
);

parameter_types! {
    pub MessageHash: H256 = sp_io::hashing::blake2_256(alice_primitives::GENESIS_MESSAGE.as_bytes()).into();
}

#[derive_impl(frame_system::config_preludes::TestDefaultConfig)]
impl frame_system::Config for Test {
    type Block = Block;
}

impl pallet_genesis::Config for Test {
    type MessageHash = MessageHash;
}

fn build(message: &str) -> sp_io::TestExternalities {
    let config = pallet_genesis::GenesisConfig::<Test> {
        message: message.into(),
        _config: Default::default(),
    };
    config.build_storage().unwrap().into()
}

#[test]
fn genesis_should_store_the_message() {
    build(alice_primitives::GENESIS_MESSAGE).execute_with(|| {
        assert_eq!(Genesis::message(), alice_primitives::GENESIS_MESSAGE.as_bytes());
    });
}

#[test]
fn genesis_should_take_the_message_when_the_config_is_default() {
    let storage = pallet_genesis::GenesisConfig::<Test>::default()
        .build_storage()
        .unwrap();
    sp_io::TestExternalities::from(storage)
        .execute_with(|| assert_eq!(Genesis::message().len(), alice_primitives::GENESIS_MESSAGE.len()));
}

#[test]
#[should_panic(expected = "the genesis message is not the one")]
fn genesis_should_panic_when_the_message_differs() {
    build("another message");
}
