//! The runtime's types, as far as this crate uses them. Fields are found by their names in the runtime's metadata and
//! others are skipped, so that a runtime that adds fields is understood.

use alice_primitives::{Commitment, Hash, pages::Entry};
use subxt::ext::{
    scale_decode::{self, DecodeAsType},
    scale_encode::{self, EncodeAsType},
};

/// `pallet_epoch::Parameters`.
#[derive(Clone, Debug, PartialEq, DecodeAsType)]
#[decode_as_type(crate_path = "scale_decode")]
pub(crate) struct NetworkParameters {
    pub slot_ms: u64,
    pub epoch_blocks: u32,
    pub window_blocks: u32,
    pub late_epochs: u32,
}

/// `pallet_epoch::ParameterServer`.
#[derive(Clone, Debug, PartialEq, DecodeAsType)]
#[decode_as_type(crate_path = "scale_decode")]
pub(crate) struct ParameterServer {
    pub key: Hash,
}

/// `pallet_epoch::Accepted`.
#[derive(Clone, Debug, PartialEq, DecodeAsType)]
#[decode_as_type(crate_path = "scale_decode")]
pub(crate) struct Accepted {
    pub commitment: CommitmentFields,
    pub round: u32,
    pub at: u32,
    pub settled: bool,
}

/// `pallet_epoch::Reopened`.
#[derive(Clone, Debug, PartialEq, DecodeAsType)]
#[decode_as_type(crate_path = "scale_decode")]
pub(crate) struct Reopened {
    pub round: u32,
}

/// `pallet_reward::Ledger`.
#[derive(Clone, Debug, PartialEq, DecodeAsType)]
#[decode_as_type(crate_path = "scale_decode")]
pub(crate) struct LedgerFields {
    pub budget: u128,
    pub total_score: u128,
    pub paid: u128,
    pub pages: u32,
    pub pages_paid: u32,
    pub paid_bitmap: Vec<u8>,
}

impl LedgerFields {
    /// Whether page `index` is paid.
    pub fn is_paid(&self, index: u32) -> bool {
        // Least significant bit first, as the pallet sets them.
        let byte = usize::try_from(index / 8).ok().and_then(|at| self.paid_bitmap.get(at));
        byte.is_some_and(|byte| byte >> (index % 8) & 1 == 1)
    }
}

/// `frame_system::AccountInfo` with `pallet_balances::AccountData`.
#[derive(Clone, Debug, PartialEq, DecodeAsType)]
#[decode_as_type(crate_path = "scale_decode")]
pub(crate) struct AccountInfo {
    pub data: AccountData,
}

#[derive(Clone, Debug, PartialEq, DecodeAsType)]
#[decode_as_type(crate_path = "scale_decode")]
pub(crate) struct AccountData {
    pub free: u128,
}

/// `alice_primitives::Commitment`.
#[derive(Clone, Debug, PartialEq, EncodeAsType, DecodeAsType)]
#[encode_as_type(crate_path = "scale_encode")]
#[decode_as_type(crate_path = "scale_decode")]
pub(crate) struct CommitmentFields {
    pub epoch: u32,
    pub set_id: u32,
    pub run_hash: Hash,
    pub contributions_root: Hash,
    pub pages: u32,
    pub entries: u32,
    pub total_score: u128,
    pub manifest_hash: Hash,
    pub model_root: Hash,
    pub parent: Hash,
}

impl From<&Commitment> for CommitmentFields {
    fn from(c: &Commitment) -> Self {
        Self {
            epoch: c.epoch,
            set_id: c.set_id,
            run_hash: c.run_hash,
            contributions_root: c.contributions_root,
            pages: c.pages,
            entries: c.entries,
            total_score: c.total_score,
            manifest_hash: c.manifest_hash,
            model_root: c.model_root,
            parent: c.parent,
        }
    }
}

impl From<CommitmentFields> for Commitment {
    fn from(c: CommitmentFields) -> Self {
        Self {
            epoch: c.epoch,
            set_id: c.set_id,
            run_hash: c.run_hash,
            contributions_root: c.contributions_root,
            pages: c.pages,
            entries: c.entries,
            total_score: c.total_score,
            manifest_hash: c.manifest_hash,
            model_root: c.model_root,
            parent: c.parent,
        }
    }
}

/// `alice_primitives::pages::Entry`.
#[derive(Clone, Debug, PartialEq, EncodeAsType)]
#[encode_as_type(crate_path = "scale_encode")]
pub(crate) struct EntryFields {
    pub account: Hash,
    pub score: u64,
}

impl From<&Entry> for EntryFields {
    fn from(entry: &Entry) -> Self {
        Self {
            account: entry.account,
            score: entry.score,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alice_primitives::fixtures::commitment;
    use codec::Encode;
    use proptest::prelude::*;
    use scale_info::{MetaType, PortableRegistry, Registry, TypeInfo};

    fn registry<T: TypeInfo + 'static>() -> (PortableRegistry, u32) {
        let mut registry = Registry::new();
        let id = registry.register_type(&MetaType::new::<T>()).id;
        (registry.into(), id)
    }

    fn read<T: TypeInfo + 'static, V: DecodeAsType>(bytes: &[u8]) -> Result<V, scale_decode::Error> {
        let (types, id) = registry::<T>();
        V::decode_as_type(&mut &*bytes, id, &types)
    }

    /// As the chain has it, with a field that this program does not know.
    #[derive(TypeInfo, Encode)]
    struct ChainLedger {
        budget: u128,
        total_score: u128,
        score_seen: u128,
        paid: u128,
        pages: u32,
        pages_paid: u32,
        paid_bitmap: Vec<u8>,
        recipients: u32,
    }

    #[test]
    fn commitment_should_have_the_bytes_that_are_signed() {
        let (types, id) = registry::<Commitment>();
        let mut bytes = Vec::new();
        CommitmentFields::from(&commitment())
            .encode_as_type_to(id, &types, &mut bytes)
            .unwrap();
        assert_eq!(bytes, commitment().encode());
        let back: CommitmentFields = read::<Commitment, _>(&bytes).unwrap();
        assert_eq!(Commitment::from(back), commitment());
    }

    #[test]
    fn entries_should_have_the_bytes_that_are_hashed() {
        let entries = [
            Entry {
                account: [9; 32],
                score: 5,
            },
            Entry {
                account: [10; 32],
                score: u64::MAX,
            },
        ];
        let (types, id) = registry::<Vec<Entry>>();
        let mut bytes = Vec::new();
        let fields: Vec<EntryFields> = entries.iter().map(EntryFields::from).collect();
        fields.encode_as_type_to(id, &types, &mut bytes).unwrap();
        assert_eq!(bytes, entries[..].encode());
    }

    #[test]
    fn ledger_should_be_read_past_unknown_fields() {
        let ledger = ChainLedger {
            budget: 10,
            total_score: 20,
            score_seen: 15,
            paid: 7,
            pages: 10,
            pages_paid: 2,
            paid_bitmap: vec![0b1000_0000, 0b10],
            recipients: 4,
        };
        let read: LedgerFields = read::<ChainLedger, _>(&ledger.encode()).unwrap();
        assert_eq!(
            (read.budget, read.total_score, read.paid, read.pages, read.pages_paid),
            (10, 20, 7, 10, 2)
        );
        let paid: Vec<u32> = (0..100).filter(|page| read.is_paid(*page)).collect();
        assert_eq!(paid, [7, 9]);
    }

    #[test]
    fn a_length_that_is_not_there_should_not_be_allocated() {
        // A vector that claims 2^30 − 1 elements and has none.
        let claim = codec::Compact((1u32 << 30) - 1).encode();
        assert!(read::<Vec<[u8; 32]>, Vec<Hash>>(&claim).is_err());
        let mut bytes = (1u128, 1u128, 1u128, 1u128, 1u32, 1u32).encode();
        bytes.extend(claim);
        assert!(read::<ChainLedger, LedgerFields>(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_should_be_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read::<ChainLedger, LedgerFields>(&bytes);
            let _ = read::<Commitment, CommitmentFields>(&bytes);
            let _ = read::<Vec<[u8; 32]>, Vec<Hash>>(&bytes);
        }
    }
}
