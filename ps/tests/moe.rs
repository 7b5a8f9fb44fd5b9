//! A run with experts on real text: tasks of every fragment lower the loss, a round tells them from noise, and a dense
//! model becomes its first state.

use alice_api::Hex32;
use alice_audit::AuditError;
use alice_data::{Manifest, TokenSource};
use alice_export::{About, Dtype, HfOptions, ThetaSlice, export_hf};
use alice_init::init_theta;
use alice_model::{Device, TorchOracle};
use alice_ps::{
    PsError,
    commands::init::{create_state, create_state_from, open_state},
    commands::upcycle::{self, UpcycleArgs},
};
use alice_score::{Candidate, LossOracle, score_round};
use alice_spec::{RunSpec, StartSpec};
use alice_store::{BlobStore, Join, Snapshot, model_root, theta::write_theta};
use alice_tokenizer::Tokenizer;
use alice_trainer::{Task, TaskResult, train};
use alice_update::{Header, Layout, Update, aggregate, decode, encode};
use std::ops::ControlFlow;
use std::path::Path;

const GENESIS: [u8; 32] = [42; 32];

/// English: the licence and the book as they once were, in documents of about 2,000 bytes. A copy, because another text
/// is another run, with other first weights and other luck.
fn write_texts(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let lines: Vec<&str> = include_str!("data/english.txt").lines().collect();
    for (number, part) in lines.chunks(20).enumerate() {
        std::fs::write(dir.join(format!("{number:04}.txt")), part.join("\n")).unwrap();
    }
}

struct Run {
    spec: RunSpec,
    corpus: TokenSource,
    oracle: TorchOracle,
}

impl Run {
    /// Run `dev-moe` with half the width, over the text.
    fn new(dir: &Path) -> Self {
        write_texts(&dir.join("texts"));
        let built = alice_corpus::build_development(&dir.join("texts"), &dir.join("corpus")).unwrap();
        let spec = narrow(include_str!("../../chain-spec/runs/dev-moe.toml"), &built);
        let manifest = Manifest::read(&dir.join("corpus").join(alice_data::CORPUS_FILE)).unwrap();
        let corpus = TokenSource::open(manifest, &dir.join("corpus"), spec.model.context).unwrap();
        let reserve = TokenSource::open(built.reserve, &dir.join("corpus"), spec.model.context).unwrap();
        let oracle = TorchOracle::new(&spec, reserve, Device::Cpu).unwrap();
        Self { spec, corpus, oracle }
    }

    fn train(&self, theta: &[f32], fragment: u32, slice: u32) -> TaskResult {
        let picked = alice_data::task_sequences(&self.spec, self.corpus.sequences(), &[slice as u8; 32], slice);
        let sequences: Vec<Vec<u16>> = picked.iter().map(|i| self.corpus.sequence(*i).unwrap()).collect();
        let task = Task {
            spec: &self.spec,
            fragment,
            theta,
            sequences: &sequences,
        };
        train(&task, Device::Cpu, Default::default(), &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap()
    }

    fn layout(&self, fragment: u32) -> Layout {
        Layout::from_spec(&self.spec).fragment(self.spec.fragment_tensors(fragment))
    }

    /// As it arrives at the server: encoded within the budget, and decoded.
    fn sent(&self, fragment: u32, d: &[f32]) -> Update {
        let header = Header {
            run_hash: self.spec.run_hash(),
            epoch: 0,
            base_root: [0; 32],
        };
        let layout = self.layout(fragment);
        let encoded = encode(&layout, &self.spec.update, &header, d).unwrap();
        assert!(encoded.bytes.len() as u64 <= self.spec.update.budget_bytes);
        decode(&layout, &self.spec.update, &encoded.bytes).unwrap()
    }

    fn loss(&mut self, theta: &[f32]) -> f64 {
        let all: Vec<u32> = (0..self.oracle.sequences().min(64) as u32).collect();
        let losses = self.oracle.losses(theta, &all).unwrap();
        losses.iter().sum::<f64>() / losses.len() as f64
    }
}

fn narrow(text: &str, built: &alice_corpus::DevelopmentCorpus) -> RunSpec {
    let mut spec = RunSpec::parse(text).unwrap();
    (spec.model.hidden, spec.model.ffn, spec.model.layers, spec.model.context) = (64, 128, 2, 64);
    spec.inner.steps = 24;
    spec.inner.learning_rate = 4e-3;
    spec.update.budget_bytes = 40_000;
    (spec.score.sequences, spec.score.guard_sequences) = (64, 8);
    spec.data.corpus_root = hex::encode(built.corpus.root);
    spec.data.reserve_root = hex::encode(built.reserve.root);
    (spec.data.corpus_tokens, spec.data.reserve_tokens) = (built.corpus.tokens(), built.reserve.tokens());
    spec.validate().unwrap();
    spec
}

/// Random values, uniform, of the same norm as `d`.
fn noise(d: &[f32], seed: u64) -> Vec<f32> {
    let mut state = seed;
    let draws: Vec<f32> = d
        .iter()
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        })
        .collect();
    let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let scale = (norm(d) / norm(&draws)) as f32;
    draws.iter().map(|v| v * scale).collect()
}

#[test]
fn tasks_of_experts_should_lower_the_loss_and_be_told_from_noise() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Run::new(dir.path());
    assert_eq!(run.spec.task.fragments, 3);
    let mut theta = init_theta(&run.spec, &GENESIS);
    let first = run.loss(&theta);

    // A round without scoring first: from random weights a step the wrong way may help as well (decision 0004).
    let layouts: Vec<Layout> = (0..3).map(|p| run.layout(p)).collect();
    let mut updates = Vec::new();
    for (fragment, layout) in (0..).zip(&layouts) {
        let result = run.train(&theta, fragment, fragment);
        assert_eq!(result.d.len(), layout.covered().len());
        println!(
            "fragment {fragment}: loss {:.3} → {:.3}",
            result.loss_first, result.loss_last
        );
        assert!(result.loss_last < result.loss_first - 0.3, "fragment {fragment}");
        updates.push((fragment, run.sent(fragment, &result.d), 1.0f32));
    }
    let mean = aggregate::WeightedMean {
        fragments: &layouts,
        updates: updates.iter().map(|(p, update, f)| (*p, update, *f)).collect(),
        entry_weight: 1,
    };
    aggregate::apply(&mut theta, &mean, 1.0);
    let second = run.loss(&theta);
    println!("held-out loss {first:.3} → {second:.3} after one round");
    assert!(second < first - 0.3);

    // Two honest miners, so that the median that pay is measured by is one of theirs.
    let mut candidates = Vec::new();
    for fragment in 0..3u32 {
        let honest = [3, 6].map(|slice| run.train(&theta, fragment, slice + fragment).d);
        let negated: Vec<f32> = honest[0].iter().map(|v| -v).collect();
        // A random step may be lucky; then the opposite one is not.
        let random = noise(&honest[0], u64::from(fragment) + 1);
        let opposite: Vec<f32> = random.iter().map(|v| -v).collect();
        for (kind, d) in honest.iter().chain([&random, &opposite, &negated]).enumerate() {
            let id = [fragment as u8 * 5 + kind as u8; 32];
            candidates.push(Candidate {
                id,
                miner: id,
                has_accepted_work: true,
                fragment,
                update: run.sent(fragment, d),
            });
        }
    }
    let split: Vec<u32> = (0..64).collect();
    let round = score_round(
        &mut run.oracle,
        &run.spec,
        &mut theta,
        &split,
        &candidates,
        &[],
        &mut |_| (),
    )
    .unwrap();
    for of_fragment in round.decisions.chunks(5) {
        let [first, second, random, opposite, negated] = of_fragment else {
            panic!("five of each fragment")
        };
        println!(
            "honest {:+.4} ± {:.4} and {:+.4}, noise {:+.4} and {:+.4}, negated {:+.4}",
            first.improvement,
            first.standard_error,
            second.improvement,
            random.improvement,
            opposite.improvement,
            negated.improvement
        );
        // Both together, so that luck cancels.
        let luck = (random.improvement + opposite.improvement) / 2.0;
        let paid = (random.score + opposite.score) / 2;
        for honest in [first, second] {
            assert!(honest.accepted, "{}", honest.detail);
            assert!(luck < honest.improvement / 10.0);
            assert!(paid < honest.score / 10);
        }
        assert!(!negated.accepted);
    }
}

/// A dense run's folder and snapshot, and the run with experts of the same shape.
fn dense(dir: &Path) -> (RunSpec, Vec<f32>, RunSpec) {
    let mut dense = RunSpec::parse(include_str!("../../chain-spec/runs/dev.toml")).unwrap();
    (dense.model.hidden, dense.model.ffn, dense.model.layers) = (64, 96, 2);
    let theta = init_theta(&dense, &[7; 32]);
    write_theta(&dir.join("dense.f32"), &theta).unwrap();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let options = HfOptions {
            dtype,
            shard_bytes: 100_000,
            about: About::new(0),
            model_root: None,
        };
        let mut weights = ThetaSlice::new(&dense.tensors(), &theta).unwrap();
        let out = dir.join(format!("{dtype:?}"));
        export_hf(&out, &dense, &Tokenizer::bytes(), &mut weights, &options, &mut |_| ()).unwrap();
    }
    let mut run = RunSpec::parse(include_str!("../../chain-spec/runs/dev-moe.toml")).unwrap();
    (run.model.hidden, run.model.ffn, run.model.layers) = (64, 128, 2);
    (dense, theta, run)
}

fn write_spec(dir: &Path, spec: &RunSpec) -> std::path::PathBuf {
    let path = dir.join(format!("{}-{}.toml", spec.name, hex::encode(&spec.run_hash()[..4])));
    std::fs::write(&path, toml_of(spec)).unwrap();
    path
}

/// Only what the test changes differs from the preset's text.
fn toml_of(spec: &RunSpec) -> String {
    let text = match spec.model.moe {
        Some(_) => include_str!("../../chain-spec/runs/dev-moe.toml"),
        None => include_str!("../../chain-spec/runs/dev.toml"),
    };
    let m = &spec.model;
    let mut text = text
        .replace("hidden = 128", &format!("hidden = {}", m.hidden))
        .replace("ffn = 344", &format!("ffn = {}", m.ffn))
        .replace("layers = 4", &format!("layers = {}", m.layers));
    if let Some(start) = &spec.start {
        text += &format!("\n[start]\nmodel_root = \"{}\"\n", start.model_root);
    }
    assert_eq!(RunSpec::parse(&text).unwrap().run_hash(), spec.run_hash());
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dense_model_should_become_the_first_state_of_a_run_with_experts() {
    let dir = tempfile::tempdir().unwrap();
    let (dense, theta, mut run) = dense(dir.path());
    let args = |out: &str| UpcycleArgs {
        model: Some(dir.path().join("F32")),
        snapshot: None,
        dense: None,
        run: write_spec(dir.path(), &run),
        out: dir.path().join(out),
        json: true,
    };
    let done: serde_json::Value = serde_json::from_str(&upcycle::run(&args("a.f32")).unwrap()).unwrap();
    let dense_root = Hex32(model_root(&dense.tensors(), &theta));
    assert_eq!(done["dense_root"], dense_root.to_string());
    assert_eq!(done["parameters"], run.parameters());
    // The snapshot of the same model gives the same file; the rounded folder another.
    let by_snapshot = UpcycleArgs {
        model: None,
        snapshot: Some(dir.path().join("dense.f32")),
        dense: Some(write_spec(dir.path(), &dense)),
        ..args("b.f32")
    };
    let again: serde_json::Value = serde_json::from_str(&upcycle::run(&by_snapshot).unwrap()).unwrap();
    assert_eq!(again["model_root"], done["model_root"]);
    let bytes = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert!(bytes("a.f32") == bytes("b.f32"));
    let rounded = UpcycleArgs {
        model: Some(dir.path().join("Bf16")),
        ..args("c.f32")
    };
    let rounded: serde_json::Value = serde_json::from_str(&upcycle::run(&rounded).unwrap()).unwrap();
    assert_ne!(rounded["model_root"], done["model_root"]);

    // The run names the root; only that file is its first state.
    run.start = Some(StartSpec {
        model_root: done["model_root"].as_str().unwrap().into(),
    });
    let (data, text) = (dir.path().join("data"), toml_of(&run));
    let paths = ["a.f32", "dense.f32", "c.f32", "other"].map(|name| dir.path().join(name));
    let [file, of_dense, of_rounded, elsewhere] = &paths;
    let create = |start| create_state_from(&data, GENESIS, text.clone(), run.clone(), start);
    let missing = create(None).await.unwrap_err();
    assert!(missing.to_string().contains("--start FILE"), "{missing}");
    let short = create(Some(of_dense)).await.unwrap_err();
    assert!(
        short.to_string().contains("the first state of run dev-moe has"),
        "{short}"
    );
    let other = create(Some(of_rounded)).await.unwrap_err();
    assert!(
        matches!(&other, PsError::Audit(error) if matches!(**error, AuditError::FirstStateRoot { .. })),
        "{other}"
    );
    let made = create(Some(file)).await.unwrap();
    assert!(made.created);
    assert_eq!(made.model_root, run.start_root().unwrap());
    assert!(!create(None).await.unwrap().created, "the state is there");

    // Who joins fetches it like any snapshot.
    let (net, files, db) = open_state(&data, text.clone(), run.clone()).await.unwrap();
    let published = db.model_manifest().await.unwrap().unwrap().snapshot;
    assert_eq!((published.step, published.model_root.0), (0, made.model_root));
    let described = Snapshot {
        model_root: published.model_root.0,
        bytes: published.bytes,
        chunk_bytes: published.chunk_bytes,
        chunks: published.chunks.iter().map(|hash| hash.0).collect(),
    };
    let joined = dir.path().join("joined.f32");
    let (mut join, blobs) = (
        Join::open(&joined, &net.tensors, &described).unwrap(),
        BlobStore::open(&files.blobs()).unwrap(),
    );
    while let Some(hash) = join.next_chunk() {
        join.push(&blobs.get(&hash).await.unwrap()).unwrap();
    }
    assert_eq!(join.finish(&mut |_, _| ()).unwrap().root(), made.model_root);

    // A run that names none takes none.
    let mut drawn = run.clone();
    drawn.start = None;
    let text = toml_of(&drawn);
    let refused = create_state_from(elsewhere, GENESIS, text.clone(), drawn.clone(), Some(file)).await;
    assert!(refused.unwrap_err().to_string().contains("leave --start out"));
    create_state(elsewhere, GENESIS, text, drawn).await.unwrap();
}

#[test]
fn models_that_do_not_fit_should_be_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (dense, _, run) = dense(dir.path());
    let out = dir.path().join("start.f32");
    let with = |run: &RunSpec| UpcycleArgs {
        model: Some(dir.path().join("F32")),
        snapshot: None,
        dense: None,
        run: write_spec(dir.path(), run),
        out: out.clone(),
        json: false,
    };
    let mut deeper = run.clone();
    deeper.model.layers = 3;
    let mut narrower = run.clone();
    narrower.model.ffn = 64;
    for (bad, words) in [
        (&deeper, "does not fit run 'dev-moe'"),
        (&narrower, "model.ffn is 96 in the dense model and 64 in the run"),
        (&dense, "has no experts"),
    ] {
        let message = upcycle::run(&with(bad)).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
        assert!(!out.exists());
    }
    // A damaged folder.
    let shard = std::fs::read_dir(dir.path().join("F32"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .unwrap();
    let mut bytes = std::fs::read(&shard).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    assert!(upcycle::run(&with(&run)).is_err());
    assert!(!out.exists());
    std::fs::write(&out, b"precious").unwrap();
    assert!(matches!(upcycle::run(&with(&run)), Err(PsError::Export(_))));
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
}
