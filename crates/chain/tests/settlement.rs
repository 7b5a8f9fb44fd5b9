//! Settlement against a real node: `ALICE_NODE=path/to/alice-node cargo test -p alice-chain`. Without the variable
//! there is nothing to test against, and the test says so.

use alice_chain::{Chain, ChainError, Commitment, Entry, EpochStatus, Hash};
use alice_primitives::{
    emission, fixtures,
    pages::{self, PAGE_ENTRIES},
};
use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey, signing_context};
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const EPOCH_BLOCKS: u32 = 6;
const WINDOW_BLOCKS: u32 = 2;
/// Longest wait for anything on the chain; a busy machine misses slots.
const PATIENCE: Duration = Duration::from_secs(180);

/// A node of its own on loopback, with one validator. Stopped when dropped.
struct Node {
    program: PathBuf,
    dir: PathBuf,
    rpc: u16,
    child: Option<Child>,
}

impl Node {
    fn new(program: PathBuf, dir: &Path, ps: &Keypair) -> Self {
        let spec = Command::new(&program)
            .args(["localnet-spec", "--validators", "1", "--slot-ms", "1000"])
            .args([
                "--epoch-blocks",
                &EPOCH_BLOCKS.to_string(),
                "--window-blocks",
                &WINDOW_BLOCKS.to_string(),
            ])
            .args([
                "--ps",
                &format!("0x{}", hex::encode(ps.public.to_bytes())),
                "--run-hash",
                &"01".repeat(32),
            ])
            .output()
            .unwrap();
        assert!(spec.status.success(), "{}", String::from_utf8_lossy(&spec.stderr));
        std::fs::write(dir.join("chain.json"), spec.stdout).unwrap();
        let rpc = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self {
            program,
            dir: dir.into(),
            rpc,
            child: None,
        }
    }

    fn start(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("node.log"))
            .unwrap();
        let child = Command::new(&self.program)
            .args(["--chain", &self.dir.join("chain.json").display().to_string()])
            .args(["--base-path", &self.dir.join("data").display().to_string()])
            .args([
                "--alice",
                "--force-authoring",
                "--no-mdns",
                "--no-prometheus",
                "--no-telemetry",
            ])
            .args([
                "--listen-addr",
                "/ip4/127.0.0.1/tcp/0",
                "--rpc-port",
                &self.rpc.to_string(),
            ])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Asks until there is an answer.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not happen within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

async fn until_block(chain: &Chain, number: u32) {
    until("a block", async || {
        (chain.best().await.ok()?.number >= number).then_some(())
    })
    .await;
}

fn sign(key: &Keypair, payload: &[u8]) -> [u8; 64] {
    key.sign(signing_context(b"substrate").bytes(payload)).to_bytes()
}

/// Entries on two pages, and the tree over them.
fn pay(epoch: u32) -> (Vec<Vec<Entry>>, Vec<Hash>, Commitment) {
    let account = |i: u16| {
        let mut account = [epoch as u8 + 1; 32];
        account[..2].copy_from_slice(&i.to_be_bytes());
        account
    };
    let entries: Vec<Entry> = (0..300)
        .map(|i| Entry {
            account: account(i),
            score: 1_000_000_000 + u64::from(i),
        })
        .collect();
    let on_pages: Vec<Vec<Entry>> = pages::paginate(&entries).map(<[Entry]>::to_vec).collect();
    let leaves: Vec<Hash> = on_pages
        .iter()
        .zip(0..)
        .map(|(page, i)| pages::leaf(epoch, i, page))
        .collect();
    let commitment = Commitment {
        epoch,
        set_id: 0,
        contributions_root: pages::root(&leaves),
        pages: on_pages.len() as u32,
        entries: entries.len() as u32,
        total_score: entries.iter().map(|e| u128::from(e.score)).sum(),
        parent: [0; 32],
        ..fixtures::commitment()
    };
    (on_pages, leaves, commitment)
}

fn rejected(result: Result<(), ChainError>, words: &str, transient: bool) {
    let error = result.unwrap_err();
    assert!(error.to_string().contains(words), "{error}");
    assert_eq!(error.is_transient(), transient, "{error}");
}

/// The node's proof of a commitment is checked with nothing but the chain's specification.
#[cfg(feature = "proof")]
async fn proves(chain: &Chain, commitment: &Commitment, spec: &[u8]) {
    let genesis = alice_chain::proof::Genesis::from_raw_spec(spec).unwrap();
    assert_eq!(genesis.hash, chain.genesis_hash());
    assert_eq!(chain.authority_set().await.unwrap(), 0);
    let proof = chain.prove_commitment(commitment.epoch).await.unwrap().unwrap();
    let proven = proof.check(commitment.epoch, &genesis).unwrap();
    assert_eq!(&proven.commitment, commitment);
    assert_eq!(
        chain.block_hash(proven.block.number).await.unwrap(),
        Some(proven.block.hash)
    );
    assert_eq!(chain.prove_commitment(999).await.unwrap(), None);
    // Other validators; and the same ones on another network.
    let mut others = genesis.clone();
    others.authorities = vec![([3; 32], 1)];
    assert!(proof.check(commitment.epoch, &others).is_err());
    let mut elsewhere = genesis.clone();
    elsewhere.hash = [3; 32];
    assert!(proof.check(commitment.epoch, &elsewhere).is_err());
}

#[tokio::test]
async fn an_epoch_should_be_attested_and_paid() {
    let Some(program) = std::env::var_os("ALICE_NODE") else {
        eprintln!("skipped: set ALICE_NODE to an alice-node binary to test against a real chain");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let ps = MiniSecretKey::from_bytes(&[42; 32])
        .unwrap()
        .expand_to_keypair(ExpansionMode::Ed25519);
    let mut node = Node::new(program.into(), dir.path(), &ps);
    node.start();
    let url = format!("ws://127.0.0.1:{}", node.rpc);
    let chain = until("the node's RPC", async || Chain::connect(&url).await.ok()).await;

    // Parameters of genesis.
    let parameters = chain.parameters().await.unwrap();
    assert_eq!(
        (parameters.epoch_blocks, parameters.window_blocks),
        (EPOCH_BLOCKS, WINDOW_BLOCKS)
    );
    assert_eq!(
        (parameters.slot_ms, parameters.late_window_epochs, parameters.run_hash),
        (1000, 24, [1; 32])
    );
    assert_eq!(chain.block_hash(0).await.unwrap(), Some(chain.genesis_hash()));
    assert_eq!(chain.block_hash(1_000_000).await.unwrap(), None);
    assert_eq!(chain.ps_index(ps.public.to_bytes()).await.unwrap(), Some((0, 0)));
    assert_eq!(chain.ps_index([9; 32]).await.unwrap(), None);
    assert_eq!(chain.latest_accepted().await.unwrap(), None);
    assert_eq!(chain.epoch_status(0).await.unwrap(), EpochStatus::Open);
    assert_eq!(chain.total_issuance().await.unwrap(), 0);

    // Attestation: refused with a reason until it may be, then counted once.
    let genesis = chain.genesis_hash();
    let (on_pages, leaves, commitment) = pay(0);
    let signature = sign(&ps, &commitment.attest_payload(&genesis, 0));
    let early = Commitment {
        epoch: 50,
        ..commitment.clone()
    };
    rejected(chain.submit_attest(&early, 0, 0, signature).await, "not ended", true);
    until_block(&chain, EPOCH_BLOCKS).await;
    rejected(
        chain.submit_attest(&commitment, 0, 0, [7; 64]).await,
        "signature",
        false,
    );
    rejected(
        chain.submit_attest(&commitment, 1, 0, signature).await,
        "another round",
        false,
    );
    rejected(
        chain.submit_attest(&commitment, 0, 5, signature).await,
        "no such parameter server",
        false,
    );
    let orphan = Commitment {
        parent: [8; 32],
        ..commitment.clone()
    };
    rejected(chain.submit_attest(&orphan, 0, 0, signature).await, "parent", false);
    for _ in 0..3 {
        chain.submit_attest(&commitment, 0, 0, signature).await.unwrap();
    }
    let page = |index: usize| (&on_pages[index], pages::proof(&leaves, index as u32).unwrap());
    let status = until("acceptance", async || match chain.epoch_status(0).await.unwrap() {
        EpochStatus::Open => None,
        other => Some(other),
    })
    .await;
    if let EpochStatus::Accepted { hash, round, .. } = status {
        assert_eq!((hash, round), (commitment.hash(), 0));
        let (entries, proof) = page(0);
        match chain.submit_payout(0, 0, entries, &proof).await {
            Ok(()) => {} // the window ended in between
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
    chain.submit_attest(&commitment, 0, 0, signature).await.unwrap();
    let other = Commitment {
        manifest_hash: [9; 32],
        ..commitment.clone()
    };
    let of_other = sign(&ps, &other.attest_payload(&genesis, 0));
    rejected(
        chain.submit_attest(&other, 0, 0, of_other).await,
        "another commitment",
        false,
    );
    assert_eq!(chain.latest_accepted().await.unwrap(), Some((0, commitment.hash())));
    assert_eq!(chain.commitment(0).await.unwrap(), Some(commitment.clone()));

    // Pay: each page once, exactly the schedule.
    until("finality of the epoch", async || {
        matches!(chain.epoch_status(0).await.unwrap(), EpochStatus::Final { .. }).then_some(())
    })
    .await;
    let mut forged = on_pages[0].clone();
    forged[0].score += 1;
    rejected(
        chain.submit_payout(0, 0, &forged, &page(0).1).await,
        "does not belong",
        false,
    );
    rejected(
        chain.submit_payout(0, 7, &on_pages[0], &page(0).1).await,
        "no such page",
        false,
    );
    rejected(chain.submit_payout(0, 0, &[], &[]).await, "entries", false);
    assert_eq!(on_pages[0].len(), PAGE_ENTRIES);
    for index in [0, 1, 0, 1] {
        let (entries, proof) = page(index);
        chain.submit_payout(0, index as u32, entries, &proof).await.unwrap();
    }
    let settled = until("settlement", async || match chain.epoch_status(0).await.unwrap() {
        EpochStatus::Settled { block } => Some(block),
        _ => None,
    })
    .await;
    let ledger = chain.ledger(0).await.unwrap().unwrap();
    assert_eq!(
        (ledger.pages, ledger.pages_paid, ledger.budget),
        (2, 2, emission::budget(0))
    );
    assert_eq!(ledger.total_score, commitment.total_score);
    let share = |e: &Entry| emission::share(ledger.budget, e.score, commitment.total_score);
    let sum: u128 = on_pages.iter().flatten().map(share).sum();
    assert_eq!((ledger.paid, chain.total_issuance().await.unwrap()), (sum, sum));
    let last = &on_pages[1][43];
    assert_eq!(chain.balance(last.account).await.unwrap(), share(last));
    assert_eq!(chain.balance([77; 32]).await.unwrap(), 0);
    // Long after, everything is as it was, and sending again is still no error.
    until_block(&chain, settled + 3).await;
    assert_eq!(
        chain.epoch_status(0).await.unwrap(),
        EpochStatus::Settled { block: settled }
    );
    chain.submit_payout(0, 1, &on_pages[1], &page(1).1).await.unwrap();
    chain.submit_attest(&commitment, 0, 0, signature).await.unwrap();

    #[cfg(feature = "proof")]
    proves(
        &chain,
        &commitment,
        &std::fs::read(dir.path().join("chain.json")).unwrap(),
    )
    .await;

    // Seeds come from finalised blocks only.
    let finalized = chain.finalized().await.unwrap();
    let seeds = [
        chain.vrf_output(finalized.number).await.unwrap(),
        chain.vrf_output(finalized.number - 1).await.unwrap(),
    ];
    assert_eq!(seeds[0].hash, finalized.hash);
    assert_ne!(seeds[0].vrf_output, seeds[1].vrf_output);
    assert!(matches!(
        chain.vrf_output(finalized.number + 1000).await,
        Err(ChainError::NotFinalized { .. })
    ));
    assert!(matches!(chain.vrf_output(0).await, Err(ChainError::NoVrf { .. })));

    // The connection outlives the node, and a later epoch closes the one that nobody attested.
    node.stop();
    assert!(chain.best().await.unwrap_err().is_transient());
    node.start();
    until("the node's return", async || chain.best().await.ok()).await;
    until_block(&chain, 3 * EPOCH_BLOCKS).await;
    let next = Commitment {
        parent: commitment.hash(),
        ..pay(2).2
    };
    let signature = sign(&ps, &next.attest_payload(&genesis, 0));
    chain.submit_attest(&next, 0, 0, signature).await.unwrap();
    until("the next acceptance", async || {
        let latest = chain.latest_accepted().await.unwrap();
        (latest == Some((2, next.hash()))).then_some(())
    })
    .await;
    assert_eq!(chain.epoch_status(1).await.unwrap(), EpochStatus::Forfeited);
    let forfeited = Commitment { epoch: 1, ..next };
    rejected(
        chain.submit_attest(&forfeited, 0, 0, signature).await,
        "can no longer take it",
        false,
    );
}
