//! Settlement of an epoch: from an attested commitment to paid balances (`docs/spec/attestation.md`).

use codec::{Decode, DecodeWithMemTracking, Encode, MaxEncodedLen};
use core::{fmt, str::FromStr};
use scale_info::{Path, Type, TypeInfo, build::Variants};

/// How far the settlement of an epoch has come. One type for the chain's view functions, its clients, the parameter
/// server's database and the HTTP API; the text form is [`SettlementStatus::as_str`] everywhere.
///
/// ```
/// use alice_primitives::SettlementStatus;
///
/// assert_eq!("final".parse(), Ok(SettlementStatus::Final));
/// assert_eq!(SettlementStatus::Settled.to_string(), "settled");
/// assert!("paid".parse::<SettlementStatus>().is_err());
/// assert!(SettlementStatus::Forfeited.is_closed());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, DecodeWithMemTracking, MaxEncodedLen)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "std", serde(rename_all = "lowercase"))]
pub enum SettlementStatus {
    /// The epoch runs, or no quorum has attested it yet, or a veto has reopened it.
    Open,
    /// A quorum attested the same commitment; until the dispute window ends the validators may veto it.
    Accepted,
    /// The dispute window is over: payout pages can be paid.
    Final,
    /// Every payout page is paid, or nothing was earned.
    Settled,
    /// No commitment was accepted in time: the epoch's budget is never minted.
    Forfeited,
    /// The epoch is older than the chain's history; events and the manifest of its time still show the outcome.
    Forgotten,
    /// A parameter server has sent its attestation and no quorum is known yet. Only a server knows this: on the chain
    /// the epoch is [`Open`](Self::Open), so the variant has no SCALE encoding.
    #[codec(skip)]
    Attested,
}

impl SettlementStatus {
    /// Every status, in the order of the SCALE encoding; the server's own one is last.
    pub const ALL: [Self; 7] = [
        Self::Open,
        Self::Accepted,
        Self::Final,
        Self::Settled,
        Self::Forfeited,
        Self::Forgotten,
        Self::Attested,
    ];

    /// Text form, for JSON and databases.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Accepted => "accepted",
            Self::Final => "final",
            Self::Settled => "settled",
            Self::Forfeited => "forfeited",
            Self::Forgotten => "forgotten",
            Self::Attested => "attested",
        }
    }

    /// Whether the status can no longer change: everything is paid, or nothing ever will be.
    pub const fn is_closed(self) -> bool {
        matches!(self, Self::Settled | Self::Forfeited | Self::Forgotten)
    }
}

impl fmt::Display for SettlementStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text is none of the names of a [`SettlementStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownSettlementStatus;

impl fmt::Display for UnknownSettlementStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "unknown settlement status; known are open, accepted, final, settled, forfeited, forgotten and attested",
        )
    }
}

impl core::error::Error for UnknownSettlementStatus {}

impl FromStr for SettlementStatus {
    type Err = UnknownSettlementStatus;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or(UnknownSettlementStatus)
    }
}

// By hand, because a derive would put this crate's module path into the chain's metadata, where the type is known as
// `pallet_epoch::Status`: clients that find types by their path would no longer find it.
impl TypeInfo for SettlementStatus {
    type Identity = Self;

    fn type_info() -> Type {
        let encoded = Variants::new()
            .variant("Open", |v| v.index(0))
            .variant("Accepted", |v| v.index(1))
            .variant("Final", |v| v.index(2))
            .variant("Settled", |v| v.index(3))
            .variant("Forfeited", |v| v.index(4))
            .variant("Forgotten", |v| v.index(5));
        Type::builder()
            .path(Path::new("Status", "pallet_epoch"))
            .variant(encoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of the variants whose metadata has the index.
    fn metadata_names() -> Vec<(u8, &'static str)> {
        let scale_info::TypeDef::Variant(variants) = SettlementStatus::type_info().type_def else {
            panic!("not an enum")
        };
        variants.variants.iter().map(|v| (v.index, v.name)).collect()
    }

    #[test]
    fn text_should_round_trip_and_equal_serde() {
        for status in SettlementStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
            let json = serde_json::to_string(&status).unwrap();
            assert_eq!(json, format!("\"{status}\""));
            assert_eq!(serde_json::from_str::<SettlementStatus>(&json).unwrap(), status);
        }
        for text in ["", "Open", "open ", "paid"] {
            assert_eq!(text.parse::<SettlementStatus>(), Err(UnknownSettlementStatus), "{text}");
        }
    }

    #[test]
    fn encoding_should_equal_the_metadata() {
        let on_chain = &SettlementStatus::ALL[..6];
        let expected: Vec<_> = on_chain.iter().map(|s| (s.encode()[0], format!("{s:?}"))).collect();
        let found: Vec<_> = metadata_names().into_iter().map(|(i, n)| (i, n.to_owned())).collect();
        assert_eq!(found, expected);
        assert_eq!(SettlementStatus::type_info().path.segments, ["pallet_epoch", "Status"]);
        for (index, status) in (0u8..).zip(on_chain) {
            assert_eq!(SettlementStatus::decode(&mut &[index][..]), Ok(*status));
        }
        assert!(SettlementStatus::decode(&mut &[6u8][..]).is_err());
    }
}
