//! Bytes from strangers: the decoders never panic, and what they accept has one form only.

use super::{header, layout, spec, values};
use crate::aggregate::{decode_published, publish};
use crate::bits::BitWriter;
use crate::{DecodeError, HEADER_BYTES, Layout, Place, Sparse, Update, decode, encode};
use alice_spec::UpdateSpec;
use proptest::prelude::*;

fn well_formed(layout: &Layout, spec: &UpdateSpec, update: &Update) -> bool {
    update.indices.len() == update.values.len()
        && update.indices.windows(2).all(|pair| pair[0] < pair[1])
        && update
            .indices
            .last()
            .is_none_or(|&last| (last as usize) < layout.total())
        && update.values.iter().all(|v| v.is_finite() && *v != 0.0)
        && layout.chunks().all(|range| {
            let count = update
                .indices
                .iter()
                .filter(|&&i| range.contains(&(i as usize)))
                .count();
            count <= (spec.k_max as usize * range.len()).div_ceil(layout.chunk())
        })
}

/// A body of one chunk of 256 coordinates, written by hand.
fn body(base: u32, write: impl FnOnce(&mut BitWriter)) -> Vec<u8> {
    let mut bytes = b"ALU1".to_vec();
    bytes.extend_from_slice(&[0; 68]);
    bytes.extend_from_slice(&base.to_le_bytes());
    assert_eq!(bytes.len(), HEADER_BYTES);
    let mut writer = BitWriter::after(bytes);
    write(&mut writer);
    writer.finish()
}

#[test]
fn each_defect_should_have_its_error() {
    let layout = Layout::new(&[256], 256);
    let spec = spec(2, 8, 4096);
    let decode = |bytes: &[u8]| decode(&layout, &spec, bytes);
    let place = Place::Chunk(0);
    assert_eq!(decode(&[]), Err(DecodeError::Truncated { what: Place::Header }));
    assert_eq!(decode(&[0; 100]), Err(DecodeError::Magic { expected: "ALU1" }));
    assert_eq!(
        decode(&[0; 4097]),
        Err(DecodeError::TooLong {
            budget_bytes: 4096,
            found: 4097
        })
    );
    assert_eq!(
        decode(&body(9, |_| ())),
        Err(DecodeError::BaseCount { max: 8, found: 9 })
    );
    assert_eq!(decode(&body(8, |_| ())), Err(DecodeError::Truncated { what: place }));
    // Base count of nothing: an empty update is well formed (scoring refuses it).
    assert_eq!(decode(&body(0, |w| w.write(0, 1))).unwrap().indices, [0u64; 0]);
    assert_eq!(decode(&body(0, |w| w.write(0b10, 2))), Err(DecodeError::Padding));
    assert_eq!(
        decode(&[body(0, |w| w.write(0, 1)), vec![0]].concat()),
        Err(DecodeError::Trailing(1))
    );
    assert_eq!(
        decode(&body(8, |w| w.write(0b01, 2))),
        Err(DecodeError::Count {
            place,
            max: 8,
            found: 9
        })
    );
    let explicit = |count: u32| move |w: &mut BitWriter| w.write(count << 2 | 0b11, 6);
    assert_eq!(
        decode(&body(3, explicit(9))),
        Err(DecodeError::Count {
            place,
            max: 8,
            found: 9
        })
    );
    assert_eq!(
        decode(&body(3, explicit(3))),
        Err(DecodeError::CountForm { place, found: 3 })
    );
    assert_eq!(
        decode(&body(3, explicit(4))),
        Err(DecodeError::CountForm { place, found: 4 })
    );
    // One entry (Rice parameter 6): a gap of 255 is the last coordinate, 256 is beyond.
    let entry = |quotient: u32, remainder: u32| {
        move |w: &mut BitWriter| {
            w.write(0, 1);
            w.write(200, 8);
            w.write_unary(quotient);
            w.write(remainder, 6);
            w.write(0b11, 2);
        }
    };
    let update = decode(&body(1, entry(3, 63))).unwrap();
    assert_eq!((update.indices, update.values), (vec![255], vec![-0.125]));
    assert_eq!(
        decode(&body(1, entry(4, 0))),
        Err(DecodeError::Index { place, len: 256 })
    );
    assert_eq!(
        decode(&body(1, entry(90, 0))),
        Err(DecodeError::Index { place, len: 256 })
    );
    assert_eq!(
        decode(&body(1, |w| w.write(0, 9))),
        Err(DecodeError::Truncated { what: place })
    );
}

#[test]
fn published_defects_should_have_their_errors() {
    let layout = Layout::new(&[256], 256);
    let decode = |bytes: &[u8]| decode_published(&layout, bytes);
    assert_eq!(decode(b"ALU1"), Err(DecodeError::Magic { expected: "ALD1" }));
    assert_eq!(decode(b"ALD1"), Err(DecodeError::Truncated { what: Place::Header }));
    assert_eq!(decode(b"ALD1\x09\0\0"), Err(DecodeError::ValueBits(9)));
    assert_eq!(decode(b"ALD1\0\0\0"), Err(DecodeError::ValueBits(0)));
    assert_eq!(decode(b"ALD1\x08\0\0"), Ok(Sparse::default()));
    assert_eq!(decode(b"ALD1\x08\0\0\0"), Err(DecodeError::Trailing(1)));
    assert_eq!(decode(b"ALD1\x08\0\x02"), Err(DecodeError::Padding));
    assert_eq!(
        decode(b"ALD1\x08\x01\x01"),
        Err(DecodeError::Count {
            place: Place::Chunk(0),
            max: 256,
            found: 257
        })
    );
    assert_eq!(
        decode(b"ALD1\x08\x01"),
        Err(DecodeError::Truncated { what: Place::Chunk(0) })
    );
}

#[test]
fn a_lie_about_the_size_should_not_allocate() {
    // 2^40 coordinates, a few bytes: refused at the first chunk that is not there.
    let layout = Layout::new(&[1 << 40], 65_536);
    let spec = spec(2, 65_536, 4096);
    assert!(matches!(
        decode(&layout, &spec, &body(65_536, |w| w.write(0, 8))),
        Err(DecodeError::Truncated { .. })
    ));
    let larger = Layout::new(&[1 << 40, 1], 65_536);
    assert_eq!(decode(&larger, &spec, &[]), Err(DecodeError::Parameters((1 << 40) + 1)));
    let overflowing = Layout::new(&[u64::MAX, u64::MAX], 65_536);
    assert!(matches!(
        decode(&overflowing, &spec, &[]),
        Err(DecodeError::Parameters(_))
    ));
    assert!(matches!(
        crate::Encoder::new(&overflowing, &spec).err(),
        Some(crate::EncodeError::Parameters(_))
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn random_bytes_should_not_panic(
        base in 0u32..40,
        random in prop::collection::vec(any::<u8>(), 0..200),
        raw in any::<bool>(),
        bits in prop::sample::select(vec![1u8, 2, 4, 8]),
    ) {
        let (layout, spec) = (layout(), spec(bits, 32, 4096));
        let bytes = if raw { random.clone() } else { [body(base, |_| ()), random.clone()].concat() };
        if let Ok(update) = decode(&layout, &spec, &bytes) {
            prop_assert!(well_formed(&layout, &spec, &update));
        }
        let published = [b"ALD1".as_slice(), &[bits], &random].concat();
        let _ = decode_published(&layout, if raw { &random } else { &published });
    }

    #[test]
    fn damaged_updates_should_not_panic(
        seed in 0u64..50,
        flips in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        cut in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
    ) {
        let (layout, spec) = (Layout::new(&[40, 300, 3], 128), spec(2, 32, 300));
        let mut bytes = encode(&layout, &spec, &header(), &values(343, seed, 0.1)).unwrap().bytes;
        let original = bytes.clone();
        for flip in &flips {
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        if truncate {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(update) = decode(&layout, &spec, &bytes) {
            prop_assert!(well_formed(&layout, &spec, &update));
            // One form only: other bytes are another update (or another base count, which is in the header).
            if bytes != original && bytes[..HEADER_BYTES] == original[..HEADER_BYTES] {
                prop_assert_ne!(update, decode(&layout, &spec, &original).unwrap());
            }
        }
        let sparse = Sparse { indices: (0..343).step_by(3).collect(), values: values(115, seed, 0.1) };
        let mut bytes = publish(&layout, 8, &sparse, [3; 32]);
        for flip in &flips {
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        if truncate {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(sparse) = decode_published(&layout, &bytes) {
            prop_assert!(sparse.indices.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(sparse.indices.last().is_none_or(|&last| last < 343));
            prop_assert!(sparse.values.iter().all(|v| v.is_finite() && *v != 0.0));
        }
    }
}
