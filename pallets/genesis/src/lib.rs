//! The message in block 0's state.
//!
//! It is written by the genesis block and by nothing else: the pallet has no calls. Anybody can check it with a storage
//! proof against block 0's state root, and the hash is a constant of the runtime as well.
#![cfg_attr(not(feature = "std"), no_std)]
// Not `expect_used`: the macros of FRAME write such calls.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing))]

extern crate alloc;

pub use pallet::*;

#[cfg(test)]
mod tests;

#[frame_support::pallet]
pub mod pallet {
    use alloc::{string::String, vec::Vec};
    use frame_support::pallet_prelude::*;
    use sp_core::H256;
    use sp_io::hashing::blake2_256;

    /// Maximum length of the message, bytes.
    pub const MESSAGE_MAX_BYTES: u32 = 8192;

    #[pallet::pallet]
    pub struct Pallet<T>(_);

    #[pallet::config]
    pub trait Config: frame_system::Config {
        /// BLAKE2-256 of the message.
        #[pallet::constant]
        type MessageHash: Get<H256>;
    }

    /// The message, UTF-8.
    #[pallet::storage]
    pub type Message<T: Config> = StorageValue<_, BoundedVec<u8, ConstU32<MESSAGE_MAX_BYTES>>, ValueQuery>;

    #[pallet::genesis_config]
    pub struct GenesisConfig<T: Config> {
        /// The message. A genesis with another text can't be built with this runtime.
        pub message: String,
        #[serde(skip)]
        #[allow(missing_docs)]
        pub _config: core::marker::PhantomData<T>,
    }

    impl<T: Config> Default for GenesisConfig<T> {
        fn default() -> Self {
            Self {
                message: alice_primitives::GENESIS_MESSAGE.into(),
                _config: Default::default(),
            }
        }
    }

    #[pallet::genesis_build]
    impl<T: Config> BuildGenesisConfig for GenesisConfig<T> {
        fn build(&self) {
            // A panic, because genesis has no other way to fail: a chain with another text must not start.
            assert_eq!(
                H256(blake2_256(self.message.as_bytes())),
                T::MessageHash::get(),
                "the genesis message is not the one this runtime was made for"
            );
            let message = BoundedVec::try_from(self.message.as_bytes().to_vec())
                .unwrap_or_else(|_| panic!("the genesis message is longer than {MESSAGE_MAX_BYTES} bytes"));
            Message::<T>::put(message);
        }
    }

    #[pallet::view_functions]
    impl<T: Config> Pallet<T> {
        /// The message, UTF-8.
        pub fn message() -> Vec<u8> {
            Message::<T>::get().into_inner()
        }
    }
}
