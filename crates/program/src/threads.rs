//! OpenMP's waiting policy.

/// Starts the program again, under the same process id, with OpenMP threads that sleep while they wait.
///
/// Spinning threads make training and scoring several times slower on cores that other processes use too. libgomp
/// reads the variable while it is loaded, before `main`: setting it later has no effect. Returns if the variable is
/// set already, or if the restart fails; then everything is right but slower.
pub fn wait_passively() {
    #[cfg(unix)]
    if std::env::var_os("OMP_WAIT_POLICY").is_none()
        && let Ok(program) = std::env::current_exe()
    {
        use std::os::unix::process::CommandExt;
        let _ = std::process::Command::new(program)
            .args(std::env::args_os().skip(1))
            .env("OMP_WAIT_POLICY", "passive")
            .exec();
    }
}
