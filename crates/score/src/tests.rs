//! Scoring on a quadratic, where the truth is known.

use crate::{
    Decision, LossOracle, Measurement, OracleError, Outcome, RoundScore, confirm_step, decide, guarded_step,
    measure_round, score_round,
};
use alice_spec::RunSpec;
use alice_update::{Entries, Sparse, Update};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::LazyLock;

type Candidate = crate::Candidate<Update>;

const PARAMETERS: usize = 64;

static SPEC: LazyLock<RunSpec> = LazyLock::new(alice_testkit::fixtures::dev);

/// Uniform in [-1, 1), a pure function of its arguments.
fn noise(a: u64, b: u64) -> f64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xd1b5_4a32_d192_ed03) ^ 0x2545_f491_4f6c_dd1d;
    for _ in 0..3 {
        x ^= x >> 31;
        x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    }
    (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// ℓ_j(θ) = ½ |θ − c_j|² / n + 3, with each sequence's centre c_j spread around zero.
struct Quadratic {
    spread: f64,
    calls: usize,
}

impl LossOracle for Quadratic {
    fn losses(&mut self, theta: &[f32], sequences: &[u32]) -> Result<Vec<f64>, OracleError> {
        self.calls += 1;
        let of = |&sequence: &u32| {
            let terms = theta.iter().enumerate().map(|(i, &t)| {
                let centre = self.spread * noise(sequence.into(), i as u64);
                (f64::from(t) - centre).powi(2)
            });
            3.0 + 0.5 * terms.sum::<f64>() / theta.len() as f64
        };
        Ok(sequences.iter().map(of).collect())
    }
}

fn oracle() -> Quadratic {
    Quadratic { spread: 0.5, calls: 0 }
}

fn theta() -> Vec<f32> {
    (0..PARAMETERS)
        .map(|i| 1.0 + 0.5 * noise(99, i as u64) as f32)
        .collect()
}

fn split() -> Vec<u32> {
    (0..128).collect()
}

/// d = size · (towards · θ + noise): subtracting θ leads to the minimum at zero.
fn update(towards: f32, noisy: f32, size: f32, seed: u64) -> Update {
    let theta = theta();
    let values = theta
        .iter()
        .enumerate()
        .map(|(i, t)| size * (towards * t + noisy * noise(seed, i as u64) as f32));
    Update {
        indices: (0..PARAMETERS as u64).collect(),
        values: values.collect(),
        ..Update::default()
    }
}

fn candidate(id: u8, has_accepted_work: bool, update: Update) -> Candidate {
    Candidate {
        id: [id; 32],
        miner: [id; 32],
        has_accepted_work,
        fragment: 0,
        update,
    }
}

fn score(candidates: &[Candidate], previous: Option<f32>) -> RoundScore {
    score_round(
        &mut oracle(),
        &SPEC,
        &mut theta(),
        &split(),
        candidates,
        &[previous],
        &mut |_| (),
    )
    .unwrap()
}

fn only(update: Update) -> Decision {
    score(&[candidate(1, true, update)], Some(1.0)).decisions.remove(0)
}

#[test]
fn honest_update_should_be_accepted_and_its_negation_refused() {
    let honest = only(update(0.1, 0.02, 1.0, 1));
    assert!(honest.accepted && honest.improvement > 0.0, "{honest:?}");
    assert_eq!((honest.outcome, honest.score), (Outcome::Accepted, 1_000_000_000));
    let negated = only(update(-0.1, -0.02, 1.0, 1));
    assert_eq!(
        (negated.outcome, negated.score, negated.accepted),
        (Outcome::NoImprovement, 0, false)
    );
    assert!(negated.improvement < 0.0);
    assert!(negated.detail.contains("does not clearly lower"), "{}", negated.detail);
}

#[test]
fn a_keys_evidence_should_be_pooled_over_its_submissions() {
    // Many updates of pure noise: single ones would pass the gate by luck, the key's evidence together does not.
    let noise_only = |id: u8| Candidate {
        miner: [77; 32],
        ..candidate(id, false, update(0.0, 0.02, 1.0, u64::from(id)))
    };
    let all: Vec<Candidate> = (1..=60).map(noise_only).collect();
    let alone = all.iter().map(|c| {
        let one = Candidate {
            miner: c.id,
            has_accepted_work: true,
            ..c.clone()
        };
        score(&[one], Some(1.0)).decisions.remove(0)
    });
    let lucky = alone.filter(|d| d.accepted).count();
    let together = score(&all, Some(1.0));
    let accepted = together.decisions.iter().filter(|d| d.accepted).count();
    assert!(lucky > 0 && accepted < lucky, "{lucky} alone, {accepted} together");
    // An honest key with two updates is paid by its mean for both.
    let two = [(1, 0.1), (2, 0.12)].map(|(id, towards)| Candidate {
        miner: [5; 32],
        ..candidate(id, true, update(towards, 0.02, 1.0, u64::from(id)))
    });
    let decided = score(&two, Some(1.0)).decisions;
    assert!(
        decided.iter().all(|d| d.accepted && d.score == 1_000_000_000),
        "{decided:?}"
    );
    assert!(decided[0].detail.contains("2 updates together"));
    // Updates without merit do not multiply the pay of a good one from the same key.
    let honest = candidate(1, true, update(0.1, 0.0, 1.0, 1));
    let mut padded = vec![honest.clone()];
    padded.extend((50..53).map(|id| candidate(id, true, update(0.1, 0.0, 1.0, 1))));
    padded.extend((2..8).map(|id| Candidate {
        miner: honest.miner,
        ..candidate(id, true, update(0.004, 0.02, 1.0, u64::from(id)))
    }));
    let decided = score(&padded, Some(1.0)).decisions;
    let total: u64 = decided.iter().filter(|d| d.id[0] < 50).map(|d| d.score).sum();
    let sum: f64 = decided
        .iter()
        .filter(|d| d.id[0] < 50)
        .map(|d| d.improvement.max(0.0))
        .sum();
    let alone = decided.iter().find(|d| d.id[0] == 50).unwrap();
    assert!(
        total as f64 / alone.score as f64 <= 1.01 * sum / alone.improvement,
        "{decided:?}"
    );
    // One of them doing harm is refused although the key is good.
    let mut mixed = two.to_vec();
    mixed.extend(two.iter().map(|c| Candidate {
        id: [c.id[0] + 3; 32],
        ..c.clone()
    }));
    mixed.push(Candidate {
        miner: [5; 32],
        ..candidate(9, true, update(-0.1, 0.02, 1.0, 9))
    });
    let decided = score(&mixed, Some(1.0)).decisions;
    assert_eq!(
        decided.iter().map(|d| d.accepted).collect::<Vec<_>>(),
        [true, true, true, true, false]
    );
}

#[test]
fn improvement_should_be_the_probe_divided_by_kappa() {
    let update = update(0.1, 0.0, 1.0, 1);
    let decision = only(update.clone());
    let (mut before, mut after) = (0.0, 0.0);
    let step = (0.2 * 1.0) as f32 * (1.0 / update.norm() as f32).min(2.0);
    let moved: Vec<f32> = theta().iter().zip(&update.values).map(|(t, v)| t - step * v).collect();
    for loss in oracle().losses(&theta(), &split()).unwrap() {
        before += loss / 128.0;
    }
    for loss in oracle().losses(&moved, &split()).unwrap() {
        after += loss / 128.0;
    }
    assert!((decision.improvement - (before - after) / 0.2).abs() < 1e-6);
}

#[test]
fn magnitude_should_pay_nobody() {
    // 2^7 is exact, so that the scaled update is the same direction bit for bit.
    let (plain, large) = (update(0.3, 0.05, 1.0, 2), update(0.3, 0.05, 128.0, 2));
    let round = score(&[candidate(1, true, plain), candidate(2, true, large)], Some(1.5));
    let (plain, large) = (&round.decisions[0], &round.decisions[1]);
    assert_eq!(plain.score, large.score);
    assert!((plain.improvement - large.improvement).abs() < 1e-9);
    assert_eq!(large.norm, 128.0 * plain.norm);
    assert!((plain.factor * plain.norm - 1.5).abs() < 1e-6);
}

#[test]
fn short_updates_should_be_stretched_at_most_twofold() {
    assert_eq!(only(update(0.1, 0.0, 0.01, 1)).factor, 2.0);
}

#[test]
fn degenerate_updates_should_never_be_evaluated() {
    let with = |value: f32| Update {
        indices: vec![3],
        values: vec![value],
        ..Update::default()
    };
    let outside = Update {
        indices: vec![PARAMETERS as u64],
        values: vec![1.0],
        ..Update::default()
    };
    let bad = [
        Update::default(),
        with(0.0),
        with(f32::NAN),
        with(f32::INFINITY),
        outside,
    ];
    let mut candidates: Vec<_> = (0..).zip(bad).map(|(id, update)| candidate(id, true, update)).collect();
    candidates.push(candidate(9, true, update(0.1, 0.0, 1.0, 1)));
    let mut oracle = oracle();
    let mut steps = Vec::new();
    let round = score_round(
        &mut oracle,
        &SPEC,
        &mut theta(),
        &split(),
        &candidates,
        &[],
        &mut |done| steps.push(done),
    )
    .unwrap();
    assert_eq!(
        oracle.calls, 2,
        "the model and the one candidate that is not degenerate"
    );
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    assert!(
        round.decisions[..5]
            .iter()
            .all(|d| d.outcome == Outcome::Degenerate && d.score == 0 && !d.accepted)
    );
    assert!(round.decisions[5].accepted);
    assert_eq!(round.median_norms[0], Some(round.decisions[5].norm));
}

#[test]
fn noise_should_be_refused_mostly() {
    let noisy: Vec<_> = (0..200)
        .map(|id| candidate(id, false, update(0.0, 1.0, 1.0, 1000 + u64::from(id))))
        .collect();
    // Around the minimum no direction helps: what the gate sees is noise of the sequences, then curvature.
    let zero = vec![0.0; PARAMETERS];
    let round = score_round(
        &mut oracle(),
        &SPEC,
        &mut zero.clone(),
        &split(),
        &noisy,
        &[Some(0.1)],
        &mut |_| (),
    )
    .unwrap();
    let accepted = round.decisions.iter().filter(|d| d.accepted).count();
    assert!(accepted <= 2, "{accepted} of 200 newcomers without merit were accepted");
    assert_eq!(round.median_norms[0].is_some(), accepted > 0);
}

#[test]
fn newcomers_should_have_to_beat_the_best_of_their_number() {
    // One update whose z lies between 1.64 and √(2 ln 100) = 3.03.
    let weak = update(0.0, 1.0, 1.0, 1003);
    let zero = vec![0.0; PARAMETERS];
    let z_of = |seed: u64| {
        let candidates = [candidate(1, true, update(0.0, 1.0, 1.0, seed))];
        let round = score_round(
            &mut oracle(),
            &SPEC,
            &mut zero.clone(),
            &split(),
            &candidates,
            &[Some(0.01)],
            &mut |_| (),
        )
        .unwrap();
        round.decisions[0].improvement / round.decisions[0].standard_error
    };
    let seed = (0..500).find(|&seed| (1.8..2.8).contains(&z_of(seed))).unwrap();
    let weak = Update {
        values: update(0.0, 1.0, 1.0, seed).values,
        ..weak
    };
    let crowd = |has_accepted_work: bool| -> bool {
        let mut all = vec![candidate(0, has_accepted_work, weak.clone())];
        all.extend((1..=99).map(|id| candidate(id, false, update(-0.1, 0.0, 1.0, 1))));
        let round = score_round(
            &mut oracle(),
            &SPEC,
            &mut zero.clone(),
            &split(),
            &all,
            &[Some(0.01)],
            &mut |_| (),
        )
        .unwrap();
        round.decisions[0].accepted
    };
    assert!(crowd(true));
    assert!(!crowd(false));
    let alone = [candidate(0, false, weak.clone())];
    let round = score_round(
        &mut oracle(),
        &SPEC,
        &mut zero.clone(),
        &split(),
        &alone,
        &[Some(0.01)],
        &mut |_| (),
    )
    .unwrap();
    assert!(round.decisions[0].accepted, "a single newcomer needs z only");
}

#[test]
fn decisions_should_be_sorted_and_independent_of_order() {
    let mut candidates: Vec<_> = (0..9)
        .map(|id| candidate(id, id % 2 == 0, update(0.1, 0.1, 1.0, id.into())))
        .collect();
    let round = score(&candidates, None);
    candidates.reverse();
    candidates.swap(2, 5);
    assert_eq!(score(&candidates, None), round);
    assert!(round.decisions.windows(2).all(|pair| pair[0].id < pair[1].id));
}

#[test]
fn scores_should_be_relative_to_the_lower_median_and_clipped() {
    // The same norm for all: the less an update points to the minimum, the less it gains.
    let mix = |noisy: f32| update(0.1, noisy, 1.0, 5);
    let round = score(
        &[0.0, 0.05, 0.1, 0.6].map(|noisy| candidate((noisy * 100.0) as u8, true, mix(noisy))),
        Some(1.0),
    );
    let scores: Vec<u64> = round.decisions.iter().map(|d| d.score).collect();
    assert!(round.decisions.iter().all(|d| d.accepted));
    assert_eq!(scores[2], 1_000_000_000, "{scores:?}");
    assert!(scores.windows(2).all(|pair| pair[0] > pair[1]));
    assert!(scores[0] <= 1_500_000_000);
    let clipped = score(
        &[0.0, 3.0, 3.0].map(|noisy| candidate(noisy as u8, true, mix(noisy))),
        Some(1.0),
    );
    assert!(clipped.decisions.iter().all(|d| d.score <= 1_500_000_000));
}

#[test]
fn each_fragment_should_have_its_own_norm_and_its_own_median() {
    let mut spec = SPEC.clone();
    spec.task.fragments = 2;
    // Updates of the first fragment gain less than those of the second, which are shorter as well.
    let of = |id: u8, fragment: u32, towards: f32| Candidate {
        fragment,
        ..candidate(id, true, {
            let mut update = update(towards, 0.0, 1.0, 1);
            let half = PARAMETERS / 2;
            let range = if fragment == 0 { 0..half / 4 } else { half..PARAMETERS };
            update.indices = update.indices[range.clone()].to_vec();
            update.values = update.values[range].to_vec();
            update
        })
    };
    let candidates = [of(1, 0, 0.1), of(2, 0, 0.1), of(3, 1, 0.05), of(4, 1, 0.05)];
    let round = |previous: &[Option<f32>]| {
        score_round(
            &mut oracle(),
            &spec,
            &mut theta(),
            &split(),
            &candidates,
            previous,
            &mut |_| (),
        )
        .unwrap()
    };
    let first = round(&[]);
    let d = &first.decisions;
    assert!(d.iter().all(|d| d.accepted && d.factor == 1.0), "{d:?}");
    assert!(d[2].improvement > 1.4 * d[0].improvement, "{d:?}");
    assert!(
        d.iter().all(|d| d.score == 1_000_000_000),
        "nobody earns less for the fragment that he was given: {d:?}"
    );
    assert_eq!(first.median_norms, [Some(d[0].norm), Some(d[2].norm)]);
    assert!(d[0].norm != d[2].norm);
    // Only the fragment whose norm is known from before is brought to it.
    let second = round(&[Some(0.5 * d[0].norm), None]);
    assert_eq!(
        second.decisions.iter().map(|d| d.factor).collect::<Vec<_>>(),
        [0.5, 0.5, 1.0, 1.0]
    );
}

#[test]
fn an_empty_round_should_still_have_a_baseline() {
    let round = score(&[], None);
    assert!(round.decisions.is_empty() && round.median_norms == [None]);
    assert_eq!(round.losses_before.len(), 128);
}

/// Answers from a list.
struct Scripted(Vec<Result<Vec<f64>, OracleError>>);

impl LossOracle for Scripted {
    fn losses(&mut self, _: &[f32], _: &[u32]) -> Result<Vec<f64>, OracleError> {
        self.0.remove(0)
    }
}

#[test]
fn losses_that_are_not_finite_should_refuse_with_a_reason() {
    for after in [f64::NAN, f64::INFINITY] {
        let mut oracle = Scripted(vec![Ok(vec![3.0, 3.1]), Ok(vec![after, 1.0])]);
        let candidates = [candidate(1, true, update(0.1, 0.0, 1.0, 1))];
        let round = score_round(&mut oracle, &SPEC, &mut theta(), &[1, 2], &candidates, &[], &mut |_| ()).unwrap();
        let decision = &round.decisions[0];
        assert_eq!((decision.outcome, decision.score), (Outcome::NoImprovement, 0));
        assert!(
            decision.detail.contains("not finite") && decision.improvement == 0.0 && decision.standard_error == 0.0
        );
    }
}

#[test]
fn faults_of_the_server_should_be_errors() {
    let fault = OracleError {
        message: "device lost".into(),
    };
    let candidates = [candidate(1, true, update(0.1, 0.0, 1.0, 1))];
    let cases = [
        vec![Err(fault.clone())],
        vec![Ok(vec![3.0, 3.0]), Err(fault)],
        vec![Ok(vec![3.0])],
        vec![Ok(vec![3.0, f64::NAN])],
        vec![Ok(vec![3.0, 3.0]), Ok(vec![3.0])],
    ];
    for case in cases {
        assert!(
            score_round(
                &mut Scripted(case),
                &SPEC,
                &mut theta(),
                &[1, 2],
                &candidates,
                &[],
                &mut |_| ()
            )
            .is_err()
        );
    }
    assert!(
        score_round(
            &mut Scripted(vec![Ok(vec![])]),
            &SPEC,
            &mut theta(),
            &[],
            &candidates,
            &[],
            &mut |_| ()
        )
        .is_err()
    );
}

fn sparse(towards: f32) -> Sparse {
    Sparse {
        indices: (0..PARAMETERS as u64).collect(),
        values: theta().iter().map(|t| towards * t).collect(),
    }
}

#[test]
fn guard_should_take_a_good_step_as_it_is() {
    let result = guarded_step(&mut oracle(), &mut theta(), &sparse(0.5), 1.0, 1.64, &split()).unwrap();
    assert_eq!((result.alpha_used, result.halvings), (1.0, 0));
    assert!(result.after.iter().sum::<f64>() < result.before.iter().sum::<f64>());
}

#[test]
fn guard_should_halve_an_overshoot() {
    // θ − α·6·θ: |1 − 6α| is 5, 2, ½ for α = 1, ½, ¼.
    let result = guarded_step(&mut oracle(), &mut theta(), &sparse(6.0), 1.0, 1.64, &split()).unwrap();
    assert_eq!((result.alpha_used, result.halvings), (0.25, 2));
}

#[test]
fn guard_should_skip_a_backward_step() {
    let mut oracle = oracle();
    let result = guarded_step(&mut oracle, &mut theta(), &sparse(-1.0), 1.0, 1.64, &split()).unwrap();
    assert_eq!((result.alpha_used, result.halvings, oracle.calls), (0.0, 3, 5));
    // The losses of the last attempt stay, so that the refusal can be checked.
    assert!(result.after.iter().sum::<f64>() > result.before.iter().sum::<f64>());
}

#[test]
fn guard_should_survive_losses_that_are_not_finite() {
    let bad = || Ok(vec![f64::NAN, f64::INFINITY]);
    let mut oracle = Scripted(vec![Ok(vec![3.0, 3.0]), bad(), Ok(vec![2.0, 2.5])]);
    let result = guarded_step(&mut oracle, &mut theta(), &sparse(0.5), 1.0, 1.64, &[1, 2]).unwrap();
    assert_eq!((result.alpha_used, result.halvings), (0.5, 1));
    let mut oracle = Scripted(vec![Ok(vec![3.0, 3.0]), bad(), bad(), bad(), bad()]);
    assert_eq!(
        guarded_step(&mut oracle, &mut theta(), &sparse(0.5), 1.0, 1.64, &[1, 2])
            .unwrap()
            .alpha_used,
        0.0
    );
}

#[test]
fn guard_without_an_aggregate_should_change_nothing() {
    let result = guarded_step(&mut oracle(), &mut theta(), &Sparse::default(), 1.0, 1.64, &split()).unwrap();
    assert_eq!(result.alpha_used, 0.0);
}

/// Answers from a list, and notes how far from θ it was asked each time.
struct Elsewhere<'a> {
    answers: Scripted,
    distances: &'a mut Vec<f32>,
}

impl LossOracle for Elsewhere<'_> {
    fn losses(&mut self, at: &[f32], sequences: &[u32]) -> Result<Vec<f64>, OracleError> {
        let distance = at.iter().zip(theta()).map(|(a, b)| (a - b).abs()).sum();
        self.distances.push(distance);
        self.answers.losses(at, sequences)
    }
}

#[test]
fn weights_should_be_moved_for_a_measurement_and_be_the_same_bits_afterwards() {
    let fault = || {
        Err(OracleError {
            message: "device lost".into(),
        })
    };
    let fine = || Ok(vec![3.0, 3.0]);
    let candidates = [1, 2].map(|id| candidate(id, true, update(0.1, 0.02, 1.0, id.into())));
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for (answers, works) in [
        (vec![fine(), fine(), fine()], true),
        (vec![fine(), fine(), fault()], false),
    ] {
        for scoring in [true, false] {
            let (mut weights, mut distances) = (theta(), Vec::new());
            let mut oracle = Elsewhere {
                answers: Scripted(answers.clone()),
                distances: &mut distances,
            };
            let done = if scoring {
                let round = score_round(&mut oracle, &SPEC, &mut weights, &[1, 2], &candidates, &[], &mut |_| ());
                round.is_ok()
            } else {
                // Refused once, so that α is halved.
                if let Some(second) = oracle.answers.0.get_mut(1) {
                    *second = Ok(vec![4.0, 4.0]);
                }
                guarded_step(&mut oracle, &mut weights, &sparse(0.5), 1.0, 1.64, &[1, 2]).is_ok()
            };
            assert_eq!(done, works);
            assert!(
                distances[0] == 0.0 && distances[1] > 0.0 && distances[2] > 0.0,
                "{distances:?}"
            );
            if !scoring {
                // d is half of θ: at α = 1 and ½ the guard looks at θ/2 and 3θ/4.
                let size: f32 = theta().iter().map(|t| t.abs()).sum();
                for (distance, part) in distances[1..].iter().zip([0.5, 0.25]) {
                    assert!((distance - part * size).abs() < 1e-5 * size, "{distances:?}");
                }
            }
            assert_eq!(bits(&weights), bits(&theta()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_better_direction_should_never_score_less(noisy in 0.0f32..0.2, more in 0.01f32..0.2, seed in any::<u64>()) {
        let candidates = [
            candidate(1, true, update(0.1, noisy, 1.0, seed)),
            candidate(2, true, update(0.1, noisy + more, 1.0, seed)),
        ];
        // The noise of one seed only grows; its part along θ is removed, so that the direction gets strictly worse.
        let candidates = candidates.map(|mut c| {
            let theta = theta();
            let along = |v: &[f32]| v.iter().zip(&theta).map(|(a, b)| a * b).sum::<f32>();
            let excess = along(&c.update.values) / along(&theta) - 0.1;
            c.update.values.iter_mut().zip(&theta).for_each(|(v, t)| *v -= excess * t);
            c
        });
        let round = score(&candidates, Some(1.0));
        prop_assert!(round.decisions[0].score >= round.decisions[1].score);
        prop_assert!(round.decisions[0].improvement >= round.decisions[1].improvement - 1e-6);
    }

    #[test]
    fn scores_should_stay_in_their_range(
        seeds in prop::collection::vec((any::<u64>(), -0.2f32..0.2, 0.0f32..1.0, 0.001f32..1000.0), 0..12),
    ) {
        let candidates: Vec<_> = (0..).zip(&seeds)
            .map(|(id, &(seed, towards, noisy, size))| candidate(id, seed % 2 == 0, update(towards, noisy, size, seed)))
            .collect();
        let round = score(&candidates, None);
        prop_assert_eq!(round.decisions.len(), candidates.len());
        for decision in &round.decisions {
            prop_assert!(decision.score <= 1_500_000_000);
            prop_assert_eq!(decision.score > 0, decision.accepted);
            prop_assert!(decision.factor <= 2.0);
            prop_assert_eq!(decision.accepted, decision.outcome == Outcome::Accepted);
        }
        if let Some(norm) = round.median_norms[0] {
            prop_assert!(round.decisions.iter().any(|d| d.accepted && d.norm == norm));
        }
    }
}

/// Candidates of each outcome: two fragments, a key with several updates, newcomers, one that is degenerate.
fn mixed_round() -> (RunSpec, Vec<Candidate>) {
    let mut spec = SPEC.clone();
    spec.task.fragments = 2;
    let updates = [
        (9, update(0.1, 0.02, 1.0, 1)),
        (3, update(0.08, 0.05, 3.0, 2)),
        (7, update(-0.1, 0.02, 1.0, 3)),
        (1, update(0.0, 0.1, 0.1, 4)),
        (5, update(0.2, 0.01, 0.0, 5)),
        (4, update(0.12, 0.03, 1.0, 6)),
    ];
    let candidates = updates.map(|(id, update)| Candidate {
        miner: [id % 3; 32],
        fragment: u32::from(id % 2),
        ..candidate(id, id > 4, update)
    });
    (spec, candidates.to_vec())
}

#[test]
fn decide_should_give_the_decisions_of_score_round_in_any_order_of_the_measurements() {
    let (spec, candidates) = mixed_round();
    let previous = [Some(0.7), None];
    let scored = score_round(
        &mut oracle(),
        &spec,
        &mut theta(),
        &split(),
        &candidates,
        &previous,
        &mut |_| (),
    )
    .unwrap();
    let outcomes: BTreeSet<String> = scored.decisions.iter().map(|d| format!("{:?}", d.outcome)).collect();
    assert_eq!(outcomes.len(), 3, "every outcome occurs: {outcomes:?}");
    let measured = measure_round(
        &mut oracle(),
        &spec,
        &mut theta(),
        &split(),
        &candidates,
        &previous,
        &mut |_| (),
    )
    .unwrap();
    assert_eq!(measured.losses_before, scored.losses_before);
    let mut measurements: Vec<Measurement> = measured.measurements;
    for turn in 0..measurements.len() {
        measurements.rotate_left(turn);
        let decided = decide(&spec, &measurements);
        assert_eq!(
            (&decided.decisions, &decided.median_norms),
            (&scored.decisions, &scored.median_norms)
        );
    }
}

#[test]
fn a_step_should_be_skipped_when_the_scoring_split_is_not_finite_after_it() {
    /// Finite on the guard split, not on the scoring split once a weight has moved.
    struct Trap;
    impl LossOracle for Trap {
        fn losses(&mut self, theta: &[f32], sequences: &[u32]) -> Result<Vec<f64>, OracleError> {
            let moved = theta[0] != 0.0;
            let loss = |j: &u32| {
                if moved && *j < 4 {
                    f64::NAN
                } else {
                    3.0 - f64::from(theta[0].abs())
                }
            };
            Ok(sequences.iter().map(loss).collect())
        }
    }
    let d = Sparse {
        indices: vec![0],
        values: vec![0.5],
    };
    let mut theta = [0.0f32; 2];
    let guard = guarded_step(&mut Trap, &mut theta, &d, 1.0, 1.64, &[4, 5, 6]).unwrap();
    assert_eq!((guard.alpha_used, guard.halvings), (1.0, 0));
    let before = [3.0; 4];
    let mut skipped = guard.clone();
    let after = confirm_step(&mut Trap, &mut theta, &d, &mut skipped, &[0, 1, 2, 3], &before).unwrap();
    assert_eq!((skipped.alpha_used, &after[..]), (0.0, &before[..]));
    // With finite losses the step stands, and the losses are those after it.
    let mut taken = guard.clone();
    let after = confirm_step(&mut Trap, &mut theta, &d, &mut taken, &[7, 8], &before[..2]).unwrap();
    assert_eq!((taken, after), (guard, vec![2.5; 2]));
    assert_eq!(theta, [0.0; 2], "only measured");
}
