//! Proofs that are checked without a node: that the chain has finalised a block whose state holds an accepted
//! commitment.
//!
//! Three links, each checked by another library's code: a GRANDPA justification of the block by the authorities of
//! block 0 (`finality-grandpa`), the block's header with its state root, and the nodes of the state's trie from that
//! root to the commitment (`sp-trie`), and to the hash of block 0, since votes do not name the network. The anchor,
//! block 0, is computed from a chain's raw specification ([`Genesis`]).

use crate::{Block, Chain, ChainError};
use alice_primitives::{Commitment, Hash};
use codec::{Decode, DecodeAll, Encode};
use finality_grandpa::{Commit, Message, voter_set::VoterSet};
use sp_core::{Blake2Hasher, H256, Pair, ed25519};
use sp_crypto_hashing::{blake2_256, twox_64, twox_128};
use sp_trie::{LayoutV1, StorageProof, TrieConfiguration, empty_trie_root, read_trie_value};
use std::{collections::BTreeMap, time::Duration};
use subxt::{config::substrate::SubstrateHeader, rpcs::rpc_params};

/// Maximum size of one part of a proof (a header, a node of the trie, a justification), bytes.
pub const PART_BYTES_MAX: usize = 1 << 20;
/// Maximum number of trie nodes in a proof: three paths of a few dozen nodes each fit many times over.
pub const NODES_MAX: usize = 256;
/// Maximum size of a chain specification, bytes. Nearly all of it is the runtime's wasm in hexadecimal.
pub const SPEC_BYTES_MAX: u64 = 64 << 20;
/// Maximum wait for the next finalised block: seconds on a healthy network, more if a few rounds fail.
const JUSTIFICATION_TIMEOUT: Duration = Duration::from_secs(120);
/// Number of the GRANDPA authority set that block 0 names.
const SET_ID: u64 = 0;

type Layout = LayoutV1<Blake2Hasher>;
type Header = SubstrateHeader<H256>;

/// Reason why a proof does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// It cannot be read.
    #[error("the chain proof is damaged: {0}; export the folder again with --chain")]
    Damaged(String),
    /// The state does not hold what it should.
    #[error("the chain proof does not show a commitment of epoch {epoch}: {problem}; do not use these weights")]
    Absent {
        /// Epoch.
        epoch: u32,
        /// The missing or unusable part of the state.
        problem: String,
    },
    /// It is of another network.
    #[error("the chain proof is of the network with genesis 0x{}, not 0x{}; do not use these weights", hex::encode(.found), hex::encode(.expected))]
    OtherChain {
        /// Hash of block 0 in the proof's state.
        found: Hash,
        /// Hash of block 0 that was expected.
        expected: Hash,
    },
    /// The votes do not finalise the block.
    #[error(
        "block {number} of the chain proof is not shown to be final: {problem}; do not use these weights unless a node confirms it (--chain)"
    )]
    NotFinal {
        /// Block.
        number: u64,
        /// The mistake in the votes.
        problem: String,
    },
    /// Not a raw specification of a chain.
    #[error(
        "the chain's specification cannot be used: {0}; give the raw one, as `alice-node export-chain-spec --raw` writes it"
    )]
    Spec(String),
}

/// Proof that the chain has finalised a commitment. All parts are as the node encodes them (SCALE).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitmentProof {
    /// Header of the block.
    pub header: Vec<u8>,
    /// Nodes of the state's trie.
    pub storage: Vec<Vec<u8>>,
    /// GRANDPA justification of the block.
    pub justification: Vec<u8>,
}

/// Facts that a proof shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// The block whose state it is.
    pub block: Block,
    /// Hash of block 0, as the block's state records it.
    pub genesis: Hash,
    /// Commitment of the epoch in that state.
    pub commitment: Commitment,
}

/// Facts of block 0: the hash that identifies the network, and the authorities that finalise its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// Hash of block 0.
    pub hash: Hash,
    /// Keys of GRANDPA's authorities with their weights.
    pub authorities: Vec<(Hash, u64)>,
}

/// `pallet_epoch::Accepted`.
#[derive(Encode, Decode)]
struct Accepted {
    commitment: Commitment,
    round: u32,
    at: u32,
    settled: bool,
    previous: Option<(u32, Hash)>,
}

/// `pallet_epoch::Parameters`.
#[derive(Encode, Decode)]
struct Parameters {
    slot_ms: u64,
    epoch_blocks: u32,
    window_blocks: u32,
    late_epochs: u32,
    session_slots: u32,
}

/// `sp_consensus_grandpa::GrandpaJustification`.
#[derive(Encode, Decode)]
struct Justification {
    round: u64,
    commit: Commit<H256, u32, ed25519::Signature, ed25519::Public>,
    votes_ancestries: Vec<Header>,
}

impl CommitmentProof {
    /// The commitment of `epoch` in the state of the proof's block, after its dispute window. This does not show that
    /// the block is final, or part of a chain at all: call [`CommitmentProof::check`], or compare block and genesis
    /// with a node's.
    ///
    /// # Errors
    /// The proof is damaged, or its state holds no such commitment.
    pub fn open(&self, epoch: u32) -> Result<Proven, ProofError> {
        let header = self.header()?;
        if self.storage.len() > NODES_MAX || self.storage.iter().any(|node| node.len() > PART_BYTES_MAX) {
            return Err(ProofError::Damaged("its part of the state is too large".into()));
        }
        let db = StorageProof::new(self.storage.iter().cloned()).into_memory_db::<Blake2Hasher>();
        let state = State {
            db: &db,
            root: header.state_root,
            epoch,
        };
        let [of_epoch, parameters, block_zero] = keys(epoch);
        let accepted: Accepted = state.read(&of_epoch)?;
        let parameters: Parameters = state.read(&parameters)?;
        let genesis: Hash = state.read(&block_zero)?;
        let commitment = accepted.commitment;
        if commitment.epoch != epoch {
            return Err(state.absent(format!("what is stored is of epoch {}", commitment.epoch)));
        }
        let number = u32::try_from(header.number).map_err(|_| ProofError::Damaged("its block number".into()))?;
        // As `pallet_epoch` decides it.
        if !accepted.settled && number < accepted.at.saturating_add(parameters.window_blocks) {
            return Err(state.absent("it could still be vetoed then".into()));
        }
        // Of the bytes as they came, not of a new encoding: the votes are for this hash.
        let hash = blake2_256(&self.header);
        Ok(Proven {
            block: Block { number, hash },
            genesis,
            commitment,
        })
    }

    /// The commitment of `epoch`, finalised by the chain with this block 0. Changes of the authorities since block 0
    /// are not followed; after one, a node has to be asked.
    ///
    /// # Errors
    /// As [`CommitmentProof::open`]; or the votes do not finalise the block, or the state is of another network.
    pub fn check(&self, epoch: u32, genesis: &Genesis) -> Result<Proven, ProofError> {
        self.check_final(genesis)?;
        let proven = self.open(epoch)?;
        // Votes name no network, and validators may use their keys in several.
        if proven.genesis != genesis.hash {
            return Err(ProofError::OtherChain {
                found: proven.genesis,
                expected: genesis.hash,
            });
        }
        Ok(proven)
    }

    /// Whether the authorities of block 0 voted for the proof's block.
    fn check_final(&self, genesis: &Genesis) -> Result<(), ProofError> {
        let header = self.header()?;
        let not_final = |problem: &str| ProofError::NotFinal {
            number: header.number,
            problem: problem.into(),
        };
        if self.justification.len() > PART_BYTES_MAX {
            return Err(ProofError::Damaged("its justification is too large".into()));
        }
        let justification = Justification::decode_all(&mut &self.justification[..])
            .map_err(|e| ProofError::Damaged(format!("its justification ({e})")))?;
        let (commit, hash) = (&justification.commit, H256(blake2_256(&self.header)));
        if commit.target_hash != hash || u64::from(commit.target_number) != header.number {
            return Err(not_final("the votes are for another block"));
        }
        let weights = genesis
            .authorities
            .iter()
            .map(|(key, weight)| (ed25519::Public::from(*key), *weight));
        let voters = VoterSet::new(weights).ok_or_else(|| ProofError::Spec("block 0 has no authorities".into()))?;
        for vote in &commit.precommits {
            let message = Message::Precommit(vote.precommit.clone());
            let payload = (message, justification.round, SET_ID).encode();
            // Strangers' votes would be ignored by the count, but each costs a signature check: the proof could be made
            // arbitrarily slow.
            if !voters.contains(&vote.id) || !ed25519::Pair::verify(&vote.signature, payload, &vote.id) {
                return Err(not_final(
                    "a vote is not one of the authorities of block 0, who may have changed since",
                ));
            }
        }
        let ancestry = Ancestry::new(&justification.votes_ancestries);
        match finality_grandpa::validate_commit(commit, &voters, &ancestry) {
            Ok(result) if result.is_valid() => Ok(()),
            Ok(_) => Err(not_final("too few authorities voted for it")),
            Err(error) => Err(not_final(&error.to_string())),
        }
    }

    fn header(&self) -> Result<Header, ProofError> {
        if self.header.len() > PART_BYTES_MAX {
            return Err(ProofError::Damaged("its header is too large".into()));
        }
        Header::decode_all(&mut &self.header[..]).map_err(|e| ProofError::Damaged(format!("its header ({e})")))
    }
}

/// The part of a state that a proof contains.
struct State<'a> {
    db: &'a sp_trie::MemoryDB<Blake2Hasher>,
    root: H256,
    epoch: u32,
}

impl State<'_> {
    fn absent(&self, problem: String) -> ProofError {
        ProofError::Absent {
            epoch: self.epoch,
            problem,
        }
    }

    fn read<T: Decode>(&self, key: &[u8]) -> Result<T, ProofError> {
        let value = read_trie_value::<Layout, _>(self.db, &self.root, key, None, None)
            .map_err(|e| self.absent(format!("its nodes do not lead from the state root to it ({e})")))?
            .ok_or_else(|| self.absent("the state has none".into()))?;
        T::decode_all(&mut &value[..])
            .map_err(|e| self.absent(format!("what is stored is of another form ({e}); update this program")))
    }
}

/// Parents of the headers between the block and the blocks voted for, by hash.
struct Ancestry(BTreeMap<H256, H256>);

impl Ancestry {
    fn new(headers: &[Header]) -> Self {
        Self(
            headers
                .iter()
                .map(|header| (H256(blake2_256(&header.encode())), header.parent_hash))
                .collect(),
        )
    }
}

impl finality_grandpa::Chain<H256, u32> for Ancestry {
    fn ancestry(&self, base: H256, block: H256) -> Result<Vec<H256>, finality_grandpa::Error> {
        let (mut route, mut current) = (Vec::new(), block);
        while current != base {
            current = *self.0.get(&current).ok_or(finality_grandpa::Error::NotDescendent)?;
            route.push(current);
            // Hashes form no cycles, but this loop must end even if they did.
            if route.len() > self.0.len() {
                return Err(finality_grandpa::Error::NotDescendent);
            }
        }
        // The interface wants the route without the base.
        route.pop();
        Ok(route)
    }
}

impl Genesis {
    /// Block 0 of a raw specification (JSON).
    pub fn from_raw_spec(json: &[u8]) -> Result<Self, ProofError> {
        #[derive(serde::Deserialize)]
        struct Spec {
            genesis: State,
        }
        #[derive(serde::Deserialize)]
        struct State {
            raw: Option<Raw>,
        }
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Raw {
            top: BTreeMap<String, String>,
            #[serde(default)]
            children_default: BTreeMap<String, serde_json::Value>,
        }
        let bad = |problem: &str| ProofError::Spec(problem.into());
        let spec: Spec = serde_json::from_slice(json).map_err(|e| ProofError::Spec(e.to_string()))?;
        let raw = spec.genesis.raw.ok_or_else(|| bad("it is not raw"))?;
        // Their roots would be part of the state root, which is computed from `top` alone.
        if !raw.children_default.is_empty() {
            return Err(bad("its block 0 has child tries, and Alice has none"));
        }
        let bytes = |text: &str| hex::decode(text.strip_prefix("0x").unwrap_or(text));
        let top: BTreeMap<Vec<u8>, Vec<u8>> = raw
            .top
            .iter()
            .map(|(key, value)| Ok((bytes(key)?, bytes(value)?)))
            .collect::<Result<_, hex::FromHexError>>()
            .map_err(|e| ProofError::Spec(format!("its state is not all hexadecimal ({e})")))?;
        let authorities = top
            .get(&item_key("Grandpa", "Authorities"))
            .ok_or_else(|| bad("its block 0 has no GRANDPA authorities"))?;
        let authorities = Vec::<(Hash, u64)>::decode_all(&mut &authorities[..])
            .map_err(|e| ProofError::Spec(format!("its GRANDPA authorities are damaged ({e})")))?;
        let header = Header {
            parent_hash: H256::zero(),
            number: 0,
            state_root: Layout::trie_root(top),
            extrinsics_root: empty_trie_root::<Layout>(),
            digest: Default::default(),
        };
        Ok(Self {
            hash: blake2_256(&header.encode()),
            authorities,
        })
    }
}

impl Chain {
    /// Proof of the accepted commitment of an epoch, in the next block that the node's voters finalise; `None` if that
    /// block's state has none.
    pub async fn prove_commitment(&self, epoch: u32) -> Result<Option<CommitmentProof>, ChainError> {
        let what = "proof of a commitment";
        let decoding = |detail: String| ChainError::Decode { what, detail };
        let justification = self.next_justification(what).await?;
        let target = Justification::decode_all(&mut &justification[..])
            .map_err(|e| decoding(e.to_string()))?
            .commit
            .target_hash;
        let header = self.header(what, target).await?;
        let keys = keys(epoch);
        let storage = self
            .ask(what, || {
                self.rpc
                    .state_get_read_proof(keys.iter().map(Vec::as_slice), Some(target))
            })
            .await?;
        let proof = CommitmentProof {
            header: header.encode(),
            storage: storage.proof.into_iter().map(|node| node.0).collect(),
            justification,
        };
        // Checked before it is given away: the node may have answered for another state.
        match proof.open(epoch) {
            Ok(_) => Ok(Some(proof)),
            Err(ProofError::Absent { .. }) => Ok(None),
            Err(error) => Err(decoding(error.to_string())),
        }
    }

    /// Number of the current GRANDPA authority set: the changes since block 0. Proofs under any other set than that of
    /// block 0 convince only those who can ask a node.
    pub async fn authority_set(&self) -> Result<u64, ChainError> {
        let what = "number of the set of authorities";
        let key = item_key("Grandpa", "CurrentSetId");
        let stored = self.ask(what, || self.rpc.state_get_storage(&key, None)).await?;
        // Absent storage has the default value.
        let Some(bytes) = stored else { return Ok(SET_ID) };
        u64::decode_all(&mut &bytes[..]).map_err(|e| ChainError::Decode {
            what,
            detail: e.to_string(),
        })
    }

    /// The next GRANDPA justification. Nodes store few of them, but publish each to subscribers.
    async fn next_justification(&self, what: &'static str) -> Result<Vec<u8>, ChainError> {
        let next = async {
            let (subscribe, unsubscribe) = ("grandpa_subscribeJustifications", "grandpa_unsubscribeJustifications");
            let mut justifications = self
                .raw
                .subscribe::<String>(subscribe, rpc_params![], unsubscribe)
                .await?;
            justifications.next().await.transpose()
        };
        let detail = match tokio::time::timeout(JUSTIFICATION_TIMEOUT, next).await {
            Ok(Ok(Some(text))) => {
                return hex::decode(text.strip_prefix("0x").unwrap_or(&text)).map_err(|e| ChainError::Decode {
                    what,
                    detail: e.to_string(),
                });
            }
            Ok(Ok(None)) => "the node ended the subscription to justifications".into(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no block was finalised within {} s", JUSTIFICATION_TIMEOUT.as_secs()),
        };
        Err(self.refused(what, &detail))
    }
}

fn item_key(pallet: &str, item: &str) -> Vec<u8> {
    [twox_128(pallet.as_bytes()), twox_128(item.as_bytes())].concat()
}

/// Storage key of a map with numbers as keys (`Twox64Concat`).
fn numbered_key(pallet: &str, item: &str, number: u32) -> Vec<u8> {
    let number = number.to_le_bytes();
    [&item_key(pallet, item)[..], &twox_64(&number), &number].concat()
}

/// Storage keys of a proof: the accepted commitment, the network's parameters, the hash of block 0.
fn keys(epoch: u32) -> [Vec<u8>; 3] {
    [
        numbered_key("Epoch", "Commitments", epoch),
        item_key("Epoch", "NetworkParameters"),
        numbered_key("System", "BlockHash", 0),
    ]
}

#[cfg(test)]
mod tests;
