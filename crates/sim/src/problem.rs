//! The training problem, which replaces a language model.

use alice_primitives::tagged_hash;
use alice_score::{LossOracle, OracleError};

/// Coordinates that one sequence depends on: few against the parameters, as one text uses few of a model's features.
const SUPPORT: usize = 1024;
/// Loss at the minimum, nats.
const FLOOR: f64 = 3.0;
/// Learning rate of the local descent: 1 / (2 · λ_max), so that no coordinate diverges.
const RATE: f32 = 0.05;

/// A quadratic over θ, seen through sequences: each depends on some coordinates only, and sees their minimum with
/// noise, as a piece of text is a noisy sample of a language.
///
/// ℓ_j(θ) = 3 + ½ mean over i ∈ S_j of λ_i (θ_i − θ*_i − σ ξ_ij)², where λ_i is log-uniform on 0.1 … 10.
#[derive(Clone, Debug)]
pub struct Problem {
    minimum: Vec<f32>,
    curvature: Vec<f32>,
    noise: f32,
    seed: u64,
}

/// Random numbers from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 uniform bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform on [0, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Approximately normal with mean 0 and variance 1: the sum of twelve uniform numbers minus six (Irwin–Hall).
    /// Unlike Box–Muller it calls no transcendental function, so it has the same bits on every machine.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}

impl Problem {
    /// A problem over `parameters` coordinates.
    pub fn new(parameters: usize, noise: f32, seed: u64) -> Self {
        let mut numbers = Numbers::new(seed);
        let minimum = (0..parameters).map(|_| numbers.normal()).collect();
        let curvature = (0..parameters)
            .map(|_| 10f32.powf(2.0 * numbers.unit() - 1.0))
            .collect();
        Self {
            minimum,
            curvature,
            noise,
            seed,
        }
    }

    /// Weights at the start of training.
    pub fn first_theta(&self) -> Vec<f32> {
        vec![0.0; self.minimum.len()]
    }

    /// Coordinates that sequence `j` of a text depends on, each with its noisy minimum.
    fn sequence(&self, text: u8, j: u64) -> impl Iterator<Item = (usize, f32)> + '_ {
        let hash = tagged_hash(
            "alice/sim/sequence",
            &[&self.seed.to_le_bytes(), &[text], &j.to_le_bytes()],
        );
        let seed = hash.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let mut numbers = Numbers::new(seed);
        let n = self.minimum.len().max(1) as u64;
        (0..SUPPORT).filter_map(move |_| {
            let i = (numbers.bits() % n) as usize;
            // A uniform number times √12 has variance 1 like `normal`, with one draw in place of twelve for each
            // coordinate of each sequence.
            let centre = self.minimum.get(i)? + self.noise * (numbers.unit() - 0.5) * 12f32.sqrt();
            Some((i, centre))
        })
    }

    /// d = θ_start − θ_end of plain descent over training sequences in batches, on the coordinates of `covered` only.
    pub fn train(&self, theta: &[f32], covered: std::ops::Range<usize>, batches: &[&[u64]]) -> Vec<f32> {
        let mut theta = theta.to_vec();
        let start = theta.clone();
        for batch in batches {
            for j in *batch {
                // `t` and `v` keep the texts apart: training sequence 5 and held-out sequence 5 have nothing in common.
                for (i, centre) in self.sequence(b't', *j).filter(|(i, _)| covered.contains(i)) {
                    if let (Some(weight), Some(curvature)) = (theta.get_mut(i), self.curvature.get(i)) {
                        *weight -= RATE * curvature * (*weight - centre) / batch.len() as f32;
                    }
                }
            }
        }
        let of = |values: &[f32]| values.get(covered.clone()).unwrap_or_default().to_vec();
        of(&start)
            .iter()
            .zip(of(&theta))
            .map(|(start, end)| start - end)
            .collect()
    }

    /// Loss without the noise: 3 + ½ mean of λ_i (θ_i − θ*_i)².
    pub fn true_loss(&self, theta: &[f32]) -> f64 {
        let terms = theta.iter().zip(&self.minimum).zip(&self.curvature);
        let sum: f64 = terms.map(|((t, m), c)| f64::from(*c) * f64::from(t - m).powi(2)).sum();
        FLOOR + 0.5 * sum / theta.len().max(1) as f64
    }
}

impl LossOracle for Problem {
    fn losses(&mut self, theta: &[f32], sequences: &[u32]) -> Result<Vec<f64>, OracleError> {
        let of = |j: &u32| {
            let sum: f64 = self
                .sequence(b'v', u64::from(*j))
                .map(|(i, centre)| match (theta.get(i), self.curvature.get(i)) {
                    (Some(weight), Some(curvature)) => f64::from(*curvature) * f64::from(weight - centre).powi(2),
                    _ => 0.0,
                })
                .sum();
            FLOOR + 0.5 * sum / SUPPORT as f64
        };
        Ok(sequences.iter().map(of).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descent_should_lead_towards_the_minimum_on_the_covered_coordinates_only() {
        let mut problem = Problem::new(4096, 0.5, 1);
        let theta = problem.first_theta();
        let sequences: Vec<u64> = (0..64).collect();
        let d = problem.train(&theta, 1000..3000, &[&sequences[..32], &sequences[32..]]);
        assert_eq!(d.len(), 2000);
        let mut moved = theta.clone();
        moved[1000..3000].iter_mut().zip(&d).for_each(|(t, d)| *t -= d);
        assert!(problem.true_loss(&moved) < problem.true_loss(&theta));
        let mean = |problem: &mut Problem, theta: &[f32]| -> f64 {
            let losses = problem.losses(theta, &(0..256).collect::<Vec<_>>()).unwrap();
            losses.iter().sum::<f64>() / 256.0
        };
        // The loss of a sequence is the true loss plus the variance of its noise.
        let gap = |problem: &mut Problem, theta: &[f32]| mean(problem, theta) - problem.true_loss(theta);
        assert!((gap(&mut problem, &theta) - gap(&mut problem, &moved)).abs() < 0.02);
        assert!(mean(&mut problem, &moved) < mean(&mut problem, &theta));
    }
}
