//! A server over a tiny run with real text, a real database and a real model; only the chain's block number is set by
//! the test.
#![allow(dead_code)] // Each test binary uses its part.

use alice_api::{ClaimRequest, CommitRequest, DeclareRequest, Hex32, Key, Lease, Receipt};
use alice_model::{DeviceChoice, TorchOracle};
use alice_ps::{
    commands::init::{create_state, open_state},
    corpus::Corpus,
    http,
    round::scoring_thread::Scorer,
    service::Service,
    service::chain_view::ChainView,
    state::ServerState,
};
use alice_round::Phase;
use alice_spec::RunSpec;
use alice_store::BlobStore;
use alice_update::{Header, Layout};
use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;
use tokio::sync::watch;
use tower::ServiceExt;

pub const GENESIS: [u8; 32] = [42; 32];
pub const EPOCH: u32 = 2;
/// First block of [`EPOCH`].
pub const START: u32 = 60;
/// Commits to [`EPOCH`] are accepted before this block.
pub const DEADLINE: u32 = 78;

/// Documents of made-up but regular text, so that a small model learns something in a few steps.
fn write_texts(dir: &Path) {
    let words = [
        "the", "people", "train", "a", "model", "together", "and", "nobody", "owns", "it", "light", "river",
    ];
    let mut state = 7u64;
    for document in 0..40 {
        let mut text = format!("document {document}\n");
        while text.len() < 4000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            text.push_str(words[(state >> 33) as usize % words.len()]);
            text.push(if state >> 60 == 0 { '\n' } else { ' ' });
        }
        std::fs::write(dir.join(format!("{document:03}.txt")), text).unwrap();
    }
}

fn spec_text(corpus: &alice_corpus::DevelopmentCorpus, reuse: bool) -> String {
    let (root, reserve) = (Hex32(corpus.corpus.root), Hex32(corpus.reserve.root));
    let (tokens, reserve_tokens) = (corpus.corpus.tokens(), corpus.reserve.tokens());
    format!(
        "name = \"tiny\"\nversion = 1\n\
         [model]\narchitecture = \"llama\"\nvocab = 259\nhidden = 32\nlayers = 1\nheads = 2\nkv_heads = 2\nffn = 64\n\
         context = 32\nrope_theta = 10000\ninit_std_millionths = 20000\n\
         [data]\ntokenizer = \"bytes\"\ncorpus_root = \"{root}\"\nreserve_root = \"{reserve}\"\n\
         corpus_tokens = {tokens}\nreserve_tokens = {reserve_tokens}\nreserve_reuse = {reuse}\n\
         [task]\nfragments = 1\n\n[inner]\nsteps = 20\nbatch_sequences = 4\nlearning_rate = 5e-3\nwarmup_steps = 2\nbeta1 = 0.9\nbeta2 = 0.95\n\
         epsilon = 1e-8\nweight_decay = 0.0\nclip_norm = 1.0\n\
         [update]\nchunk = 1024\nbudget_bytes = 16384\nvalue_bits = 2\nk_max = 256\nfeedback_decay = 0.95\n\
         publish_bits = 8\n\
         [outer]\nalpha = 1.0\nsnapshot_every = 2\n\
         [score]\nsequences = 64\nguard_sequences = 32\nprobe = 0.2\nz = 1.64\npool_epochs = 1\n\
         [round]\nepoch_blocks = 30\ndeadline_block = 18\nseed_blocks = 2\nopen_margin_blocks = 8\nlease_blocks = 6\n\
         base_lag = 0\ntasks_max = 7\n"
    )
}

pub struct Fixture {
    pub dir: TempDir,
    pub spec: RunSpec,
    pub text: String,
}

impl Fixture {
    /// A data directory with its first state.
    pub async fn new() -> Self {
        Self::with(true).await
    }

    pub async fn with(reserve_reuse: bool) -> Self {
        Self::of(|corpus| spec_text(corpus, reserve_reuse)).await
    }

    /// A model of two layers whose tasks train one of two fragments.
    pub async fn in_fragments() -> Self {
        let text = |corpus: &alice_corpus::DevelopmentCorpus| {
            spec_text(corpus, true)
                .replace("layers = 1", "layers = 2")
                .replace("fragments = 1", "fragments = 2")
        };
        Self::of(text).await
    }

    async fn of(text: impl FnOnce(&alice_corpus::DevelopmentCorpus) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let texts = dir.path().join("texts");
        std::fs::create_dir(&texts).unwrap();
        write_texts(&texts);
        let corpus = alice_corpus::build_development(&texts, &dir.path().join("corpus")).unwrap();
        let text = text(&corpus);
        let spec = RunSpec::parse(&text).unwrap();
        create_state(&dir.path().join("data"), GENESIS, text.clone(), spec.clone())
            .await
            .unwrap();
        Self { dir, spec, text }
    }

    pub fn corpus_dir(&self) -> PathBuf {
        self.dir.path().join("corpus")
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Opens the server's state, as a start does.
    pub async fn open(&self) -> Ps {
        let (net, files, db) = open_state(&self.data_dir(), self.text.clone(), self.spec.clone())
            .await
            .unwrap();
        let corpus = Corpus::open(&self.spec, &self.corpus_dir()).unwrap();
        let shards = BlobStore::open(&self.corpus_dir()).unwrap();
        let (view, receiver) = watch::channel(ChainView::default());
        let key = Key::from_seed(&[1; 32]);
        let state = Arc::new(ServerState::new(net, corpus, db, files, shards, key).unwrap());
        let service = Arc::new(Service::new(state.clone(), receiver));
        Ps {
            router: http::router(service).unwrap(),
            state,
            view,
        }
    }

    pub async fn scorer(&self) -> Scorer {
        let spec = self.spec.clone();
        let reserve = Corpus::open(&spec, &self.corpus_dir())
            .unwrap()
            .reserve_source(&spec, &self.corpus_dir())
            .unwrap();
        Scorer::start(move || Ok(TorchOracle::new(&spec, reserve, DeviceChoice::Cpu.resolve().unwrap()).unwrap()))
            .await
            .unwrap()
    }

    /// Trains the task of a lease for real and returns d.
    pub fn train(&self, ps: &Ps, lease: &Lease) -> Vec<f32> {
        let manifest = alice_data::Manifest::read(&self.corpus_dir().join(alice_data::CORPUS_FILE)).unwrap();
        let source = alice_data::TokenSource::open(manifest, &self.corpus_dir(), self.spec.model.context).unwrap();
        let task = &lease.task;
        let picked = alice_data::task_sequences(&self.spec, source.sequences(), &task.epoch_seed.0, task.slice);
        let sequences: Vec<Vec<u16>> = picked.iter().map(|i| source.sequence(*i).unwrap()).collect();
        let path = ps.state.files().theta();
        let theta = alice_store::theta::read_theta(&path, self.spec.parameters()).unwrap();
        let device = DeviceChoice::Cpu.resolve().unwrap();
        let task = alice_trainer::Task {
            spec: &self.spec,
            fragment: task.fragment,
            theta: &theta,
            sequences: &sequences,
        };
        let go_on = &mut |_| ControlFlow::Continue(());
        alice_trainer::train(&task, device, Default::default(), go_on)
            .unwrap()
            .d
    }

    pub fn encode(&self, lease: &Lease, d: &[f32]) -> Vec<u8> {
        let task = &lease.task;
        let header = Header {
            run_hash: task.run_hash.0,
            epoch: task.epoch,
            base_root: task.base_root.0,
        };
        let layout = Layout::from_spec(&self.spec).fragment(self.spec.fragment_tensors(task.fragment));
        alice_update::encode(&layout, &self.spec.update, &header, d)
            .unwrap()
            .bytes
    }
}

/// An opened server.
pub struct Ps {
    pub state: Arc<ServerState>,
    pub router: Router,
    pub view: watch::Sender<ChainView>,
}

/// An answer.
pub struct Got {
    pub status: StatusCode,
    pub headers: axum::http::HeaderMap,
    pub body: Vec<u8>,
}

impl Got {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn parse<T: serde::de::DeserializeOwned>(&self) -> T {
        assert_eq!(self.status, StatusCode::OK, "{}", String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The refusal has the code, its status, a message and a hint.
    #[track_caller]
    pub fn refused(&self, code: &str) {
        let error: alice_api::ApiError = serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{} {e}: {}", self.status, String::from_utf8_lossy(&self.body)));
        assert_eq!(error.error.code(), code, "{error:?}");
        assert_eq!(self.status.as_u16(), error.error.http_status());
        assert!(!error.message.is_empty() && !error.hint.is_empty());
    }
}

impl Ps {
    pub fn at(&self, block: u32) -> &Self {
        self.view.send_modify(|v| {
            v.best = Some(block);
            v.phase = Phase::Open;
            v.notice = None;
        });
        self
    }

    /// The round of [`EPOCH`] is open, and the chain is at its first block.
    pub async fn open_round(&self) -> &Self {
        self.state.db().open_round(EPOCH, START).await.unwrap();
        self.at(START)
    }

    pub async fn send(&self, request: Request<Body>) -> Got {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 26).await.unwrap().to_vec();
        Got {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    pub async fn get(&self, path: &str) -> Got {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub async fn post(&self, path: &str, body: &impl serde::Serialize) -> Got {
        self.send(
            Request::post(path)
                .body(Body::from(serde_json::to_vec(body).unwrap()))
                .unwrap(),
        )
        .await
    }

    pub async fn patch(&self, id: &Hex32, offset: u64, part: &[u8]) -> Got {
        let path = format!("/v1/uploads/{id}?offset={offset}");
        let request = Request::builder().method(Method::PATCH).uri(path);
        let request = request
            .header("content-length", part.len())
            .body(Body::from(part.to_vec()))
            .unwrap();
        self.send(request).await
    }

    pub fn claim_request(&self, miner: &Key, payout: [u8; 32]) -> ClaimRequest {
        ClaimRequest::new(miner, &GENESIS, &self.state.run().run_hash, EPOCH, Hex32(payout))
    }

    pub async fn claim(&self, miner: &Key, payout: [u8; 32]) -> Lease {
        self.post("/v1/tasks", &self.claim_request(miner, payout)).await.parse()
    }

    pub fn declaration(&self, miner: &Key, task: Hex32, bytes: &[u8]) -> DeclareRequest {
        DeclareRequest::new(
            miner,
            &GENESIS,
            task,
            Hex32(*blake3::hash(bytes).as_bytes()),
            bytes.len() as u64,
        )
    }

    pub fn commitment(&self, miner: &Key, id: Hex32) -> CommitRequest {
        CommitRequest::new(miner, &GENESIS, id)
    }

    pub async fn commit(&self, miner: &Key, id: Hex32) -> Got {
        self.post(&format!("/v1/uploads/{id}/commit"), &self.commitment(miner, id))
            .await
    }

    /// Declares, uploads and commits.
    pub async fn submit(&self, miner: &Key, task: Hex32, bytes: &[u8]) -> Receipt {
        let declaration = self.declaration(miner, task, bytes);
        let state: alice_api::UploadState = self.post("/v1/uploads", &declaration).await.parse();
        assert_eq!(state.id, declaration.id());
        self.patch(&state.id, 0, bytes).await.parse::<alice_api::UploadState>();
        self.commit(miner, state.id).await.parse()
    }
}
