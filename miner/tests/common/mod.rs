//! A parameter server in the test's own process: real types, signatures and hashes, one tiny run, no scoring.

use alice_api::{
    ApiError, ClaimRequest, CommitRequest, CorpusManifest, DeclareRequest, Delta, Earlier, EpochSummary, ErrorCode,
    Hex32, Key, Lease, ModelManifest, Outcome, PayoutEntry, PayoutPage, Phase, Receipt, ReceiptBody, Shard, Snapshot,
    Status, SubmissionStatus, Task, UploadState, Verdict, VerdictBody, sign,
};
use alice_data::{Manifest, ShardEntry};
use alice_primitives::pages;
use alice_spec::{RunSpec, StartSpec};
use alice_update::{Layout, Sparse, aggregate};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, patch, post},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

pub const GENESIS: [u8; 32] = [42; 32];
/// Factor that makes another model of the first state.
pub const LATER: f32 = 1.01;
const EPOCH_BLOCKS: u32 = 30;

/// Instructions of the test to the server, and records of the server's work.
#[derive(Default)]
pub struct Seen {
    pub epoch: u32,
    /// Number of commits that are stored but answered 503: as if the miner died before the answer.
    pub lose_commits: u32,
    /// Commits are refused with this code.
    pub refuse_commits: Option<ErrorCode>,
    /// Blob that is sent with a wrong byte.
    pub damaged: Option<Hex32>,
    /// Number of times that it was sent.
    pub damaged_sent: u32,
    /// Blob that the server no longer has.
    pub gone: Option<Hex32>,
    /// Number of times that each blob was sent undamaged.
    pub sent: BTreeMap<Hex32, u32>,
    /// The first delta is announced with a root that it does not lead to.
    pub false_step: bool,
    /// Requests for the model.
    pub model_looks: u32,
    /// Requests for the status.
    pub looks: u32,
    /// Runs once, before the first lease is given.
    pub on_claim: Option<Box<dyn FnOnce() + Send>>,
    /// Outcome of verdicts; accepted by default.
    pub outcome: Option<Outcome>,
    pub claims: u32,
    pub commits: u32,
    pub ids: BTreeSet<Hex32>,
    pub lease: Option<Lease>,
    pub declared: BTreeMap<Hex32, DeclareRequest>,
    pub bytes: BTreeMap<Hex32, Vec<u8>>,
    pub receipts: BTreeMap<Hex32, Receipt>,
}

pub struct FakePs {
    pub spec: RunSpec,
    pub key: Key,
    /// Model of the round.
    pub root: Hex32,
    pub model: ModelManifest,
    blobs: BTreeMap<Hex32, Vec<u8>>,
    corpus: CorpusManifest,
    seen: Mutex<Seen>,
}

type Ps = State<Arc<FakePs>>;

impl FakePs {
    /// Starts a server whose model is the first state; returns it with its address.
    pub async fn start() -> (Arc<Self>, String) {
        Self::serve(|theta, spec, _| {
            let root = Hex32(alice_store::model_root(&spec.tensors(), theta));
            ModelManifest {
                model_root: root,
                model_step: 0,
                snapshot: Snapshot {
                    model_root: root,
                    step: 0,
                    bytes: spec.parameters() * 4,
                    chunk_bytes: 4 << 20,
                    chunks: vec![],
                },
                deltas: vec![],
                earlier: None,
            }
        })
        .await
    }

    /// Starts a server of a later model: a snapshot of step 4 in several chunks, a delta that led to it from the first
    /// state times [`LATER`], and two deltas after it.
    pub async fn start_later() -> (Arc<Self>, String) {
        Self::serve(|theta, spec, blobs| {
            let (tensors, layout) = (spec.tensors(), Layout::from_spec(spec));
            let mut put = |bytes: Vec<u8>| {
                let hash = Hex32(*blake3::hash(&bytes).as_bytes());
                blobs.insert(hash, bytes);
                hash
            };
            theta.iter_mut().for_each(|v| *v *= LATER);
            let before = Hex32(alice_store::model_root(&tensors, theta));
            let mut step = |theta: &mut Vec<f32>, epoch: u32| {
                let mean = Sparse {
                    indices: (0..100).map(|i| i * 7 + u64::from(epoch)).collect(),
                    values: vec![0.001 * epoch as f32; 100],
                };
                let bytes = aggregate::encode_aggregate(&layout, 8, &mean, [epoch as u8; 32]);
                let d = aggregate::decode_aggregate(&layout, &bytes).unwrap();
                aggregate::apply(theta, &d, 0.5);
                Delta {
                    epoch,
                    model_root: Hex32(alice_store::model_root(&tensors, theta)),
                    bytes: bytes.len() as u64,
                    blob: put(bytes),
                    alpha_bits: 0.5f32.to_bits(),
                }
            };
            let earlier = Earlier {
                model_root: before,
                deltas: vec![step(theta, 7)],
            };
            let at_snapshot = theta.clone();
            let deltas = vec![step(theta, 8), step(theta, 9)];
            let chunk_bytes = 4096;
            let snapshot = Snapshot {
                model_root: earlier.deltas[0].model_root,
                step: 4,
                bytes: spec.parameters() * 4,
                chunk_bytes,
                chunks: alice_store::theta::to_le_bytes(&at_snapshot)
                    .chunks(chunk_bytes as usize)
                    .map(|c| put(c.to_vec()))
                    .collect(),
            };
            ModelManifest {
                model_root: deltas[1].model_root,
                model_step: 6,
                snapshot,
                deltas,
                earlier: Some(earlier),
            }
        })
        .await
    }

    /// Starts a server of a run that names the root of its first state, which does not follow from block 0: the state
    /// that the server has, or `other`.
    pub async fn start_named(other: Option<Hex32>) -> (Arc<Self>, String) {
        Self::start_scaled(1.02, other).await
    }

    /// The same with a first state whose weights are multiplied by `factor`.
    pub async fn start_scaled(factor: f32, other: Option<Hex32>) -> (Arc<Self>, String) {
        Self::serve(|theta, spec, blobs| {
            theta.iter_mut().for_each(|v| *v *= factor);
            let root = Hex32(alice_store::model_root(&spec.tensors(), theta));
            spec.start = Some(StartSpec {
                model_root: other.unwrap_or(root).to_string(),
            });
            let bytes = alice_store::theta::to_le_bytes(theta);
            let chunk = Hex32(*blake3::hash(&bytes).as_bytes());
            let snapshot = Snapshot {
                model_root: root,
                step: 0,
                bytes: bytes.len() as u64,
                chunk_bytes: 4 << 20,
                chunks: vec![chunk],
            };
            blobs.insert(chunk, bytes);
            ModelManifest {
                model_root: root,
                model_step: 0,
                snapshot,
                deltas: vec![],
                earlier: None,
            }
        })
        .await
    }

    async fn serve(
        make: impl FnOnce(&mut Vec<f32>, &mut RunSpec, &mut BTreeMap<Hex32, Vec<u8>>) -> ModelManifest,
    ) -> (Arc<Self>, String) {
        let text: Vec<u16> = (0..4096u32).map(|i| (i * i % 251) as u16).collect();
        let (mut blobs, mut entries) = (BTreeMap::new(), Vec::new());
        for part in text.chunks(1500) {
            let bytes: Vec<u8> = part.iter().flat_map(|t| t.to_le_bytes()).collect();
            let blob = *blake3::hash(&bytes).as_bytes();
            entries.push(ShardEntry {
                blob,
                tokens: part.len() as u64,
            });
            blobs.insert(Hex32(blob), bytes);
        }
        let manifest = Manifest::new(entries);
        let mut spec = tiny_spec(&Hex32(manifest.root), text.len() as u64);
        let mut theta = alice_init::init_theta(&spec, &GENESIS);
        let model = make(&mut theta, &mut spec, &mut blobs);
        let root = model.model_root;
        let listed = manifest
            .shards
            .iter()
            .map(|s| Shard {
                blob: Hex32(s.blob),
                tokens: s.tokens,
            })
            .collect();
        let corpus = CorpusManifest {
            root: Hex32(manifest.root),
            shards: listed,
            sources: Vec::new(),
        };
        let key = Key::from_seed(&[9; 32]);
        let ps = Arc::new(Self {
            spec,
            key,
            root,
            model,
            blobs,
            corpus,
            seen: Mutex::default(),
        });
        let router = Router::new()
            .route("/v1/status", get(|State(ps): Ps| async move { Json(ps.status()) }))
            .route(
                "/v1/run",
                get(|State(ps): Ps| async move { toml::to_string(&ps.spec).unwrap() }),
            )
            .route("/v1/model", get(announced_model))
            .route(
                "/v1/corpus",
                get(|State(ps): Ps| async move { Json(ps.corpus.clone()) }),
            )
            .route("/v1/blobs/{hash}", get(blob))
            .route("/v1/tasks", post(claim))
            .route("/v1/uploads", post(declare))
            .route("/v1/uploads/{id}", patch(part))
            .route("/v1/uploads/{id}/commit", post(commit))
            .route("/v1/submissions/{id}", get(submission))
            .route("/v1/epochs/{epoch}", get(epoch))
            .route("/v1/epochs/{epoch}/pages", get(page))
            .with_state(ps.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (ps, url)
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    fn status(&self) -> Status {
        let mut seen = self.seen();
        seen.looks += 1;
        // The round is scored as soon as there is a submission.
        let decided = seen.receipts.values().any(|r| r.body.epoch == seen.epoch);
        Status {
            protocol: alice_api::PROTOCOL_VERSION,
            ps_key: self.key.public(),
            genesis_hash: Hex32(GENESIS),
            run_hash: Hex32(self.spec.run_hash()),
            run: self.spec.name.clone(),
            block: seen.epoch * EPOCH_BLOCKS + 1,
            epoch: seen.epoch,
            phase: if decided { Phase::Settling } else { Phase::Open },
            round_epoch: Some(seen.epoch),
            deadline_block: Some(self.spec.deadline(seen.epoch)),
            model_root: self.root,
            model_step: 0,
            held_out_loss: None,
            submissions: seen.receipts.len() as u32,
            notice: None,
        }
    }

    fn upload(&self, id: Hex32) -> Response {
        let seen = self.seen();
        let (Some(declared), Some(bytes)) = (seen.declared.get(&id), seen.bytes.get(&id)) else {
            return refuse(ErrorCode::NotFound);
        };
        Json(UploadState {
            id,
            offset: bytes.len() as u64,
            bytes: declared.bytes,
            part_bytes_max: 1000,
            committed: seen.receipts.contains_key(&id),
        })
        .into_response()
    }
}

fn tiny_spec(corpus_root: &Hex32, corpus_tokens: u64) -> RunSpec {
    let mut spec = alice_testkit::fixtures::dev();
    spec.name = "tiny".into();
    let m = &mut spec.model;
    (m.hidden, m.layers, m.heads, m.kv_heads, m.ffn, m.context) = (16, 1, 2, 2, 32, 16);
    spec.data.corpus_root = corpus_root.to_string();
    spec.data.corpus_tokens = corpus_tokens;
    (spec.inner.steps, spec.inner.batch_sequences, spec.inner.warmup_steps) = (3, 2, 1);
    (spec.update.chunk, spec.update.k_max, spec.update.budget_bytes) = (512, 64, 2048);
    spec.validate().unwrap();
    spec
}

fn refuse(error: ErrorCode) -> Response {
    let body = ApiError {
        error,
        message: "said the test's server".into(),
        hint: "what to do".into(),
    };
    (StatusCode::from_u16(error.http_status()).unwrap(), Json(body)).into_response()
}

async fn announced_model(State(ps): Ps) -> Json<ModelManifest> {
    let mut model = ps.model.clone();
    let mut seen = ps.seen();
    seen.model_looks += 1;
    if seen.false_step {
        model.deltas[0].model_root = Hex32([6; 32]);
    }
    Json(model)
}

async fn blob(State(ps): Ps, Path(hash): Path<Hex32>) -> Response {
    let Some(mut bytes) = ps.blobs.get(&hash).cloned() else {
        return refuse(ErrorCode::NotFound);
    };
    let mut seen = ps.seen();
    if seen.gone == Some(hash) {
        return refuse(ErrorCode::NotFound);
    }
    if seen.damaged == Some(hash) {
        bytes[0] ^= 1;
        seen.damaged_sent += 1;
    } else {
        *seen.sent.entry(hash).or_default() += 1;
    }
    bytes.into_response()
}

async fn claim(State(ps): Ps, Json(request): Json<ClaimRequest>) -> Response {
    let run_hash = ps.spec.run_hash();
    assert!(request.verify(&GENESIS, &run_hash));
    let on_claim = ps.seen().on_claim.take();
    if let Some(on_claim) = on_claim {
        on_claim();
    }
    let mut seen = ps.seen();
    assert_eq!(request.epoch, seen.epoch);
    seen.claims += 1;
    let deadline_block = ps.spec.deadline(seen.epoch);
    let task = Task {
        task_id: sign::task_id(&run_hash, seen.epoch, 0),
        run_hash: Hex32(run_hash),
        epoch: seen.epoch,
        base_root: ps.root,
        base_step: 0,
        slice: 0,
        fragment: 0,
        epoch_seed: Hex32(alice_data::epoch_seed(&GENESIS, &run_hash, seen.epoch)),
        steps: ps.spec.inner.steps,
        batch_sequences: ps.spec.inner.batch_sequences,
        miner: request.miner,
        payout: request.payout,
        lease_block: deadline_block,
        deadline_block,
    };
    let lease = Lease::new(&ps.key, &GENESIS, task);
    seen.lease = Some(lease.clone());
    Json(lease).into_response()
}

async fn declare(State(ps): Ps, Json(request): Json<DeclareRequest>) -> Response {
    assert!(request.verify(&GENESIS));
    let id = request.id();
    {
        let mut seen = ps.seen();
        seen.ids.insert(id);
        seen.bytes.entry(id).or_default();
        seen.declared.insert(id, request);
    }
    ps.upload(id)
}

#[derive(serde::Deserialize)]
struct Offset {
    offset: usize,
}

async fn part(State(ps): Ps, Path(id): Path<Hex32>, Query(at): Query<Offset>, body: Bytes) -> Response {
    {
        let mut seen = ps.seen();
        let bytes = seen.bytes.entry(id).or_default();
        if at.offset != bytes.len() {
            return refuse(ErrorCode::WrongOffset);
        }
        bytes.extend_from_slice(&body);
    }
    ps.upload(id)
}

async fn commit(State(ps): Ps, Path(id): Path<Hex32>, Json(request): Json<CommitRequest>) -> Response {
    assert!(request.verify(&GENESIS) && request.id == id);
    let mut seen = ps.seen();
    seen.commits += 1;
    if let Some(code) = seen.refuse_commits {
        return refuse(code);
    }
    let declared = seen.declared[&id].clone();
    let bytes = seen.bytes[&id].clone();
    assert_eq!(Hex32(*blake3::hash(&bytes).as_bytes()), declared.blob);
    let task = seen.lease.clone().unwrap().task;
    let sequence = seen.receipts.len() as u32;
    let receipt = seen.receipts.entry(id).or_insert_with(|| {
        let body = ReceiptBody {
            id,
            task_id: task.task_id,
            epoch: task.epoch,
            miner: task.miner,
            payout: task.payout,
            blob: declared.blob,
            bytes: declared.bytes,
            block: task.epoch * EPOCH_BLOCKS + 2,
            sequence,
        };
        Receipt::new(&ps.key, &GENESIS, body)
    });
    let receipt = receipt.clone();
    if seen.commits <= seen.lose_commits {
        return refuse(ErrorCode::Unavailable);
    }
    Json(receipt).into_response()
}

async fn submission(State(ps): Ps, Path(id): Path<Hex32>) -> Response {
    let (receipt, outcome) = {
        let seen = ps.seen();
        (
            seen.receipts.get(&id).cloned(),
            seen.outcome.unwrap_or(Outcome::Accepted),
        )
    };
    let Some(receipt) = receipt else {
        return refuse(ErrorCode::NotFound);
    };
    let body = VerdictBody {
        id,
        epoch: receipt.body.epoch,
        outcome,
        detail: "said the test's server".into(),
        improvement_nano_nats: 1,
        standard_error_nano_nats: 1,
        factor_bits: 1f32.to_bits(),
        norm_bits: 1f32.to_bits(),
        score: if outcome == Outcome::Accepted { 1_000_000_000 } else { 0 },
    };
    Json(SubmissionStatus {
        verdict: Some(Verdict::new(&ps.key, &GENESIS, body)),
        receipt,
    })
    .into_response()
}

async fn epoch(Path(epoch): Path<u32>) -> Json<EpochSummary> {
    Json(EpochSummary {
        epoch,
        model_root: Hex32([0; 32]),
        manifest_hash: Hex32([0; 32]),
        loss_before: 5.0,
        loss_after: 4.9,
        loss_standard_error: 0.1,
        submitted: 1,
        accepted: 1,
        late: 0,
        refused: BTreeMap::new(),
        update_bytes_max: 1,
        update_bytes_mean: 1,
        alpha_used: 1.0,
        settlement: alice_primitives::SettlementStatus::Final,
        settled_block: None,
    })
}

#[derive(serde::Deserialize)]
struct Account {
    account: Hex32,
}

async fn page(Path(epoch): Path<u32>, Query(of): Query<Account>) -> Json<PayoutPage> {
    let entries = [pages::Entry {
        account: of.account.0,
        score: 1_000_000_000,
    }];
    let leaf = pages::leaf(epoch, 0, &entries);
    Json(PayoutPage {
        epoch,
        index: 0,
        pages: 1,
        contributions_root: Hex32(pages::root(&[leaf])),
        entries: vec![PayoutEntry {
            account: of.account,
            score: 1_000_000_000,
        }],
        proof: vec![],
    })
}
