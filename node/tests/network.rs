//! Two validators as processes on this machine: blocks are made and finalised, an epoch is attested and paid by general
//! transactions, and nothing else mints.
#![allow(missing_docs)]

mod support;

use alice_primitives::{
    emission, fixtures,
    pages::{self, Entry},
    Commitment,
};
use alice_runtime::{RuntimeCall, TxExtension, UncheckedExtrinsic};
use alice_testkit::{free_port, until};
use codec::Encode;
use serde_json::json;
use sp_keyring::Sr25519Keyring;
use std::{path::Path, process::Command, time::Duration};
use support::{Node, NODE, PATIENCE};

const EPOCH_BLOCKS: u32 = 6;
const WINDOW_BLOCKS: u32 = 2;
/// Peer id of [`NODE_KEY`].
const PEER_ID: &str = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";
const NODE_KEY: &str = "0000000000000000000000000000000000000000000000000000000000000001";

/// Polls until something has happened on the chain.
fn wait(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    until(what, limit, || done().then_some(()));
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
    let (chain, listen) = (spec.to_str().unwrap(), format!("/ip4/127.0.0.1/tcp/{port}"));
    let mut alice = Node::start(
        chain,
        &folder.join("alice"),
        &["--alice", "--listen-addr", &listen, "--node-key", NODE_KEY],
    );
    let bootnode = format!("{listen}/p2p/{PEER_ID}");
    let mut bob = Node::start_alone(chain, &folder.join("bob"), &["--bob", "--bootnodes", &bootnode]);
    alice.wait_for_rpc();
    bob.wait_for_rpc();
    wait("finality on both", PATIENCE, || {
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
        contributions_root: pages::root(&[pages::leaf(0, 0, &entries)]),
        pages: 1,
        entries: 2,
        total_score: 4,
        parent: [0; 32],
        ..fixtures::commitment()
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
