//! Proofs of a chain that is made here: four authorities, one block. `tests/settlement.rs` has those of a real node.

use super::*;
use alice_primitives::fixtures;
use proptest::prelude::*;
use sp_trie::{TrieDBMutBuilder, TrieMut, recorder::Recorder};

const EPOCH: u32 = 7;

fn authority(index: u8) -> ed25519::Pair {
    ed25519::Pair::from_seed(&[index; 32])
}

fn genesis() -> Genesis {
    Genesis {
        hash: [9; 32],
        authorities: (0..4).map(|index| (authority(index).public().0, 1)).collect(),
    }
}

fn commitment() -> Commitment {
    Commitment {
        epoch: EPOCH,
        ..fixtures::commitment()
    }
}

/// The items of a state that proofs are about.
#[derive(Clone)]
struct Holds {
    /// Epoch under whose key the commitment is.
    epoch: u32,
    accepted_at: u32,
    settled: bool,
    genesis: Hash,
}

fn holds() -> Holds {
    Holds {
        epoch: EPOCH,
        accepted_at: 12,
        settled: false,
        genesis: [9; 32],
    }
}

/// Root and proof of a state.
fn state(holds: &Holds) -> (H256, Vec<Vec<u8>>) {
    let mut db = sp_trie::MemoryDB::<Blake2Hasher>::default();
    let mut root = H256::zero();
    {
        let mut trie = TrieDBMutBuilder::<Layout>::new(&mut db, &mut root).build();
        let accepted = Accepted {
            commitment: commitment(),
            round: 0,
            at: holds.accepted_at,
            settled: holds.settled,
            previous: Some((6, [6; 32])),
        };
        let parameters = Parameters {
            slot_ms: 6000,
            epoch_blocks: 600,
            window_blocks: 10,
            late_epochs: 24,
            session_slots: 600,
        };
        let [of_epoch, network, block_zero] = keys(holds.epoch);
        trie.insert(&of_epoch, &accepted.encode()).unwrap();
        trie.insert(&network, &parameters.encode()).unwrap();
        trie.insert(&block_zero, &holds.genesis.encode()).unwrap();
        for i in 0..200u32 {
            trie.insert(&keys(1000 + i)[0], &i.encode()).unwrap();
            trie.insert(&blake2_256(&i.encode()), &[7; 40]).unwrap();
        }
    }
    // A node records the same while it reads for `state_getReadProof`.
    let recorder = Recorder::<Blake2Hasher>::default();
    for key in keys(EPOCH) {
        let mut reading = recorder.as_trie_recorder(root);
        read_trie_value::<Layout, _>(&db, &root, &key, Some(&mut reading), None).unwrap();
    }
    (root, recorder.drain_storage_proof().into_iter_nodes().collect())
}

fn header(number: u64, parent_hash: H256, state_root: H256) -> Header {
    Header {
        parent_hash,
        number,
        state_root,
        extrinsics_root: H256::repeat_byte(8),
        digest: Default::default(),
    }
}

fn hash(header: &Header) -> H256 {
    H256(blake2_256(&header.encode()))
}

/// Votes of authorities, each for a header, that finalise `target`.
fn justify(target: &Header, votes: &[(u8, &Header)], ancestries: &[&Header]) -> Vec<u8> {
    let round = 11;
    let precommits = votes.iter().map(|(index, header)| {
        let precommit = finality_grandpa::Precommit {
            target_hash: hash(header),
            target_number: header.number as u32,
        };
        let payload = (Message::Precommit(precommit.clone()), round, SET_ID).encode();
        let pair = authority(*index);
        finality_grandpa::SignedPrecommit {
            precommit,
            signature: pair.sign(&payload),
            id: pair.public(),
        }
    });
    Justification {
        round,
        commit: Commit {
            target_hash: hash(target),
            target_number: target.number as u32,
            precommits: precommits.collect(),
        },
        votes_ancestries: ancestries.iter().map(|header| (*header).clone()).collect(),
    }
    .encode()
}

fn proof() -> CommitmentProof {
    proof_of(&holds(), 40)
}

fn proof_of(holds: &Holds, number: u64) -> CommitmentProof {
    let (state_root, storage) = state(holds);
    let header = header(number, H256::repeat_byte(4), state_root);
    CommitmentProof {
        header: header.encode(),
        storage,
        justification: justify(&header, &[(0, &header), (1, &header), (3, &header)], &[]),
    }
}

#[test]
fn a_proof_should_show_the_commitment_in_a_final_block() {
    let proof = proof();
    let proven = proof.open(EPOCH).unwrap();
    assert_eq!(proven.commitment, commitment());
    assert_eq!(
        (proven.block.number, proven.block.hash),
        (40, blake2_256(&proof.header))
    );
    assert_eq!(proof.check(EPOCH, &genesis()).unwrap(), proven);
    let other = proof.open(EPOCH + 1).unwrap_err().to_string();
    assert!(other.contains("commitment of epoch 8"), "{other}");
}

#[test]
fn a_commitment_that_could_be_vetoed_should_not_count() {
    // Accepted in block 12, with a window of 10 blocks.
    let at = |number, settled| proof_of(&Holds { settled, ..holds() }, number).check(EPOCH, &genesis());
    let error = at(21, false).unwrap_err().to_string();
    assert!(error.contains("could still be vetoed"), "{error}");
    at(22, false).unwrap();
    at(21, true).unwrap();
}

#[test]
fn votes_of_the_same_validators_on_another_network_should_not_count() {
    let elsewhere = Holds {
        genesis: [8; 32],
        ..holds()
    };
    let error = proof_of(&elsewhere, 40).check(EPOCH, &genesis()).unwrap_err();
    assert!(matches!(error, ProofError::OtherChain { .. }), "{error}");
}

#[test]
fn votes_for_descendants_should_count() {
    let (state_root, _) = state(&holds());
    let target = header(40, H256::repeat_byte(4), state_root);
    let child = header(41, hash(&target), H256::repeat_byte(1));
    let grandchild = header(42, hash(&child), H256::repeat_byte(2));
    let votes = [(0, &target), (1, &child), (2, &grandchild)];
    let with = |justification| CommitmentProof {
        header: target.encode(),
        storage: Vec::new(),
        justification,
    };
    with(justify(&target, &votes, &[&child, &grandchild]))
        .check_final(&genesis())
        .unwrap();
    // Without the headers between, nobody can tell that they are descendants.
    assert!(
        with(justify(&target, &votes, &[&grandchild]))
            .check_final(&genesis())
            .is_err()
    );
}

#[test]
fn too_few_votes_and_votes_of_others_should_not_do() {
    let proof = proof();
    let header = proof.header().unwrap();
    let elsewhere = self::header(40, H256::repeat_byte(5), header.state_root);
    let cases: [(Vec<u8>, &str); 6] = [
        (justify(&header, &[(0, &header), (1, &header)], &[]), "too few"),
        (
            justify(&header, &[(0, &header), (1, &header), (1, &header)], &[]),
            "too few",
        ),
        (
            justify(&header, &[(0, &header), (1, &header), (2, &header), (9, &header)], &[]),
            "not one of the authorities",
        ),
        (
            justify(&elsewhere, &[(0, &elsewhere), (1, &elsewhere), (2, &elsewhere)], &[]),
            "another block",
        ),
        (
            justify(&header, &[(0, &header), (1, &elsewhere), (2, &elsewhere)], &[]),
            "",
        ),
        (Vec::new(), "damaged"),
    ];
    for (justification, words) in cases {
        let wrong = CommitmentProof {
            justification,
            ..proof.clone()
        };
        let error = wrong.check_final(&genesis()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let mut later = proof.clone();
    let mut justification = Justification::decode(&mut &proof.justification[..]).unwrap();
    justification.round += 1;
    later.justification = justification.encode();
    assert!(later.check_final(&genesis()).is_err(), "signatures are of a round");
}

#[test]
fn a_state_without_the_commitment_should_differ_from_a_damaged_proof() {
    let (state_root, storage) = state(&Holds {
        epoch: EPOCH + 1,
        ..holds()
    });
    let without = CommitmentProof {
        header: header(40, H256::repeat_byte(4), state_root).encode(),
        storage,
        justification: Vec::new(),
    };
    let error = without.open(EPOCH).unwrap_err();
    assert!(error.to_string().contains("the state has none"), "{error}");
    let mut cut = proof();
    cut.storage.pop();
    assert!(matches!(cut.open(EPOCH), Err(ProofError::Absent { .. })));
    let many = CommitmentProof {
        storage: vec![Vec::new(); NODES_MAX + 1],
        ..proof()
    };
    assert!(matches!(many.open(EPOCH), Err(ProofError::Damaged(_))));
}

#[test]
fn block_zero_should_come_from_a_raw_specification_only() {
    let cases = [
        ("{}", "genesis"),
        (r#"{"genesis":{}}"#, "not raw"),
        (r#"{"genesis":{"raw":{"top":{}}}}"#, "no GRANDPA authorities"),
        (r#"{"genesis":{"raw":{"top":{"0xzz":"0x"}}}}"#, "hexadecimal"),
        (
            r#"{"genesis":{"raw":{"top":{},"childrenDefault":{"0x00":{}}}}}"#,
            "child tries",
        ),
        ("[", "EOF"),
    ];
    for (text, words) in cases {
        let error = Genesis::from_raw_spec(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("--raw"), "{error}");
    }
}

proptest! {
    #[test]
    fn a_changed_byte_anywhere_should_be_refused(
        part in 0usize..3, at in any::<prop::sample::Index>(), flip in 1u8..
    ) {
        let mut wrong = proof();
        let node = at.index(wrong.storage.len());
        let bytes = match part {
            0 => &mut wrong.header,
            1 => &mut wrong.justification,
            _ => &mut wrong.storage[node],
        };
        let place = at.index(bytes.len());
        bytes[place] ^= flip;
        prop_assert!(wrong.check(EPOCH, &genesis()).is_err());
    }

    #[test]
    fn any_bytes_should_be_an_error(header in prop::collection::vec(any::<u8>(), 0..200), node in prop::collection::vec(any::<u8>(), 0..200)) {
        let wrong = CommitmentProof { justification: node.clone(), storage: vec![node], header };
        prop_assert!(wrong.open(EPOCH).is_err() && wrong.check(EPOCH, &genesis()).is_err());
    }
}
