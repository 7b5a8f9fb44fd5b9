//! Choosing the next token.

use crate::GenerateError;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

/// How tokens are chosen. The steps are applied in the order of the fields from below, as in `transformers`: penalty,
/// temperature, the `top_k` largest, then the smallest set with the probability `top_p`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the largest always.
    pub temperature: f64,
    /// Only so many of the most probable tokens; 0 for all.
    pub top_k: usize,
    /// Only the most probable tokens that together have this probability; 1 for all (Holtzman et al. 2020).
    pub top_p: f64,
    /// Logits of tokens that the text has already are divided by it if positive, multiplied if negative; 1 for none
    /// (Keskar et al. 2019).
    pub repetition_penalty: f64,
}

impl Sampling {
    /// The most probable token always.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
        }
    }

    /// Refuses values that have no meaning.
    pub fn check(&self) -> Result<(), GenerateError> {
        let number = |option, value: f64, good: bool, allowed| match good {
            true => Ok(()),
            false => Err(GenerateError::Option {
                option,
                found: value.to_string(),
                allowed,
            }),
        };
        let t = self.temperature;
        let positive = "0 (the most probable token always) or a positive number is possible";
        number("temperature", t, t.is_finite() && t >= 0.0, positive)?;
        let p = self.top_p;
        number("top-p", p, p > 0.0 && p <= 1.0, "more than 0 and at most 1 is possible")?;
        let r = self.repetition_penalty;
        let allowed = "a positive number is possible, 1 for no penalty";
        number("repetition-penalty", r, r.is_finite() && r > 0.0, allowed)
    }
}

/// Chooses tokens; the same seed and logits give the same tokens.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha20Rng,
    /// Which ids the text has.
    seen: Vec<bool>,
}

impl Sampler {
    /// A sampler for one text over `vocab` ids.
    pub fn new(sampling: Sampling, seed: u64, vocab: usize) -> Result<Self, GenerateError> {
        sampling.check()?;
        Ok(Self {
            sampling,
            rng: ChaCha20Rng::seed_from_u64(seed),
            seen: vec![false; vocab],
        })
    }

    /// Takes note of tokens of the text, for the penalty.
    pub fn saw(&mut self, ids: &[u32]) {
        for id in ids {
            if let Some(seen) = self.seen.get_mut(*id as usize) {
                *seen = true;
            }
        }
    }

    /// The next token; none if no logit is a number.
    pub fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let penalty = self.sampling.repetition_penalty;
        let mut candidates: Vec<(f64, u32)> = Vec::with_capacity(logits.len());
        for ((logit, seen), id) in logits.iter().zip(&self.seen).zip(0..) {
            let logit = f64::from(*logit);
            match (*seen && penalty != 1.0, logit > 0.0) {
                _ if logit.is_nan() || logit == f64::INFINITY => {}
                (true, true) => candidates.push((logit / penalty, id)),
                (true, false) => candidates.push((logit * penalty, id)),
                (false, _) => candidates.push((logit, id)),
            }
        }
        let best = candidates
            .iter()
            .copied()
            .reduce(|a, b| if b.0 > a.0 { b } else { a })?;
        if best.0 == f64::NEG_INFINITY {
            return None;
        }
        if self.sampling.temperature == 0.0 {
            return Some(best.1);
        }
        self.keep_top_k(&mut candidates);
        // Logits become probabilities, up to a common factor: the largest is 1.
        for (value, _) in &mut candidates {
            *value = ((*value - best.0) / self.sampling.temperature).exp();
        }
        self.keep_top_p(&mut candidates);
        Some(self.draw(&candidates).unwrap_or(best.1))
    }

    fn keep_top_k(&self, candidates: &mut Vec<(f64, u32)>) {
        let k = self.sampling.top_k;
        if k > 0 && k < candidates.len() {
            candidates.select_nth_unstable_by(k - 1, larger_first);
            candidates.truncate(k);
        }
    }

    fn keep_top_p(&self, candidates: &mut Vec<(f64, u32)>) {
        let p = self.sampling.top_p;
        if p >= 1.0 || candidates.len() < 2 {
            return;
        }
        let total: f64 = candidates.iter().map(|(value, _)| value).sum();
        // Whatever has less cannot be among the first: even all of it together is less than what is left out.
        let least = total * (1.0 - p) / (candidates.len() - 1) as f64;
        candidates.retain(|(value, _)| *value >= least);
        candidates.sort_unstable_by(larger_first);
        let mut sum = 0.0;
        let kept = candidates.iter().position(|(value, _)| {
            sum += value;
            sum >= p * total
        });
        if let Some(last) = kept {
            candidates.truncate(last + 1);
        }
    }

    fn draw(&mut self, candidates: &[(f64, u32)]) -> Option<u32> {
        let total: f64 = candidates.iter().map(|(value, _)| value).sum();
        // 53 bits: every value of an f64 below 1 that is a multiple of 2^-53.
        let uniform = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut rest = uniform * total;
        for (value, id) in candidates {
            rest -= value;
            if rest < 0.0 {
                return Some(*id);
            }
        }
        candidates.last().map(|(_, id)| *id)
    }
}

/// By falling value; by rising id among equals, so that the order does not depend on the algorithm.
fn larger_first(a: &(f64, u32), b: &(f64, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        sampler.saw(&[0, 9]);
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
}
