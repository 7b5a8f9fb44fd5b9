//! The program itself: commands, exit codes, signals. No chain is needed for these.

mod common;

use alice_api::{ErrorCode, Key, Status};
use common::Fixture;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alice-ps"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn commands_should_say_what_they_did() {
    let dir = tempfile::tempdir().unwrap();
    let seed = dir.path().join("ps.seed");
    let seed = seed.to_str().unwrap();
    let made = run(&["key", "generate", "--out", seed, "--json"]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert!(made["address"].as_str().unwrap().starts_with('a'));
    let shown: serde_json::Value = serde_json::from_slice(&run(&["key", "show", seed, "--json"]).stdout).unwrap();
    assert_eq!(made, shown);
    let again = run(&["key", "generate", "--out", seed]);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again.stderr).starts_with("error: "), "{}", text(&again.stderr));

    let spec = concat!(env!("CARGO_MANIFEST_DIR"), "/../chain-spec/runs/dev.toml");
    let checked: serde_json::Value = serde_json::from_slice(&run(&["spec", "check", spec, "--json"]).stdout).unwrap();
    assert_eq!(checked["name"], "dev");
    let broken = dir.path().join("broken.toml");
    std::fs::write(&broken, "name = 1").unwrap();
    assert_eq!(run(&["spec", "check", broken.to_str().unwrap()]).status.code(), Some(2));

    let texts = dir.path().join("texts");
    std::fs::create_dir(&texts).unwrap();
    for i in 0..10 {
        std::fs::write(texts.join(format!("{i}.txt")), format!("document {i}")).unwrap();
    }
    let out = dir.path().join("corpus");
    let built = run(&[
        "corpus",
        "build",
        "--text",
        texts.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ]);
    assert!(
        text(&built.stdout).contains("corpus_root = \""),
        "{}",
        text(&built.stderr)
    );
    assert!(text(&run(&["--help"]).stdout).contains("exit codes"));
    assert_eq!(run(&["dance"]).status.code(), Some(2));
    assert_eq!(run(&["run"]).status.code(), Some(2), "no settings");
}

fn config(fixture: &Fixture, listen: SocketAddr, data_dir: &Path) -> String {
    let dir = fixture.dir.path();
    std::fs::write(dir.join("tiny.toml"), &fixture.text).unwrap();
    let seed = dir.join("ps.seed");
    if !seed.exists() {
        alice_ps::key::generate(&seed).unwrap();
    }
    let file = dir.join("ps.toml");
    // Nothing listens on port 1: the chain is down.
    let text = format!(
        "listen = '{listen}'\ndata_dir = '{}'\nchain_url = 'ws://127.0.0.1:1'\nrun_spec = '{}'\ncorpus_dir = '{}'\n\
         key_file = '{}'\ndevice = 'cpu'\n",
        data_dir.display(),
        dir.join("tiny.toml").display(),
        fixture.corpus_dir().display(),
        seed.display()
    );
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(config: &str, address: SocketAddr) -> Self {
        let child = program()
            .args(["run", "--config", config])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut server = Self { child, address };
        let end = Instant::now() + Duration::from_secs(60);
        while server.get("/healthz").is_none() {
            if let Some(code) = server.child.try_wait().unwrap() {
                let mut log = String::new();
                server.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
                panic!("the server ended with {code}: {log}");
            }
            assert!(Instant::now() < end, "the server does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// Body of an answer, over a plain socket.
    fn request(&self, head: &str, body: &[u8]) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(
            stream,
            "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .ok()?;
        stream.write_all(body).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.to_owned())
    }

    fn get(&self, path: &str) -> Option<String> {
        self.request(&format!("GET {path}"), b"")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already in the tests that pass.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_should_serve_without_its_chain_and_restart_after_a_kill() {
    let fixture = Fixture::new().await;
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let file = config(&fixture, address, &fixture.data_dir());
    let mut server = Server::start(&file, address);
    let status: Status = serde_json::from_str(&server.get("/v1/status").unwrap()).unwrap();
    assert!(status.notice.is_some(), "it says that it waits for the chain");
    let key = Key::from_seed(&[5; 32]);
    let claim = alice_api::ClaimRequest::new(&key, &common::GENESIS, &fixture.spec.run_hash(), 2, key.public());
    let refused = server
        .request("POST /v1/tasks", &serde_json::to_vec(&claim).unwrap())
        .unwrap();
    let refused: alice_api::ApiError = serde_json::from_str(&refused).unwrap();
    assert_eq!(refused.error, ErrorCode::Unavailable);
    let second = run(&["run", "--config", &file]);
    assert!(
        text(&second.stderr).contains("another alice-ps"),
        "{}",
        text(&second.stderr)
    );

    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let mut server = Server::start(&file, address);
    let after: Status = serde_json::from_str(&server.get("/v1/status").unwrap()).unwrap();
    assert_eq!((after.model_root, after.ps_key), (status.model_root, status.ps_key));
    let terminated = Command::new("kill")
        .args(["-TERM", &server.child.id().to_string()])
        .status()
        .unwrap();
    assert!(terminated.success());
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_should_end_with_their_exit_codes() {
    let fixture = Fixture::new().await;
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let file = config(&fixture, address, &fixture.dir.path().join("fresh"));
    let fresh = run(&["run", "--config", &file]);
    assert_eq!(fresh.status.code(), Some(3), "{}", text(&fresh.stderr));
    assert!(text(&fresh.stderr).contains("alice-ps init"));
    let missing = run(&["run", "--config", &file, "--key-file", "/nowhere/ps.seed"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(
        text(&missing.stderr).contains("key generate"),
        "{}",
        text(&missing.stderr)
    );
    let unreachable = run(&["init", "--config", &file]);
    assert_eq!(unreachable.status.code(), Some(4), "{}", text(&unreachable.stderr));
    let wrong_url = run(&["init", "--config", &file, "--chain-url", "http://127.0.0.1:9944"]);
    assert_eq!(wrong_url.status.code(), Some(2), "{}", text(&wrong_url.stderr));

    // A text that is not the run's.
    let root = fixture.spec.data.corpus_root.clone();
    let other = fixture.text.replace(&root, &"0".repeat(64));
    let spec = fixture.dir.path().join("other.toml");
    std::fs::write(&spec, other).unwrap();
    let mismatch = run(&["init", "--config", &file, "--run-spec", spec.to_str().unwrap()]);
    assert_eq!(mismatch.status.code(), Some(3), "{}", text(&mismatch.stderr));
    assert!(text(&mismatch.stderr).contains(&root));
}
