//! sr25519 keys and the signatures of the protocol: always over SCALE of `(tag, genesis_hash, …)`.

use crate::{
    ClaimRequest, CommitRequest, DeclareRequest, Hex32, Hex64, Lease, Receipt, ReceiptBody, Task, Verdict, VerdictBody,
};
use alice_primitives::{Hash, tagged_hash, tags};
use codec::Encode;
use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey, PublicKey, Signature, signing_context};

/// Signing context of Substrate's sr25519: signatures made here verify on the chain and in wallets.
const CONTEXT: &[u8] = b"substrate";

/// A key pair.
#[derive(Clone)]
pub struct Key(Keypair);

impl Key {
    /// From a 32-byte seed (Substrate's `0x…` secret seed).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        // Any 32 bytes are a valid mini secret key; the length is in the type.
        let mini = MiniSecretKey::from_bytes(seed).unwrap_or_else(|_| unreachable!("32 bytes are always a seed; qed"));
        Self(mini.expand_to_keypair(ExpansionMode::Ed25519))
    }

    /// A new seed from the operating system's generator.
    pub fn random_seed() -> [u8; 32] {
        MiniSecretKey::generate().to_bytes()
    }

    /// Public key.
    pub fn public(&self) -> Hex32 {
        Hex32(self.0.public.to_bytes())
    }

    /// Signs bytes. sr25519 signatures are randomised: two signatures over the same bytes differ, both verify.
    pub fn sign(&self, payload: &[u8]) -> Hex64 {
        Hex64(self.0.sign(signing_context(CONTEXT).bytes(payload)).to_bytes())
    }
}

/// Whether `signature` is `key`'s over `payload`. False for keys and signatures that are not valid encodings.
///
/// ```
/// use alice_api::{Key, sign::verify};
/// let key = Key::from_seed(&[7; 32]);
/// let signature = key.sign(b"payload");
/// assert!(verify(&key.public(), b"payload", &signature));
/// assert!(!verify(&key.public(), b"another payload", &signature));
/// ```
pub fn verify(key: &Hex32, payload: &[u8], signature: &Hex64) -> bool {
    let (Ok(key), Ok(signature)) = (PublicKey::from_bytes(&key.0), Signature::from_bytes(&signature.0)) else {
        return false;
    };
    key.verify(signing_context(CONTEXT).bytes(payload), &signature).is_ok()
}

/// Identifier of a task: `H(TASK_ID, SCALE(run_hash, epoch, slice))`.
pub fn task_id(run_hash: &Hash, epoch: u32, slice: u32) -> Hex32 {
    Hex32(tagged_hash(tags::TASK_ID, &[&(run_hash, epoch, slice).encode()]))
}

/// Identifier of an upload and of the submission that it becomes: `H(SUBMISSION_ID, SCALE(task_id, miner, blob))`.
pub fn submission_id(task: &Hex32, miner: &Hex32, blob: &Hex32) -> Hex32 {
    Hex32(tagged_hash(tags::SUBMISSION_ID, &[&(task, miner, blob).encode()]))
}

impl ClaimRequest {
    fn payload(&self, genesis: &Hash, run_hash: &Hash) -> Vec<u8> {
        // The run's hash is signed although the request does not carry it: a claim cannot be replayed to a server of
        // another run.
        (tags::CLAIM, genesis, run_hash, self.epoch, &self.miner, &self.payout).encode()
    }

    /// A signed claim.
    pub fn new(key: &Key, genesis: &Hash, run_hash: &Hash, epoch: u32, payout: Hex32) -> Self {
        // The payload does not cover the signature, so it can be made from the unsigned request.
        let mut request = Self {
            miner: key.public(),
            payout,
            epoch,
            signature: Hex64([0; 64]),
        };
        request.signature = key.sign(&request.payload(genesis, run_hash));
        request
    }

    /// Whether the mining key signed it.
    pub fn verify(&self, genesis: &Hash, run_hash: &Hash) -> bool {
        verify(&self.miner, &self.payload(genesis, run_hash), &self.signature)
    }
}

impl DeclareRequest {
    fn payload(&self, genesis: &Hash) -> Vec<u8> {
        // The size is signed, so a server can refuse an upload by it before a byte is sent.
        (
            tags::DECLARE,
            genesis,
            &self.task_id,
            &self.miner,
            &self.blob,
            self.bytes,
        )
            .encode()
    }

    /// A signed declaration.
    pub fn new(key: &Key, genesis: &Hash, task_id: Hex32, blob: Hex32, bytes: u64) -> Self {
        let mut request = Self {
            task_id,
            miner: key.public(),
            blob,
            bytes,
            signature: Hex64([0; 64]),
        };
        request.signature = key.sign(&request.payload(genesis));
        request
    }

    /// Whether the mining key signed it.
    pub fn verify(&self, genesis: &Hash) -> bool {
        verify(&self.miner, &self.payload(genesis), &self.signature)
    }

    /// Identifier of the upload.
    pub fn id(&self) -> Hex32 {
        submission_id(&self.task_id, &self.miner, &self.blob)
    }
}

impl CommitRequest {
    fn payload(&self, genesis: &Hash) -> Vec<u8> {
        // The identifier covers task, miner and blob ([`submission_id`]), so these are signed as well.
        (tags::COMMIT, genesis, &self.id, &self.miner).encode()
    }

    /// A signed commit.
    pub fn new(key: &Key, genesis: &Hash, id: Hex32) -> Self {
        let mut request = Self {
            id,
            miner: key.public(),
            signature: Hex64([0; 64]),
        };
        request.signature = key.sign(&request.payload(genesis));
        request
    }

    /// Whether the mining key signed it.
    pub fn verify(&self, genesis: &Hash) -> bool {
        verify(&self.miner, &self.payload(genesis), &self.signature)
    }
}

impl Lease {
    /// Signs a task over to its miner.
    pub fn new(key: &Key, genesis: &Hash, task: Task) -> Self {
        let signature = key.sign(&server_payload(tags::LEASE, genesis, &task));
        Self { task, signature }
    }

    /// Whether `ps` signed it.
    pub fn verify(&self, ps: &Hex32, genesis: &Hash) -> bool {
        verify(ps, &server_payload(tags::LEASE, genesis, &self.task), &self.signature)
    }
}

/// The bytes that the server signs: SCALE of tag, network and contents. The tag keeps one kind of document from passing
/// as another, the genesis hash one network's from passing on another.
fn server_payload(tag: &[u8], genesis: &Hash, contents: &impl Encode) -> Vec<u8> {
    (tag, genesis, contents).encode()
}

impl Receipt {
    /// Signs a receipt.
    pub fn new(key: &Key, genesis: &Hash, body: ReceiptBody) -> Self {
        Self {
            signature: key.sign(&server_payload(tags::RECEIPT, genesis, &body)),
            ps_key: key.public(),
            body,
        }
    }

    /// Whether the server that it names signed it.
    pub fn verify(&self, genesis: &Hash) -> bool {
        let payload = server_payload(tags::RECEIPT, genesis, &self.body);
        verify(&self.ps_key, &payload, &self.signature)
    }
}

impl Verdict {
    /// Signs a verdict.
    pub fn new(key: &Key, genesis: &Hash, body: VerdictBody) -> Self {
        Self {
            signature: key.sign(&server_payload(tags::VERDICT, genesis, &body)),
            ps_key: key.public(),
            body,
        }
    }

    /// Whether the server that it names signed it.
    pub fn verify(&self, genesis: &Hash) -> bool {
        let payload = server_payload(tags::VERDICT, genesis, &self.body);
        verify(&self.ps_key, &payload, &self.signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_should_bind_every_field_and_the_network() {
        let key = Key::from_seed(&[7; 32]);
        let (genesis, run) = ([1; 32], [2; 32]);
        let claim = ClaimRequest::new(&key, &genesis, &run, 5, Hex32([3; 32]));
        assert!(claim.verify(&genesis, &run));
        assert!(!claim.verify(&[9; 32], &run));
        assert!(!claim.verify(&genesis, &[9; 32]));
        assert!(
            !ClaimRequest {
                epoch: 6,
                ..claim.clone()
            }
            .verify(&genesis, &run)
        );
        assert!(
            !ClaimRequest {
                payout: Hex32([4; 32]),
                ..claim.clone()
            }
            .verify(&genesis, &run)
        );
        assert!(
            !ClaimRequest {
                miner: Key::from_seed(&[8; 32]).public(),
                ..claim
            }
            .verify(&genesis, &run)
        );
    }

    #[test]
    fn a_receipt_should_not_pass_as_a_verdict() {
        let key = Key::from_seed(&[7; 32]);
        let body = (tags::RECEIPT, [0u8; 32], [1u8; 4]).encode();
        let other = (tags::VERDICT, [0u8; 32], [1u8; 4]).encode();
        assert!(verify(&key.public(), &body, &key.sign(&body)));
        assert!(!verify(&key.public(), &other, &key.sign(&body)));
    }

    #[test]
    fn garbage_keys_and_signatures_should_not_verify() {
        assert!(!verify(&Hex32([0xff; 32]), b"x", &Hex64([0xff; 64])));
        assert!(!verify(&Hex32([0; 32]), b"x", &Hex64([0; 64])));
    }

    #[test]
    fn the_well_known_development_key_should_have_its_well_known_address() {
        // `//Alice` of Substrate's development keyring, as its raw seed.
        let seed: Hex32 = "e5be9a5092b81bca64be81d212e7f2f9eba183bb7a90954f7b76361f6edb5c0a"
            .parse()
            .unwrap();
        let expected = "d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d";
        assert_eq!(Key::from_seed(&seed.0).public().to_string(), expected);
    }
}
