//! Random numbers from a seed.

/// A linear congruential generator modulo 2^64 with Knuth's MMIX constants (The Art of Computer Programming, volume 2,
/// 3.3.4). The low bits of such a generator have short periods, so every method takes the high ones. Tests need the
/// same numbers on every machine, not good ones.
///
/// ```
/// let mut random = alice_testkit::Lcg::new(7);
/// assert!(random.below(10) < 10);
/// assert!((0.0..1.0).contains(&random.unit()));
/// ```
#[derive(Clone, Debug)]
pub struct Lcg(u64);

impl Lcg {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits; the higher, the better.
    pub fn bits(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0
    }

    /// A number below `limit`; 0 if the limit is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.bits() >> 33) as usize % limit.max(1)
    }

    /// Uniform on [0, 1), 24 bits.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// `count` numbers, uniform on [−scale/2, scale/2).
    pub fn values(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| scale * (self.unit() - 0.5)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_should_depend_on_its_seed_alone() {
        let take = |seed| {
            let mut random = Lcg::new(seed);
            std::array::from_fn::<u64, 8, _>(|_| random.bits())
        };
        assert_eq!(take(3), take(3));
        assert_ne!(take(3), take(4));
        // From 0 the first state is the increment.
        assert_eq!(take(0)[0], 1_442_695_040_888_963_407);
    }

    #[test]
    fn below_should_reach_every_number_and_no_other() {
        let mut random = Lcg::new(1);
        let mut seen = [0; 7];
        (0..1000).for_each(|_| seen[random.below(7)] += 1);
        assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
        assert_eq!(random.below(0), 0);
    }
}
