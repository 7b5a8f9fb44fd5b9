//! One step of many updates: exact, unbiased, the same everywhere.

use super::{golden, header, layout, listing, spec, values};
use crate::aggregate::{WeightedMean, apply, decode_aggregate, encode_aggregate, mean, rounding_seed};
use crate::{EncodedUpdate, EncoderOutput, Layout, Sparse, Update, encode, scale};
use proptest::prelude::*;

fn update(entries: &[(u64, f32)]) -> Update {
    let (indices, values) = entries.iter().copied().unzip();
    Update {
        header: header(),
        indices,
        values,
    }
}

fn encoded(seed: u64) -> EncoderOutput {
    let values = values(layout().total(), seed, 0.01);
    encode(&layout(), &spec(2, 64, 700), &header(), &values).unwrap()
}

fn seeded(seed: u64) -> Update {
    encoded(seed).sent
}

#[test]
fn mean_should_divide_by_all_updates() {
    let layout = Layout::new(&[300], 256);
    let (a, b) = (
        update(&[(0, 1.0), (255, 2.0)]),
        update(&[(255, -4.0), (256, 8.0), (299, 0.5)]),
    );
    let sparse = mean(&layout, &[(&a, 1.0), (&b, 0.5)], 1);
    assert_eq!(sparse.indices, [0, 255, 256, 299]);
    assert_eq!(sparse.values, [0.5, 0.0, 2.0, 0.125]);
    // Who is alone with a coordinate counts for at most c of both.
    assert_eq!(mean(&layout, &[(&a, 1.0), (&b, 0.5)], 2).values, [1.0, 0.0, 4.0, 0.25]);
    assert_eq!(mean(&layout, &[], 1), Sparse::default());
    assert_eq!(mean(&layout, &[(&update(&[(300, 1.0)]), 1.0)], 1), Sparse::default());
}

#[test]
fn mean_should_match_the_written_order_of_operations() {
    let updates: Vec<Update> = (0..7).map(seeded).collect();
    let factors = [1.0f32, 2.0, 0.3, 0.7, 1.9, 0.01, 1.1];
    let pairs: Vec<_> = updates.iter().zip(factors).collect();
    let sparse = mean(&layout(), &pairs, 1);
    for (weight, least) in [(1, 7.0f64), (3, 7.0 / 3.0), (7, 1.0), (100, 1.0)] {
        let sparse = mean(&layout(), &pairs, weight);
        for (&index, &value) in sparse.indices.iter().zip(&sparse.values) {
            let (mut sum, mut senders) = (0.0f64, 0.0f64);
            for (update, factor) in &pairs {
                if let Ok(at) = update.indices.binary_search(&index) {
                    sum += f64::from(factor * update.values[at]);
                    senders += 1.0;
                }
            }
            let divisor = if senders > least { senders } else { least };
            assert_eq!(((sum / divisor) as f32).to_bits(), value.to_bits());
        }
    }
    let mut union: Vec<u64> = updates.iter().flat_map(|update| update.indices.clone()).collect();
    union.sort_unstable();
    union.dedup();
    assert_eq!(sparse.indices, union);
}

/// Fragments by themselves, from updates that are decoded as they are walked, to the same D.
#[test]
fn the_mean_should_be_the_same_from_encoded_updates() {
    let whole = Layout::new(&[700, 300, 64, 5, 900], 256);
    let fragments = [whole.fragment(0..2), whole.fragment(2..4), whole.fragment(4..5)];
    let spec = spec(2, 64, 700);
    let of = [(0, 1, 1.0), (2, 2, 0.5), (0, 3, 2.0), (2, 4, 0.1), (7, 1, 1.0)];
    let (mut sent, mut decoded) = (Vec::new(), Vec::new());
    for (fragment, seed, _) in of {
        let layout = fragments.get(fragment as usize).unwrap_or(&fragments[0]);
        let values = values(layout.covered().len(), seed, 0.01);
        let encoded = encode(layout, &spec, &header(), &values).unwrap();
        sent.push(EncodedUpdate::check(layout, &spec, encoded.bytes).unwrap());
        decoded.push(encoded.sent);
    }
    let mean_of = WeightedMean {
        fragments: &fragments,
        updates: of
            .iter()
            .zip(&sent)
            .map(|((p, _, f), update)| (*p, update, *f))
            .collect(),
        entry_weight: 4,
    };
    // Fragment by fragment; nothing was sent for the second one, and the last update is of one that does not exist.
    let mut expected = Sparse::default();
    for (p, layout) in (0u32..).zip(&fragments) {
        let own = of.iter().zip(&decoded).filter(|((q, _, _), _)| *q == p);
        let own: Vec<_> = own.map(|((_, _, f), update)| (update, *f)).collect();
        let mean = mean(layout, &own, 4);
        expected.indices.extend(mean.indices);
        expected.values.extend(mean.values);
    }
    assert_eq!(Sparse::of(&mean_of), expected);
    assert_eq!(
        encode_aggregate(&whole, 8, &mean_of, [2; 32]),
        encode_aggregate(&whole, 8, &expected, [2; 32])
    );
    assert!(expected.indices.iter().all(|index| !(1000..1069).contains(index)));
}

#[test]
fn published_values_should_lie_within_one_level() {
    let layout = layout();
    let sparse = mean(&layout, &[(&seeded(1), 1.0), (&seeded(2), 1.7), (&seeded(3), 0.4)], 1);
    for bits in [2, 4, 8] {
        let bytes = encode_aggregate(&layout, bits, &sparse, [5; 32]);
        assert_eq!(bytes, encode_aggregate(&layout, bits, &sparse, [5; 32]));
        assert_ne!(bytes, encode_aggregate(&layout, bits, &sparse, [6; 32]));
        let decoded = decode_aggregate(&layout, &bytes).unwrap();
        let mut dense = vec![0.0f32; layout.total()];
        decoded
            .indices
            .iter()
            .zip(&decoded.values)
            .for_each(|(&i, &v)| dense[i as usize] = v);
        for range in layout.chunks() {
            let of_chunk = || {
                sparse
                    .indices
                    .iter()
                    .zip(&sparse.values)
                    .filter(|e| range.contains(&(*e.0 as usize)))
            };
            let max = of_chunk().map(|entry| entry.1.abs()).fold(0.0, f32::max);
            // A scale is at most 2^(1/8) above the largest value.
            let level = max * 1.091 / (1u32 << (bits - 1)) as f32;
            for (&index, &value) in of_chunk() {
                assert!((dense[index as usize] - value).abs() <= level);
            }
        }
    }
}

#[test]
fn a_step_should_have_the_same_bits_whole_and_piece_by_piece() {
    let layout = layout();
    let d = mean(&layout, &[(&seeded(1), 1.0), (&seeded(2), 1.7)], 4);
    let before = super::values(layout.total(), 9, 1.0);
    let bits = |theta: &[f32]| -> Vec<u32> { theta.iter().map(|v| v.to_bits()).collect() };
    // Error feedback adds an update by pieces: θ + (−α)·d has the same bits as θ − α·d.
    let as_update = Update {
        indices: d.indices.clone(),
        values: d.values.clone(),
        ..Update::default()
    };
    for alpha in [1.0, 0.7, 1e-3] {
        let (mut whole, mut pieces) = (before.clone(), before.clone());
        apply(&mut whole, &d, alpha);
        for (number, piece) in pieces.chunks_mut(37).enumerate() {
            as_update.add_scaled_at(37 * number as u64, piece, -alpha);
        }
        assert_ne!(bits(&whole), bits(&before));
        assert_eq!(bits(&whole), bits(&pieces), "{alpha}");
    }
}

#[test]
fn no_aggregate_should_take_more_bytes_than_are_fetched() {
    let layout = Layout::new(&[4096, 5000, 1, 17], 1024);
    for bits in [1, 2, 8] {
        let bytes_max = crate::aggregate::aggregate_bytes_max(&layout, bits);
        let mut most = 0;
        for step in [1, 2, 3, 4, 5, 7, 8, 16, 64, 500, 1023] {
            // Spread evenly, and all at the end of their chunk, where the first gap is the longest.
            let spread = (0..layout.total() as u64).step_by(step).collect();
            let at_end = layout.chunks().flat_map(|range| {
                let count = range.len().div_ceil(step);
                (range.end - count..range.end).map(|i| i as u64)
            });
            for indices in [spread, at_end.collect::<Vec<u64>>()] {
                let values = vec![1.0; indices.len()];
                let bytes = encode_aggregate(&layout, bits, &Sparse { indices, values }, [1; 32]);
                most = most.max(bytes.len() as u64);
            }
        }
        assert!(
            most <= bytes_max && most * 10 >= bytes_max * 6,
            "{bits}: {most} {bytes_max}"
        );
    }
}

#[test]
fn rounding_should_be_unbiased() {
    let layout = Layout::new(&[4], 64);
    // The last value fixes the scale; the first three lie between levels.
    let sparse = Sparse {
        indices: vec![0, 1, 2, 3],
        values: vec![0.3, -0.123, 0.001, 1.0],
    };
    let rounds = 4000u32;
    let mut sums = [0.0f64; 4];
    for round in 0..rounds {
        let mut seed = [0; 32];
        seed[..4].copy_from_slice(&round.to_le_bytes());
        let decoded = decode_aggregate(&layout, &encode_aggregate(&layout, 4, &sparse, seed)).unwrap();
        for (&index, &value) in decoded.indices.iter().zip(&decoded.values) {
            sums[index as usize] += f64::from(value);
        }
    }
    for (sum, &value) in sums.iter().zip(&sparse.values) {
        // A level is 1/8, so the standard error of the mean is at most 1/16 / √4000 ≈ 0.001.
        assert!(
            (sum / f64::from(rounds) - f64::from(value)).abs() < 0.005,
            "{sum} {value}"
        );
    }
    assert_eq!(sums[3], f64::from(rounds), "a value on a level is never moved");
}

#[test]
fn rounding_of_a_coordinate_should_not_depend_on_others() {
    let layout = Layout::new(&[600], 256);
    let all = Sparse {
        indices: (0..600).collect(),
        values: values(600, 3, 1.0),
    };
    let mut all = all;
    [0usize, 256, 512].iter().for_each(|&i| all.values[i] = 1.0);
    let some: Vec<usize> = (0..600).filter(|i| i % 256 == 0 || i % 7 == 3).collect();
    let part = Sparse {
        indices: some.iter().map(|&i| i as u64).collect(),
        values: some.iter().map(|&i| all.values[i]).collect(),
    };
    let dense = |sparse: &Sparse| {
        let decoded = decode_aggregate(&layout, &encode_aggregate(&layout, 4, sparse, [1; 32])).unwrap();
        let mut dense = vec![0.0f32; 600];
        decoded
            .indices
            .iter()
            .zip(&decoded.values)
            .for_each(|(&i, &v)| dense[i as usize] = v);
        dense
    };
    let (all, part) = (dense(&all), dense(&part));
    assert!(some.iter().all(|&i| all[i] == part[i]));
}

#[test]
fn extremes_should_not_be_clipped_or_break() {
    let layout = Layout::new(&[8], 64);
    let largest = 2.0 * scale(255);
    let sparse = Sparse {
        indices: (0..6).collect(),
        values: vec![largest, -largest, f32::NAN, 0.0, f32::INFINITY, -0.0],
    };
    let decoded = decode_aggregate(&layout, &encode_aggregate(&layout, 8, &sparse, [0; 32])).unwrap();
    assert_eq!((decoded.indices, decoded.values), (vec![0, 1], vec![largest, -largest]));
    let tiny = Sparse {
        indices: vec![1],
        values: vec![f32::from_bits(1)],
    };
    assert_eq!(
        decode_aggregate(&layout, &encode_aggregate(&layout, 8, &tiny, [0; 32])).unwrap(),
        Sparse::default()
    );
    let huge = Sparse {
        indices: vec![1],
        values: vec![-f32::MAX],
    };
    assert_eq!(
        decode_aggregate(&layout, &encode_aggregate(&layout, 8, &huge, [0; 32]))
            .unwrap()
            .values,
        [-largest]
    );
}

#[test]
fn apply_should_subtract_with_two_roundings() {
    let mut theta = vec![1.0f32, 2.0, 3.0];
    let d = Sparse {
        indices: vec![0, 2, 9],
        values: vec![0.1, -0.3, 5.0],
    };
    apply(&mut theta, &d, 0.7);
    let step = [0.7f32 * 0.1, 0.7f32 * -0.3];
    assert_eq!(theta, [1.0 - step[0], 2.0, 3.0 - step[1]]);
}

#[test]
fn seed_should_bind_model_and_accepted_set() {
    let seed = rounding_seed(&[1; 32], &[[2; 32], [3; 32]]);
    assert_ne!(seed, rounding_seed(&[2; 32], &[[2; 32], [3; 32]]));
    assert_ne!(seed, rounding_seed(&[1; 32], &[[3; 32], [2; 32]]));
    assert_ne!(seed, rounding_seed(&[1; 32], &[[2; 32]]));
}

#[test]
fn the_next_state_should_be_the_golden_one() {
    let layout = layout();
    let round: Vec<EncoderOutput> = (21..24).map(encoded).collect();
    for (number, update) in (1..).zip(&round) {
        golden(&format!("round-{number}.alu"), &update.bytes);
    }
    let pairs: Vec<_> = round
        .iter()
        .map(|update| &update.sent)
        .zip([1.0f32, 0.8, 1.3])
        .collect();
    let seed = rounding_seed(&[9; 32], &[[1; 32], [2; 32], [3; 32]]);
    let bytes = encode_aggregate(&layout, 8, &mean(&layout, &pairs, 1), seed);
    golden("aggregate-8bit.ald", &bytes);
    let mut theta = values(layout.total(), 30, 0.1);
    let le_bytes = |theta: &[f32]| -> Vec<u8> { theta.iter().flat_map(|v| v.to_le_bytes()).collect() };
    golden("theta.f32", &le_bytes(&theta));
    let d = decode_aggregate(&layout, &bytes).unwrap();
    golden("aggregate-8bit.txt", listing(&d.indices, &d.values).as_bytes());
    apply(&mut theta, &d, 0.7);
    golden("theta-next.f32", &le_bytes(&theta));
    // Fewer bits, and entries that weigh as the runs have it.
    for bits in [2, 4] {
        let bytes = encode_aggregate(&layout, bits, &mean(&layout, &pairs, 4), seed);
        let d = decode_aggregate(&layout, &bytes).unwrap();
        golden(&format!("aggregate-{bits}bit.ald"), &bytes);
        golden(
            &format!("aggregate-{bits}bit.txt"),
            listing(&d.indices, &d.values).as_bytes(),
        );
    }
}

proptest! {
    #[test]
    fn any_sparse_vector_should_publish(
        bits in 1u8..=8,
        seed in any::<[u8; 32]>(),
        dense in prop::collection::vec(prop::option::weighted(0.3, any::<f32>()), 343),
    ) {
        let layout = Layout::new(&[40, 300, 3], 128);
        let entries: Vec<_> = dense.iter().enumerate().filter_map(|(i, v)| v.map(|v| (i as u64, v))).collect();
        let (indices, values): (Vec<_>, Vec<_>) = entries.iter().copied().unzip();
        let decoded = decode_aggregate(&layout, &encode_aggregate(&layout, bits, &Sparse { indices, values }, seed)).unwrap();
        for (index, value) in decoded.indices.iter().zip(&decoded.values) {
            let original = dense[*index as usize].unwrap();
            prop_assert!(original.signum() == value.signum());
        }
    }
}
