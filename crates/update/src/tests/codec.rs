//! Encoded values come back, within the budget, and they are the best that fit.

use super::{golden, header, layout, listing, spec, values};
use crate::{BitCount, EncodeError, Encoder, Entries, HEADER_BYTES, Layout, Update, decode, encode};
use proptest::prelude::*;

#[test]
fn update_should_come_back_as_sent() {
    let layout = layout();
    for bits in [1, 2, 4, 8] {
        let spec = spec(bits, 32, 1 << 20);
        let values = values(layout.total(), 1, 0.01);
        let encoded = encode(&layout, &spec, &header(), &values).unwrap();
        let decoded = decode(&layout, &spec, &encoded.bytes).unwrap();
        assert_eq!(decoded, encoded.sent);
        assert_eq!(decoded.header, header());
        assert!(decoded.indices.windows(2).all(|pair| pair[0] < pair[1]));
        for (&index, &value) in decoded.indices.iter().zip(&decoded.values) {
            let original = values[index as usize];
            assert!(value.signum() == original.signum(), "sign of {index}");
            if bits == 8 {
                assert!((value - original).abs() <= 0.01 * 0.6 / 64.0, "{value} for {original}");
            }
        }
    }
}

#[test]
fn negated_input_should_decode_to_negated_values() {
    let (layout, spec) = (layout(), spec(2, 32, 2000));
    let values = values(layout.total(), 3, 0.02);
    let negated: Vec<f32> = values.iter().map(|v| -v).collect();
    let sent = encode(&layout, &spec, &header(), &values).unwrap().sent;
    let other = encode(&layout, &spec, &header(), &negated).unwrap().sent;
    assert_eq!(sent.indices, other.indices);
    assert!(
        sent.values
            .iter()
            .zip(&other.values)
            .all(|(a, b)| *a == -*b && *a != 0.0)
    );
    assert_eq!(sent.norm(), other.norm());
}

#[test]
fn selection_should_be_top_k_with_ties_to_the_lowest_index() {
    let layout = Layout::new(&[1000, 700], 256);
    let spec = spec(1, 20, 1 << 20);
    // Few distinct magnitudes, so that there are many ties.
    let values: Vec<f32> = values(layout.total(), 5, 1.0)
        .iter()
        .map(|v| (v * 6.0).trunc() / 6.0 + 0.4f32.copysign(*v))
        .collect();
    let sent = encode(&layout, &spec, &header(), &values).unwrap().sent;
    let mut expected = Vec::new();
    for range in layout.chunks() {
        let share = (20 * range.len()).div_ceil(256);
        let mut order: Vec<usize> = range.collect();
        order.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()).then(a.cmp(&b)));
        order.truncate(share);
        expected.extend(order.iter().map(|&index| index as u64));
    }
    expected.sort_unstable();
    assert_eq!(sent.indices, expected);
}

#[test]
fn all_equal_values_should_send_the_first_of_each_chunk() {
    let layout = Layout::new(&[300], 256);
    for bits in [1, 2, 4, 8] {
        let sent = encode(&layout, &spec(bits, 3, 4096), &header(), &[-0.25; 300])
            .unwrap()
            .sent;
        // The second chunk has 44 of 256 coordinates: ⌈3 · 44 / 256⌉ = 1.
        assert_eq!(sent.indices, [0, 1, 2, 256]);
        assert!(
            sent.values.iter().all(|v| (v + 0.25).abs() < 0.012),
            "{:?}",
            sent.values
        );
    }
}

#[test]
fn budget_should_be_filled_from_below() {
    let layout = Layout::new(&[200_000, 64, 70_000], 4096);
    let values = values(layout.total(), 9, 0.01);
    for bits in [1, 2, 4, 8] {
        for budget in [2000u64, 8000, 20_000, 33_333] {
            let mut spec = spec(bits, 4096, budget);
            spec.chunk = 4096;
            let bytes = encode(&layout, &spec, &header(), &values).unwrap().bytes.len() as u64;
            assert!(bytes <= budget, "{bytes} above {budget}");
            assert!(
                bytes as f64 >= budget as f64 * 0.99,
                "{bytes} of {budget} at {bits} bits"
            );
            if budget >= 8000 {
                assert!(
                    bytes as f64 >= budget as f64 * 0.995,
                    "{bytes} of {budget} at {bits} bits"
                );
            }
        }
    }
}

#[test]
fn k_max_should_bind_before_a_large_budget() {
    let layout = Layout::new(&[4096 * 4], 4096);
    let spec = spec(2, 64, 1 << 20);
    let sent = encode(&layout, &spec, &header(), &values(layout.total(), 2, 0.01)).unwrap();
    assert_eq!(sent.sent.indices.len(), 4 * 64);
    // About 9.4 bits of an entry at density 1/64: sign, level and a gap of 4096 / 64.
    assert!(
        sent.bytes.len() < HEADER_BYTES + 4 * 64 * 10 / 8,
        "{}",
        sent.bytes.len()
    );
}

#[test]
fn short_chunks_should_have_the_density_of_full_ones() {
    let lens = [4096u64, 128, 1, 4096 + 1000, 63];
    let layout = Layout::new(&lens, 4096);
    let mut spec = spec(2, 64, 1 << 20);
    spec.chunk = 4096;
    let counts = |spec: &alice_spec::UpdateSpec| -> Vec<usize> {
        let encoded = encode(&layout, spec, &header(), &values(layout.total(), 5, 0.01)).unwrap();
        assert_eq!(decode(&layout, spec, &encoded.bytes).unwrap(), encoded.sent);
        let of = |range: std::ops::Range<usize>| {
            let inside = |index: &&u64| range.contains(&(**index as usize));
            encoded.sent.indices.iter().filter(inside).count()
        };
        layout.chunks().map(of).collect()
    };
    // ⌈64 · len / 4096⌉ for chunks of 4096, 128, 1, 4096, 1000 and 63.
    assert_eq!(counts(&spec), [64, 2, 1, 64, 16, 1]);
    // A budget that makes the base count 20 or 21: the shares follow it.
    spec.budget_bytes = HEADER_BYTES as u64 + 75;
    let counts = counts(&spec);
    let base = counts[0].min(counts[3]);
    assert!((10..40).contains(&base), "{counts:?}");
    assert!(
        [1, 2].contains(&counts[1]) && counts[2] == 1 && counts[5] == 1,
        "{counts:?}"
    );
    assert!((base * 1000).div_ceil(4096).abs_diff(counts[4]) <= 1, "{counts:?}");
}

#[test]
fn one_outlier_should_not_blow_up_its_neighbours() {
    let layout = Layout::new(&[256], 256);
    let mut input = vec![1e-4f32; 256];
    input[100] = 1.0;
    for bits in [1, 2, 4, 8] {
        let sent = encode(&layout, &spec(bits, 64, 4096), &header(), &input).unwrap().sent;
        assert_eq!(sent.indices, [100], "{bits} bits");
    }
}

#[test]
fn unusable_values_should_be_refused_with_a_reason() {
    let (layout, spec) = (Layout::new(&[300], 256), spec(2, 8, 4096));
    let encode = |input: &[f32]| encode(&layout, &spec, &header(), input);
    assert_eq!(encode(&[0.0; 300]), Err(EncodeError::Zero));
    assert_eq!(encode(&[-0.0; 300]), Err(EncodeError::Zero));
    assert_eq!(encode(&[f32::from_bits(1); 300]), Err(EncodeError::Zero));
    assert_eq!(
        encode(&[1.0; 299]),
        Err(EncodeError::Length {
            expected: 300,
            found: 299
        })
    );
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut input = [1.0; 300];
        input[270] = bad;
        assert_eq!(encode(&input), Err(EncodeError::NonFinite { index: 270 }));
    }
    let huge = encode(&[f32::MAX; 300]).unwrap().sent;
    assert!(huge.values.iter().all(|v| v.is_finite()));
    let empty = Layout::new(&[], 256);
    assert_eq!(crate::encode(&empty, &spec, &header(), &[]), Err(EncodeError::Zero));
    let mut bad = spec.clone();
    bad.value_bits = 3;
    assert_eq!(
        crate::encode(&layout, &bad, &header(), &[1.0; 300]),
        Err(EncodeError::ValueBits(3))
    );
    bad = spec.clone();
    bad.budget_bytes = HEADER_BYTES as u64;
    assert!(matches!(
        crate::encode(&layout, &bad, &header(), &[1.0; 300]),
        Err(EncodeError::Budget { .. })
    ));
}

#[test]
fn a_budget_for_few_entries_should_still_send_some() {
    let layout = Layout::new(&[256 * 100], 256);
    let spec = spec(2, 8, HEADER_BYTES as u64 + 60);
    let encoded = encode(&layout, &spec, &header(), &values(layout.total(), 4, 0.1)).unwrap();
    assert!((10..100).contains(&encoded.sent.indices.len()));
    assert_eq!(decode(&layout, &spec, &encoded.bytes).unwrap(), encoded.sent);
}

#[test]
fn bytes_should_be_the_golden_ones() {
    let layout = layout();
    for bits in [1, 2, 4, 8] {
        let spec = spec(bits, 64, 700);
        let encoded = encode(&layout, &spec, &header(), &values(layout.total(), 11, 0.01)).unwrap();
        golden(&format!("update-{bits}bit.alu"), &encoded.bytes);
        let sent = decode(&layout, &spec, &encoded.bytes).unwrap();
        golden(
            &format!("update-{bits}bit.txt"),
            listing(&sent.indices, &sent.values).as_bytes(),
        );
    }
}

#[test]
fn chunks_should_cover_tensors_without_crossing_them() {
    let ranges: Vec<_> = layout().chunks().collect();
    assert_eq!(
        ranges,
        [
            0..10,
            10..266,
            266..522,
            522..778,
            778..1034,
            1034..1266,
            1266..1267,
            1267..1523,
            1523..1779,
            1779..1780
        ]
    );
    assert_eq!(layout().total(), 1780);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_input_should_come_back_within_budget(
        lens in prop::collection::vec(0u64..600, 1..5),
        chunk in prop::sample::select(vec![64u32, 256, 4096]),
        bits in prop::sample::select(vec![1u8, 2, 4, 8]),
        k_max in 1u32..64,
        budget in 100u64..2000,
        seed in any::<u64>(),
        zeros in 0u32..4,
        exponent in -60i32..60,
    ) {
        let layout = Layout::new(&lens, chunk);
        let mut spec = spec(bits, k_max, budget);
        spec.chunk = chunk;
        let mut input = values(layout.total(), seed, 2f32.powi(exponent));
        input.iter_mut().enumerate().filter(|(i, _)| (*i as u32 / 37) % 4 < zeros).for_each(|(_, v)| *v = 0.0);
        match encode(&layout, &spec, &header(), &input) {
            Ok(encoded) => {
                prop_assert!(encoded.bytes.len() as u64 <= budget);
                prop_assert_eq!(decode(&layout, &spec, &encoded.bytes), Ok(encoded.sent.clone()));
                for (&index, &value) in encoded.sent.indices.iter().zip(&encoded.sent.values) {
                    prop_assert!(value.is_finite() && value * input[index as usize].signum() > 0.0);
                }
            }
            Err(EncodeError::Zero) => prop_assert!(input.iter().all(|v| v.abs() < 2f32.powi(-29))),
            Err(error) => prop_assert!(matches!(error, EncodeError::Budget { .. }), "{}", error),
        }
    }

    #[test]
    fn what_is_sent_should_reduce_the_error(seed in any::<u64>(), bits in prop::sample::select(vec![1u8, 2, 4, 8])) {
        let layout = layout();
        let input = values(layout.total(), seed, 0.01);
        let sent = encode(&layout, &spec(bits, 256, 1 << 16), &header(), &input).unwrap().sent;
        let mut rest = input.clone();
        sent.add_scaled(&mut rest, -1.0);
        let energy = |v: &[f32]| v.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
        prop_assert!(energy(&rest) < 0.4 * energy(&input), "{} of {}", energy(&rest), energy(&input));
    }
}

#[test]
fn fragments_should_send_with_the_models_indices() {
    let whole = layout();
    let spec = spec(2, 32, 400);
    // Tensors 1 to 3 (256, 0 and 1,000 coordinates) begin at coordinate 10.
    let fragment = whole.fragment(1..4);
    assert_eq!((fragment.total(), fragment.covered()), (1780, 10..1266));
    let expected: Vec<_> = whole
        .chunks()
        .filter(|range| (10..1266).contains(&range.start))
        .collect();
    assert_eq!(fragment.chunks().collect::<Vec<_>>(), expected);
    let all = values(whole.total(), 8, 0.01);
    let encoded = encode(&fragment, &spec, &header(), &all[10..1266]).unwrap();
    let decoded = decode(&fragment, &spec, &encoded.bytes).unwrap();
    assert_eq!(decoded, encoded.sent);
    for (&index, &value) in decoded.indices.iter().zip(&decoded.values) {
        assert!((10..1266).contains(&index));
        assert_eq!(value.signum(), all[index as usize].signum());
    }
    // A step of the fragment alone is the whole model's step there.
    let (mut theta, mut part) = (all.clone(), all[10..1266].to_vec());
    decoded.add_scaled(&mut theta, -0.5);
    decoded.add_scaled_at(10, &mut part, -0.5);
    assert_eq!(
        (&theta[..10], &theta[10..1266], &theta[1266..]),
        (&all[..10], &part[..], &all[1266..])
    );
    // Lengths, empty fragments and places beyond the model.
    assert_eq!(
        encode(&fragment, &spec, &header(), &all).err(),
        Some(EncodeError::Length {
            expected: 1256,
            found: 1780
        })
    );
    assert_eq!(whole.fragment(2..3).covered(), 266..266);
    assert_eq!(
        encode(&whole.fragment(2..3), &spec, &header(), &[]).err(),
        Some(EncodeError::Zero)
    );
    assert_eq!(whole.fragment(4..100).covered(), 1266..1780);
    assert_eq!(whole.fragment(7..9).covered(), 1780..1780);
    assert_eq!(
        fragment.fragment(0..6),
        fragment,
        "a fragment of a fragment stays inside of it"
    );
    assert_eq!(whole.fragment(0..6), whole);
}

#[test]
fn a_model_of_seven_billion_should_have_its_indices() {
    // Six billion coordinates that are never made: the fragment is a small tensor behind them.
    let layout = Layout::new(&[6_000_000_000, 700], 256).fragment(1..2);
    let spec = spec(4, 16, 4096);
    let values = values(700, 3, 0.1);
    let encoded = encode(&layout, &spec, &header(), &values).unwrap();
    let update = decode(&layout, &spec, &encoded.bytes).unwrap();
    assert_eq!(update, encoded.sent);
    assert!(
        update
            .indices
            .iter()
            .all(|index| (6_000_000_000..6_000_000_700).contains(index))
    );
    let mean = crate::aggregate::mean(&layout, &[(&update, 1.0)], 1);
    assert_eq!((&mean.indices, &mean.values), (&update.indices, &update.values));
    let bytes = crate::aggregate::encode_aggregate(&layout, 8, &mean, [1; 32]);
    let published = crate::aggregate::decode_aggregate(&layout, &bytes).unwrap();
    assert_eq!(published.indices, mean.indices);
    let (mut theta, mut by_index) = (values.clone(), values);
    let as_update = Update {
        indices: published.indices.clone(),
        values: published.values.clone(),
        ..update
    };
    as_update.add_scaled_at(6_000_000_000, &mut theta, -0.5);
    for (index, value) in published.indices.iter().zip(&published.values) {
        by_index[(index - 6_000_000_000) as usize] -= 0.5 * value;
    }
    assert_eq!(theta, by_index);
}

#[test]
fn every_density_should_fill_its_budget() {
    // Budgets of the bits that an entry takes at these densities; the last one is where k_max = 64 of 4,096 binds too.
    let layout = Layout::new(&[2_000_000, 4096, 128, 1_000_001], 4096);
    let values = values(layout.total(), 17, 0.001);
    let mut spec = spec(2, 64, 0);
    spec.chunk = 4096;
    for (density, bits) in [(0.001, 15.3), (0.0014, 14.4), (0.005, 11.5), (0.015, 9.7)] {
        spec.budget_bytes = (density * bits / 8.0 * layout.total() as f64) as u64;
        let encoded = encode(&layout, &spec, &header(), &values).unwrap();
        let (bytes, budget) = (encoded.bytes.len() as f64, spec.budget_bytes as f64);
        assert!(bytes <= budget && bytes >= 0.995 * budget, "{bytes} of {budget}");
        let found = encoded.sent.indices.len() as f64 / layout.total() as f64;
        assert!((found / density - 1.0).abs() < 0.1, "{found} for {density}");
        let BitCount {
            counts,
            scales,
            positions,
            values,
        } = encoded.bits;
        // The number of sets of k positions in a chunk: no code can distinguish them with fewer bits than its
        // logarithm.
        let bound: f64 = layout
            .chunks()
            .map(|range| {
                let inside = |at: &&u64| range.contains(&(**at as usize));
                let k = encoded.sent.indices.iter().filter(inside).count();
                let factor = |i: usize| ((range.len() - i) as f64 / (k - i) as f64).log2();
                (0..k).map(factor).sum::<f64>()
            })
            .sum();
        assert!(positions as f64 <= 1.05 * bound, "{positions} bits, bound {bound:.0}");
        let bits = counts + scales + positions + values;
        assert_eq!(bits.div_ceil(8) + HEADER_BYTES as u64, encoded.bytes.len() as u64);
    }
    // At 1.56 % k_max binds everywhere.
    spec.budget_bytes = 1 << 20;
    let sent = encode(&layout, &spec, &header(), &values).unwrap().sent;
    assert_eq!(
        sent.indices.len(),
        layout.chunks().map(|range| range.len().div_ceil(64)).sum::<usize>()
    );
}

#[test]
fn encoder_should_refuse_what_is_too_short_too_long_or_broken() {
    let (layout, spec) = (Layout::new(&[300, 0, 100], 256), spec(2, 8, 4096));
    let mut short = Encoder::new(&layout, &spec).unwrap();
    short.push(&[1.0; 399]).unwrap();
    let length = |found| EncodeError::Length { expected: 400, found };
    assert_eq!(short.finish(&header()).err(), Some(length(399)));
    let mut long = Encoder::new(&layout, &spec).unwrap();
    long.push(&[1.0; 400]).unwrap();
    long.push(&[]).unwrap();
    assert_eq!(long.push(&[1.0]), Err(length(401)));
    assert_eq!(long.finish(&header()).err(), Some(length(401)));
    for threads in [1, 3] {
        let mut broken = Encoder::new(&layout, &spec).unwrap().threads(threads);
        broken.push(&[1.0; 299]).unwrap();
        let error = EncodeError::NonFinite { index: 299 };
        assert_eq!(broken.push(&[f32::NAN, f32::INFINITY]), Err(error.clone()));
        assert_eq!(broken.push(&[1.0]), Err(error.clone()), "an error stays");
        assert_eq!(broken.finish(&header()).err(), Some(error));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Pieces and threads are the caller's affair: the bytes are the same.
    #[test]
    fn pieces_and_threads_should_not_matter(
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        threads in 1usize..5,
        seed in any::<u64>(),
        budget in 3000u64..20_000,
    ) {
        // More than twice the chunks that a thread takes at least.
        let layout = Layout::new(&[64 * 700, 10, 64 * 300 + 5, 0, 63], 64);
        let mut spec = spec(2, 8, budget);
        spec.chunk = 64;
        let values = values(layout.total(), seed, 0.01);
        let whole = encode(&layout, &spec, &header(), &values).unwrap();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(values.len())).collect();
        cuts.sort_unstable();
        let mut encoder = Encoder::new(&layout, &spec).unwrap().threads(threads);
        let mut from = 0;
        for to in cuts.into_iter().chain([values.len()]) {
            encoder.push(&values[from..to]).unwrap();
            from = to;
        }
        prop_assert_eq!(encoder.finish(&header()).unwrap(), whole);
    }
}
