//! `alice-miner`: see the library of the same name.

use alice_miner::{cli::Cli, commands};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Training shares its cores with other programs; spinning OpenMP threads make it several times slower there.
    alice_program::threads::wait_passively();
    run()
}

#[tokio::main]
async fn run() -> ExitCode {
    // Before logging starts: help and usage errors end the process here.
    let cli = alice_program::arguments::parse::<Cli>();
    // Logs go to standard error: standard output belongs to status lines and events.
    let filter = EnvFilter::try_from_env("ALICE_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match commands::execute(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
