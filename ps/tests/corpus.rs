//! From text to a server that serves it: a run whose tokenizer is learned, by the program itself.

use alice_api::{Client, Hex32};
use alice_data::{CORPUS_FILE, Manifest, TokenSource, epoch_seed, task_sequences};
use alice_model::DeviceChoice;
use alice_spec::RunSpec;
use std::{
    net::{SocketAddr, TcpListener},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

const GENESIS: [u8; 32] = [42; 32];
const DEV: &str = include_str!("../../chain-spec/runs/dev.toml");

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alice-ps"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs a command line whose words have no spaces.
fn run(line: &str) -> Output {
    program().args(line.split_whitespace()).output().unwrap()
}

fn json(line: &str) -> serde_json::Value {
    let output = run(line);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{line}: {error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn fails(code: i32, words: &str, line: &str) {
    let output = run(line);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{line}: {error}");
    assert!(error.contains(words), "{line}: {error}");
}

/// A folder with texts, two tokenizers, a corpus and its run specification.
struct Text {
    dir: tempfile::TempDir,
    spec: RunSpec,
}

impl Text {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path().display();
        let words = [
            "the", "people", "train", "a", "model", "together", "and", "nobody", "owns", "it",
        ];
        std::fs::create_dir(dir.path().join("texts")).unwrap();
        let mut state = 7u64;
        for document in 0..120 {
            let mut text = format!("document {document}\n");
            while text.len() < 3000 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                text.push_str(words[(state >> 33) as usize % words.len()]);
                text.push(if state >> 60 == 0 { '\n' } else { ' ' });
            }
            std::fs::write(dir.path().join(format!("texts/{document:03}.txt")), text).unwrap();
        }
        let trained = json(&format!(
            "tokenizer train --vocab 310 --source {d}/texts --reserve-permille 200 --out {d}/tokenizer --json"
        ));
        json(&format!(
            "tokenizer train --vocab 300 --input {d}/texts --out {d}/other --json"
        ));
        let built = json(&format!(
            "corpus build --source {d}/texts --license CC0-1.0 --tokenizer {d}/tokenizer --reserve-permille 300 \
             --out {d}/corpus --threads 2 --json"
        ));
        assert_eq!(built["tokenizer"], trained["blake3"]);
        assert_eq!(
            (&built["documents"], &built["left_out"]["duplicate"]),
            (&120.into(), &0.into())
        );
        let text = DEV
            .replace("vocab = 259", "vocab = 310")
            .replace("context = 128", "context = 32")
            .replace("\"bytes\"", &built["tokenizer"].to_string());
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for key in ["corpus_root", "reserve_root", "corpus_tokens", "reserve_tokens"] {
            let line = lines.iter_mut().find(|line| line.starts_with(key)).unwrap();
            *line = format!("{key} = {}", built[key]);
        }
        let text = lines.join("\n");
        std::fs::write(dir.path().join("run.toml"), &text).unwrap();
        let spec = RunSpec::parse(&text).unwrap();
        Self { dir, spec }
    }
}

#[test]
fn what_does_not_belong_to_the_run_should_be_explained() {
    let text = Text::new();
    let d = text.dir.path().display().to_string();
    let check = format!("spec check {d}/run.toml --json");
    json(&format!("{check} --tokenizer {d}/tokenizer --corpus {d}/corpus"));
    fails(
        3,
        "data.tokenizer of the run is",
        &format!("{check} --tokenizer {d}/other"),
    );

    // Another tokenizer's corpus, another text's, one without its tokenizer, wrong counts.
    let build = format!("corpus build --source {d}/texts --license CC0-1.0 --reserve-permille 300");
    json(&format!("{build} --tokenizer {d}/other --out {d}/corpus-other --json"));
    fails(3, "has root", &format!("{check} --corpus {d}/corpus-other"));
    fails(
        3,
        "the tokenizer in",
        &format!("{build} --tokenizer {d}/other --run {d}/run.toml --out {d}/x"),
    );
    fails(
        3,
        "its tokens are bytes",
        &format!("{build} --run {d}/run.toml --out {d}/x"),
    );
    let manifest = text.path("corpus/corpus.json");
    let good = std::fs::read_to_string(&manifest).unwrap();
    let name = text.spec.data.tokenizer.clone();
    for bad in [good.replace(&name, "bytes"), good.replace(&name, &"ab".repeat(32))] {
        std::fs::write(&manifest, bad).unwrap();
        fails(
            3,
            "the tokenizer that made the shards",
            &format!("{check} --corpus {d}/corpus"),
        );
    }
    std::fs::write(&manifest, &good).unwrap();
    let model = text.path("corpus/tokenizer.model");
    std::fs::rename(&model, text.path("kept")).unwrap();
    fails(1, "tokenizer.model", &format!("{check} --corpus {d}/corpus"));
    std::fs::copy(text.path("other/tokenizer.model"), &model).unwrap();
    fails(3, "is not the run's", &format!("{check} --corpus {d}/corpus"));
    std::fs::rename(text.path("kept"), &model).unwrap();
    let spec = std::fs::read_to_string(text.path("run.toml")).unwrap();
    let count = format!("corpus_tokens = {}", text.spec.data.corpus_tokens);
    std::fs::write(text.path("run.toml"), spec.replace(&count, "corpus_tokens = 99999")).unwrap();
    fails(3, "data.corpus_tokens", &format!("{check} --corpus {d}/corpus"));
}

#[test]
fn a_build_should_name_what_it_leaves_out_and_derive_unique_names() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path().display().to_string();
    for (folder, first) in [("en", 0), ("de", 150)] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
        let lines: String = (first..first + 150)
            .map(|i| format!("{{\"text\": \"document {i}\"}}\n"))
            .collect();
        // Python's json module writes a float that is not a number like this.
        let lines = lines + "{\"text\": \"one\", \"score\": NaN}\n";
        std::fs::write(dir.path().join(folder).join("train.jsonl"), lines).unwrap();
    }
    std::fs::create_dir(dir.path().join("texts")).unwrap();
    std::fs::write(dir.path().join("texts/c.TXT"), "a document of its own").unwrap();
    std::fs::write(dir.path().join("texts/e.json"), "{}").unwrap();
    let build = format!(
        "corpus build --source {d}/en/train.jsonl {d}/de/train.jsonl {d}/texts --license CC0-1.0 --reserve-permille 100"
    );
    let built = json(&format!("{build} --out {d}/out --json"));
    assert_eq!(built["documents"], 301);
    assert_eq!(built["left_out"]["malformed"], 2);
    assert_eq!(built["left_out"]["unread_files"], 1);
    assert!(built["unread"][0]["path"].as_str().unwrap().ends_with("e.json"));
    assert!(
        built["first_malformed"][0]
            .as_str()
            .unwrap()
            .contains("train.jsonl line 151: ")
    );
    let manifest = Manifest::read(&dir.path().join("out").join(CORPUS_FILE)).unwrap();
    let sources = manifest.about.unwrap().sources;
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    assert_eq!(names, ["en/train.jsonl", "de/train.jsonl", "texts"]);
    let text = String::from_utf8(run(&format!("{build} --out {d}/again")).stdout).unwrap();
    assert!(
        text.contains("2 malformed lines") && text.contains("not read   "),
        "{text}"
    );
    assert!(text.contains("e.json") && text.contains("line 151"), "{text}");
    fails(
        1,
        "1 of 151",
        &format!("{build} --malformed-permille 0 --out {d}/strict"),
    );
}

#[test]
fn a_build_that_cannot_be_should_end_with_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path().display().to_string();
    std::fs::create_dir(dir.path().join("texts")).unwrap();
    for i in 0..60 {
        std::fs::write(dir.path().join(format!("texts/{i}.txt")), format!("document {i}")).unwrap();
    }
    std::fs::write(dir.path().join("a.jsonl"), "{\"body\": \"x\"}\n").unwrap();
    let list =
        "[[source]]\nname = \"texts\"\npath = \"texts\"\nlicense = \"CC0-1.0\"\n[split]\nreserve_permille = 200\n";
    std::fs::write(dir.path().join("corpus.toml"), list).unwrap();
    std::fs::write(dir.path().join("bad.toml"), list.replace("CC0-1.0", "free")).unwrap();
    std::fs::write(dir.path().join("x.toml"), "sources = 1").unwrap();
    let build = format!("corpus build --out {d}/out");
    for (code, words, flags) in [
        (2, "--license", format!("--source {d}/texts")),
        (
            2,
            "not an SPDX identifier",
            format!("--source {d}/texts --license Free"),
        ),
        (2, "not an SPDX identifier", format!("--source {d}/bad.toml")),
        (
            2,
            "stands alone",
            format!("--source {d}/corpus.toml {d}/texts --license CC0-1.0"),
        ),
        (2, "cannot be used with", format!("--source {d}/texts --text {d}/texts")),
        (
            2,
            "the path does not exist",
            format!("--source {d}/nowhere --license CC0-1.0"),
        ),
        // Before the licence, which is not what is missing.
        (2, "the path does not exist", format!("--source {d}/nowhere")),
        (
            2,
            "no text, JSON lines or Parquet file at",
            format!("--source {d}/*.md --license CC0-1.0"),
        ),
        (
            1,
            "it has no 'text' (it has: body)",
            format!("--source {d}/a.jsonl --license CC0-1.0"),
        ),
        (2, "no list of sources", format!("--source {d}/x.toml")),
        (
            1,
            "tokenizer.model",
            format!("--source {d}/corpus.toml --tokenizer {d}/none"),
        ),
    ] {
        fails(code, words, &format!("{build} {flags}"));
        assert!(!dir.path().join("out").join(CORPUS_FILE).exists(), "{flags}");
    }
    let done = run(&format!("{build} --source {d}/corpus.toml"));
    let shown = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success() && shown.contains("tokenizer = \"bytes\""),
        "{shown}"
    );
    assert!(done.stderr.is_empty(), "no bar where there is no terminal");
    fails(
        2,
        "holds a corpus already",
        &format!("{build} --source {d}/corpus.toml"),
    );
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn serve(text: &Text, data: &Path) -> (Server, Client) {
    let address: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let seed = text.path("ps.seed");
    alice_ps::key::generate(&seed).unwrap();
    let file = text.path("ps.toml");
    // Nothing listens on port 1: the chain is down, and the server serves all the same.
    let settings = format!(
        "listen = '{address}'\ndata_dir = '{}'\nchain_url = 'ws://127.0.0.1:1'\nrun_spec = '{}'\ncorpus_dir = '{}'\n\
         key_file = '{}'\ndevice = 'cpu'\n",
        data.display(),
        text.path("run.toml").display(),
        text.path("corpus").display(),
        seed.display()
    );
    std::fs::write(&file, settings).unwrap();
    let child = program()
        .args(["run", "--config"])
        .arg(&file)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut server = Server(child);
    let client = Client::new(&format!("http://{address}")).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while std::net::TcpStream::connect(address).is_err() {
        assert!(server.0.try_wait().unwrap().is_none(), "the server ended");
        assert!(Instant::now() < end, "the server does not answer");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (server, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_with_a_learned_tokenizer_should_be_served_trained_and_exported() {
    let text = Text::new();
    let data = text.path("data");
    let spec_text = std::fs::read_to_string(text.path("run.toml")).unwrap();
    alice_ps::commands::init::create_state(&data, GENESIS, spec_text, text.spec.clone())
        .await
        .unwrap();
    let (server, client) = serve(&text, &data).await;
    let hash = text.spec.tokenizer_hash().unwrap();
    let model = client.blob(&Hex32(hash), 1 << 20).await.unwrap();
    assert_eq!(model, std::fs::read(text.path("tokenizer/tokenizer.model")).unwrap());

    // As a miner does: the manifest, its shards, the sequences of a task.
    let served = client.corpus().await.unwrap();
    let cache = text.path("cache");
    std::fs::create_dir(&cache).unwrap();
    for shard in &served.shards {
        let bytes = client.blob(&shard.blob, shard.tokens * 2).await.unwrap();
        std::fs::write(cache.join(shard.blob.to_string()), bytes).unwrap();
    }
    let manifest = Manifest::read(&text.path("corpus/corpus.json")).unwrap();
    assert_eq!(served.root.0, manifest.root);
    // The reserve is in the same folder and stays private.
    let reserve = Manifest::read(&text.path("corpus/reserve.json")).unwrap();
    assert!(client.blob(&Hex32(reserve.shards[0].blob), 1 << 24).await.is_err());
    drop(server);
    let source = TokenSource::open(manifest, &cache, text.spec.model.context).unwrap();
    let tokenizer = alice_tokenizer::Tokenizer::parse_model(&model).unwrap();
    let ids: Vec<u32> = source.sequence(0).unwrap().into_iter().map(u32::from).collect();
    assert!(
        tokenizer.decode(&ids).contains("document "),
        "{}",
        tokenizer.decode(&ids)
    );
    assert!(ids.iter().any(|id| *id >= 259), "learned pieces are used");
    let seed = epoch_seed(&GENESIS, &text.spec.run_hash(), 0);
    let picked = task_sequences(&text.spec, source.sequences(), &seed, 0);
    let sequences: Vec<Vec<u16>> = picked.iter().map(|i| source.sequence(*i).unwrap()).collect();
    alice_ps::commands::init::create_state(
        &data,
        GENESIS,
        std::fs::read_to_string(text.path("run.toml")).unwrap(),
        text.spec.clone(),
    )
    .await
    .unwrap();
    let files = alice_ps::files::Files::create(&data).unwrap();
    let theta = alice_store::theta::read_theta(&files.theta(), text.spec.parameters()).unwrap();
    let device = DeviceChoice::Cpu.resolve().unwrap();
    let task = alice_trainer::Task {
        spec: &text.spec,
        fragment: 0,
        theta: &theta,
        sequences: &sequences,
    };
    let trained = alice_trainer::train(&task, device, Default::default(), &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(
        trained.loss_last < trained.loss_first - 0.5,
        "{} {}",
        trained.loss_first,
        trained.loss_last
    );

    // The folder for other programs has the run's tokenizer, and the check knows it from another.
    let d = text.dir.path().display().to_string();
    json(&format!("export --data {d}/data --out {d}/model --json"));
    assert_eq!(std::fs::read(text.path("model/tokenizer.model")).unwrap(), model);
    json(&format!("verify --model {d}/model --run {d}/run.toml --json"));
}
