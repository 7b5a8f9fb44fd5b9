//! The program as users start it: refused settings with their exit code and one line, commands whose output is cut off,
//! completions and man pages.

use alice_api::ss58;
use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

/// The program with an empty settings file and none of this machine's variables.
fn program(dir: &Path) -> Command {
    let config = dir.join("miner.toml");
    if !config.exists() {
        std::fs::write(&config, "").unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_alice-miner"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ALICE_") {
            command.env_remove(name);
        }
    }
    command
        .env("ALICE_CONFIG", config)
        .env("ALICE_DATA_DIR", dir.join("data"));
    command.stdin(Stdio::null());
    command
}

/// Standard error of a command that must end with this code, one line of it without source positions.
#[track_caller]
fn refusal(command: &mut Command, code: i32) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let message = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(code), "{message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    assert!(!message.contains(".rs:"), "{message}");
    message
}

#[test]
fn wrong_settings_should_end_with_2_and_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let payout = ss58::encode(&[3; 32]);
    let base = ["--ps", "http://127.0.0.1:1", "--payout", &payout];
    for (arguments, expected) in [
        (&["--chain", "127.0.0.1:9944"][..], "ws://"),
        (&["--chain", "http://127.0.0.1:9944"], "write ws:// for http://"),
        (&["--device-memory", "24"], "'24' has no unit; write for example 24GiB"),
        (&["--threads", "65535"], "at most 1024"),
        (&["--threads", "0"], "at least 1"),
        (&["--device", "tpu"], "is not a device"),
        (&["--data-dir", "~nobody/alice"], "~nobody/alice"),
    ] {
        let message = refusal(program(dir.path()).args(base).args(arguments), 2);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
    let url = ["--ps", "http://127.0.0.1:1/?k=1", "--payout", &payout];
    let message = refusal(program(dir.path()).args(url), 2);
    assert!(message.contains("query"), "{message}");
    let wallet = ss58::encode_with_prefix(&[3; 32], 42);
    let message = refusal(program(dir.path()).args(["--ps", base[1], "--payout", &wallet]), 2);
    assert!(
        message.contains(&payout),
        "the refusal of {wallet} has the a2 address: {message}"
    );
    std::fs::write(dir.path().join("miner.toml"), "\nthreads = 'all'\n").unwrap();
    let message = refusal(&mut program(dir.path()), 2);
    assert!(
        message.contains("miner.toml, line 2") && message.contains("threads"),
        "{message}"
    );
}

#[test]
fn an_empty_variable_should_be_an_unset_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = program(dir.path());
    for name in [
        "ALICE_CHAIN",
        "ALICE_THREADS",
        "ALICE_DEVICE",
        "ALICE_DEVICE_MEMORY",
        "ALICE_PAYOUT",
    ] {
        command.env(name, "");
    }
    // So nothing is wrong with these; the first setting that is missing is the server.
    let message = refusal(command.env("ALICE_PS", ""), 2);
    assert!(message.contains("no parameter server is set"), "{message}");
}

#[test]
fn a_user_without_a_home_should_need_flags_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = program(dir.path());
    let message = refusal(command.env_remove("HOME").env_remove("ALICE_CONFIG").arg("key"), 1);
    assert!(message.contains("there is no mining key in"), "{message}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_data_dir_that_is_not_utf_8_should_work() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    let message = refusal(program(dir.path()).arg("key").arg("--data-dir").arg(&data), 1);
    assert!(message.contains("there is no mining key"), "{message}");
    alice_miner::key::MiningKey::load_or_create(&data).unwrap();
    for arguments in [&["key"][..], &["key", "--json"], &["receipts"]] {
        let done = program(dir.path())
            .args(arguments)
            .arg("--data-dir")
            .arg(&data)
            .output();
        assert!(done.unwrap().status.success(), "{arguments:?}");
    }
}

#[test]
fn a_closed_pipe_should_end_every_command_quietly() {
    let dir = tempfile::tempdir().unwrap();
    alice_miner::key::MiningKey::load_or_create(&dir.path().join("data")).unwrap();
    for arguments in [
        &["plan", "--run", "genesis-7b", "--device-memory", "24GiB"][..],
        &["plan", "--run", "genesis-7b", "--device-memory", "24GiB", "--json"],
        &["receipts"],
        &["devices"],
        &["devices", "--json"],
        &["key"],
        &["completions", "bash"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let done = program(dir.path()).args(arguments).stdout(writer).output().unwrap();
        let message = String::from_utf8(done.stderr).unwrap();
        assert_eq!((done.status.code(), message.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn completions_and_man_pages_should_cover_every_command() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let done = program(dir.path()).args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(done.stdout).unwrap();
        assert!(done.status.success() && script.contains("receipts"), "{shell}");
    }
    let pages = dir.path().join("man");
    let done = program(dir.path())
        .arg("man")
        .arg("--out")
        .arg(&pages)
        .output()
        .unwrap();
    assert!(done.status.success());
    for page in [
        "alice-miner.1",
        "alice-miner-run.1",
        "alice-miner-plan.1",
        "alice-miner-payout.1",
    ] {
        assert!(pages.join(page).is_file(), "{page}");
    }
    let done = program(dir.path()).arg("--version").output().unwrap();
    let version = String::from_utf8(done.stdout).unwrap();
    assert_eq!(version.trim(), format!("alice-miner {}", alice_program::VERSION));
}

/// A copy of the program must find a libtorch next to it, or in the prefix that it is installed to.
#[cfg(target_os = "linux")]
#[test]
fn the_program_should_search_libraries_relative_to_itself() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_alice-miner")).unwrap();
    let paths = b"$ORIGIN:$ORIGIN/../lib/alice:";
    assert!(program.windows(paths.len()).any(|bytes| bytes == paths));
}
