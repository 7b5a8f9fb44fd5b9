//! The Alice chain node: keeps the ledger of epochs and mints exactly what they earned.
// sc_cli's error is large, and every command of its framework returns it.
#![allow(clippy::result_large_err)]

mod chain_spec;
mod cli;
mod command;
mod genesis;
mod key_command;
mod rpc;
mod service;
mod session_keys;

use std::process::ExitCode;

fn main() -> ExitCode {
    match command::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", message(&error));
            ExitCode::FAILURE
        }
    }
}

/// Text of an error without the framework's names of its kinds ("Invalid input: ", "Other: ").
fn message(error: &sc_cli::Error) -> String {
    match error {
        sc_cli::Error::Input(text) | sc_cli::Error::Service(sc_service::Error::Other(text)) => text.clone(),
        other => other.to_string(),
    }
}
