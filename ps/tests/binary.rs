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
    assert_eq!(
        text(&run(&["--version"]).stdout),
        format!("alice-ps {}\n", alice_program::VERSION)
    );
    assert!(text(&run(&["completions", "zsh"]).stdout).contains("upcycle"));
    let man = dir.path().join("man");
    assert_eq!(run(&["man", "--out", man.to_str().unwrap()]).status.code(), Some(0));
    assert!(man.join("alice-ps-corpus-build.1").is_file());
}

#[test]
fn a_closed_pipe_should_end_a_command_quietly() {
    let spec = concat!(env!("CARGO_MANIFEST_DIR"), "/../chain-spec/runs/dev.toml");
    let mut child = program()
        .args(["spec", "check", spec])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut error = String::new();
    child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert_eq!((child.wait().unwrap().code(), error.as_str()), (Some(0), ""));
}

#[test]
fn mistakes_in_settings_should_be_named_as_the_user_wrote_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let file = path("ps.toml");
    let full = "data_dir = 'd'\nchain_url = 'ws://h:1'\nrun_spec = 'r.toml'\ncorpus_dir = 'c'\nkey_file = 'k'\n";
    for (settings, words) in [
        (format!("{full}threads = -1\n"), "ps.toml, line 6: threads: "),
        (format!("{full}thread = 1\n"), "ps.toml, line 6: unknown field `thread`"),
        (full.to_owned(), "run_spec: there is no file r.toml"),
    ] {
        std::fs::write(&file, settings).unwrap();
        // Compose files write empty variables for what the user left out.
        let done = program()
            .args(["run", "--config", &file])
            .env("ALICE_PS_THREADS", "")
            .env("ALICE_PS_LISTEN", "")
            .output()
            .unwrap();
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{error}");
        assert!(error.contains(words) && error.lines().count() == 1, "{error}");
    }
    // A path need not be text.
    #[cfg(unix)]
    {
        let other = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff");
        let mut command = program();
        let done = command
            .args(["run", "--config", &file, "--data-dir"])
            .arg(other)
            .output();
        let error = text(&done.unwrap().stderr);
        assert!(
            error.contains("run_spec: there is no file") && !error.contains(".rs:"),
            "{error}"
        );
    }
    let missing = run(&["run", "--config", &path("nowhere.toml")]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(
        text(&missing.stderr).contains("there is no settings file"),
        "{}",
        text(&missing.stderr)
    );
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

/// A server of the tiny run on a real port.
async fn served(fixture: &Fixture) -> (common::Ps, String) {
    let ps = fixture.open().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, ps.router.clone()).into_future());
    (ps, url)
}

/// A stopped audit must not leave a model's worth of bytes in somebody's temporary folder.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_audit_should_leave_nothing_behind() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    // A server that never says which epochs it has: the first state is there by then.
    let (asked, mut waiting) = tokio::sync::mpsc::unbounded_channel();
    let epochs = axum::routing::get(move || {
        let _ = asked.send(());
        std::future::pending::<()>()
    });
    let router = axum::Router::new()
        .route("/v1/epochs", epochs)
        .fallback_service(ps.router.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, router).into_future());
    let work = tempfile::tempdir().unwrap();
    let left = || std::fs::read_dir(work.path()).unwrap().count();
    for signal in ["-INT", "-TERM"] {
        while waiting.try_recv().is_ok() {}
        let audit = program()
            .args(["audit", "--ps", &url, "--work"])
            .arg(work.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let patience = Duration::from_secs(60);
        tokio::time::timeout(patience, waiting.recv())
            .await
            .expect("it asks for the epochs");
        assert_eq!(left(), 1, "the weights lie there");
        let id = audit.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        let ended = tokio::task::spawn_blocking(|| audit.wait_with_output().unwrap());
        let ended = tokio::time::timeout(patience, ended).await.expect("it ends").unwrap();
        assert_eq!(ended.status.code(), Some(1), "{signal}: {}", text(&ended.stderr));
        // On a busy machine it may have to be ended in the middle of a step, and says so.
        assert!(
            text(&ended.stderr).starts_with("error: stopped"),
            "{}",
            text(&ended.stderr)
        );
        assert_eq!(left(), 0, "{signal}");
    }
}

async fn run_async(arguments: &[&str]) -> Output {
    let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
    let program = move || program().args(arguments).output().unwrap();
    tokio::task::spawn_blocking(program).await.unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_first_state_should_verify_until_a_byte_is_flipped() {
    let fixture = Fixture::new().await;
    let (ps, url) = served(&fixture).await;
    let dir = fixture.dir.path();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (model, by_data, gguf, data) = (path("hf"), path("hf-data"), path("m.gguf"), path("data"));
    std::fs::write(dir.join("tiny.toml"), &fixture.text).unwrap();
    let run_file = path("tiny.toml");
    let root = ps.get("/v1/status").await.parse::<Status>().model_root.to_string();

    let done = json(
        &run_async(&[
            "export", "--ps", &url, "--epoch", "first", "--type", "f32", "--out", &model, "--json",
        ])
        .await,
    );
    assert_eq!(
        (done["epoch"].as_u64(), done["model_root"].as_str()),
        (Some(0), Some(&*root))
    );
    let card = std::fs::read_to_string(dir.join("hf/README.md")).unwrap();
    assert!(card.contains("# Alice, run tiny, first state\n"), "{card}");
    assert!(!card.contains("epoch 0"), "{card}");
    // The server's own weights give the same folder.
    let same = json(&run_async(&["export", "--data", &data, "--type", "f32", "--out", &by_data, "--json"]).await);
    assert_eq!(same["blake3"], done["blake3"]);
    let file = json(
        &run_async(&[
            "export", "--ps", &url, "--format", "gguf", "--type", "q8_0", "--out", &gguf, "--json",
        ])
        .await,
    );
    let bytes = std::fs::read(&gguf).unwrap();
    assert!(bytes.starts_with(b"GGUF"));
    let name = b"alice tiny first state";
    assert!(bytes.windows(name.len()).any(|window| window == name));
    assert_eq!(file["blake3"].as_str(), Some(&*blake3::hash(&bytes).to_hex()));

    let checked = json(
        &run_async(&[
            "verify", "--model", &model, "--run", &run_file, "--root", &root, "--json",
        ])
        .await,
    );
    assert_eq!(
        (checked["numbers"].as_str(), checked["root_from"].as_str()),
        (Some("root"), Some("root"))
    );
    let checked = json(&run_async(&["verify", "--model", &model, "--ps", &url, "--json"]).await);
    assert_eq!(checked["root_from"], "first state");
    assert_eq!(checked["files_of_run"], true);
    let alone = run_async(&["verify", "--model", &model]).await;
    assert!(
        text(&alone.stdout).contains("nothing outside the folder"),
        "{}",
        text(&alone.stderr)
    );
    let other = run_async(&["verify", "--model", &model, "--root", &"0".repeat(64)]).await;
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains(&root), "{}", text(&other.stderr));

    let shard = std::fs::read_dir(&model).unwrap().map(|e| e.unwrap().path());
    let shard = shard
        .into_iter()
        .find(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .unwrap();
    let mut bytes = std::fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let flipped = run_async(&["verify", "--model", &model]).await;
    assert_eq!(flipped.status.code(), Some(1));
    assert!(
        text(&flipped.stderr).contains("download it again"),
        "{}",
        text(&flipped.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn export_and_verify_should_say_what_to_do_when_flags_are_wrong() {
    let fixture = Fixture::new().await;
    let (_ps, url) = served(&fixture).await;
    let dir = fixture.dir.path().to_str().unwrap().to_owned();
    let out = format!("{dir}/out");
    let data = format!("{dir}/data");
    let empty = format!("{dir}/corpus");
    let unreachable = "ws://127.0.0.1:1";
    let query = format!("{url}/?key=1");
    let nowhere = format!("{dir}/nowhere");
    let cases: [(&[&str], i32, &str); 14] = [
        (&["export", "--out", &out], 2, "--ps"),
        (
            &["export", "--ps", &url, "--epoch", "last", "--out", &out],
            2,
            "or 'first'",
        ),
        (
            &["export", "--ps", &url, "--epoch", "0", "--out", &out],
            2,
            "epoch 0 is not scored",
        ),
        (
            &["export", "--ps", &url, "--data", &data, "--out", &out],
            2,
            "cannot be used with",
        ),
        (
            &["export", "--ps", &url, "--type", "q8_0", "--out", &out],
            2,
            "--format gguf",
        ),
        (
            &["export", "--ps", &url, "--epoch", "7", "--out", &out],
            2,
            "epoch 7 is not scored",
        ),
        (
            &["export", "--data", &data, "--epoch", "7", "--out", &out],
            2,
            "--ps URL",
        ),
        (&["export", "--data", &empty, "--out", &out], 3, "alice-ps init"),
        (&["export", "--ps", &url, "--out", &data], 2, "exists"),
        (&["verify", "--model", &data], 1, "ALICE.json is not there"),
        // The folder is looked at before a node is asked.
        (
            &["verify", "--model", &nowhere, "--chain", unreachable],
            1,
            "nowhere: there is no such file",
        ),
        (
            &["export", "--ps", &url, "--chain", unreachable, "--out", &out],
            4,
            unreachable,
        ),
        (
            &["export", "--data", &data, "--chain", unreachable, "--out", &out],
            4,
            unreachable,
        ),
        (&["audit", "--ps", &query], 2, "query"),
    ];
    for (arguments, code, words) in cases {
        let got = run_async(arguments).await;
        assert_eq!(got.status.code(), Some(code), "{arguments:?}: {}", text(&got.stderr));
        assert!(
            text(&got.stderr).contains(words),
            "{arguments:?}: {}",
            text(&got.stderr)
        );
    }
    assert!(!Path::new(&out).exists());
    let two = run_async(&["verify", "--model", &data, "--ps", &url, "--chain", "ws://127.0.0.1:1"]).await;
    assert_eq!(two.status.code(), Some(2), "{}", text(&two.stderr));
}

#[test]
fn the_same_text_should_give_the_same_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let license = concat!(env!("CARGO_MANIFEST_DIR"), "/../LICENSE");
    let train = |vocab: &str, input: &str, out: &str| {
        run(&[
            "tokenizer",
            "train",
            "--vocab",
            vocab,
            "--input",
            input,
            "--out",
            out,
            "--json",
        ])
    };
    let (first, second) = (
        json(&train("400", license, &path("a"))),
        json(&train("400", license, &path("b"))),
    );
    assert_eq!((&first["vocab"], &first["blake3"]), (&400.into(), &second["blake3"]));
    let model = std::fs::read(dir.path().join("a/tokenizer.model")).unwrap();
    assert_eq!(first["blake3"].as_str(), Some(&*blake3::hash(&model).to_hex()));
    assert_ne!(json(&train("401", license, &path("c")))["blake3"], first["blake3"]);

    for (vocab, input, out, code, words) in [
        ("400", license, "a", 2, "choose another --out"),
        ("3", license, "d", 2, "vocab"),
        ("400", "/nowhere.txt", "d", 1, "/nowhere.txt"),
        ("400", &path("a"), "d", 2, "no .txt files"),
    ] {
        let got = train(vocab, input, &path(out));
        assert_eq!(got.status.code(), Some(code), "{}", text(&got.stderr));
        assert!(text(&got.stderr).contains(words), "{}", text(&got.stderr));
    }
    assert!(!dir.path().join("d").exists());
}
