//! A round from training to payout pages, with the real model and the real codec.

mod common;

use alice_api::{
    EpochManifest, EpochSummary, Hex32, Key, MinerHistory, ModelManifest, Outcome, PayoutPage, Receipt, SeedBlock,
    Status, SubmissionStatus,
};
use alice_audit::commands::{
    export::{Format, ModelOf, Numbers, OutputArgs},
    verify::{self, VerifyArgs},
};
use alice_export::{ALICE_FILE, AliceFile};
use alice_primitives::pages;
use alice_ps::{
    PsError,
    commands::export::{self, ExportArgs},
    commands::init::{bind_key, create_state, open_state},
    round::epoch::{score_epoch, void},
    round::scoring::ScoringError,
    round::settle::{attestation, record},
};
use alice_round::{ChainStatus, Stage};
use alice_store::{Master, Opened, model_root};
use alice_update::{Layout, Sparse, aggregate};
use axum::http::StatusCode;
use common::{DEADLINE, EPOCH, Fixture, GENESIS, Ps};
use std::collections::BTreeMap;

fn key(seed: u8) -> Key {
    Key::from_seed(&[seed; 32])
}

/// As the driver does it: sealed at the deadline, seed from two finalised blocks.
async fn seal(ps: &Ps, epoch: u32) {
    ps.state.db().seal_round(epoch).await.unwrap();
    ps.at(epoch * 30 + 18);
    let block = |number: u32| SeedBlock {
        number,
        hash: Hex32([7; 32]),
        vrf_output: Hex32([number as u8; 32]),
    };
    ps.state
        .db()
        .store_seed(epoch, &[block(epoch * 30 + 19), block(epoch * 30 + 20)])
        .await
        .unwrap();
}

/// Two honest miners with one payout account, one whose update has the wrong sign, and four that are no updates for
/// this round.
async fn collect(fixture: &Fixture, ps: &Ps) -> BTreeMap<&'static str, Receipt> {
    ps.open_round().await;
    let mut receipts = BTreeMap::new();
    for (name, seed) in [("honest", 1), ("second", 2), ("negated", 3)] {
        let lease = ps.claim(&key(seed), [if seed == 3 { 30 } else { 10 }; 32]).await;
        let mut d = fixture.train(ps, &lease);
        if name == "negated" {
            d.iter_mut().for_each(|v| *v = -*v);
        }
        let bytes = fixture.encode(&lease, &d);
        assert!(bytes.len() as u64 <= fixture.spec.update.budget_bytes);
        receipts.insert(name, ps.submit(&key(seed), lease.task.task_id, &bytes).await);
    }
    let lease = ps.claim(&key(4), [40; 32]).await;
    receipts.insert(
        "malformed",
        ps.submit(&key(4), lease.task.task_id, b"not an update").await,
    );
    let mut lease = ps.claim(&key(5), [50; 32]).await;
    lease.task.base_root = Hex32([1; 32]);
    let d = vec![0.5; fixture.spec.parameters() as usize];
    let wrong = fixture.encode(&lease, &d);
    receipts.insert("wrong_base", ps.submit(&key(5), lease.task.task_id, &wrong).await);
    let mut lease = ps.claim(&key(6), [60; 32]).await;
    lease.task.run_hash = Hex32([1; 32]);
    let wrong = fixture.encode(&lease, &d);
    receipts.insert("wrong_run", ps.submit(&key(6), lease.task.task_id, &wrong).await);
    // The model is right, as in a round after one that took no step.
    let mut lease = ps.claim(&key(7), [70; 32]).await;
    lease.task.epoch += 1;
    let wrong = fixture.encode(&lease, &d);
    receipts.insert("wrong_epoch", ps.submit(&key(7), lease.task.task_id, &wrong).await);
    receipts
}

async fn status(ps: &Ps, id: Hex32) -> SubmissionStatus {
    ps.get(&format!("/v1/submissions/{id}")).await.parse()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_should_be_scored_published_and_attested_once() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    let receipts = collect(&fixture, &ps).await;
    seal(&ps, EPOCH).await;
    let scorer = fixture.scorer().await;
    let base: Status = ps.get("/v1/status").await.parse();
    assert!(score_epoch(ps.state.clone(), scorer.clone(), EPOCH).await.unwrap());

    // Every submission has a signed verdict with its reason.
    let expected = [
        ("honest", Outcome::Accepted),
        ("second", Outcome::Accepted),
        ("negated", Outcome::NoImprovement),
        ("malformed", Outcome::Malformed),
        ("wrong_base", Outcome::WrongBase),
        ("wrong_run", Outcome::WrongRun),
        ("wrong_epoch", Outcome::WrongBase),
    ];
    let mut scores = 0;
    for (name, outcome) in expected {
        let found = status(&ps, receipts[name].body.id).await;
        let verdict = found.verdict.unwrap();
        assert_eq!(verdict.body.outcome, outcome, "{name}: {}", verdict.body.detail);
        assert!(verdict.verify(&GENESIS) && !verdict.body.detail.is_empty());
        assert_eq!(verdict.body.score > 0, outcome == Outcome::Accepted);
        scores += verdict.body.score;
        if name == "negated" {
            assert!(verdict.body.improvement_nano_nats < 0, "the sign is tested end to end");
        }
    }

    // The summary, the manifest under its hash, and the model.
    let summary: EpochSummary = ps.get(&format!("/v1/epochs/{EPOCH}")).await.parse();
    assert_eq!((summary.submitted, summary.accepted, summary.late), (7, 2, 0));
    assert_eq!(summary.refused.values().sum::<u32>(), 5);
    assert!(
        summary.loss_after < summary.loss_before - 3.0 * summary.loss_standard_error,
        "{summary:?}"
    );
    assert_eq!(
        ps.get("/v1/epochs").await.parse::<Vec<EpochSummary>>(),
        std::slice::from_ref(&summary)
    );
    let bytes = ps.get(&format!("/v1/epochs/{EPOCH}/manifest")).await.body;
    assert_eq!(blake3::hash(&bytes).as_bytes(), &summary.manifest_hash.0);
    assert_eq!(
        ps.get(&format!("/v1/blobs/{}", summary.manifest_hash)).await.body,
        bytes
    );
    let manifest: EpochManifest = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        (manifest.base_root, manifest.model_root),
        (base.model_root, summary.model_root)
    );
    assert_eq!(
        (manifest.submissions.len(), manifest.tasks.len(), manifest.model_step),
        (7, 7, 1)
    );
    assert!(
        manifest
            .submissions
            .windows(2)
            .all(|w| w[0].receipt.id < w[1].receipt.id)
    );
    let now: Status = ps.get("/v1/status").await.parse();
    assert_eq!((now.model_root, now.model_step), (summary.model_root, 1));
    assert_eq!(now.held_out_loss, Some(summary.loss_after));

    audit(&fixture, &ps, &manifest).await;
    export(&fixture, &ps, &manifest, summary.manifest_hash).await;

    // One entry for the account of both honest miners; its page is under the root.
    assert_eq!(manifest.entries.len(), 1);
    assert_eq!(
        (manifest.entries[0].account, manifest.entries[0].score),
        (Hex32([10; 32]), scores)
    );
    assert_eq!(manifest.total_score, scores.to_string());
    let page: PayoutPage = ps
        .get(&format!("/v1/epochs/{EPOCH}/pages?account={}", Hex32([10; 32])))
        .await
        .parse();
    assert_eq!(
        ps.get(&format!("/v1/epochs/{EPOCH}/pages/0"))
            .await
            .parse::<PayoutPage>(),
        page
    );
    let entries: Vec<_> = page
        .entries
        .iter()
        .map(|e| pages::Entry {
            account: e.account.0,
            score: e.score,
        })
        .collect();
    let proof: Vec<_> = page.proof.iter().map(|h| h.0).collect();
    assert!(pages::verify(
        &page.contributions_root.0,
        page.pages,
        0,
        &pages::leaf(EPOCH, 0, &entries),
        &proof
    ));
    ps.get(&format!("/v1/epochs/{EPOCH}/pages?account={}", Hex32([30; 32])))
        .await
        .refused("not_found");

    // Updates are public now, the upload folder is empty, and receipts stay what they were.
    for receipt in receipts.values() {
        assert_eq!(
            ps.get(&format!("/v1/blobs/{}", receipt.body.blob)).await.status,
            StatusCode::OK
        );
        assert_eq!(status(&ps, receipt.body.id).await.receipt, *receipt);
    }
    assert_eq!(std::fs::read_dir(ps.state.files().uploads()).unwrap().count(), 0);
    assert_eq!(
        ps.commit(&key(1), receipts["honest"].body.id).await.parse::<Receipt>(),
        receipts["honest"]
    );
    let history: MinerHistory = ps.get(&format!("/v1/miners/{}", key(1).public())).await.parse();
    assert_eq!((history.submitted, history.accepted), (1, 1));
    // Scoring again (a crash before the driver heard of it) changes nothing.
    assert!(score_epoch(ps.state.clone(), scorer.clone(), EPOCH).await.unwrap());
    assert_eq!(
        ps.get(&format!("/v1/epochs/{EPOCH}")).await.parse::<EpochSummary>(),
        summary
    );

    settle_over_a_restart(&fixture, ps, summary).await;
}

/// The weights after the epoch, recomputed over a real port, say what the manifest says, and pass their check.
async fn export(fixture: &Fixture, ps: &Ps, manifest: &EpochManifest, manifest_hash: Hex32) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(axum::serve(listener, ps.router.clone()).into_future());
    let out = fixture.dir.path().join("weights");
    let args = ExportArgs {
        ps: Some(url.clone()),
        data: None,
        start: None,
        output: OutputArgs {
            chain: None,
            epoch: Some(ModelOf::Epoch(EPOCH)),
            format: Format::Hf,
            numbers: Numbers::Bf16,
            out: out.clone(),
            json: true,
        },
    };
    let done: serde_json::Value = serde_json::from_str(&export::run(&args).await.unwrap()).unwrap();
    assert_eq!(done["model_root"], manifest.model_root.to_string());
    assert_eq!(done["epoch"], EPOCH);
    // Two accepted updates of 20 steps of 4 sequences of 32 tokens.
    assert_eq!(done["tokens_trained"], 2 * 20 * 4 * 32);
    let alice: AliceFile = serde_json::from_slice(&std::fs::read(out.join(ALICE_FILE)).unwrap()).unwrap();
    assert_eq!(
        (alice.manifest_hash, alice.genesis_hash),
        (Some(manifest_hash.0), Some(GENESIS))
    );
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    let loss = manifest.loss_after_nano_nats as f64 / 1e9;
    assert!(card.contains(&format!("| {EPOCH} | 5120 | {loss:.4} |")), "{card}");
    // The server's own weights give the same folder.
    let own = ExportArgs {
        ps: None,
        data: Some(fixture.data_dir()),
        output: OutputArgs {
            epoch: None,
            out: fixture.dir.path().join("weights-data"),
            ..args.output
        },
        ..args
    };
    let same: serde_json::Value = serde_json::from_str(&export::run(&own).await.unwrap()).unwrap();
    assert_eq!((&same["blake3"], &same["epoch"]), (&done["blake3"], &done["epoch"]));
    let gone = ExportArgs {
        output: OutputArgs {
            epoch: Some(ModelOf::First),
            out: fixture.dir.path().join("weights-first"),
            ..own.output
        },
        ..own
    };
    let error = export::run(&gone).await.unwrap_err().to_string();
    assert!(
        error.contains("holds the weights after epoch 2 and no others"),
        "{error}"
    );
    for (recompute, numbers) in [(false, "listed"), (true, "rounding")] {
        let check = VerifyArgs {
            model: out.clone(),
            run: None,
            ps: Some(url.clone()),
            chain: None,
            chain_spec: None,
            root: None,
            recompute,
            start: None,
            work: Some(fixture.dir.path().to_path_buf()),
            json: true,
        };
        let checked: serde_json::Value = serde_json::from_str(&verify::run(&check).await.unwrap()).unwrap();
        assert_eq!(
            (&checked["root_from"], &checked["numbers"]),
            (&"ps".into(), &numbers.into())
        );
    }
    let left = std::fs::read_dir(fixture.dir.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        !left
            .iter()
            .any(|name| name.to_string_lossy().starts_with("alice-weights")),
        "recomputed weights were left behind: {left:?}"
    );
    server.abort();
}

/// Recomputes the step from what is published (docs/spec/protocol.md#aggregation-and-model-step): updates, factors and
/// α from the manifest.
async fn audit(fixture: &Fixture, ps: &Ps, manifest: &EpochManifest) {
    let spec = &fixture.spec;
    let layout = Layout::from_spec(spec);
    let fragments: Vec<Layout> = (0..spec.task.fragments)
        .map(|p| layout.fragment(spec.fragment_tensors(p)))
        .collect();
    let mut updates = Vec::new();
    for record in manifest
        .submissions
        .iter()
        .filter(|s| s.verdict.outcome == Outcome::Accepted)
    {
        let task = manifest
            .tasks
            .iter()
            .find(|t| t.task_id == record.receipt.task_id)
            .unwrap();
        assert_eq!(task.fragment, spec.fragment_of(EPOCH, task.slice));
        let bytes = ps.get(&format!("/v1/blobs/{}", record.receipt.blob)).await.body;
        let update = alice_update::decode(&fragments[task.fragment as usize], &spec.update, &bytes).unwrap();
        let factor = f32::from_bits(record.verdict.factor_bits);
        updates.push((record.receipt.id.0, task.fragment, update, factor));
    }
    let ids: Vec<_> = updates.iter().map(|(id, ..)| *id).collect();
    let mean = aggregate::WeightedMean {
        fragments: &fragments,
        updates: updates
            .iter()
            .map(|(_, p, update, factor)| (*p, update, *factor))
            .collect(),
        entry_weight: spec.outer.entry_weight,
    };
    let seed = aggregate::rounding_seed(&manifest.base_root.0, &ids);
    let published = aggregate::encode_aggregate(&layout, spec.update.publish_bits, &mean, seed);
    let delta = manifest.aggregate.clone().unwrap();
    assert_eq!(blake3::hash(&published).as_bytes(), &delta.blob.0);
    assert_eq!(ps.get(&format!("/v1/blobs/{}", delta.blob)).await.body, published);

    // Joining: snapshot plus deltas.
    let model: ModelManifest = ps.get("/v1/model").await.parse();
    assert_eq!(
        (model.model_root, model.snapshot.step, model.deltas.len()),
        (manifest.model_root, 0, 1)
    );
    let mut theta = alice_init::init_theta(&fixture.spec, &GENESIS);
    let d = aggregate::decode_aggregate(&layout, &published).unwrap();
    aggregate::apply(&mut theta, &d, f32::from_bits(delta.alpha_bits));
    assert_eq!(
        alice_store::model_root(&fixture.spec.tensors(), &theta),
        manifest.model_root.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fragments_should_be_scored_each_for_itself_and_make_one_step() {
    let fixture = Fixture::in_fragments().await;
    let ps = fixture.open().await;
    ps.open_round().await;
    let mut norms = vec![Vec::new(); 2];
    for seed in 1..=4 {
        let lease = ps.claim(&key(seed), [seed; 32]).await;
        let fragment = lease.task.fragment;
        assert_eq!(fragment, fixture.spec.fragment_of(EPOCH, lease.task.slice));
        let d = fixture.train(&ps, &lease);
        assert_eq!(d.len() as u64, fixture.spec.fragment_parameters(fragment));
        let bytes = fixture.encode(&lease, &d);
        let receipt = ps.submit(&key(seed), lease.task.task_id, &bytes).await;
        norms[fragment as usize].push(receipt.body.id);
    }
    // An update trained for one fragment is malformed for the other.
    let mut lease = ps.claim(&key(5), [5; 32]).await;
    lease.task.fragment = 1 - lease.task.fragment;
    let d = fixture.train(&ps, &lease);
    let astray = ps
        .submit(&key(5), lease.task.task_id, &fixture.encode(&lease, &d))
        .await;
    assert!(norms.iter().all(|ids| ids.len() == 2), "slices take turns");
    seal(&ps, EPOCH).await;
    let scorer = fixture.scorer().await;
    assert!(score_epoch(ps.state.clone(), scorer, EPOCH).await.unwrap());
    let verdict = status(&ps, astray.body.id).await.verdict.unwrap().body;
    assert_eq!(verdict.outcome, Outcome::Malformed, "{}", verdict.detail);
    let bytes = ps.get(&format!("/v1/epochs/{EPOCH}/manifest")).await.body;
    let manifest: EpochManifest = serde_json::from_slice(&bytes).unwrap();
    for (fragment, ids) in norms.iter().enumerate() {
        let mut of_fragment = Vec::new();
        for id in ids {
            let verdict = status(&ps, *id).await.verdict.unwrap().body;
            assert_eq!(verdict.outcome, Outcome::Accepted, "{}", verdict.detail);
            // Pay is relative to the fragment's own median.
            assert!((500_000_000..=1_500_000_000).contains(&verdict.score), "{verdict:?}");
            of_fragment.push(f32::from_bits(verdict.norm_bits));
        }
        let lower = of_fragment.iter().copied().fold(f32::INFINITY, f32::min);
        assert_eq!(f32::from_bits(manifest.median_norm_bits[fragment]), lower);
    }
    let summary: EpochSummary = ps.get(&format!("/v1/epochs/{EPOCH}")).await.parse();
    assert!(summary.loss_after < summary.loss_before, "{summary:?}");
    audit(&fixture, &ps, &manifest).await;
}

/// Killed between signing and sending: the stored commitment is sent, whatever the chain says by then.
async fn settle_over_a_restart(fixture: &Fixture, ps: Ps, summary: EpochSummary) {
    let signed = attestation(&ps.state, EPOCH, 0, 7, [3; 32]).await.unwrap().unwrap();
    assert_eq!(signed.commitment.model_root, summary.model_root.0);
    assert_eq!(
        (
            signed.commitment.set_id,
            signed.commitment.parent,
            signed.commitment.pages
        ),
        (7, [3; 32], 1)
    );
    let payload = signed.commitment.attest_payload(&GENESIS, 0);
    assert!(alice_api::sign::verify(
        &ps.state.key().public(),
        &payload,
        &alice_api::Hex64(signed.signature)
    ));
    drop(ps);

    let ps = fixture.open().await;
    assert_eq!(ps.state.db().unsettled().await.unwrap(), [EPOCH]);
    let again = attestation(&ps.state, EPOCH, 0, 8, [4; 32]).await.unwrap().unwrap();
    assert_eq!(again, signed, "never a second signature for the same epoch and round");
    let reopened = attestation(&ps.state, EPOCH, 1, 8, [4; 32]).await.unwrap().unwrap();
    assert_eq!((reopened.round, reopened.commitment.parent), (1, [4; 32]));
    assert_eq!(reopened.commitment.model_root, signed.commitment.model_root);
    assert_eq!(
        attestation(&ps.state, EPOCH, 0, 9, [5; 32]).await.unwrap().unwrap(),
        signed
    );

    record(&ps.state, EPOCH, ChainStatus::Settled { block: 95 })
        .await
        .unwrap();
    assert!(ps.state.db().unsettled().await.unwrap().is_empty());
    let settled: EpochSummary = ps.get(&format!("/v1/epochs/{EPOCH}")).await.parse();
    assert_eq!(
        (settled.settlement.as_str(), settled.settled_block),
        ("settled", Some(95))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_without_accepted_work_should_give_verdicts_and_no_attestation() {
    let fixture = Fixture::with(false).await;
    let ps = fixture.open().await;
    ps.open_round().await;
    let lease = ps.claim(&key(3), [30; 32]).await;
    let negated: Vec<f32> = fixture.train(&ps, &lease).iter().map(|v| -v).collect();
    let receipt = ps
        .submit(&key(3), lease.task.task_id, &fixture.encode(&lease, &negated))
        .await;
    let late = ps.claim(&key(4), [40; 32]).await;
    let declaration = ps.declaration(&key(4), late.task.task_id, b"abc");
    ps.post("/v1/uploads", &declaration)
        .await
        .parse::<alice_api::UploadState>();
    let before: Status = ps.get("/v1/status").await.parse();
    seal(&ps, EPOCH).await;
    let scorer = fixture.scorer().await;
    assert!(!score_epoch(ps.state.clone(), scorer.clone(), EPOCH).await.unwrap());
    assert_eq!(
        status(&ps, receipt.body.id).await.verdict.unwrap().body.outcome,
        Outcome::NoImprovement
    );
    assert_eq!(attestation(&ps.state, EPOCH, 0, 1, [0; 32]).await.unwrap(), None);
    assert!(ps.state.db().unsettled().await.unwrap().is_empty());
    // A commit that arrives even now is refused as late, and counted.
    ps.at(DEADLINE + 9);
    ps.commit(&key(4), declaration.id()).await.refused("late");
    let summary: EpochSummary = ps.get(&format!("/v1/epochs/{EPOCH}")).await.parse();
    assert_eq!(
        (summary.accepted, summary.late, summary.settlement.as_str()),
        (0, 1, "forfeited")
    );
    assert_eq!(
        (summary.model_root, summary.loss_after),
        (before.model_root, summary.loss_before)
    );
    let manifest: EpochManifest = ps.get(&format!("/v1/epochs/{EPOCH}/manifest")).await.parse();
    assert_eq!(
        (manifest.aggregate, manifest.entries.len(), manifest.alpha_bits),
        (None, 0, 0)
    );

    // Each reserve sequence once: the next round's draw has none of this one's.
    let used = ps.state.db().reserve_used(EPOCH + 1).await.unwrap();
    assert_eq!(used.len(), 96);
    ps.state.db().open_round(EPOCH + 1, 90).await.unwrap();
    seal(&ps, EPOCH + 1).await;
    // Nothing submitted at all: the round closes and leaves no epoch.
    assert!(!score_epoch(ps.state.clone(), scorer, EPOCH + 1).await.unwrap());
    ps.get(&format!("/v1/epochs/{}", EPOCH + 1)).await.refused("not_found");
}

fn open_theta(ps: &Ps, root: &[u8; 32]) -> Master {
    Master::open_at(&ps.state.files().theta(), &ps.state.run().tensors, root, &mut |_, _| ()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_step_should_bring_a_snapshot_and_proven_keys() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    let scorer = fixture.scorer().await;
    let mut claimed = Vec::new();
    for epoch in [EPOCH, EPOCH + 1] {
        ps.state.db().open_round(epoch, epoch * 30).await.unwrap();
        ps.at(epoch * 30);
        let request = alice_api::ClaimRequest::new(&key(1), &GENESIS, &ps.state.run().run_hash, epoch, Hex32([10; 32]));
        let lease: alice_api::Lease = ps.post("/v1/tasks", &request).await.parse();
        assert_eq!(lease.task.base_step, epoch - EPOCH);
        let bytes = fixture.encode(&lease, &fixture.train(&ps, &lease));
        let receipt = ps.submit(&key(1), lease.task.task_id, &bytes).await;
        let collected = ps
            .state
            .db()
            .collected(epoch, |id| ps.state.files().upload(id))
            .await
            .unwrap();
        assert_eq!(collected.iter().map(|c| c.proven).collect::<Vec<_>>(), [epoch > EPOCH]);
        seal(&ps, epoch).await;
        if epoch > EPOCH {
            // As if the server had been killed between the model's step and the results: the step is taken back.
            let d = Sparse {
                indices: vec![0, 70_000],
                values: vec![1.0, -1.0],
            };
            let theta = open_theta(&ps, &lease.task.base_root.0).step(&d, 0.5).unwrap();
            assert_eq!(theta.previous(), Some(lease.task.base_root.0));
        }
        assert!(score_epoch(ps.state.clone(), scorer.clone(), epoch).await.unwrap());
        claimed.push(receipt);
    }
    let model: ModelManifest = ps.get("/v1/model").await.parse();
    assert_eq!((model.model_step, model.snapshot.step, model.deltas.len()), (2, 2, 0));
    assert_eq!(model.snapshot.model_root, model.model_root);
    // Those who have the weights before need no snapshot.
    let earlier = model.earlier.unwrap();
    let first: Vec<_> = (ps.state.db().snapshots().await.unwrap().iter().map(|s| s.model_root)).collect();
    assert_eq!(earlier.model_root, first[0]);
    let roots: Vec<_> = earlier.deltas.iter().map(|delta| delta.model_root).collect();
    let after_first: EpochSummary = ps.get(&format!("/v1/epochs/{EPOCH}")).await.parse();
    assert_eq!(roots, [after_first.model_root, model.model_root]);
    let theta = open_theta(&ps, &model.model_root.0);
    assert_eq!(theta.opened(), Opened::AsLeft);
    assert_eq!(model_root(&ps.state.run().tensors, theta.theta()), theta.root());
    let summary: EpochSummary = ps.get(&format!("/v1/epochs/{EPOCH}")).await.parse();
    assert_eq!(theta.previous(), Some(summary.model_root.0));
    let mut files: Vec<_> = std::fs::read_dir(ps.state.files().theta_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(
        files,
        ["theta.f32", "theta.f32.tree", "theta.f32.undo"],
        "the weights once"
    );
    let summaries: Vec<EpochSummary> = ps.get("/v1/epochs").await.parse();
    assert_eq!(
        summaries.iter().map(|s| s.epoch).collect::<Vec<_>>(),
        [EPOCH + 1, EPOCH]
    );
    let bounded: Vec<EpochSummary> = ps
        .get(&format!("/v1/epochs?before={}&limit=1", EPOCH + 1))
        .await
        .parse();
    assert_eq!(bounded.iter().map(|s| s.epoch).collect::<Vec<_>>(), [EPOCH]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_upload_should_void_and_blame_nobody() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    ps.open_round().await;
    let lease = ps.claim(&key(1), [10; 32]).await;
    let receipt = ps.submit(&key(1), lease.task.task_id, b"some bytes").await;
    std::fs::write(ps.state.files().upload(&receipt.body.id), b"SOME bytes").unwrap();
    seal(&ps, EPOCH).await;
    score_epoch(ps.state.clone(), fixture.scorer().await, EPOCH)
        .await
        .unwrap();
    let verdict = status(&ps, receipt.body.id).await.verdict.unwrap();
    assert_eq!(verdict.body.outcome, Outcome::Voided);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_cannot_be_read_should_cost_nobody_the_pay() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    ps.open_round().await;
    let lease = ps.claim(&key(1), [10; 32]).await;
    let bytes = fixture.encode(&lease, &fixture.train(&ps, &lease));
    let receipt = ps.submit(&key(1), lease.task.task_id, &bytes).await;
    let gone = ps.claim(&key(2), [20; 32]).await;
    let gone = ps.submit(&key(2), gone.task.task_id, b"some bytes").await;
    seal(&ps, EPOCH).await;
    // A folder in the file's place: reading it fails, as it does without descriptors or on a broken disk.
    let path = ps.state.files().upload(&receipt.body.id);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    std::fs::remove_file(ps.state.files().upload(&gone.body.id)).unwrap();
    let scorer = fixture.scorer().await;
    let error = score_epoch(ps.state.clone(), scorer.clone(), EPOCH).await.unwrap_err();
    assert!(
        matches!(error, PsError::Scoring(ScoringError::Upload { id, .. }) if id == receipt.body.id),
        "{error}"
    );
    assert_eq!(status(&ps, receipt.body.id).await.verdict, None, "nothing is decided");
    // The disk works again: the miner is paid. A file that is gone for good is voided.
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    assert!(score_epoch(ps.state.clone(), scorer, EPOCH).await.unwrap());
    let outcome = async |id| status(&ps, id).await.verdict.unwrap().body.outcome;
    assert_eq!(outcome(receipt.body.id).await, Outcome::Accepted);
    assert_eq!(outcome(gone.body.id).await, Outcome::Voided);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_that_cannot_be_scored_should_be_voided_with_a_reason() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    ps.open_round().await;
    let lease = ps.claim(&key(1), [10; 32]).await;
    let receipt = ps.submit(&key(1), lease.task.task_id, b"some bytes").await;
    seal(&ps, EPOCH).await;
    void(&ps.state, EPOCH, "the device is on fire").await.unwrap();
    let verdict = status(&ps, receipt.body.id).await.verdict.unwrap();
    assert_eq!((verdict.body.outcome, verdict.body.score), (Outcome::Voided, 0));
    assert!(verdict.verify(&GENESIS) && verdict.body.detail.contains("on fire"));
    // Over for good: nothing to attest, nothing to score, and the next round may open.
    assert_eq!(attestation(&ps.state, EPOCH, 0, 1, [0; 32]).await.unwrap(), None);
    assert_eq!(
        ps.state.db().newest_round().await.unwrap().unwrap().stage,
        Stage::Scored
    );
    assert_eq!(std::fs::read_dir(ps.state.files().uploads()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_should_keep_its_key() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    for _ in 0..2 {
        bind_key(ps.state.db(), key(1).public()).await.unwrap();
    }
    let other = bind_key(ps.state.db(), key(2).public()).await.unwrap_err();
    assert_eq!(other.exit_code(), 3);
    assert!(other.to_string().contains(&key(1).public().to_string()), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_should_be_taken_while_the_view_of_the_chain_is_out_of_date() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    ps.open_round().await;
    let lease = ps.claim(&key(1), [10; 32]).await;
    let declaration = ps.declaration(&key(1), lease.task.task_id, b"abc");
    ps.post("/v1/uploads", &declaration)
        .await
        .parse::<alice_api::UploadState>();
    ps.patch(&declaration.id(), 0, b"abc")
        .await
        .parse::<alice_api::UploadState>();
    ps.view.send_modify(|v| v.stale = true);
    ps.commit(&key(1), declaration.id()).await.refused("unavailable");
    ps.post("/v1/tasks", &ps.claim_request(&key(2), [20; 32]))
        .await
        .refused("unavailable");
    ps.view.send_modify(|v| v.stale = false);
    ps.commit(&key(1), declaration.id()).await.parse::<Receipt>();
}

#[tokio::test(flavor = "multi_thread")]
async fn init_should_be_idempotent_and_refuse_another_run_or_network() {
    let fixture = Fixture::new().await;
    let (data, text, spec) = (fixture.data_dir(), fixture.text.clone(), fixture.spec.clone());
    let first = fixture.open().await.state.db().model_step().await.unwrap().unwrap();
    let again = create_state(&data, GENESIS, text.clone(), spec.clone()).await.unwrap();
    assert_eq!((again.created, again.model_root), (false, first.root));
    let other_network = create_state(&data, [1; 32], text.clone(), spec.clone())
        .await
        .unwrap_err();
    assert!(
        other_network.to_string().contains("the network of data_dir"),
        "{other_network}"
    );
    let mut other = spec.clone();
    other.outer.alpha = 0.5;
    let other_run = create_state(&data, GENESIS, text.clone(), other.clone())
        .await
        .unwrap_err();
    assert_eq!(other_run.exit_code(), 3);
    assert!(open_state(&data, text.clone(), other).await.is_err());
    let empty = fixture.dir.path().join("empty");
    let missing = open_state(&empty, text, spec).await.err().unwrap();
    assert!(missing.to_string().contains("alice-ps init"), "{missing}");
}
