//! The parameter server's program: wires flags, logging and the runtime, and nothing else.

use alice_ps::{cli::Cli, error::EXIT_FAILURE};
use clap::Parser;
use std::{io::IsTerminal, process::ExitCode};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    sleep_while_waiting();
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
            eprintln!("error: the async runtime does not start: {error}");
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    let result = runtime.block_on(cli.execute(&mut std::io::stdout()));
    // Scoring may be in the middle of a round: it starts again from the store, so nobody waits for it here.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// OpenMP threads must sleep while they wait: spinning ones make scoring several times slower on busy cores. libgomp
/// reads the variable before `main`, so the program starts itself again with it.
fn sleep_while_waiting() {
    #[cfg(unix)]
    if std::env::var_os("OMP_WAIT_POLICY").is_none()
        && let Ok(program) = std::env::current_exe()
    {
        use std::os::unix::process::CommandExt;
        // Returns only if it failed; then the program goes on without, only slower.
        let _ = std::process::Command::new(program)
            .args(std::env::args_os().skip(1))
            .env("OMP_WAIT_POLICY", "passive")
            .exec();
    }
}
