//! A round, from its opening to paid balances: what `alice-round`'s effects do on disk, on the device and on the chain.
//!
//! [`driver`] follows the chain and is the only one that starts the others. [`epoch`] takes a sealed round to stored
//! results: [`scoring`] turns uploads into verdicts (losses come from [`scoring_thread`]), [`transition`] makes the
//! model's next step of what was accepted, [`publish`] writes both down. [`settle`] attests and pays what is stored.

pub mod driver;
pub mod epoch;
pub mod publish;
pub mod scoring;
pub mod scoring_thread;
pub mod settle;
pub mod transition;
