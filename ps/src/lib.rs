//! The parameter server: hands out tasks, collects updates, scores and aggregates them, publishes every decision and
//! attests epochs to the chain. Its promise: every decision it takes can be recomputed by anyone from what it publishes.
//!
//! Data flows one way: [`http`] → [`service`] (claims, uploads, commits) → [`db`]; the [`round::driver`] follows the chain and
//! turns `alice-round`'s effects into work: [`round::scoring`] → [`round::publish`] → [`round::settle`]. Everything the server knows is in
//! its data directory, and it restarts from there after `kill -9` at any instant.
#![forbid(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod config;
pub mod corpus;
pub mod db;
pub mod error;
pub mod files;
pub mod http;
pub mod initial_state;
pub mod key;
pub mod round;
pub mod run_context;
pub mod run_tokenizer;
pub mod server;
pub mod service;

pub use error::PsError;
