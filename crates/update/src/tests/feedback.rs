//! Nothing is lost: what is not sent waits, what is sent and refused comes back.

use super::{header, layout, spec, values};
use crate::{ErrorFeedback, FeedbackError, Ledger, PENDING_MAX, Update, encode};
use proptest::prelude::*;

fn sent_of(combined: &[f32]) -> Update {
    encode(&layout(), &spec(2, 16, 600), &header(), combined).unwrap().sent
}

#[test]
fn sent_and_residual_should_make_the_combined() {
    let total = layout().total();
    let mut feedback = ErrorFeedback::new(total);
    let combined = feedback.combine(&values(total, 1, 0.01));
    assert_eq!(combined, values(total, 1, 0.01));
    let sent = sent_of(&combined);
    feedback.commit([1; 32], combined.clone(), &sent, 1.0);
    let mut rebuilt = feedback.residual().to_vec();
    sent.add_scaled(&mut rebuilt, 1.0);
    for (rebuilt, combined) in rebuilt.iter().zip(&combined) {
        assert!((rebuilt - combined).abs() <= 1e-9, "{rebuilt} {combined}");
    }
    assert_eq!(feedback.pending(), [[1; 32]]);
}

#[test]
fn verdicts_should_settle_or_put_back() {
    let total = layout().total();
    let combined = values(total, 2, 0.01);
    let sent = sent_of(&combined);
    let mut feedback = ErrorFeedback::new(total);
    feedback.commit([1; 32], combined.clone(), &sent, 0.5);
    let after_commit = feedback.residual().to_vec();
    let mut other = feedback.clone();

    feedback.accepted([1; 32]);
    assert_eq!(feedback.residual(), after_commit);
    feedback.refused([1; 32]);
    assert_eq!(feedback.residual(), after_commit, "a verdict counts once");
    assert!(feedback.pending().is_empty());

    other.refused([9; 32]);
    assert_eq!(other.residual(), after_commit);
    other.refused([1; 32]);
    for (residual, combined) in other.residual().iter().zip(&combined) {
        assert!((residual - 0.5 * combined).abs() <= 1e-9);
    }
    let again = other.combine(&vec![0.0; total]);
    assert_eq!(again, other.residual());
}

#[test]
fn pending_should_decay_with_the_residual_and_be_bounded() {
    let update = |value: f32| Update {
        header: header(),
        indices: vec![0],
        values: vec![value],
    };
    let mut feedback = ErrorFeedback::new(2);
    feedback.commit([1; 32], vec![8.0, 4.0], &update(8.0), 0.5);
    let combined = feedback.combine(&[0.0, 0.0]);
    assert_eq!(combined, [0.0, 2.0]);
    feedback.commit([2; 32], combined, &Update::default(), 0.5);
    feedback.refused([1; 32]);
    assert_eq!(feedback.residual(), [2.0, 1.0]);

    let mut feedback = ErrorFeedback::new(1);
    for n in 0..=PENDING_MAX as u8 {
        feedback.commit([n; 32], vec![0.0], &update(-1.0), 1.0);
    }
    assert_eq!(feedback.pending().len(), PENDING_MAX);
    assert_eq!(feedback.pending().first(), Some(&[1; 32]));
}

#[test]
fn values_that_are_not_finite_should_not_stay() {
    let mut feedback = ErrorFeedback::new(3);
    feedback.commit([1; 32], vec![f32::NAN, f32::INFINITY, 1.0], &Update::default(), 0.5);
    assert_eq!(feedback.residual(), [0.0, 0.0, 0.5]);
}

#[test]
fn stored_state_should_come_back_or_say_why_not() {
    let total = layout().total();
    let mut feedback = ErrorFeedback::new(total);
    for n in 0..3u8 {
        let combined = feedback.combine(&values(total, n.into(), 0.01));
        let sent = sent_of(&combined);
        feedback.commit([n; 32], combined, &sent, 0.95);
    }
    let bytes = feedback.to_bytes();
    assert_eq!(ErrorFeedback::from_bytes(&bytes, total), Ok(feedback));
    assert_eq!(
        ErrorFeedback::from_bytes(&bytes, total + 1),
        Err(FeedbackError::Length {
            expected: 0..total as u64 + 1,
            found: 0..total as u64
        })
    );
    for cut in [0, 10, 31, 32, 40, bytes.len() - 1] {
        assert!(matches!(
            ErrorFeedback::from_bytes(&bytes[..cut], total),
            Err(FeedbackError::Damaged(_))
        ));
    }
    let mut flipped = bytes.clone();
    flipped[100] ^= 1;
    assert!(matches!(
        ErrorFeedback::from_bytes(&flipped, total),
        Err(FeedbackError::Damaged(_))
    ));
}

#[test]
fn a_constant_gradient_should_be_sent_completely_over_time() {
    // With a residual that does not decay, what was sent over many rounds approaches rounds · d in every coordinate.
    let total = layout().total();
    let d = values(total, 6, 0.01);
    let mut feedback = ErrorFeedback::new(total);
    let mut arrived = vec![0.0f32; total];
    let rounds = 200;
    for round in 0..rounds {
        let combined = feedback.combine(&d);
        let sent = sent_of(&combined);
        sent.add_scaled(&mut arrived, 1.0);
        feedback.commit([round as u8; 32], combined, &sent, 1.0);
        feedback.accepted([round as u8; 32]);
    }
    let goal: f64 = d.iter().map(|v| f64::from(*v * rounds as f32).powi(2)).sum();
    let miss: f64 = d
        .iter()
        .zip(&arrived)
        .map(|(v, a)| f64::from(v * rounds as f32 - a).powi(2))
        .sum();
    assert!(miss < 0.02 * goal, "{miss} of {goal}");
}

proptest! {
    #[test]
    fn random_bytes_should_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(ErrorFeedback::from_bytes(&bytes, 10).is_err());
        let mut signed = [b"ALF2".as_slice(), &0u64.to_le_bytes(), &10u64.to_le_bytes(), &bytes].concat();
        let checksum = alice_primitives::tagged_hash("alice/feedback/v2", &[&signed]);
        signed.extend_from_slice(&checksum);
        let _ = ErrorFeedback::from_bytes(&signed, 10);
        let _ = Ledger::from_bytes(&signed, 0..10);
    }
}
