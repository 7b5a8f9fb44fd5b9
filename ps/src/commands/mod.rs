//! The commands that are not the server itself. `audit` and `verify` are those of `alice-audit`.

pub mod corpus_build;
pub mod cost;
pub mod export;
pub mod init;
pub mod tokenizer_train;
pub mod upcycle;
