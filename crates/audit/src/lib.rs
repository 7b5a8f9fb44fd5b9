//! Auditing as a library and as the program `alice`: a run recomputed from nothing but what is published ([`replay`]),
//! downloaded weights checked ([`commands::verify`]) or made ([`commands::export`]), addresses and balances.
//!
//! **Architecture invariant:** nothing here reaches libtorch. The model's first state and its steps are plain Rust, so
//! an auditor needs a compiler and nothing else. Losses come from libtorch on the server's machine and are not measured
//! again; everything that follows from them is.
//!
//! The parameter server's commands `audit`, `verify` and `export` call the same functions.
//!
//! ```
//! use alice_audit::RunContext;
//! use alice_audit::first_state::FirstState;
//!
//! # let text = include_str!("../../../chain-spec/runs/dev.toml");
//! // The model before the first epoch follows from block 0 and the run specification.
//! let spec = alice_spec::RunSpec::parse(text)?;
//! let context = RunContext::new([7; 32], text.to_owned(), spec);
//! let dir = tempfile::tempdir()?;
//! let weights = FirstState::new(&context, None)?.create(&dir.path().join("theta.f32"), &mut |_, _| ())?;
//! assert_eq!(weights.root(), alice_store::model_root(&context.tensors, weights.theta()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod chain_proof;
pub mod cli;
pub mod commands;
pub mod error;
pub mod first_state;
pub mod replay;
pub mod run_context;
pub mod tokenizer;

pub use error::{AuditError, Finding, OtherWeights};
pub use run_context::RunContext;
