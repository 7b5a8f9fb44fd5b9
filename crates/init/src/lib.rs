//! The first state of a run: drawn from block 0 ([`init_theta`], docs/spec/protocol.md#first-state), or made of a
//! trained dense model ([`upcycle`]).
//!
//! Both are plain Rust over IEEE floats in a fixed order and give the same bits on every machine, so an auditor draws
//! the state again instead of trusting a download. That is why this crate does not know libtorch: the programs that
//! only check a run need none.
//!
//! ```
//! # let text = include_str!("../../../chain-spec/runs/dev.toml");
//! let spec = alice_spec::RunSpec::parse(text)?;
//! let genesis = [7; 32];
//! let theta = alice_init::init_theta(&spec, &genesis);
//! assert_eq!(theta.len() as u64, spec.parameters());
//! // Nobody chose these weights: another block 0 gives others.
//! assert_ne!(theta, alice_init::init_theta(&spec, &[8; 32]));
//! # Ok::<(), alice_spec::SpecError>(())
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod first_state;
mod normal;
pub mod upcycle;

pub use first_state::{init_tensors, init_theta};
