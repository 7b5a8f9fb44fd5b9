//! The parameter server's program: wires flags, logging and the runtime, and nothing else.

use alice_program::{arguments, exit, system, threads};
use alice_ps::cli::Cli;
use std::{io::IsTerminal, process::ExitCode};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli: Cli = arguments::parse();
    threads::wait_passively();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the async runtime does not start: {}", system::reason(&error));
            return ExitCode::from(exit::FAILURE);
        }
    };
    let result = runtime.block_on(cli.execute());
    // Scoring may be in the middle of a round: it starts again from the store, so nobody waits for it here.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", system::without_numbers(&error.to_string()));
            ExitCode::from(error.exit_code())
        }
    }
}
