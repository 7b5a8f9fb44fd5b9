//! `alice-miner`: see the library of the same name.

use alice_miner::{cli::Cli, commands};
use clap::Parser;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Read by OpenMP while libtorch is loaded, that is before `main`.
#[cfg(unix)]
const WAIT_POLICY: &str = "OMP_WAIT_POLICY";

fn main() -> ExitCode {
    // Threads that spin for work make training several times slower on cores that are shared. The setting must be there
    // when the process starts, so it starts itself once more, under the same process id.
    #[cfg(unix)]
    if std::env::var_os(WAIT_POLICY).is_none()
        && let Ok(program) = std::env::current_exe()
    {
        use std::os::unix::process::CommandExt;
        let arguments = std::env::args_os().skip(1);
        // Comes back only where it fails; then training is slower and nothing else is wrong.
        let _ = std::process::Command::new(program)
            .args(arguments)
            .env(WAIT_POLICY, "passive")
            .exec();
    }
    run()
}

#[tokio::main]
async fn run() -> ExitCode {
    // Logs go to standard error: standard output belongs to status lines and events.
    let filter = EnvFilter::try_from_env("ALICE_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match commands::execute(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
