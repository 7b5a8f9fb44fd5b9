//! Proofs that are checked without a node: that the chain has finalised a block whose state holds an accepted commitment.
//!
//! Three links, each checked by another library's code: a GRANDPA justification of the block by the authorities of block 0
//! (`finality-grandpa`), the block's header with its state root, and the nodes of the state's trie from that root to the
//! commitment (`sp-trie`). What stands at the beginning, block 0, is computed from a chain's raw specification
//! ([`Genesis`]).

use crate::{Block, Chain, ChainError};
use alice_primitives::{Commitment, Hash};
use codec::{Decode, DecodeAll, Encode};
use finality_grandpa::{Commit, Message, voter_set::VoterSet};
use sp_core::{Blake2Hasher, H256, Pair, ed25519};
use sp_crypto_hashing::{blake2_256, twox_64, twox_128};
use sp_trie::{LayoutV1, StorageProof, TrieConfiguration, empty_trie_root, read_trie_value};
use std::{collections::BTreeMap, time::Duration};
use subxt::{config::substrate::SubstrateHeader, rpcs::rpc_params};

/// Largest part of a proof that is looked at, bytes: a header, a node of the trie, a justification.
pub const PART_BYTES_MAX: usize = 1 << 20;
/// Most nodes of the trie that are looked at.
pub const NODES_MAX: usize = 256;
/// Largest specification of a chain that is read, bytes. A runtime's wasm, in hexadecimal, is nearly all of it.
pub const SPEC_BYTES_MAX: u64 = 64 << 20;
/// Longest wait for the next finalised block.
const JUSTIFICATION_TIMEOUT: Duration = Duration::from_secs(120);
/// GRANDPA's set of authorities from block 0 on.
const SET_ID: u64 = 0;

type Layout = LayoutV1<Blake2Hasher>;
type Header = SubstrateHeader<H256>;

/// Why a proof does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// It cannot be read.
    #[error("the chain proof is damaged: {0}; export the folder again with --chain")]
    Damaged(String),
    /// The state does not hold what it should.
    #[error("the chain proof does not show a commitment of epoch {epoch}: {problem}")]
    Absent {
        /// Epoch.
        epoch: u32,
        /// What is missing.
        problem: String,
    },
    /// The votes do not finalise the block.
    #[error("block {number} of the chain proof is not shown to be final: {problem}")]
    NotFinal {
        /// Block.
        number: u64,
        /// What is wrong with the votes.
        problem: String,
    },
    /// Not a raw specification of a chain.
    #[error(
        "the chain's specification cannot be used: {0}; give the raw one, as `alice-node export-chain-spec --raw` writes it"
    )]
    Spec(String),
}

/// That the chain has finalised a commitment. Everything is as the node encodes it (SCALE).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitmentProof {
    /// Header of the block.
    pub header: Vec<u8>,
    /// Nodes of the state's trie.
    pub storage: Vec<Vec<u8>>,
    /// GRANDPA justification of the block.
    pub justification: Vec<u8>,
}

/// What a proof shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// The block whose state it is.
    pub block: Block,
    /// What that state holds for the epoch.
    pub commitment: Commitment,
}

/// What block 0 says: by which hash the network is known, and who finalises its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// Hash of block 0.
    pub hash: Hash,
    /// Keys of GRANDPA's authorities with their weights.
    pub authorities: Vec<(Hash, u64)>,
}

/// `sp_consensus_grandpa::GrandpaJustification`.
#[derive(Encode, Decode)]
struct Justification {
    round: u64,
    commit: Commit<H256, u32, ed25519::Signature, ed25519::Public>,
    votes_ancestries: Vec<Header>,
}

impl CommitmentProof {
    /// The commitment of `epoch` in the state of the proof's block. That the block is final, or of the chain at all, is
    /// not shown by this: compare its hash with a node's, or call [`CommitmentProof::check_final`].
    pub fn open(&self, epoch: u32) -> Result<Proven, ProofError> {
        let header = self.header()?;
        if self.storage.len() > NODES_MAX || self.storage.iter().any(|node| node.len() > PART_BYTES_MAX) {
            return Err(ProofError::Damaged("its part of the state is too large".into()));
        }
        let absent = |problem: String| ProofError::Absent { epoch, problem };
        let db = StorageProof::new(self.storage.iter().cloned()).into_memory_db::<Blake2Hasher>();
        let value = read_trie_value::<Layout, _>(&db, &header.state_root, &commitment_key(epoch), None, None)
            .map_err(|e| absent(format!("its nodes do not lead from the state root to it ({e})")))?
            .ok_or_else(|| absent("the state has none".into()))?;
        // `pallet_epoch::Accepted` begins with the commitment.
        let commitment = Commitment::decode(&mut &value[..])
            .map_err(|e| absent(format!("what is stored is of another form ({e}); update this program")))?;
        if commitment.epoch != epoch {
            return Err(absent(format!("what is stored is of epoch {}", commitment.epoch)));
        }
        let number = u32::try_from(header.number).map_err(|_| ProofError::Damaged("its block number".into()))?;
        let hash = blake2_256(&self.header);
        Ok(Proven {
            block: Block { number, hash },
            commitment,
        })
    }

    /// Whether the authorities of block 0 finalised the proof's block. A chain whose authorities have changed since is not
    /// followed; its nodes have to be asked.
    pub fn check_final(&self, genesis: &Genesis) -> Result<(), ProofError> {
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
            if !voters.contains(&vote.id) || !ed25519::Pair::verify(&vote.signature, payload, &vote.id) {
                return Err(not_final(
                    "a vote is not one of the authorities of block 0; if validators have changed since, check with --chain",
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

/// Headers between the block and those that votes were for, by hash.
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
        let (mut route, mut at) = (Vec::new(), block);
        while at != base {
            at = *self.0.get(&at).ok_or(finality_grandpa::Error::NotDescendent)?;
            route.push(at);
            // Hashes form no cycles, but nothing here may depend on that.
            if route.len() > self.0.len() {
                return Err(finality_grandpa::Error::NotDescendent);
            }
        }
        // Without the base.
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
        if !raw.children_default.is_empty() {
            return Err(bad("its block 0 has child tries, which Alice has none of"));
        }
        let bytes = |text: &str| hex::decode(text.strip_prefix("0x").unwrap_or(text));
        let top: BTreeMap<Vec<u8>, Vec<u8>> = raw
            .top
            .iter()
            .map(|(key, value)| Ok((bytes(key)?, bytes(value)?)))
            .collect::<Result<_, hex::FromHexError>>()
            .map_err(|e| ProofError::Spec(format!("its state holds what is no hexadecimal number ({e})")))?;
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
    /// Proves the accepted commitment of an epoch, with the next block that the node's voters finalise; none where that
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
        let key = commitment_key(epoch);
        let storage = self
            .ask(what, || self.rpc.state_get_read_proof([&key[..]], Some(target)))
            .await?;
        let proof = CommitmentProof {
            header: header.encode(),
            storage: storage.proof.into_iter().map(|node| node.0).collect(),
            justification,
        };
        match proof.open(epoch) {
            Ok(_) => Ok(Some(proof)),
            Err(ProofError::Absent { .. }) => Ok(None),
            Err(error) => Err(decoding(error.to_string())),
        }
    }

    /// The next GRANDPA justification. Nodes keep few of the old ones, but tell each as it comes.
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

/// Where the accepted commitment of an epoch is in the state (`Twox64Concat`).
fn commitment_key(epoch: u32) -> Vec<u8> {
    let epoch = epoch.to_le_bytes();
    [&item_key("Epoch", "Commitments")[..], &twox_64(&epoch), &epoch].concat()
}

#[cfg(test)]
mod tests;
