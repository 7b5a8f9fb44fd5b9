//! A whole network in one process: a virtual clock in blocks, the real round machine, update codec, error feedback,
//! scoring, guard and model step, and scripted miners, some of whom cheat. In place of a language model stands a problem
//! whose truth is known ([`Problem`]), so that hundreds of epochs take seconds and every number can be checked.
//!
//! It answers what a single epoch cannot: what each way to behave earns for its work, whether the model still learns
//! beside the cheats, and whether the same history gives the same bits.
#![forbid(unsafe_code)]

mod chain;
mod miner;
mod network;
mod problem;
mod report;

pub use miner::Strategy;
pub use network::{EXACT, Epoch, Network, SimError};
pub use problem::Problem;
pub use report::{Report, Row};

use alice_spec::RunSpec;

/// Run `dev` with a model of 37,000 parameters, in so many fragments (at most 2).
pub fn spec(fragments: u32) -> RunSpec {
    let text = include_str!("../../../chain-spec/runs/dev.toml");
    let mut spec = RunSpec::parse(text).unwrap_or_else(|error| unreachable!("run dev is valid: {error}"));
    spec.model.hidden = 32;
    spec.model.layers = 2;
    spec.model.heads = 2;
    spec.model.kv_heads = 2;
    spec.model.ffn = 64;
    spec.task.fragments = fragments;
    spec.update.chunk = 1024;
    spec.update.k_max = 64;
    spec.round.tasks_max = 256;
    spec
}
