//! Two validators as processes on this machine: blocks are made and finalised, an epoch is attested and paid by general
//! transactions, and nothing else mints.
#![allow(missing_docs)]

use alice_primitives::{
    emission,
    pages::{self, Entry},
    Commitment,
};
use alice_runtime::{RuntimeCall, TxExtension, UncheckedExtrinsic};
use codec::{Decode, Encode};
use serde_json::{json, Value};
use sp_keyring::Sr25519Keyring;
use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const NODE: &str = env!("CARGO_BIN_EXE_alice-node");
const EPOCH_BLOCKS: u32 = 6;
const WINDOW_BLOCKS: u32 = 2;
/// Peer id of [`NODE_KEY`].
const PEER_ID: &str = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";
const NODE_KEY: &str = "0000000000000000000000000000000000000000000000000000000000000001";

/// A node that ends with the test.
struct Node {
    process: Child,
    rpc_port: u16,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Node {
    fn start(folder: &Path, name: &str, spec: &Path, port: u16, more: &[String]) -> Self {
        let rpc_port = free_port();
        let log = File::create(folder.join(format!("{name}.log"))).unwrap();
        let process = Command::new(NODE)
            .arg("--chain")
            .arg(spec)
            .arg("--base-path")
            .arg(folder.join(name))
            .arg(format!("--{name}"))
            .args(["--rpc-port", &rpc_port.to_string()])
            .args(["--no-prometheus", "--no-mdns"])
            .args(["--listen-addr", &format!("/ip4/127.0.0.1/tcp/{port}")])
            .args(more)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { process, rpc_port }
    }

    fn try_call(&self, method: &str, params: &Value) -> std::io::Result<Value> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.rpc_port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        write!(
            stream,
            "POST / HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.rpc_port,
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok(serde_json::from_str(body)?)
    }

    fn call(&self, method: &str, params: Value) -> Value {
        let answer = self.try_call(method, &params).unwrap();
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    fn number(&self, hash: Option<&Value>) -> u32 {
        let header = self.call("chain_getHeader", json!(hash.into_iter().collect::<Vec<_>>()));
        u32::from_str_radix(header["number"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    }

    fn finalised(&self) -> u32 {
        let hash = self.call("chain_getFinalizedHead", json!([]));
        self.number(Some(&hash))
    }

    fn storage<T: Decode>(&self, key: &[u8]) -> Option<T> {
        let value = self.call("state_getStorage", json!([format!("0x{}", hex::encode(key))]));
        value
            .as_str()
            .map(|text| T::decode(&mut &hex::decode(text.trim_start_matches("0x")).unwrap()[..]).unwrap())
    }

    fn submit(&self, transaction: &UncheckedExtrinsic) -> Value {
        let params = json!([format!("0x{}", hex::encode(transaction.encode()))]);
        self.try_call("author_submitExtrinsic", &params).unwrap()
    }
}

fn wait(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn key(pallet: &str, item: &str) -> Vec<u8> {
    [
        sp_io::hashing::twox_128(pallet.as_bytes()),
        sp_io::hashing::twox_128(item.as_bytes()),
    ]
    .concat()
}

fn epoch_key(pallet: &str, item: &str, epoch: u32) -> Vec<u8> {
    let epoch = epoch.encode();
    [key(pallet, item), sp_io::hashing::twox_64(&epoch).to_vec(), epoch].concat()
}

fn general(call: impl Into<RuntimeCall>) -> UncheckedExtrinsic {
    let extension: TxExtension = (
        frame_system::AuthorizeCall::new(),
        frame_system::CheckNonZeroSender::new(),
        frame_system::CheckSpecVersion::new(),
        frame_system::CheckTxVersion::new(),
        frame_system::CheckGenesis::new(),
        frame_system::CheckEra::from(sp_runtime::generic::Era::Immortal),
        frame_system::CheckNonce::from(0u32.into()),
        frame_system::CheckWeight::new(),
        pallet_transaction_payment::ChargeTransactionPayment::from(0),
        frame_metadata_hash_extension::CheckMetadataHash::new(false),
        frame_system::WeightReclaim::new(),
    );
    UncheckedExtrinsic::new_transaction(call.into(), extension)
}

fn write_spec(path: &Path) {
    let server = format!("0x{}", hex::encode(Sr25519Keyring::Two.public().0));
    let status = Command::new(NODE)
        .args([
            "localnet-spec",
            "--validators",
            "2",
            "--ps",
            &server,
            "--slot-ms",
            "1000",
        ])
        .args([
            "--epoch-blocks",
            &EPOCH_BLOCKS.to_string(),
            "--window-blocks",
            &WINDOW_BLOCKS.to_string(),
            "--output",
        ])
        .arg(path)
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn two_validators_should_finalise_and_pay_an_attested_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let spec = folder.join("spec.json");
    write_spec(&spec);
    let port = free_port();
    let alice = Node::start(folder, "alice", &spec, port, &["--node-key".into(), NODE_KEY.into()]);
    let bootnode = format!("/ip4/127.0.0.1/tcp/{port}/p2p/{PEER_ID}");
    let bob = Node::start(folder, "bob", &spec, free_port(), &["--bootnodes".into(), bootnode]);

    wait("the nodes answer", Duration::from_secs(120), || {
        [&alice, &bob]
            .iter()
            .all(|node| node.try_call("system_health", &json!([])).is_ok())
    });
    wait("finality on both", Duration::from_secs(120), || {
        alice.finalised() >= 2 && bob.finalised() >= 2
    });

    // Block 0 is what `verify-genesis` computes from the file alone.
    let genesis = alice.call("chain_getBlockHash", json!([0]));
    let genesis = genesis.as_str().unwrap();
    let verify = |expected: &str| {
        let mut command = Command::new(NODE);
        command
            .args(["verify-genesis", "--expect-hash", expected, "--chain"])
            .arg(&spec)
            .output()
            .unwrap()
    };
    let good = verify(genesis);
    assert!(good.status.success(), "{good:?}");
    assert!(String::from_utf8_lossy(&good.stdout).contains("no coin exists"));
    assert!(!verify(&format!("0x{}", "00".repeat(32))).status.success());

    wait("the end of epoch 0", Duration::from_secs(60), || {
        alice.number(None) >= EPOCH_BLOCKS
    });
    let entries = [
        Entry {
            account: [1; 32],
            score: 1,
        },
        Entry {
            account: [2; 32],
            score: 3,
        },
    ];
    let commitment = Commitment {
        epoch: 0,
        set_id: 0,
        run_hash: [0; 32],
        contributions_root: pages::root(&[pages::leaf(0, 0, &entries)]),
        pages: 1,
        entries: 2,
        total_score: 4,
        manifest_hash: [2; 32],
        model_root: [3; 32],
        parent: [0; 32],
    };
    let mut genesis_hash = [0; 32];
    hex::decode_to_slice(genesis.trim_start_matches("0x"), &mut genesis_hash).unwrap();
    let attest = |key: Sr25519Keyring| {
        let signature = key.sign(&commitment.attest_payload(&genesis_hash, 0));
        general(pallet_epoch::Call::attest {
            commitment: commitment.clone(),
            round: 0,
            ps_index: 0,
            signature,
        })
    };
    let refused = alice.submit(&attest(Sr25519Keyring::One));
    assert!(refused.get("error").is_some(), "{refused}");
    let accepted = bob.submit(&attest(Sr25519Keyring::Two));
    assert!(accepted.get("error").is_none(), "{accepted}");

    let entries = entries.to_vec().try_into().unwrap();
    let page = general(pallet_reward::Call::payout_page {
        epoch: 0,
        index: 0,
        entries,
        proof: Default::default(),
    });
    // Not before: a page that is refused once is banned from the pool for half an hour.
    let stored = || alice.storage::<pallet_epoch::Accepted>(&epoch_key("Epoch", "Commitments", 0));
    wait("the end of the dispute window", Duration::from_secs(60), || {
        stored().is_some_and(|accepted| alice.number(None) >= accepted.at + WINDOW_BLOCKS)
    });
    let pushed = alice.submit(&page);
    assert!(pushed.get("error").is_none(), "{pushed}");
    let issuance = || alice.storage::<u128>(&key("Balances", "TotalIssuance"));
    wait("the payout", Duration::from_secs(60), || issuance().is_some());

    let budget = emission::budget(0);
    assert_eq!(issuance(), Some(budget / 4 + budget * 3 / 4));
    assert_eq!(alice.storage::<u128>(&key("Emission", "Issued")), issuance());
    let stored = stored().unwrap();
    assert_eq!((stored.commitment, stored.settled), (commitment, true));
    let number = alice.number(None);
    wait("finality of the payout", Duration::from_secs(60), || {
        bob.finalised() >= number
    });
}
