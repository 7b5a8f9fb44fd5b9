//! The parameter server: hands out tasks, collects updates, scores and aggregates them, publishes every decision and
//! attests epochs to the chain. Its promise: anyone can recompute every decision from what it publishes.
//!
//! Data flows one way. [`http`] takes requests, [`service`] decides them (claims, uploads, commits), [`db`] stores the
//! decisions. [`round::driver`] follows the chain and turns the effects of `alice-round` into work: [`round::scoring`]
//! → [`round::transition`] → [`round::publish`] → [`round::settle`]. Both sides share [`state::ServerState`] and know
//! nothing of each other: the round never sees a request, and a request sees the chain only through
//! [`service::chain_view`].
//!
//! Everything the server knows is in its data directory, and it restarts from there after `kill -9` at any instant.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

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
pub mod state;

pub use error::PsError;
