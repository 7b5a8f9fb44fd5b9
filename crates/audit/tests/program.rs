//! The program `alice`: commands, exit codes, closed pipes. Nothing here needs a network.

use std::{
    io::Read,
    process::{Command, Output, Stdio},
};

const GENERIC: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
/// Nothing listens on port 1.
const NO_NODE: &str = "ws://127.0.0.1:1";

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alice"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn address_of(account: &str) -> String {
    let shown = run(&["address", "show", account, "--json"]);
    assert_eq!(shown.status.code(), Some(0), "{}", text(&shown.stderr));
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["generic"], GENERIC);
    shown["address"].as_str().unwrap().to_owned()
}

#[test]
fn mistakes_should_end_with_their_exit_codes_and_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (nowhere, out, empty) = (path("nowhere"), path("out"), path("empty"));
    std::fs::create_dir(&empty).unwrap();
    let address = address_of(GENERIC);
    let query = "http://127.0.0.1:1/?key=1";
    let cases: [(&[&str], i32, &str); 11] = [
        (&["dance"], 2, "unrecognized subcommand"),
        (&["audit", "--ps", query], 2, "query"),
        (&["audit", "--ps", "nonsense"], 2, "http://host:port"),
        (
            &["audit", "--ps", "http://127.0.0.1:1", "--start", &nowhere],
            1,
            "nowhere: there is no such file",
        ),
        (&["export", "--ps", query, "--out", &out], 2, "query"),
        (
            &[
                "export",
                "--ps",
                "http://127.0.0.1:1",
                "--chain",
                NO_NODE,
                "--out",
                &out,
            ],
            4,
            NO_NODE,
        ),
        (&["export", "--ps", "http://127.0.0.1:1", "--out", &empty], 2, "exists"),
        (
            &["verify", "--model", &nowhere, "--chain", NO_NODE],
            1,
            "nowhere: there is no such file",
        ),
        (
            &["verify", "--model", &empty, "--chain", NO_NODE],
            1,
            "ALICE.json is not there",
        ),
        (
            &["balance", "--chain", "127.0.0.1:9944", &address],
            2,
            "is not the address of a chain node",
        ),
        (&["balance", "--chain", NO_NODE, GENERIC], 2, "prefix 42"),
    ];
    for (arguments, code, words) in cases {
        let done = run(arguments);
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
        if arguments != ["dance"] {
            assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
        }
    }
    let unreachable = run(&["balance", "--chain", NO_NODE, &address]);
    assert_eq!(unreachable.status.code(), Some(4), "{}", text(&unreachable.stderr));
}

#[test]
fn a_new_key_should_be_private_and_shown_again_from_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("payout.seed");
    let file = file.to_str().unwrap();
    let made = run(&["address", "new", "--out", file]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let seed = std::fs::read_to_string(file).unwrap();
    assert!(!text(&made.stdout).contains(seed.trim()), "the seed is never printed");
    assert_eq!(run(&["address", "show", "--key", file]).stdout, made.stdout);
    assert_eq!(run(&["address", "new", "--out", file]).status.code(), Some(2));
    assert_eq!(std::fs::read_to_string(file).unwrap(), seed);
}

#[test]
fn version_completions_and_man_pages_should_be_there() {
    assert_eq!(
        text(&run(&["--version"]).stdout),
        format!("alice {}\n", alice_program::VERSION)
    );
    let script = text(&run(&["completions", "bash"]).stdout);
    assert!(script.contains("verify") && script.contains("balance"), "{script}");
    let dir = tempfile::tempdir().unwrap();
    let man = run(&["man", "--out", dir.path().to_str().unwrap()]);
    assert_eq!(man.status.code(), Some(0), "{}", text(&man.stderr));
    let page = std::fs::read_to_string(dir.path().join("alice-verify.1")).unwrap();
    assert!(page.contains("ALICE.json"), "{page}");
}

#[test]
fn a_closed_pipe_should_end_a_command_quietly() {
    for arguments in [&["completions", "bash"] as &[&str], &["address", "show", GENERIC]] {
        let mut child = program()
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut error = String::new();
        child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        assert_eq!(
            (child.wait().unwrap().code(), error.as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
}
