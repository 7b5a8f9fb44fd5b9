//! Sequences of tasks and of validation splits: permutations and draws that anyone can recompute
//! (docs/spec/manifest.md#draws).

use alice_primitives::{Hash, tagged_hash, tags};
use alice_spec::RunSpec;

/// Rounds of the Feistel network. Four make a pseudo-random permutation from a pseudo-random function (Luby and
/// Rackoff 1988); small domains get a margin.
const FEISTEL_ROUNDS: u8 = 8;

/// Image of `i` under the permutation of `0..n` that belongs to `seed`: a Feistel network over the next even power of
/// two, walked until it lands inside (Black and Rogaway 2002). Takes no memory, whatever `n`.
///
/// `i` is taken modulo `n`; zero for an empty domain.
///
/// ```
/// use alice_data::sampling::permutation;
/// let mut images: Vec<u64> = (0..5).map(|i| permutation(&[7; 32], 5, i)).collect();
/// images.sort();
/// assert_eq!(images, [0, 1, 2, 3, 4]);
/// ```
pub fn permutation(seed: &[u8; 32], n: u64, i: u64) -> u64 {
    if n <= 1 {
        return 0;
    }
    // The smallest domain 2^(2·half) that holds 0..n: at most four times as large, so about four walks at worst.
    let half = (u64::BITS - (n - 1).leading_zeros()).div_ceil(2);
    let mask = (1u64 << half) - 1;
    let mut value = i % n;
    loop {
        let (mut left, mut right) = (value >> half, value & mask);
        for round in 0..FEISTEL_ROUNDS {
            (left, right) = (right, left ^ (round_function(seed, round, right) & mask));
        }
        value = left << half | right;
        if value < n {
            return value;
        }
    }
}

fn round_function(seed: &[u8; 32], round: u8, input: u64) -> u64 {
    let mut hasher = blake3::Hasher::new_keyed(seed);
    hasher.update(&[round]).update(&input.to_le_bytes());
    let digest = hasher.finalize();
    // A digest has 32 bytes.
    u64::from_le_bytes(digest.as_bytes().first_chunk().copied().unwrap_or_default())
}

/// Maximum tasks of an epoch: slices of a task's size in the training sequences.
pub fn tasks_available(spec: &RunSpec, n_sequences: u64) -> u32 {
    u32::try_from(n_sequences / spec.task_sequences().max(1)).unwrap_or(u32::MAX)
}

/// Training sequences of slice `slice` of the epoch's permutation, in the order of the task's steps. Slices of one
/// epoch are disjoint. Empty beyond [`tasks_available`].
///
/// ```
/// use alice_data::{epoch_seed, task_sequences, tasks_available};
/// let spec = alice_spec::RunSpec::parse(alice_spec::preset("dev").ok_or("no such preset")?)?;
/// let seed = epoch_seed(&[1; 32], &spec.run_hash(), 0);
/// let sequences = task_sequences(&spec, 10_000, &seed, 0);
/// assert_eq!(sequences.len() as u64, spec.task_sequences());
/// assert!(task_sequences(&spec, 10_000, &seed, tasks_available(&spec, 10_000)).is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn task_sequences(spec: &RunSpec, n_sequences: u64, epoch_seed: &[u8; 32], slice: u32) -> Vec<u64> {
    if slice >= tasks_available(spec, n_sequences) {
        return Vec::new();
    }
    let start = u64::from(slice) * spec.task_sequences();
    (start..start + spec.task_sequences())
        .map(|i| permutation(epoch_seed, n_sequences, i))
        .collect()
}

/// Seed of an epoch's permutation of the training sequences.
pub fn epoch_seed(genesis: &Hash, run_hash: &Hash, epoch: u32) -> Hash {
    tagged_hash(tags::EPOCH_SEED, &[genesis, run_hash, &epoch.to_le_bytes()])
}

/// Seed of the validation draw: the hash of the VRF outputs of finalised blocks after the deadline, in their order.
pub fn validation_seed(vrf_outputs: &[[u8; 32]]) -> Hash {
    let parts: Vec<&[u8]> = vrf_outputs.iter().map(<[u8; 32]>::as_slice).collect();
    tagged_hash(tags::VALIDATION_SEED, &parts)
}

/// The scoring split and the guard split: disjoint draws without replacement from `0..reserve_sequences`.
///
/// A reserve smaller than both (which no valid specification with its own reserve has) gives shorter splits, the guard
/// split first.
pub fn draw_splits(spec: &RunSpec, validation_seed: &[u8; 32], reserve_sequences: u64) -> (Vec<u32>, Vec<u32>) {
    let n = reserve_sequences.min(u64::from(u32::MAX));
    // One permutation, cut in two: the splits are disjoint by construction.
    let scoring = u64::from(spec.score.sequences).min(n);
    let both = (u64::from(spec.score.sequences) + u64::from(spec.score.guard_sequences)).min(n);
    let draw = |range: std::ops::Range<u64>| range.map(|i| permutation(validation_seed, n, i) as u32).collect();
    (draw(0..scoring), draw(scoring..both))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn spec() -> RunSpec {
        alice_testkit::fixtures::dev()
    }

    #[test]
    fn permutation_should_match_the_golden_values() {
        // Golden: miners, servers and auditors must draw the same sequences.
        let seed = [7; 32];
        let images: Vec<u64> = (0..8).map(|i| permutation(&seed, 1000, i)).collect();
        assert_eq!(images, [746, 176, 194, 385, 710, 286, 394, 440]);
        assert_eq!(permutation(&seed, 1 << 40, 12_345), 909_376_743_971);
        let seeds = [epoch_seed(&[1; 32], &[2; 32], 3), validation_seed(&[[1; 32], [2; 32]])].map(hex::encode);
        assert_eq!(
            seeds,
            [
                "f1df69ab5cfe81195d836f146d844b23a44ba6e3183cd215592bea98ecf5079f",
                "dbba318caa08bd34e84082ff80b6aeeeaf34f92d116c35406bceb3183ad2ae0b"
            ]
        );
    }

    proptest! {
        #[test]
        fn permutation_should_be_a_bijection(seed in any::<[u8; 32]>(), n in 1u64..3000) {
            let images: HashSet<u64> = (0..n).map(|i| permutation(&seed, n, i)).collect();
            prop_assert_eq!(images.len() as u64, n);
            prop_assert!(images.iter().all(|image| *image < n));
        }

        #[test]
        fn permutation_should_stay_inside_large_domains(
            seed in any::<[u8; 32]>(), n in 1u64..=u64::MAX, i in any::<u64>(),
        ) {
            prop_assert!(permutation(&seed, n, i) < n);
        }

        #[test]
        fn splits_should_be_disjoint(seed in any::<[u8; 32]>(), n in 0u64..100_000) {
            let spec = spec();
            let (scoring, guard) = draw_splits(&spec, &seed, n);
            let all: HashSet<u32> = scoring.iter().chain(&guard).copied().collect();
            prop_assert_eq!(all.len(), scoring.len() + guard.len());
            prop_assert!(all.iter().all(|s| u64::from(*s) < n));
            let wanted = (spec.score.sequences + spec.score.guard_sequences) as usize;
            prop_assert_eq!(all.len(), wanted.min(n as usize));
        }
    }

    #[test]
    fn permutation_should_not_keep_neighbours_together() {
        let n = 10_000;
        let neighbours = (0..n - 1)
            .filter(|i| permutation(&[1; 32], n, *i).abs_diff(permutation(&[1; 32], n, i + 1)) <= 1)
            .count();
        assert!(neighbours < 10, "{neighbours} of {n}");
    }

    #[test]
    fn slices_should_be_disjoint_and_end_with_the_corpus() {
        let spec = spec();
        let (n, seed) = (spec.task_sequences() * 7 + 3, [3; 32]);
        assert_eq!(tasks_available(&spec, n), 7);
        let mut all = HashSet::new();
        for slice in 0..7 {
            let sequences = task_sequences(&spec, n, &seed, slice);
            assert_eq!(sequences.len() as u64, spec.task_sequences());
            assert!(
                sequences.iter().all(|s| *s < n && all.insert(*s)),
                "slice {slice} shares a sequence"
            );
        }
        assert!(task_sequences(&spec, n, &seed, 7).is_empty());
        assert!(task_sequences(&spec, n, &seed, u32::MAX).is_empty());
        assert!(task_sequences(&spec, 0, &seed, 0).is_empty());
        assert_ne!(
            task_sequences(&spec, n, &seed, 0),
            task_sequences(&spec, n, &[4; 32], 0)
        );
    }
}
