//! The parameter server: hands out tasks, collects updates, scores and aggregates them, publishes every decision and
//! attests epochs to the chain. Its promise: every decision it takes can be recomputed by anyone from what it publishes.
//!
//! Data flows one way: [`http`] → [`service`] (claims, uploads, commits) → [`db`]; the [`driver`] follows the chain and
//! turns `alice-round`'s effects into work: [`scoring`] → [`publish`] → [`settle`]. Everything the server knows is in
//! its data directory, and it restarts from there after `kill -9` at any instant.
#![forbid(unsafe_code)]

pub mod audit;
mod chain_proof;
pub mod cli;
pub mod config;
pub mod corpus;
pub mod corpus_build;
pub mod db;
pub mod driver;
pub mod error;
pub mod export;
pub mod files;
pub mod http;
pub mod init;
pub mod key;
pub mod network;
pub mod oracle;
pub mod prices;
pub mod publish;
pub mod run_tokenizer;
pub mod scoring;
pub mod server;
pub mod service;
pub mod settle;
pub mod start;
pub mod transition;
pub mod upcycle;
pub mod uploads;
pub mod verify;
pub mod view;
pub mod vocabulary;

pub use error::PsError;
