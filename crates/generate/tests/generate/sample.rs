//! Choosing tokens.

use alice_generate::{Sampler, Sampling};

fn sampling(temperature: f64, top_k: usize, top_p: f64, repetition_penalty: f64) -> Sampling {
    Sampling {
        temperature,
        top_k,
        top_p,
        repetition_penalty,
    }
}

/// Shares of 20,000 draws.
fn shares(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
    let mut sampler = Sampler::new(sampling, 7, logits.len()).unwrap();
    let mut counts = vec![0.0; logits.len()];
    for _ in 0..20_000 {
        counts[sampler.choose(logits).unwrap() as usize] += 1.0 / 20_000.0;
    }
    counts
}

/// Logits of these probabilities.
fn logits(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() as f32).collect()
}

fn close(found: &[f64], expected: &[f64]) {
    // Four standard errors of a share of one half.
    let near = found
        .iter()
        .zip(expected)
        .all(|(a, b)| (a - b).abs() < 0.015 && (*b > 0.0 || *a == 0.0));
    assert!(near, "{found:?}, expected {expected:?}");
}

#[test]
fn greedy_should_take_the_largest_and_the_first_of_equals() {
    let mut sampler = Sampler::new(Sampling::greedy(), 0, 4).unwrap();
    assert_eq!(sampler.choose(&[0.0, 3.0, 3.0, -1.0]), Some(1));
    assert_eq!(sampler.choose(&[f32::NEG_INFINITY, f32::NAN, -5.0, -6.0]), Some(2));
}

#[test]
fn broken_logits_should_give_no_token() {
    for temperature in [0.0, 1.0] {
        let mut sampler = Sampler::new(sampling(temperature, 0, 1.0, 1.0), 0, 2).unwrap();
        assert_eq!(sampler.choose(&[f32::NAN, f32::INFINITY]), None);
        assert_eq!(sampler.choose(&[f32::NEG_INFINITY; 2]), None);
        assert_eq!(sampler.choose(&[]), None);
    }
}

#[test]
fn draws_should_have_the_probabilities_of_the_softmax() {
    let p = [0.5, 0.3, 0.15, 0.05];
    close(&shares(sampling(1.0, 0, 1.0, 1.0), &logits(&p)), &p);
    // Temperature 1/2 squares them.
    let squares: f64 = p.iter().map(|p| p * p).sum();
    let squared: Vec<f64> = p.iter().map(|p| p * p / squares).collect();
    close(&shares(sampling(0.5, 0, 1.0, 1.0), &logits(&p)), &squared);
}

#[test]
fn top_k_and_top_p_should_keep_the_most_probable() {
    let p = logits(&[0.05, 0.5, 0.15, 0.3]);
    close(&shares(sampling(1.0, 2, 1.0, 1.0), &p), &[0.0, 0.625, 0.0, 0.375]);
    close(&shares(sampling(1.0, 9, 1.0, 1.0), &p), &[0.05, 0.5, 0.15, 0.3]);
    close(&shares(sampling(1.0, 0, 0.79, 1.0), &p), &[0.0, 0.625, 0.0, 0.375]);
    let three = [0.0, 0.5 / 0.95, 0.15 / 0.95, 0.3 / 0.95];
    close(&shares(sampling(1.0, 0, 0.81, 1.0), &p), &three);
    close(&shares(sampling(1.0, 0, 1e-9, 1.0), &p), &[0.0, 1.0, 0.0, 0.0]);
    close(&shares(sampling(1.0, 3, 0.4, 1.0), &p), &[0.0, 1.0, 0.0, 0.0]);
}

#[test]
fn the_penalty_should_make_what_was_seen_less_probable() {
    let mut sampler = Sampler::new(sampling(0.0, 0, 1.0, 2.0), 0, 3).unwrap();
    assert_eq!(sampler.choose(&[3.0, 2.0, -1.0]), Some(0));
    sampler.record(&[0, 9]);
    assert_eq!(sampler.choose(&[3.0, 2.0, -1.0]), Some(1));
    assert_eq!(sampler.choose(&[-1.0, -3.0, -1.5]), Some(2));
}

#[test]
fn a_seed_should_give_the_same_tokens_again() {
    let draw = |seed| {
        let mut sampler = Sampler::new(sampling(1.0, 0, 0.9, 1.0), seed, 50).unwrap();
        let flat: Vec<f32> = (0..50).map(|i| i as f32 / 50.0).collect();
        (0..40).map(|_| sampler.choose(&flat).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5), draw(6));
}

#[test]
fn values_without_meaning_should_be_refused() {
    for (bad, what) in [
        (sampling(-1.0, 0, 1.0, 1.0), "--temperature is -1"),
        (sampling(f64::NAN, 0, 1.0, 1.0), "--temperature is NaN"),
        (sampling(1.0, 0, 0.0, 1.0), "--top-p is 0"),
        (sampling(1.0, 0, 1.5, 1.0), "--top-p is 1.5"),
        (sampling(1.0, 0, 1.0, 0.0), "--repetition-penalty is 0"),
    ] {
        let message = bad.check().unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    }
}
