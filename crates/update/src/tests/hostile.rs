//! Bytes from strangers: the decoders never panic, and what they accept has one form only.

use super::{header, layout, spec, values};
use crate::aggregate::{EncodedAggregate, decode_aggregate, encode_aggregate};
use crate::bits::BitWriter;
use crate::{DecodeError, EncodedUpdate, Entries, HEADER_BYTES, Layout, Place, Sparse, Update, decode, encode};
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
    let decode = |bytes: &[u8]| decode_aggregate(&layout, bytes);
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

/// An update by walking over its checked bytes.
fn received(layout: &Layout, spec: &UpdateSpec, bytes: &[u8]) -> Result<Update, DecodeError> {
    let received = EncodedUpdate::check(layout, spec, bytes.to_vec())?;
    let (indices, values) = received.entries().unzip();
    Ok(Update {
        header: *received.header(),
        indices,
        values,
    })
}

/// D by walking over its checked bytes.
fn walked(layout: &Layout, bytes: &[u8]) -> Result<Sparse, DecodeError> {
    let published = EncodedAggregate::check(layout, bytes.to_vec())?;
    let (indices, values) = published.entries().unzip();
    Ok(Sparse { indices, values })
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
        prop_assert_eq!(received(&layout, &spec, &bytes), decode(&layout, &spec, &bytes));
        if let Ok(update) = decode(&layout, &spec, &bytes) {
            prop_assert!(well_formed(&layout, &spec, &update));
        }
        let published = [b"ALD1".as_slice(), &[bits], &random].concat();
        let published = if raw { &random } else { &published };
        prop_assert_eq!(walked(&layout, published), decode_aggregate(&layout, published));
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
        prop_assert_eq!(received(&layout, &spec, &bytes), decode(&layout, &spec, &bytes));
        if let Ok(update) = decode(&layout, &spec, &bytes) {
            prop_assert!(well_formed(&layout, &spec, &update));
            // One form only: other bytes are another update (or another base count, which is in the header).
            if bytes != original && bytes[..HEADER_BYTES] == original[..HEADER_BYTES] {
                prop_assert_ne!(update, decode(&layout, &spec, &original).unwrap());
            }
        }
        let sparse = Sparse { indices: (0..343).step_by(3).collect(), values: values(115, seed, 0.1) };
        let mut bytes = encode_aggregate(&layout, 8, &sparse, [3; 32]);
        for flip in &flips {
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        if truncate {
            bytes.truncate(cut.index(bytes.len()));
        }
        prop_assert_eq!(walked(&layout, &bytes), decode_aggregate(&layout, &bytes));
        if let Ok(sparse) = decode_aggregate(&layout, &bytes) {
            prop_assert!(sparse.indices.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(sparse.indices.last().is_none_or(|&last| last < 343));
            prop_assert!(sparse.values.iter().all(|v| v.is_finite() && *v != 0.0));
        }
    }
}

/// Each kind of bad bytes, made of one good update, with its own result.
#[test]
fn bad_bytes_should_have_a_defined_result() {
    let (layout, spec) = (layout(), spec(2, 32, 700));
    let good = encode(&layout, &spec, &header(), &values(layout.total(), 5, 0.01)).unwrap();
    let decode = |bytes: &[u8]| decode(&layout, &spec, bytes);
    let original = decode(&good.bytes).unwrap();
    for end in 0..good.bytes.len() {
        let error = decode(&good.bytes[..end]).unwrap_err();
        assert!(
            matches!(error, DecodeError::Truncated { .. } | DecodeError::Magic { .. }),
            "{end}: {error}"
        );
    }
    for bit in 0..good.bytes.len() * 8 {
        let mut flipped = good.bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = decode(&flipped) {
            assert_ne!(other, original, "bit {bit} says nothing");
            assert!(well_formed(&layout, &spec, &other));
        }
    }
    let oversized = [good.bytes.as_slice(), &[0; 701]].concat();
    let found = oversized.len();
    assert_eq!(
        decode(&oversized),
        Err(DecodeError::TooLong {
            budget_bytes: 700,
            found
        })
    );
    let room = 700 - good.bytes.len().min(699);
    assert_eq!(
        decode(&[good.bytes.as_slice(), &vec![0; room]].concat()),
        Err(DecodeError::Trailing(room))
    );
    for version in [b'0', b'2', 0, 255] {
        let mut other = good.bytes.clone();
        other[3] = version;
        assert_eq!(decode(&other), Err(DecodeError::Magic { expected: "ALU1" }));
    }
    // Nothing in it: base count 0 and one zero bit for each of the ten chunks.
    let mut empty = good.bytes[..HEADER_BYTES - 4].to_vec();
    empty.extend([0; 4 + 2]);
    let update = decode(&empty).unwrap();
    assert_eq!((update.header, update.indices.len(), update.norm()), (header(), 0, 0.0));
    // A layout without coordinates: the header is the whole update.
    let nothing = Layout::new(&[0, 0], 256);
    assert_eq!(
        crate::decode(&nothing, &spec, &empty[..HEADER_BYTES])
            .unwrap()
            .indices
            .len(),
        0
    );
    assert_eq!(crate::decode(&nothing, &spec, &empty), Err(DecodeError::Trailing(2)));
}

/// Gradients that training can bring forth, each with its result.
#[test]
fn bad_gradients_should_have_a_defined_result() {
    let (layout, spec) = (layout(), spec(2, 32, 700));
    let total = layout.total();
    let encode = |values: &[f32]| encode(&layout, &spec, &header(), values);
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 9, 10, 1033, total - 1] {
            let mut input = values(total, 1, 0.01);
            input[at] = bad;
            assert_eq!(encode(&input).err(), Some(crate::EncodeError::NonFinite { index: at }));
        }
    }
    for nothing in [0.0, -0.0, f32::from_bits(1), -f32::MIN_POSITIVE, 2f32.powi(-30)] {
        assert_eq!(
            encode(&vec![nothing; total]).err(),
            Some(crate::EncodeError::Zero),
            "{nothing}"
        );
    }
    // Denormal numbers next to normal ones stay in the residual instead of being raised to the lowest level.
    let mut input = vec![f32::from_bits(77); total];
    input[300] = 0.5;
    let sent = encode(&input).unwrap().sent;
    assert_eq!((sent.indices, sent.values.len()), (vec![300], 1));
    // All equal, of either sign and of any size that the scales reach.
    for equal in [1e-6f32, -0.125, 5.0] {
        let sent = encode(&vec![equal; total]).unwrap().sent;
        assert!(sent.indices.len() > 100);
        assert!(
            sent.values.iter().all(|value| (value / equal - 1.0).abs() < 0.07),
            "{:?}",
            sent.values
        );
    }
}
