//! TODO-header

pub mod audit;
mod chain_proof;
pub mod corpus_build;
pub mod cost;
pub mod export;
pub mod init;
pub mod tokenizer_train;
pub mod upcycle;
pub mod verify;
