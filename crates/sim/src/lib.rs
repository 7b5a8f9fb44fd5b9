//! A whole network in one process: a virtual clock in blocks, the real round machine, update codec, error feedback,
//! scoring, step guard and model step, and scripted miners, some of whom cheat. The language model is replaced by a
//! problem whose truth is known ([`Problem`]), so that hundreds of epochs take seconds and every number can be checked.
//!
//! It answers questions that a single epoch cannot: what each [`Strategy`] earns for its work, whether the model still
//! learns in spite of the cheats, and whether the same history gives the same bits.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod chain;
mod miner;
mod problem;
mod report;
mod simulation;

pub use miner::Strategy;
pub use problem::Problem;
pub use report::{Report, Row};
pub use simulation::{EXACT, Epoch, SimError, Simulation};

use alice_spec::RunSpec;

/// Run `dev` with a model of 37,000 parameters in 1 or 2 fragments.
pub fn spec(fragments: u32) -> RunSpec {
    let text = include_str!("../../../chain-spec/runs/dev.toml");
    let mut spec = RunSpec::parse(text).unwrap_or_else(|error| unreachable!("run dev is valid: {error}"));
    // A small model of the real layout: comparing strategies takes hundreds of epochs.
    spec.model.hidden = 32;
    spec.model.layers = 2;
    spec.model.heads = 2;
    spec.model.kv_heads = 2;
    spec.model.ffn = 64;
    spec.task.fragments = fragments;
    spec.update.chunk = 1024;
    spec.update.k_max = 64;
    // `dev` has 64 tasks; measurements with a hundred machines need more.
    spec.round.tasks_max = 256;
    spec
}
