//! The whole miner against a parameter server in the same process: real training, real files, crashes.

mod common;

use alice_api::{ErrorCode, Hex32, Outcome, ss58};
use alice_miner::{
    MinerError,
    cli::{PlaceArgs, RunArgs},
    key::MiningKey,
    memory::device,
    miner::Miner,
    report::Reporter,
    settings::Settings,
    settlement::pages::Pays,
    settlement::receipts::{Receipts, Record, Standing},
    shutdown::{Shutdown, ShutdownHandle},
    task::moments,
    task::pinned_network::PinnedNetwork,
    task::residual::Residuals,
    task::run::Run,
};
use alice_update::{Entries, Layout, ResidualDtype};
use common::FakePs;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(120);

fn miner(data_dir: &Path, url: &str) -> (Miner, ShutdownHandle) {
    let config = data_dir.join("settings.toml");
    std::fs::write(&config, "device = 'cpu'\nthreads = 1\n").unwrap();
    let place = PlaceArgs {
        data_dir: Some(data_dir.to_owned()),
        config: Some(config),
    };
    let (ps, payout) = (Some(url.to_owned()), Some(ss58::encode(&[3; 32])));
    let settings = Settings::load(&RunArgs {
        ps,
        payout,
        once: true,
        place,
        ..RunArgs::default()
    })
    .unwrap();
    let key = MiningKey::load_or_create(data_dir).unwrap();
    let (handle, shutdown) = Shutdown::new();
    let device = device::resolve("cpu").unwrap();
    (
        Miner::new(settings, key, device, Reporter::new(true), shutdown).unwrap(),
        handle,
    )
}

async fn mine(data_dir: &Path, url: &str) -> Result<(), MinerError> {
    let (mut miner, _handle) = miner(data_dir, url);
    tokio::time::timeout(PATIENCE, miner.run())
        .await
        .expect("the miner does not come to an end")
}

/// Polls until a condition holds.
async fn until(done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "the miner does not get there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Lets a miner work until `enough`, then drops it in the middle of whatever it does.
async fn mine_and_die(data_dir: &Path, url: &str, enough: impl Fn() -> bool) {
    let (mut miner, _handle) = miner(data_dir, url);
    let task = tokio::spawn(async move { miner.run().await });
    until(enough).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
}

fn run_dir(data_dir: &Path, ps: &FakePs) -> PathBuf {
    Run::dir(data_dir, &Hex32(ps.spec.run_hash()))
}

/// Pending submissions and the residual.
fn remainder(data_dir: &Path, ps: &FakePs) -> (Vec<[u8; 32]>, Vec<f32>) {
    let residuals = Residuals::open(&run_dir(data_dir, ps), &ps.spec, ResidualDtype::F32).unwrap();
    residuals.remainder(0).unwrap()
}

fn assert_one_accepted(data_dir: &Path, ps: &Arc<FakePs>) {
    let receipts = Receipts::open(data_dir).unwrap();
    let records: Vec<_> = receipts.iter().collect();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].standing(), Standing::Accepted);
    assert_eq!(records[0].verify(), Ok(()));
    let seen = ps.seen();
    assert_eq!((seen.ids.len(), seen.claims), (1, 1));
    assert_eq!(records[0].receipt.as_ref(), seen.receipts.get(&records[0].id));
    let page = Pays::open(data_dir)
        .unwrap()
        .get(0, &Hex32([3; 32]))
        .and_then(|p| p.page.clone());
    assert!(page.is_some(), "the payout page is not kept");
    assert!(!run_dir(data_dir, ps).join("outgoing.update").exists());
    assert!(!run_dir(data_dir, ps).join("outgoing.ledger").exists());
    let (pending, residual) = remainder(data_dir, ps);
    assert!(pending.is_empty(), "an accepted update is still set aside");
    assert!(residual.iter().any(|v| *v != 0.0), "a lossy update leaves a residual");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_task_should_be_trained_sent_judged_and_its_page_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (ps, url) = FakePs::start().await;
    mine(dir.path(), &url).await.unwrap();
    assert_one_accepted(dir.path(), &ps);
    let seen = ps.seen();
    let bytes = seen.bytes.values().next().unwrap();
    assert!(bytes.len() as u64 <= ps.spec.update.budget_bytes);
    let update = alice_update::decode(&Layout::from_spec(&ps.spec), &ps.spec.update, bytes).unwrap();
    assert_eq!((Hex32(update.header.base_root), update.header.epoch), (ps.root, 0));
    assert!(update.norm() > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miner_killed_between_commit_and_receipt_should_get_the_same_receipt() {
    let dir = tempfile::tempdir().unwrap();
    let (ps, url) = FakePs::start().await;
    ps.seen().lose_commits = u32::MAX;
    mine_and_die(dir.path(), &url, || ps.seen().commits > 0).await;
    assert_eq!(Receipts::open(dir.path()).unwrap().iter().count(), 0);
    let stored = std::fs::read(run_dir(dir.path(), &ps).join("outgoing.update")).unwrap();
    ps.seen().lose_commits = 0;
    mine(dir.path(), &url).await.unwrap();
    assert_one_accepted(dir.path(), &ps);
    assert_eq!(ps.seen().bytes.values().next(), Some(&stored));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_cannot_be_stored_should_wait_for_room() {
    for is_in_time in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (ps, url) = FakePs::start().await;
        // Something is in the way of the stored update, as a full disk would be.
        let obstacle = run_dir(dir.path(), &ps).join("outgoing.update").join("obstacle");
        std::fs::create_dir_all(&obstacle).unwrap();
        let (mut patient, _handle) = miner(dir.path(), &url);
        let task = tokio::spawn(async move { patient.run().await });
        until(|| ps.seen().claims > 0).await;
        let looks = ps.seen().looks;
        // It has trained, and asked twice how far the chain is.
        until(|| ps.seen().looks >= looks + 3).await;
        assert!(!task.is_finished());
        assert_eq!(ps.seen().commits, 0);
        if is_in_time {
            std::fs::remove_dir_all(obstacle.parent().unwrap()).unwrap();
            task.await.unwrap().unwrap();
            assert_one_accepted(dir.path(), &ps);
        } else {
            ps.seen().epoch = 1;
            let error = task.await.unwrap().unwrap_err();
            assert!(matches!(error, MinerError::NotStored { epoch: 0, .. }), "{error}");
            assert_eq!(ps.seen().commits, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_file_that_cannot_be_written_should_wait_for_room_too() {
    // A file in a directory's place, as a full disk would be: nothing can be written below it. The receipt, the payout
    // page, the cached text.
    for (obstacle, commits, looks) in [("receipts", 1, 0), ("pages", 1, 2), ("shards", 0, 2)] {
        let dir = tempfile::tempdir().unwrap();
        let (ps, url) = FakePs::start().await;
        let path = match obstacle {
            "shards" => run_dir(dir.path(), &ps).join(obstacle),
            _ => dir.path().join(obstacle),
        };
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let (mut patient, _handle) = miner(dir.path(), &url);
        std::fs::write(&path, "").unwrap();
        let mut task = tokio::spawn(async move { patient.run().await });
        until(|| ps.seen().claims > 0 && ps.seen().commits >= commits).await;
        let before = ps.seen().looks;
        until(|| ps.seen().looks >= before + looks).await;
        let ended = tokio::time::timeout(Duration::from_secs(1), &mut task).await;
        assert!(ended.is_err(), "{obstacle}: a full disk must not end the miner");
        std::fs::remove_file(&path).unwrap();
        task.await.unwrap().unwrap();
        assert_one_accepted(dir.path(), &ps);
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_with_the_residual_should_cost_the_moments_not_the_update() {
    for is_full in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (ps, url) = FakePs::start().await;
        if is_full {
            // Every write to this device fails with "no space left"; a failed try removes its part file.
            let part = run_dir(dir.path(), &ps).join("residual-0-1.part");
            let fill = move || std::os::unix::fs::symlink("/dev/full", part).unwrap();
            ps.seen().on_claim = Some(Box::new(fill));
        }
        mine(dir.path(), &url).await.unwrap();
        assert_one_accepted(dir.path(), &ps);
        assert_eq!(moments::file(&run_dir(dir.path(), &ps), 0).exists(), !is_full);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn training_that_runs_out_of_bounds_should_end_the_miner_and_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (ps, url) = FakePs::start_scaled(1e37, None).await;
    let error = mine(dir.path(), &url).await.unwrap_err();
    assert!(matches!(error, MinerError::Train(_)), "{error}");
    assert!(
        error.to_string().contains("not a finite number after step 1"),
        "{error}"
    );
    {
        let seen = ps.seen();
        assert_eq!((seen.claims, seen.ids.len()), (1, 0));
        // One look to claim, one for each try; while a task runs there may be more.
        assert!(seen.looks >= 4, "{}", seen.looks);
    }
    assert_eq!(Receipts::open(dir.path()).unwrap().iter().count(), 0);
    assert!(!moments::file(&run_dir(dir.path(), &ps), 0).exists());
    let (pending, residual) = remainder(dir.path(), &ps);
    assert!(pending.is_empty() && residual.iter().all(|v| *v == 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_whose_bytes_are_lost_should_be_asked_for_before_it_is_given_up() {
    for (committed, epoch) in [(true, 0), (false, 0), (false, 1)] {
        let dir = tempfile::tempdir().unwrap();
        let (ps, url) = FakePs::start().await;
        ps.seen().lose_commits = u32::MAX;
        mine_and_die(dir.path(), &url, || ps.seen().commits > 0).await;
        std::fs::write(run_dir(dir.path(), &ps).join("outgoing.update"), "garbage").unwrap();
        {
            let mut seen = ps.seen();
            (seen.lose_commits, seen.epoch) = (0, epoch);
            if !committed {
                // As if the commit had never arrived.
                seen.receipts.clear();
                seen.bytes.clear();
            }
        }
        mine(dir.path(), &url).await.unwrap();
        if epoch == 0 {
            // The receipt of the lost bytes; or the task once more, which gives the same ones.
            assert_one_accepted(dir.path(), &ps);
            continue;
        }
        // Too late for that.
        let receipts = Receipts::open(dir.path()).unwrap();
        let reason = receipts.iter().find(|record| record.epoch == 0).unwrap().reason();
        assert!(reason.contains("damaged on disk"), "{reason}");
        let (pending, residual) = remainder(dir.path(), &ps);
        assert!(pending.is_empty() && residual.iter().any(|v| *v != 0.0));
    }
}

/// Mines one task against a prepared server; returns the record, the residual and the sent update.
async fn mine_one(
    prepare: impl FnOnce(&mut common::Seen),
) -> (Record, (Vec<[u8; 32]>, Vec<f32>), alice_update::Update) {
    let dir = tempfile::tempdir().unwrap();
    let (ps, url) = FakePs::start().await;
    prepare(&mut ps.seen());
    mine(dir.path(), &url).await.unwrap();
    let record = Receipts::open(dir.path()).unwrap().iter().next().unwrap().clone();
    let bytes = ps.seen().bytes.values().next().unwrap().clone();
    let update = alice_update::decode(&Layout::from_spec(&ps.spec), &ps.spec.update, &bytes).unwrap();
    (record, remainder(dir.path(), &ps), update)
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_refused_updates_should_return_to_the_residual() {
    let decay = alice_testkit::fixtures::dev();
    let decay = decay.update.feedback_decay as f32;
    let (record, settled, sent) = mine_one(|_| ()).await;
    assert_eq!(record.standing(), Standing::Accepted);
    let (late, of_late, sent_late) = mine_one(|seen| seen.refuse_commits = Some(ErrorCode::Late)).await;
    assert_eq!(late.standing(), Standing::Late);
    assert_eq!(late.reason(), "late, no score: said the test's server");
    let (refused, of_refused, sent_refused) = mine_one(|seen| seen.outcome = Some(Outcome::NoImprovement)).await;
    assert_eq!(refused.standing(), Standing::Refused);
    assert_eq!(refused.reason(), "no_improvement, score 0.00: said the test's server");

    // The same task of the same model on the same machine is the same update.
    assert_eq!((&sent.indices, &sent.values), (&sent_late.indices, &sent_late.values));
    assert_eq!(
        (&sent.indices, &sent.values),
        (&sent_refused.indices, &sent_refused.values)
    );
    let mut expected = settled.1;
    for (index, value) in sent.indices.iter().zip(&sent.values) {
        expected[*index as usize] += decay * value;
    }
    for remainder in [of_late, of_refused] {
        assert_eq!(remainder, (vec![], expected.clone()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_network_or_with_another_key_should_get_no_work() {
    let dir = tempfile::tempdir().unwrap();
    let (ps, url) = FakePs::start().await;
    mine(dir.path(), &url).await.unwrap();
    let file = dir.path().join("network.json");
    let mut network: PinnedNetwork = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(network.ps_key, Some(ps.key.public()));
    // Another key: the miner waits, and says what to do, until it is stopped.
    network.ps_key = Some(Hex32([1; 32]));
    network.store(dir.path()).unwrap();
    ps.seen().epoch = 1;
    let looks = ps.seen().looks;
    let (mut patient, handle) = miner(dir.path(), &url);
    let task = tokio::spawn(async move { patient.run().await });
    // It has seen the key and looked again.
    until(|| ps.seen().looks >= looks + 2).await;
    assert!(!task.is_finished());
    handle.request();
    task.await.unwrap().unwrap();
    assert_eq!(ps.seen().claims, 1);
    // Another chain: only another data directory helps, so the miner leaves.
    network.genesis_hash = Hex32([2; 32]);
    network.store(dir.path()).unwrap();
    let error = mine(dir.path(), &url).await.unwrap_err();
    assert!(matches!(error, MinerError::OtherNetwork { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_should_join_by_snapshot_and_deltas_and_take_nothing_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let (ps, url) = FakePs::start_later().await;
    let (snapshot, delta) = (&ps.model.snapshot, &ps.model.deltas[1]);
    assert!(snapshot.chunks.len() > 2);
    for damaged in [snapshot.chunks[1], delta.blob] {
        {
            let mut seen = ps.seen();
            (seen.damaged, seen.damaged_sent) = (Some(damaged), 0);
        }
        let (mut patient, handle) = miner(dir.path(), &url);
        let task = tokio::spawn(async move { patient.run().await });
        // A damaged download does not end the miner: it asks again.
        until(|| ps.seen().damaged_sent >= 2).await;
        assert!(!task.is_finished(), "a damaged download must not end the miner");
        handle.request();
        task.await.unwrap().unwrap();
        // Undamaged downloads are kept: the first delta's model where the second is damaged, nothing of half a
        // snapshot.
        let kept = (damaged == delta.blob).then_some(ps.model.deltas[0].model_root);
        assert_eq!(root_on_disk(dir.path(), &ps), kept, "nothing damaged is kept");
        assert_eq!(ps.seen().commits, 0);
    }
    ps.seen().damaged = None;
    mine(dir.path(), &url).await.unwrap();
    let bytes = ps.seen().bytes.values().next().unwrap().clone();
    let update = alice_update::decode(&Layout::from_spec(&ps.spec), &ps.spec.update, &bytes).unwrap();
    assert_eq!(Hex32(update.header.base_root), ps.root, "trained on the newest model");
    assert_eq!(root_on_disk(dir.path(), &ps), Some(ps.root), "bit by bit");
    // Three starts later, each undamaged blob was asked for once.
    let sent = &ps.seen().sent;
    assert!(
        ps.model.snapshot.chunks.iter().all(|chunk| sent[chunk] == 1),
        "{sent:?}"
    );
    assert_eq!(sent[&ps.model.deltas[0].blob], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_keeps_up_should_not_fetch_a_new_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let (ps, url) = FakePs::start_later().await;
    store_before_snapshot(dir.path(), &ps);
    mine(dir.path(), &url).await.unwrap();
    assert_eq!(root_on_disk(dir.path(), &ps), Some(ps.root));
    let sent = &ps.seen().sent;
    assert!(
        !ps.model.snapshot.chunks.iter().any(|chunk| sent.contains_key(chunk)),
        "{sent:?}"
    );
    assert_eq!(sent[&ps.model.earlier.as_ref().unwrap().deltas[0].blob], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_step_that_is_gone_should_lead_to_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let (ps, url) = FakePs::start_later().await;
    ps.seen().gone = Some(ps.model.earlier.as_ref().unwrap().deltas[0].blob);
    store_before_snapshot(dir.path(), &ps);
    mine(dir.path(), &url).await.unwrap();
    assert_eq!(root_on_disk(dir.path(), &ps), Some(ps.root));
    let sent = &ps.seen().sent;
    assert!(
        ps.model.snapshot.chunks.iter().all(|chunk| sent[chunk] == 1),
        "{sent:?}"
    );
}

/// The weights that a server of [`FakePs::start_later`] had before the step that led to its snapshot.
fn store_before_snapshot(data_dir: &Path, ps: &FakePs) {
    let run = run_dir(data_dir, ps);
    std::fs::create_dir_all(&run).unwrap();
    let mut theta = alice_init::init_theta(&ps.spec, &common::GENESIS);
    theta.iter_mut().for_each(|v| *v *= common::LATER);
    std::fs::write(run.join("theta.bin"), alice_store::theta::to_le_bytes(&theta)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_state_that_the_run_names_should_be_fetched_and_no_other_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (ps, url) = FakePs::start_named(None).await;
    mine(dir.path(), &url).await.unwrap();
    assert_eq!(root_on_disk(dir.path(), &ps), Some(ps.root));
    assert_one_accepted(dir.path(), &ps);

    let dir = tempfile::tempdir().unwrap();
    let (ps, url) = FakePs::start_named(Some(Hex32([3; 32]))).await;
    let (mut patient, handle) = miner(dir.path(), &url);
    let task = tokio::spawn(async move { patient.run().await });
    until(|| ps.seen().model_looks >= 2).await;
    assert!(!task.is_finished(), "an untrue answer must not end the miner");
    handle.request();
    task.await.unwrap().unwrap();
    assert_eq!(root_on_disk(dir.path(), &ps), None);
    assert_eq!(ps.seen().commits, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_that_does_not_lead_to_its_root_should_be_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let (ps, url) = FakePs::start_later().await;
    ps.seen().false_step = true;
    let (mut patient, handle) = miner(dir.path(), &url);
    let task = tokio::spawn(async move { patient.run().await });
    until(|| ps.seen().model_looks >= 2).await;
    assert!(!task.is_finished(), "a false delta must not end the miner");
    handle.request();
    task.await.unwrap().unwrap();
    assert_eq!(root_on_disk(dir.path(), &ps), Some(ps.model.snapshot.model_root));
    assert_eq!(ps.seen().commits, 0);
    ps.seen().false_step = false;
    mine(dir.path(), &url).await.unwrap();
    assert_eq!(root_on_disk(dir.path(), &ps), Some(ps.root));
}

/// Root of the weights that the miner keeps, by the plain definition.
fn root_on_disk(data_dir: &Path, ps: &FakePs) -> Option<Hex32> {
    let path = run_dir(data_dir, ps).join("theta.bin");
    let theta = path
        .exists()
        .then(|| alice_store::theta::read_theta(&path, ps.spec.parameters()).unwrap())?;
    Some(Hex32(alice_store::model_root(&ps.spec.tensors(), &theta)))
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_caches_should_not_stop_the_next_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let (ps, url) = FakePs::start().await;
    mine(dir.path(), &url).await.unwrap();
    let run = run_dir(dir.path(), &ps);
    let mut theta = std::fs::read(run.join("theta.bin")).unwrap();
    theta[100] ^= 1;
    std::fs::write(run.join("theta.bin"), theta).unwrap();
    std::fs::write(run.join("run.toml"), "garbage").unwrap();
    std::fs::write(run.join("corpus.json"), "garbage").unwrap();
    for shard in std::fs::read_dir(run.join("shards")).unwrap() {
        std::fs::write(shard.unwrap().path(), "garbage").unwrap();
    }
    std::fs::write(run.join("residual-0-1.bin"), "garbage").unwrap();
    ps.seen().epoch = 1;
    mine(dir.path(), &url).await.unwrap();
    let receipts = Receipts::open(dir.path()).unwrap();
    assert_eq!(receipts.counts().accepted, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_should_end_the_miner_while_the_server_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let (mut miner, handle) = miner(dir.path(), &format!("http://127.0.0.1:{port}"));
    let task = tokio::spawn(async move { miner.run().await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!task.is_finished(), "an absent server must not end the miner");
    handle.request();
    tokio::time::timeout(Duration::from_secs(5), task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}
