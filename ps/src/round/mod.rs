//! TODO-header

pub mod driver;
pub mod publish;
pub mod scoring;
pub mod scoring_thread;
pub mod settle;
pub mod transition;
