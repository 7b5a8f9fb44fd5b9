//! `alice-miner generate` as users start it: what it refuses, with which exit code. What it computes is compared with
//! other programs by `tests/weights.py`.

use std::process::{Command, Output};

fn generate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_alice-miner"))
        .arg("generate")
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn refused(arguments: &[&str], code: i32, what: &str) {
    let done = generate(arguments);
    let message = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(code), "{message}");
    assert!(message.contains(what), "{message}");
    assert!(done.stdout.is_empty(), "nothing that looks like text");
}

#[test]
fn wrong_options_should_end_with_2_and_wrong_folders_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    let model = ["--model", folder, "--prompt", "The", "--device", "cpu"];
    refused(&model, 2, "there is no config.json; give the folder");
    refused(&["--model", folder], 2, "--prompt");
    refused(
        &["--model", folder, "--prompt", "a", "--device", "tpu"],
        2,
        "is not a device",
    );
    refused(&[&model[..], &["--logits"]].concat(), 2, "--json");
    let config = dir.path().join("config.json");
    std::fs::write(&config, "{\"architectures\": [\"GPT2LMHeadModel\"]}").unwrap();
    refused(&model, 1, "the architecture 'GPT2LMHeadModel'");
    std::fs::write(&config, "{").unwrap();
    refused(&model, 1, "config.json is not valid");
}

#[test]
fn help_should_have_examples_and_exit_codes() {
    let done = generate(&["--help"]);
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success());
    assert!(
        text.contains("--prompt - --top-k 40") && text.contains("exit codes: 0"),
        "{text}"
    );
}
