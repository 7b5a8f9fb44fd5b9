//! Sampling: the choice of the next token from the model's logits, greedy or by chance.

use crate::GenerateError;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

/// Sampling options. The steps are applied in the order of the fields from below, as in `transformers`: penalty,
/// temperature, the `top_k` largest, then the smallest set with the probability `top_p`.
///
/// ```
/// use alice_generate::{Sampler, Sampling};
///
/// let logits = [0.5, 3.0, -1.0, 2.9];
/// let mut greedy = Sampler::new(Sampling::greedy(), 0, logits.len())?;
/// assert_eq!(greedy.choose(&logits), Some(1));
///
/// // The same seed chooses the same tokens; only the two most probable ones are candidates here.
/// let sampling = Sampling { temperature: 0.8, top_k: 2, ..Sampling::greedy() };
/// let mut first = Sampler::new(sampling, 7, logits.len())?;
/// let mut second = Sampler::new(sampling, 7, logits.len())?;
/// for _ in 0..100 {
///     let token = first.choose(&logits);
///     assert_eq!(token, second.choose(&logits));
///     assert!(matches!(token, Some(1 | 3)));
/// }
/// # Ok::<(), alice_generate::GenerateError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divisor of the logits; 0 always takes the largest.
    pub temperature: f64,
    /// Number of the most probable tokens that are candidates; 0 for all.
    pub top_k: usize,
    /// Probability of the smallest set of most probable tokens that are candidates; 1 for all (Holtzman et al. 2020).
    pub top_p: f64,
    /// Penalty for tokens that the text has already: positive logits are divided by it, negative ones multiplied; 1 for
    /// none (Keskar et al. 2019).
    pub repetition_penalty: f64,
}

impl Sampling {
    /// Always the most probable token.
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
    /// Whether the text has each id.
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

    /// Notes tokens of the text, for the penalty.
    pub fn record(&mut self, ids: &[u32]) {
        for id in ids {
            if let Some(seen) = self.seen.get_mut(*id as usize) {
                *seen = true;
            }
        }
    }

    /// The next token. `None` if no logit is a number: the weights are broken then.
    pub fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let penalty = self.sampling.repetition_penalty;
        let mut candidates: Vec<(f64, u32)> = Vec::with_capacity(logits.len());
        // In f64: the probabilities of a large vocabulary are summed below.
        for ((logit, seen), id) in logits.iter().zip(&self.seen).zip(0..) {
            let logit = f64::from(*logit);
            match (*seen && penalty != 1.0, logit > 0.0) {
                _ if logit.is_nan() || logit == f64::INFINITY => {}
                (true, true) => candidates.push((logit / penalty, id)),
                (true, false) => candidates.push((logit * penalty, id)),
                (false, _) => candidates.push((logit, id)),
            }
        }
        // The first of equal logits wins, as in `torch.argmax` on the CPU: greedy texts must be those of
        // `transformers`.
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
        // A candidate with less cannot be in the set: even all such candidates together have less than 1 − p, which is
        // left out. Few remain, so that sorting them is cheap.
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
