//! The program as an operator meets it: its commands, what it refuses, and how it stops.
#![allow(missing_docs)]

mod support;

use serde_json::{json, Value};
use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
};
use support::{call_from_page, errors, run, Node, NODE, PATIENCE};

/// Writes the specification of a network with one validator.
fn localnet(path: &Path, run_hash: &str) -> Value {
    let file = path.to_str().unwrap();
    let output = run(&[
        "localnet-spec",
        "--validators",
        "1",
        "--run-hash",
        run_hash,
        "--output",
        file,
    ]);
    assert!(output.status.success(), "{}", errors(&output));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn insert_should_refuse_keys_that_nothing_uses() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().to_str().unwrap();
    let insert = |scheme: &str, key_type: &str| {
        run(&[
            "key",
            "insert",
            "--chain",
            "dev",
            "--base-path",
            base,
            "--suri",
            "//Zoe",
            "--scheme",
            scheme,
            "--key-type",
            key_type,
        ])
    };
    let wrong = insert("sr25519", "gran");
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    assert!(errors(&wrong).contains("--scheme ed25519"), "{wrong:?}");
    assert_eq!(insert("sr25519", "imon").status.code(), Some(1));
    assert!(
        std::fs::read_dir(base).unwrap().next().is_none(),
        "a refused key was stored"
    );
    for (scheme, key_type) in [("ed25519", "gran"), ("sr25519", "babe"), ("sr25519", "audi")] {
        assert!(insert(scheme, key_type).status.success(), "{key_type}");
    }
}

#[test]
fn inspect_should_fail_when_there_is_no_key() {
    let nonsense = run(&["key", "inspect", "nonsense"]);
    assert_eq!(nonsense.status.code(), Some(1), "{nonsense:?}");
    assert!(
        nonsense.stdout.is_empty() && errors(&nonsense).contains("no secret phrase"),
        "{nonsense:?}"
    );
    let good = run(&["key", "inspect", "//Alice"]);
    let text = String::from_utf8_lossy(&good.stdout);
    // The address in this network's format.
    assert!(
        good.status.success() && text.contains("SS58 Address:      a2"),
        "{good:?}"
    );
}

#[test]
fn commands_should_end_quietly_when_the_pipe_is_closed() {
    for arguments in [
        &["verify-genesis", "--chain", "local"][..],
        &["export-chain-spec", "--chain", "dev", "--raw"],
        &["localnet-spec"],
        &["key", "generate"],
        &["key", "inspect", "//Alice"],
    ] {
        let mut command = Command::new(NODE);
        let mut child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), errors(&output)),
            (Some(0), String::new()),
            "{arguments:?}"
        );
    }
}

#[test]
fn version_should_have_the_commit() {
    let output = run(&["--version"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let commit = text.trim().rsplit('-').next().unwrap();
    assert!(
        commit.len() >= 7 && commit.chars().all(|c| c.is_ascii_hexdigit()),
        "{text}"
    );
}

#[test]
fn verify_genesis_should_refuse_a_runtime_that_waits_for_block_1() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spec.json");
    let mut spec = localnet(&path, &"11".repeat(32));
    let file = path.to_str().unwrap();
    let good = run(&["verify-genesis", "--chain", file]);
    assert!(good.status.success(), "{}", errors(&good));
    let pending = format!("0x{}", hex::encode(":pending_code"));
    spec["genesis"]["raw"]["top"][pending] = "0x00".into();
    std::fs::write(&path, spec.to_string()).unwrap();
    let refused = run(&["verify-genesis", "--chain", file]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        errors(&refused).contains(":pending_code should not be there"),
        "{}",
        errors(&refused)
    );
}

#[test]
fn a_node_should_know_its_addresses_and_stop_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let spec = folder.path().join("a.json");
    localnet(&spec, &"11".repeat(32));
    let mut node = Node::start_alone(spec.to_str().unwrap(), &folder.path().join("d"), &["--alice"]);
    node.wait_for_rpc();
    // An address of the network's own format.
    let address = "a2xVnE6ZjQ8zwMi2h4HAUN6nnUWxakh1xMLZ3ScBtmkUTt9V3";
    assert!(node.call("system_accountNextIndex", json!([address])).is_u64());

    // Any page may open a WebSocket to loopback; it must find no method there that changes the node.
    let answer = call_from_page(node.rpc_port, "https://evil.example", "author_rotateKeys");
    assert!(
        answer["error"]["message"]
            .as_str()
            .is_some_and(|m| m.contains("unsafe")),
        "{answer}"
    );
    let answer = call_from_page(node.rpc_port, "https://evil.example", "system_chain");
    assert_eq!(answer["result"], "Alice local network", "{answer}");

    node.process.wait_for_line("Imported #2", PATIENCE);
    node.process.signal("TERM");
    assert!(node.process.wait(PATIENCE).success());
    let log = node.process.log();
    assert!(log.contains("Stopped"), "{log}");
    for noise in ["Essential task", "AddrCache", "none of the"] {
        assert!(!log.contains(noise), "{noise}:\n{log}");
    }
}

#[test]
fn a_node_should_refuse_the_database_of_another_network() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b, data) = (
        folder.path().join("a.json"),
        folder.path().join("b.json"),
        folder.path().join("d"),
    );
    let spec_a = localnet(&a, &"11".repeat(32));
    let mut spec_b = localnet(&b, &"22".repeat(32));
    assert_ne!(spec_a["id"], spec_b["id"]);
    let mut node = Node::start_alone(a.to_str().unwrap(), &data, &["--alice"]);
    node.wait_for_rpc();
    let genesis = node.call("chain_getBlockHash", json!([0]));
    node.process.signal("TERM");
    assert!(node.process.wait(PATIENCE).success());

    // As two launches of a network have: one name, two genesis blocks.
    spec_b["id"] = spec_a["id"].clone();
    std::fs::write(&b, spec_b.to_string()).unwrap();
    let mut other = Node::start_alone(b.to_str().unwrap(), &data, &["--alice"]);
    assert!(!other.process.wait(PATIENCE).success());
    let verified = run(&["verify-genesis", "--chain", b.to_str().unwrap()]);
    let verified = String::from_utf8_lossy(&verified.stdout).into_owned();
    let expected = verified
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .last()
        .unwrap()
        .to_owned();
    let log = other.process.log();
    for part in [
        genesis.as_str().unwrap(),
        &expected,
        "of another network",
        "--base-path",
    ] {
        assert!(log.contains(part), "{part}:\n{log}");
    }
}

#[test]
fn a_validator_should_warn_when_it_has_no_validators_key() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start_alone("local", folder.path(), &["--validator"]);
    node.process.wait_for_line("none of the 2 `babe` keys", PATIENCE);
    node.process.wait_for_line("none of the 2 `gran` keys", PATIENCE);
}

#[test]
fn a_busy_port_should_be_named_with_its_option() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    for option in ["--prometheus-port", "--rpc-port"] {
        let base = folder.path().to_str().unwrap();
        let output = run(&[
            "--chain",
            "local",
            "--alice",
            "--base-path",
            base,
            option,
            &port,
            "--no-mdns",
        ]);
        assert_eq!(output.status.code(), Some(1));
        let text = errors(&output);
        let line = text.lines().last().unwrap_or_default();
        assert!(line.contains(&port) && line.contains(option), "{text}");
    }
}
