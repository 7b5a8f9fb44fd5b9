//! The Alice chain node: keeps the ledger of epochs and mints exactly what they earned.
// sc_cli's error is large, and every command of its framework returns it.
#![allow(clippy::result_large_err)]

mod chain_spec;
mod cli;
mod command;
mod genesis;
mod rpc;
mod service;

use std::process::ExitCode;

fn main() -> ExitCode {
    match command::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
