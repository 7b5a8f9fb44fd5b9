//! Fixed-size byte strings that people read as hexadecimal.

use codec::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::{fmt, str::FromStr};

/// 32 bytes: a BLAKE3 digest, an account or a public key. 64 lower-case hexadecimal digits in JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode, utoipa::ToSchema)]
#[schema(value_type = String, example = "d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d")]
pub struct Hex32(pub [u8; 32]);

/// 64 bytes: an sr25519 signature. 128 lower-case hexadecimal digits in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, utoipa::ToSchema)]
#[schema(value_type = String)]
pub struct Hex64(pub [u8; 64]);

macro_rules! hex_type {
    ($name:ident, $len:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Hexadecimal in logs and failed assertions, too.
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = hex::FromHexError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; $len];
                // Wallets and explorers write `0x`; the API does not.
                hex::decode_to_slice(text.strip_prefix("0x").unwrap_or(text), &mut bytes)?;
                Ok(Self(bytes))
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                // Borrowed unless the JSON has escapes: manifests hold hundreds of thousands of these.
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse()
                    .map_err(|e| D::Error::custom(format!("expected {} hexadecimal digits: {e}", $len * 2)))
            }
        }
        impl From<[u8; $len]> for $name {
            fn from(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }
        }
    };
}
hex_type!(Hex32, 32);
hex_type!(Hex64, 64);
