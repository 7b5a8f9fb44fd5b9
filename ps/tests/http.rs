//! The API, over its router or a real port: what miners may rely on, and every refusal.

mod common;

use alice_api::{
    ClaimRequest, Client, CommitRequest, CorpusManifest, DeclareRequest, Hex32, Key, Lease, ModelManifest, Status,
    SubmissionStatus, UploadState, ss58,
};
use alice_corpus::YARDSTICK_FILE;
use alice_data::{About, CORPUS_FILE, Manifest, PartName, RESERVE_FILE, ShardEntry, SourceEntry, SplitRule};
use alice_ps::{PsError, corpus::Corpus};
use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use bytes::Bytes;
use common::{DEADLINE, EPOCH, Fixture, GENESIS, START};

const PAYOUT: [u8; 32] = [9; 32];

fn key(seed: u8) -> Key {
    Key::from_seed(&[seed; 32])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miner_should_get_from_claim_to_receipt_over_a_real_port() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    ps.open_round().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let server = tokio::spawn(axum::serve(listener, ps.router.clone()).into_future());

    let status = client.status().await.unwrap();
    assert_eq!(
        (status.block, status.epoch, status.round_epoch),
        (START, EPOCH, Some(EPOCH))
    );
    assert_eq!((status.deadline_block, status.notice), (Some(DEADLINE), None));
    assert_eq!(client.run().await.unwrap(), fixture.text);
    let model = client.model().await.unwrap();
    assert_eq!(
        (model.model_root, model.model_step, model.deltas.len()),
        (status.model_root, 0, 0)
    );
    for chunk in &model.snapshot.chunks {
        client.blob(chunk, 1 << 24).await.unwrap();
    }
    let corpus = client.corpus().await.unwrap();
    assert_eq!(corpus.root, Hex32(fixture.spec.corpus_root()));
    client.blob(&corpus.shards[0].blob, 1 << 24).await.unwrap();

    let miner = key(7);
    let claim = ps.claim_request(&miner, PAYOUT);
    let lease = client.claim(&claim).await.unwrap();
    assert!(lease.verify(&status.ps_key, &GENESIS));
    assert_eq!(
        client.claim(&claim).await.unwrap(),
        lease,
        "a lost answer costs nothing"
    );
    let bytes = Bytes::from(vec![5u8; 12_345]);
    let declaration = ps.declaration(&miner, lease.task.task_id, &bytes);
    let state = client.upload(&declaration, &bytes, &mut |_| ()).await.unwrap();
    assert_eq!(state.offset, 12_345);
    let commit = ps.commitment(&miner, state.id);
    let receipt = client.commit(&commit).await.unwrap();
    assert!(receipt.verify(&GENESIS));
    assert_eq!(
        (receipt.body.sequence, receipt.body.block, receipt.body.payout),
        (0, START, Hex32(PAYOUT))
    );
    assert_eq!(client.commit(&commit).await.unwrap(), receipt);
    assert!(client.upload_state(&state.id).await.unwrap().committed);
    let found = client.submission(&state.id).await.unwrap();
    assert_eq!(found, SubmissionStatus { receipt, verdict: None });
    let private = client.blob(&declaration.blob, 1 << 20).await.unwrap_err();
    assert_eq!(
        private.code().map(|c| c.code()),
        Some("not_found"),
        "updates are private until they are scored"
    );
    for address in [
        ss58::encode(&PAYOUT),
        Hex32(PAYOUT).to_string(),
        miner.public().to_string(),
    ] {
        let history: alice_api::MinerHistory = ps.get(&format!("/v1/miners/{address}")).await.parse();
        assert_eq!(
            (history.submitted, history.accepted, history.submissions.len()),
            (1, 0, 1)
        );
    }
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_no_requests_should_be_refused_with_a_reason() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    ps.open_round().await;
    ps.get("/nothing").await.refused("not_found");
    ps.get("/v1/nothing").await.refused("not_found");
    let wrong_method = ps
        .send(Request::delete("/v1/status").body(Body::empty()).unwrap())
        .await;
    wrong_method.refused("bad_request");
    for path in [
        "/v1/tasks",
        "/v1/uploads",
        &format!("/v1/uploads/{}/commit", Hex32([1; 32])),
    ] {
        for body in ["", "{", "[]", "{\"miner\": 3}", "\u{0}\u{1}"] {
            ps.send(Request::post(path).body(Body::from(body)).unwrap())
                .await
                .refused("bad_request");
        }
        // Announced: refused without reading; not announced: refused at the limit.
        let announced = Request::post(path)
            .header("content-length", 16 * 1024 + 1)
            .body(Body::empty())
            .unwrap();
        ps.send(announced).await.refused("too_large");
        let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 4096])));
        ps.send(Request::post(path).body(Body::from_stream(endless)).unwrap())
            .await
            .refused("too_large");
        let nonsense = Request::post(path)
            .header("content-length", "many")
            .body(Body::empty())
            .unwrap();
        ps.send(nonsense).await.refused("bad_request");
    }
    for path in [
        "/v1/uploads/xyz",
        "/v1/submissions/xyz",
        "/v1/blobs/xyz",
        "/v1/miners/xyz",
        "/v1/epochs/-1",
    ] {
        ps.get(path).await.refused("bad_request");
    }
    for path in [
        "/v1/epochs/99999999999999",
        "/v1/epochs/1/pages",
        "/v1/epochs/1/pages?account=zzz",
        "/v1/epochs?limit=x",
    ] {
        ps.get(path).await.refused("bad_request");
    }
    let generic = ss58::encode_with_prefix(&PAYOUT, 42);
    ps.get(&format!("/v1/miners/{generic}")).await.refused("bad_request");
    let zero = Hex32([0; 32]);
    for path in [
        format!("/v1/uploads/{zero}"),
        format!("/v1/submissions/{zero}"),
        format!("/v1/blobs/{zero}"),
    ] {
        ps.get(&path).await.refused("not_found");
    }
    for path in [
        "/v1/epochs/3",
        "/v1/epochs/3/manifest",
        "/v1/epochs/3/pages/0",
        &format!("/v1/miners/{zero}"),
    ] {
        ps.get(path).await.refused("not_found");
    }
    ps.get(&format!("/v1/epochs/3/pages?account={}", ss58::encode(&PAYOUT)))
        .await
        .refused("not_found");
    ps.patch(&zero, 0, b"x").await.refused("not_found");
    let no_offset = Request::patch(format!("/v1/uploads/{zero}"))
        .body(Body::empty())
        .unwrap();
    ps.send(no_offset).await.refused("bad_request");
    let huge = Request::patch(format!("/v1/uploads/{zero}?offset=0")).header("content-length", (1 << 20) + 1);
    ps.send(huge.body(Body::empty()).unwrap()).await.refused("too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_should_be_bounded_by_round_slices_and_leases() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    ps.post("/v1/tasks", &ps.claim_request(&key(1), PAYOUT))
        .await
        .refused("unavailable");
    ps.at(START);
    ps.post("/v1/tasks", &ps.claim_request(&key(1), PAYOUT))
        .await
        .refused("no_round");
    ps.open_round().await;
    let run_hash = ps.state.run().run_hash;
    let other_epoch = ClaimRequest::new(&key(1), &GENESIS, &run_hash, EPOCH + 1, Hex32(PAYOUT));
    ps.post("/v1/tasks", &other_epoch).await.refused("no_round");
    let other_run = ClaimRequest::new(&key(1), &GENESIS, &[3; 32], EPOCH, Hex32(PAYOUT));
    ps.post("/v1/tasks", &other_run).await.refused("bad_signature");
    let mut forged = ps.claim_request(&key(1), PAYOUT);
    forged.payout = Hex32([8; 32]);
    ps.post("/v1/tasks", &forged).await.refused("bad_signature");

    let mut slices = Vec::new();
    for seed in 1..=7 {
        let lease = ps.claim(&key(seed), PAYOUT).await;
        assert_eq!(lease.task.lease_block, START + 6);
        slices.push(lease.task.slice);
    }
    assert_eq!(slices, [0, 1, 2, 3, 4, 5, 6]);
    ps.post("/v1/tasks", &ps.claim_request(&key(8), PAYOUT))
        .await
        .refused("no_task");
    let moved = ps.claim(&key(3), [1; 32]).await;
    assert_eq!(
        (moved.task.slice, moved.task.payout),
        (2, Hex32([1; 32])),
        "one task for a key at a time"
    );
    // When leases expire their slices are free again.
    ps.at(START + 7);
    let again = ps.claim(&key(8), PAYOUT).await;
    assert_eq!((again.task.slice, again.task.miner), (0, key(8).public()));
    ps.at(DEADLINE);
    ps.post("/v1/tasks", &ps.claim_request(&key(8), PAYOUT))
        .await
        .refused("no_round");
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_should_be_checked_at_every_step() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    ps.open_round().await;
    let (miner, other) = (key(1), key(2));
    let task = ps.claim(&miner, PAYOUT).await.task.task_id;
    let bytes = vec![3u8; 5000];

    let unknown = ps.declaration(&miner, Hex32([5; 32]), &bytes);
    ps.post("/v1/uploads", &unknown).await.refused("unknown_task");
    ps.post("/v1/uploads", &ps.declaration(&other, task, &bytes))
        .await
        .refused("not_your_task");
    let big = DeclareRequest::new(&miner, &GENESIS, task, Hex32([1; 32]), 16_385);
    ps.post("/v1/uploads", &big).await.refused("too_large");
    let empty = DeclareRequest::new(&miner, &GENESIS, task, Hex32([1; 32]), 0);
    ps.post("/v1/uploads", &empty).await.refused("bad_request");
    let mut forged = ps.declaration(&miner, task, &bytes);
    forged.bytes += 1;
    ps.post("/v1/uploads", &forged).await.refused("bad_signature");

    let declaration = ps.declaration(&miner, task, &bytes);
    let state: UploadState = ps.post("/v1/uploads", &declaration).await.parse();
    assert_eq!(
        (state.offset, state.bytes, state.part_bytes_max, state.committed),
        (0, 5000, 1 << 20, false)
    );
    let id = state.id;
    ps.commit(&miner, id).await.refused("incomplete");
    ps.patch(&id, 7, &bytes[7..]).await.refused("wrong_offset");
    assert_eq!(
        ps.patch(&id, 0, &bytes[..2000]).await.parse::<UploadState>().offset,
        2000
    );
    ps.patch(&id, 0, &bytes).await.refused("wrong_offset");
    ps.patch(&id, 2000, &bytes[..3001]).await.refused("too_large");
    ps.commit(&miner, id).await.refused("incomplete");
    // Bytes that are not what was declared: thrown away, and the right ones can be sent.
    assert_eq!(
        ps.patch(&id, 2000, &[4u8; 3000]).await.parse::<UploadState>().offset,
        5000
    );
    ps.commit(&miner, id).await.refused("hash_mismatch");
    assert_eq!(
        ps.get(&format!("/v1/uploads/{id}")).await.parse::<UploadState>().offset,
        0
    );
    ps.patch(&id, 0, &bytes).await.parse::<UploadState>();
    ps.post(
        &format!("/v1/uploads/{id}/commit"),
        &CommitRequest::new(&other, &GENESIS, id),
    )
    .await
    .refused("not_your_task");
    ps.post(
        &format!("/v1/uploads/{id}/commit"),
        &CommitRequest::new(&miner, &[0; 32], id),
    )
    .await
    .refused("bad_signature");
    ps.post(
        &format!("/v1/uploads/{}/commit", Hex32([1; 32])),
        &ps.commitment(&miner, id),
    )
    .await
    .refused("bad_request");
    ps.commit(&miner, Hex32([1; 32])).await.refused("not_found");

    // A second update is declared before the first is committed, and may not follow it.
    let second = ps.declaration(&miner, task, &[8u8; 100]);
    ps.post("/v1/uploads", &second).await.parse::<UploadState>();
    ps.patch(&second.id(), 0, &[8u8; 100]).await.parse::<UploadState>();
    for filler in 0..2u8 {
        ps.post("/v1/uploads", &ps.declaration(&miner, task, &[filler; 10]))
            .await
            .parse::<UploadState>();
    }
    ps.post("/v1/uploads", &ps.declaration(&miner, task, &[99; 10]))
        .await
        .refused("no_task");
    let receipt: alice_api::Receipt = ps.commit(&miner, id).await.parse();
    ps.commit(&miner, second.id()).await.refused("duplicate");
    ps.post("/v1/uploads", &ps.declaration(&miner, task, &[77; 10]))
        .await
        .refused("duplicate");
    assert_eq!(ps.commit(&miner, id).await.parse::<alice_api::Receipt>(), receipt);
    assert_eq!(
        ps.patch(&id, 0, b"more").await.parse::<UploadState>().offset,
        5000,
        "committed bytes do not change"
    );
    assert_eq!(
        ps.post("/v1/uploads", &declaration).await.parse::<UploadState>().offset,
        5000
    );
    // The same receipt for ever, also when the round is over.
    ps.state.db().seal_round(EPOCH).await.unwrap();
    ps.at(DEADLINE + 5);
    assert_eq!(ps.commit(&miner, id).await.parse::<alice_api::Receipt>(), receipt);
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_should_be_late_from_the_deadline_on() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    ps.open_round().await;
    let miners: Vec<Key> = (1..=3).map(key).collect();
    ps.at(DEADLINE - 2);
    let mut ids = Vec::new();
    for miner in &miners {
        let lease = ps.claim(miner, PAYOUT).await;
        assert_eq!(lease.task.lease_block, DEADLINE, "a lease never outlives the deadline");
        let declaration = ps.declaration(miner, lease.task.task_id, b"abc");
        ps.post("/v1/uploads", &declaration).await.parse::<UploadState>();
        ps.patch(&declaration.id(), 0, b"abc").await.parse::<UploadState>();
        ids.push(declaration.id());
    }
    ps.at(DEADLINE - 1);
    ps.commit(&miners[0], ids[0]).await.parse::<alice_api::Receipt>();
    // At the deadline, although the driver has not sealed yet.
    ps.at(DEADLINE);
    ps.commit(&miners[1], ids[1]).await.refused("late");
    ps.commit(&miners[1], ids[1]).await.refused("late");
    // Sealed, although this view of the chain went back behind the deadline.
    ps.state.db().seal_round(EPOCH).await.unwrap();
    ps.at(DEADLINE - 1);
    ps.commit(&miners[2], ids[2]).await.refused("late");
    ps.patch(&ids[2], 3, b"").await.refused("late");
    assert_eq!(
        ps.state.db().refusals(EPOCH).await.unwrap().get("late"),
        Some(&2),
        "counted once for each upload"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_lease_should_be_told() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    ps.open_round().await;
    let miner = key(1);
    let lease = ps.claim(&miner, PAYOUT).await;
    let declaration = ps.declaration(&miner, lease.task.task_id, b"abc");
    ps.post("/v1/uploads", &declaration).await.parse::<UploadState>();
    ps.patch(&declaration.id(), 0, b"abc").await.parse::<UploadState>();
    ps.at(lease.task.lease_block + 1);
    ps.commit(&miner, declaration.id()).await.refused("lease_expired");
    ps.post("/v1/uploads", &ps.declaration(&miner, lease.task.task_id, b"abcd"))
        .await
        .refused("lease_expired");
    let next: Lease = ps.claim(&miner, PAYOUT).await;
    assert_eq!(next.task.slice, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_round_should_go_on_after_the_state_is_reopened() {
    let fixture = Fixture::new().await;
    let (a, b) = (key(1), key(2));
    let (receipt, lease, id, status) = {
        let ps = fixture.open().await;
        ps.open_round().await;
        let first = ps.claim(&a, PAYOUT).await;
        let receipt = ps.submit(&a, first.task.task_id, b"the first update").await;
        let lease = ps.claim(&b, PAYOUT).await;
        let declaration = ps.declaration(&b, lease.task.task_id, b"the second update");
        ps.post("/v1/uploads", &declaration).await.parse::<UploadState>();
        ps.patch(&declaration.id(), 0, b"the sec").await.parse::<UploadState>();
        // Dropped without closing anything, as kill -9 does. Bytes of a part that was not acknowledged may be there.
        let path = ps.state.files().upload(&declaration.id());
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend_from_slice(b"torn write");
        std::fs::write(&path, torn).unwrap();
        (
            receipt,
            lease,
            declaration.id(),
            ps.get("/v1/status").await.parse::<Status>(),
        )
    };
    let ps = fixture.open().await;
    ps.at(START + 1);
    let now: Status = ps.get("/v1/status").await.parse();
    assert_eq!(
        (now.model_root, now.round_epoch, now.submissions),
        (status.model_root, Some(EPOCH), 1)
    );
    assert_eq!(
        ps.commit(&a, receipt.body.id).await.parse::<alice_api::Receipt>(),
        receipt
    );
    assert_eq!(ps.claim(&b, PAYOUT).await, lease);
    assert_eq!(
        ps.get(&format!("/v1/uploads/{id}")).await.parse::<UploadState>().offset,
        7
    );
    ps.patch(&id, 7, b"ond update").await.parse::<UploadState>();
    let second: alice_api::Receipt = ps.commit(&b, id).await.parse();
    assert_eq!(second.body.sequence, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_should_be_those_of_key_and_account_newest_first() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    ps.open_round().await;
    // Key 1 is paid itself, and for key 2; key 3 is paid to another account, and key 4 has only claimed.
    let own = key(1).public();
    let mut ids = Vec::new();
    for (seed, payout) in [(1, own.0), (2, own.0), (3, PAYOUT)] {
        let task = ps.claim(&key(seed), payout).await.task.task_id;
        ids.push(ps.submit(&key(seed), task, &[seed; 10]).await.body.id);
    }
    ps.claim(&key(4), PAYOUT).await;
    let history = async |account: Hex32| {
        let found: alice_api::MinerHistory = ps.get(&format!("/v1/miners/{account}")).await.parse();
        assert_eq!(found.submitted as usize, found.submissions.len());
        found.submissions.iter().map(|s| s.receipt.body.id).collect::<Vec<_>>()
    };
    assert_eq!(history(own).await, [ids[1], ids[0]], "its own is counted once");
    assert_eq!(history(key(2).public()).await, [ids[1]]);
    assert_eq!(history(Hex32(PAYOUT)).await, [ids[2]]);
    assert_eq!(history(key(4).public()).await, []);
    ps.get(&format!("/v1/miners/{}", key(5).public()))
        .await
        .refused("not_found");
}

/// A manifest that describes its text.
fn described(entries: Vec<ShardEntry>, part: PartName, vocab: u32) -> Manifest {
    let source = SourceEntry {
        name: "addresses".into(),
        license: "PDDL-1.0".into(),
        url: Some("https://example.org/addresses".into()),
        documents: 3,
        bytes: 999,
        left_out: None,
    };
    let about = About {
        format: alice_data::CORPUS_FORMAT.into(),
        part,
        generation: None,
        split: SplitRule::default(),
        tokenizer: "bytes".into(),
        vocab,
        documents: 3,
        bytes: 999,
        sources: vec![source],
    };
    Manifest {
        about: Some(about),
        ..Manifest::new(entries)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn licences_and_the_yardstick_should_be_public() {
    let fixture = Fixture::new().await;
    let (dir, vocab) = (fixture.corpus_dir(), fixture.spec.model.vocab);
    let ps = fixture.open().await;
    ps.get("/v1/yardstick").await.refused("not_found");
    assert!(ps.get("/v1/corpus").await.parse::<CorpusManifest>().sources.is_empty());
    drop(ps);

    let corpus = Manifest::read(&dir.join(CORPUS_FILE)).unwrap();
    let training = described(corpus.shards.clone(), PartName::Training, vocab);
    training.write(&dir.join(CORPUS_FILE)).unwrap();
    let bytes: Vec<u8> = (0..500u16).flat_map(|n| (n % 259).to_le_bytes()).collect();
    let blob = *blake3::hash(&bytes).as_bytes();
    std::fs::write(dir.join(Hex32(blob).to_string()), &bytes).unwrap();
    let entries = vec![ShardEntry { blob, tokens: 500 }];
    let yardstick = described(entries, PartName::Yardstick, vocab);
    yardstick.write(&dir.join(YARDSTICK_FILE)).unwrap();

    let ps = fixture.open().await;
    let corpus: CorpusManifest = ps.get("/v1/corpus").await.parse();
    let named = |m: &CorpusManifest| {
        let [source] = m.sources.as_slice() else {
            panic!("{m:?}")
        };
        (source.name.clone(), source.license.clone(), source.documents)
    };
    assert_eq!(named(&corpus), ("addresses".into(), "PDDL-1.0".into(), 3));
    let found: CorpusManifest = ps.get("/v1/yardstick").await.parse();
    assert_eq!((found.root, found.shards.len()), (Hex32(yardstick.root), 1));
    assert_eq!(named(&found), named(&corpus));
    assert_eq!(ps.get(&format!("/v1/blobs/{}", found.shards[0].blob)).await.body, bytes);
    drop(ps);

    // Those that would publish the reserve: of the run, of another generation, or by what they say.
    let reserve = Manifest::read(&dir.join(RESERVE_FILE)).unwrap();
    let next = described(training.shards[..1].to_vec(), PartName::Reserve, vocab);
    next.write(&dir.join(alice_corpus::reserve_file(1))).unwrap();
    for (shards, part, words) in [
        (reserve.shards, PartName::Yardstick, "reserve.json"),
        (next.shards, PartName::Yardstick, "reserve-1.json"),
        (yardstick.shards, PartName::Reserve, "it says that it is Reserve"),
    ] {
        described(shards, part, vocab).write(&dir.join(YARDSTICK_FILE)).unwrap();
        let error = Corpus::open(&fixture.spec, &dir).unwrap_err();
        assert!(matches!(error, PsError::NotPublic { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_should_come_in_ranges_and_the_reserve_not_at_all() {
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    let corpus: CorpusManifest = ps.get("/v1/corpus").await.parse();
    let path = format!("/v1/blobs/{}", corpus.shards[0].blob);
    let whole = ps.get(&path).await;
    assert_eq!(
        (whole.status, whole.body.len() as u64),
        (StatusCode::OK, corpus.shards[0].tokens * 2)
    );
    assert_eq!(blake3::hash(&whole.body).as_bytes(), &corpus.shards[0].blob.0);
    let range = |text: &'static str| {
        let request = Request::get(path.as_str())
            .header("range", text)
            .body(Body::empty())
            .unwrap();
        ps.send(request)
    };
    let part = range("bytes=100-199").await;
    assert_eq!(
        (part.status, part.body.as_slice()),
        (StatusCode::PARTIAL_CONTENT, &whole.body[100..200])
    );
    assert_eq!(
        part.headers["content-range"],
        format!("bytes 100-199/{}", whole.body.len())
    );
    assert_eq!(range("bytes=-5").await.body, whole.body[whole.body.len() - 5..]);
    assert_eq!(range("bytes=99999999-").await.status, StatusCode::RANGE_NOT_SATISFIABLE);
    range("bytes=1-2,3-4").await.refused("bad_request");
    for shard in &ps.state.corpus().reserve.shards {
        assert!(fixture.corpus_dir().join(Hex32(shard.blob).to_string()).exists());
        ps.get(&format!("/v1/blobs/{}", Hex32(shard.blob)))
            .await
            .refused("not_found");
    }
    let model: ModelManifest = ps.get("/v1/model").await.parse();
    assert_eq!(
        ps.get(&format!("/v1/blobs/{}", model.snapshot.chunks[0])).await.status,
        StatusCode::OK
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_paths_should_answer() {
    alice_ps::http::install_metrics();
    let fixture = Fixture::new().await;
    let ps = fixture.open().await;
    assert_eq!(ps.get("/healthz").await.body, b"ok\n");
    let status: Status = ps.get("/v1/status").await.parse();
    assert!(status.notice.unwrap().contains("chain"));
    assert_eq!(ps.get("/v1/epochs").await.parse::<Vec<alice_api::EpochSummary>>(), []);
    ps.get("/nothing").await;
    let metrics = String::from_utf8(ps.get("/metrics").await.body).unwrap();
    assert!(metrics.contains("alice_ps_http_requests_total"), "{metrics}");
    let api = ps.get("/v1/openapi.json").await.json();
    assert_eq!(api["openapi"].as_str().unwrap().split('.').next(), Some("3"));
    let described: Vec<&str> = api["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    for path in [
        "/v1/status",
        "/v1/uploads/{id}/commit",
        "/v1/epochs/{epoch}/pages/{index}",
        "/metrics",
        "/healthz",
    ] {
        assert!(described.contains(&path), "{path} of {described:?}");
    }
    assert!(api["components"]["schemas"]["ApiError"].is_object());
}
