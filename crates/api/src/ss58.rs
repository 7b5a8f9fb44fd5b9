//! SS58 addresses: base58 of `prefix ‖ account ‖ checksum`, where the checksum is the first two bytes of
//! BLAKE2b-512 over `"SS58PRE" ‖ prefix ‖ account` (<https://docs.polkadot.com/polkadot-protocol/basics/accounts/>).
//!
//! Every Alice network has prefix 300, so its addresses start with `a`. Addresses of other networks are refused: a
//! payout to an address of another chain is most likely a mistake, and it could not be undone.

use alice_primitives::SS58_PREFIX;
use blake2::{Blake2b512, Digest};

/// Prefixes above this are not defined.
pub const PREFIX_MAX: u16 = 16_383;
/// Maximum text, bytes; a 32-byte account needs at most 50 characters.
const TEXT_MAX: usize = 128;
/// Bytes of checksum behind a 32-byte account.
const CHECKSUM_BYTES: usize = 2;

/// Why an address was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ss58Error {
    /// Nothing was given.
    #[error("the address is empty: an Alice address starts with 'a' and has about 49 characters")]
    Empty,
    /// Far too long.
    #[error("the address has {0} characters: an Alice address has about 49")]
    TooLong(usize),
    /// A character that base58 does not have.
    #[error(
        "the address has '{character}' at place {place}, which no address contains (0, O, I and l are left out); copy it again"
    )]
    NotBase58 {
        /// The offending character.
        character: char,
        /// Its place, counted from 1.
        place: usize,
    },
    /// Hexadecimal instead of SS58.
    #[error(
        "this is a public key in hexadecimal, not an address; your wallet shows the address, which starts with 'a'"
    )]
    Hexadecimal,
    /// Not 32 bytes of account.
    #[error(
        "the address holds {0} bytes where prefix, 32-byte account and checksum were expected; characters are missing or doubled"
    )]
    Length(usize),
    /// Mistyped.
    #[error("the address's checksum is wrong: a character was mistyped or left out; copy it again")]
    Checksum,
    /// A prefix that the format reserves.
    #[error("the address begins with the reserved prefix byte {0}; copy it again")]
    ReservedPrefix(u8),
    /// Valid, for another network.
    #[error(
        "this is an address of another network (prefix {prefix}), an Alice address starts with 'a'; the same account's Alice address is {alice}"
    )]
    OtherNetwork {
        /// The prefix found.
        prefix: u16,
        /// The same account with Alice's prefix.
        alice: String,
    },
}

fn prefix_bytes(prefix: u16) -> Vec<u8> {
    match prefix {
        // One byte holds prefixes below 64.
        0..=63 => vec![prefix as u8],
        // Two bytes hold 14 bits: the first has bits 2..8 below the marker `01`, the second bits 8..14 and 0..2.
        _ => {
            let first = ((prefix & 0x00fc) >> 2) as u8 | 0x40;
            let second = ((prefix >> 8) & 0x3f) as u8 | ((prefix & 0x03) << 6) as u8;
            vec![first, second]
        }
    }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest: [u8; 64] = Blake2b512::new()
        .chain_update(b"SS58PRE")
        .chain_update(body)
        .finalize()
        .into();
    [digest[0], digest[1]]
}

/// Address of an account with any network's prefix (at most [`PREFIX_MAX`]; higher bits are ignored).
pub fn encode_with_prefix(account: &[u8; 32], prefix: u16) -> String {
    let mut body = prefix_bytes(prefix & PREFIX_MAX);
    body.extend_from_slice(account);
    let sum = checksum(&body);
    body.extend_from_slice(&sum);
    bs58::encode(body).into_string()
}

/// Address of an account on Alice.
///
/// ```
/// use alice_api::ss58;
/// let address = ss58::encode(&[7; 32]);
/// assert!(address.starts_with('a'));
/// assert_eq!(ss58::decode(&address)?, [7; 32]);
/// # Ok::<(), ss58::Ss58Error>(())
/// ```
pub fn encode(account: &[u8; 32]) -> String {
    encode_with_prefix(account, SS58_PREFIX)
}

/// Prefix and account of any network's address.
pub fn decode_with_prefix(text: &str) -> Result<(u16, [u8; 32]), Ss58Error> {
    let text = text.trim();
    if text.is_empty() {
        return Err(Ss58Error::Empty);
    }
    // Before it is decoded, which takes time with the square of the length.
    if text.len() > TEXT_MAX {
        return Err(Ss58Error::TooLong(text.chars().count()));
    }
    // Before base58, which would only report a `0` as a wrong character.
    if text.parse::<crate::Hex32>().is_ok() {
        return Err(Ss58Error::Hexadecimal);
    }
    let bytes = bs58::decode(text).into_vec().map_err(|_| {
        let alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
        let bad = text.chars().enumerate().find(|(_, c)| !alphabet.contains(*c));
        let (index, character) = bad.unwrap_or((0, '?'));
        Ss58Error::NotBase58 {
            character,
            place: index + 1,
        }
    })?;
    let (prefix, prefix_len) = match bytes.as_slice() {
        [first @ 0..=63, ..] => (u16::from(*first), 1),
        [first @ 64..=127, second, ..] => {
            let low = (first << 2) | (second >> 6);
            (u16::from(low) | (u16::from(second & 0x3f) << 8), 2)
        }
        [first @ 128..=255, ..] => return Err(Ss58Error::ReservedPrefix(*first)),
        short => return Err(Ss58Error::Length(short.len())),
    };
    let wrong_length = || Ss58Error::Length(bytes.len());
    let body_len = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or_else(wrong_length)?;
    let (body, sum) = bytes.split_at_checked(body_len).ok_or_else(wrong_length)?;
    let account = body
        .get(prefix_len..)
        .and_then(|a| <[u8; 32]>::try_from(a).ok())
        .ok_or_else(wrong_length)?;
    if checksum(body) != sum {
        return Err(Ss58Error::Checksum);
    }
    Ok((prefix, account))
}

/// Account of an Alice address. Addresses of other networks are refused with the account's Alice address as a hint.
pub fn decode(text: &str) -> Result<[u8; 32], Ss58Error> {
    let (prefix, account) = decode_with_prefix(text)?;
    // The account is the same on every network, so the Alice address of the same key can be shown. It is not taken
    // silently: the owner may hold the key in a wallet that does not know Alice.
    if prefix != SS58_PREFIX {
        return Err(Ss58Error::OtherNetwork {
            prefix,
            alice: encode(&account),
        });
    }
    Ok(account)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hex32;
    use proptest::prelude::*;

    const ALICE_KEY: &str = "d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d";
    const GENERIC: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
    const POLKADOT: &str = "15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5";

    fn alice_key() -> [u8; 32] {
        ALICE_KEY.parse::<Hex32>().unwrap().0
    }

    #[test]
    fn published_vectors_should_hold() {
        assert_eq!(encode_with_prefix(&alice_key(), 42), GENERIC);
        assert_eq!(encode_with_prefix(&alice_key(), 0), POLKADOT);
        assert_eq!(decode_with_prefix(GENERIC), Ok((42, alice_key())));
        assert_eq!(decode_with_prefix(POLKADOT), Ok((0, alice_key())));
    }

    #[test]
    fn alice_addresses_should_start_with_a() {
        for account in [[0; 32], [0xff; 32], alice_key()] {
            let text = encode(&account);
            assert!(text.starts_with('a'), "{text}");
            assert_eq!(decode(&text), Ok(account));
        }
        // The two-byte form of 300: 0x4b 0x01.
        assert_eq!(prefix_bytes(300), vec![0x4b, 0x01]);
    }

    #[test]
    fn another_networks_address_should_be_refused_with_a_hint() {
        let error = decode(GENERIC).unwrap_err();
        assert_eq!(
            error,
            Ss58Error::OtherNetwork {
                prefix: 42,
                alice: encode(&alice_key())
            }
        );
        let message = error.to_string();
        assert!(
            message.starts_with("this is an address of another network (prefix 42), an Alice address starts with 'a'")
        );
        assert!(message.contains(&encode(&alice_key())));
    }

    #[test]
    fn bad_addresses_should_say_what_is_wrong() {
        let good = encode(&alice_key());
        let zero = format!("{}0{}", &good[..4], &good[5..]);
        assert_eq!(
            decode(&zero),
            Err(Ss58Error::NotBase58 {
                character: '0',
                place: 5
            })
        );
        let other = if good.ends_with('1') { '2' } else { '1' };
        assert_eq!(
            decode(&format!("{}{other}", &good[..good.len() - 1])),
            Err(Ss58Error::Checksum)
        );
        assert!(matches!(decode(&good[..20]), Err(Ss58Error::Length(_))));
        assert!(matches!(decode("1"), Err(Ss58Error::Length(_))));
        assert_eq!(decode("  "), Err(Ss58Error::Empty));
        assert_eq!(decode(ALICE_KEY), Err(Ss58Error::Hexadecimal));
        assert_eq!(decode(&format!("0x{ALICE_KEY}")), Err(Ss58Error::Hexadecimal));
        assert_eq!(decode(&"a".repeat(1000)), Err(Ss58Error::TooLong(1000)));
        assert_eq!(
            decode("añb"),
            Err(Ss58Error::NotBase58 {
                character: 'ñ',
                place: 2
            })
        );
        let mut reserved = vec![0x80];
        reserved.extend_from_slice(&[0; 34]);
        assert_eq!(
            decode(&bs58::encode(reserved).into_string()),
            Err(Ss58Error::ReservedPrefix(0x80))
        );
        assert_eq!(decode(&format!(" {good}\n")), Ok(alice_key()));
    }

    proptest! {
        #[test]
        fn every_prefix_should_round_trip(account: [u8; 32], prefix in 0u16..=PREFIX_MAX) {
            prop_assert_eq!(decode_with_prefix(&encode_with_prefix(&account, prefix)), Ok((prefix, account)));
        }

        #[test]
        fn text_should_never_panic(text in ".{0,140}") {
            let _ = decode(&text);
        }
    }
}
