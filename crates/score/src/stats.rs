//! Statistics of paired losses.

/// Mean and standard error of the differences before − after, one for each sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    /// Mean difference; positive where the loss fell.
    pub mean: f64,
    /// Standard error of the mean: √(Σ(x − mean)² / (n − 1) / n). Infinite for fewer than two sequences.
    pub standard_error: f64,
}

/// Pairs two lists of losses over the same sequences. Pairing removes the spread *between* sequences, which is far
/// larger than the change that one update makes. If the lists differ in length, the common part counts.
pub fn paired(before: &[f64], after: &[f64]) -> Paired {
    // A closure instead of a list: several passes over the losses, but no allocation.
    let differences = || before.iter().zip(after).map(|(before, after)| before - after);
    let n = differences().count();
    if n == 0 {
        return Paired {
            mean: 0.0,
            standard_error: f64::INFINITY,
        };
    }
    let count = n as f64;
    let mean = differences().fold(0.0, |sum, x| sum + x) / count;
    // One difference has no spread: it is no evidence, however large.
    if n == 1 {
        return Paired {
            mean,
            standard_error: f64::INFINITY,
        };
    }
    let squares = differences().fold(0.0, |sum, x| sum + (x - mean) * (x - mean));
    Paired {
        mean,
        standard_error: (squares / (count - 1.0) / count).sqrt(),
    }
}

impl Paired {
    /// Whether it can be compared with anything.
    pub fn is_usable(&self) -> bool {
        self.mean.is_finite() && !self.standard_error.is_nan()
    }
}

/// Evidence of several measurements of one key (docs/spec/scoring.md#acceptance-gate).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pooled {
    /// s̄ = Σ(s/SE²) / Σ(1/SE²), nats per token.
    pub mean: f64,
    /// z = Σ(s/SE²) / √Σ(1/SE²).
    pub z: f64,
}

/// Pools measurements by the inverse of their variances. A measurement without any spread outweighs all that have some:
/// if there are such, they alone are averaged, and z is infinite with the mean's sign. No measurement is no evidence:
/// mean and z are zero.
pub fn pooled(measurements: &[Paired]) -> Pooled {
    let exact = || measurements.iter().filter(|m| m.standard_error == 0.0);
    let count = exact().count();
    if count > 0 {
        let mean = exact().fold(0.0, |sum, m| sum + m.mean) / count as f64;
        let z = if mean == 0.0 { 0.0 } else { f64::INFINITY.copysign(mean) };
        return Pooled { mean, z };
    }
    let (mut weights, mut weighted) = (0.0, 0.0);
    for m in measurements {
        let weight = 1.0 / (m.standard_error * m.standard_error);
        weights += weight;
        weighted += m.mean * weight;
    }
    // Only measurements with infinite errors, or none.
    if weights == 0.0 {
        return Pooled { mean: 0.0, z: 0.0 };
    }
    Pooled {
        mean: weighted / weights,
        z: weighted / weights.sqrt(),
    }
}

/// The lower median: the element at position ⌊(n − 1) / 2⌋ in ascending order. Always one of the values, so several
/// servers can agree on it. None for an empty list.
pub fn lower_median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    // A total order: NaN has a place instead of a panic.
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn evidence_should_be_pooled_by_inverse_variance() {
        let of = |mean, standard_error| Paired { mean, standard_error };
        let one = pooled(&[of(3.0, 2.0)]);
        assert_eq!((one.mean, one.z), (3.0, 1.5));
        // Four equal ones: the same mean, twice the evidence.
        let four = pooled(&[of(3.0, 2.0); 4]);
        assert_eq!((four.mean, four.z), (3.0, 3.0));
        let mixed = pooled(&[of(4.0, 1.0), of(0.0, 2.0)]);
        assert!((mixed.mean - 3.2).abs() < 1e-12 && (mixed.z - 4.0 / 1.25f64.sqrt()).abs() < 1e-12);
        assert_eq!(
            pooled(&[of(1.0, 0.0), of(-9.0, 1.0)]),
            Pooled {
                mean: 1.0,
                z: f64::INFINITY
            }
        );
        assert_eq!(pooled(&[of(-1.0, 0.0)]).z, f64::NEG_INFINITY);
        assert_eq!(pooled(&[]), Pooled { mean: 0.0, z: 0.0 });
        assert_eq!(pooled(&[of(1.0, f64::INFINITY)]), Pooled { mean: 0.0, z: 0.0 });
    }

    #[test]
    fn paired_should_follow_the_textbook() {
        let result = paired(&[3.0, 4.0, 5.0, 6.0], &[2.0, 2.0, 4.0, 4.0]);
        assert_eq!(result.mean, 1.5);
        assert!((result.standard_error - (1.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
        assert_eq!(
            paired(&[1.0, 2.0], &[1.0, 2.0]),
            Paired {
                mean: 0.0,
                standard_error: 0.0
            }
        );
        assert_eq!(
            paired(&[], &[]),
            Paired {
                mean: 0.0,
                standard_error: f64::INFINITY
            }
        );
        assert_eq!(
            paired(&[2.0], &[1.0]),
            Paired {
                mean: 1.0,
                standard_error: f64::INFINITY
            }
        );
        assert!(paired(&[1.0, 2.0], &[f64::NAN, 1.0]).mean.is_nan());
    }

    #[test]
    fn lower_median_should_be_an_element() {
        assert_eq!(lower_median(&[]), None);
        assert_eq!(lower_median(&[3.0]), Some(3.0));
        assert_eq!(lower_median(&[4.0, 1.0]), Some(1.0));
        assert_eq!(lower_median(&[4.0, 1.0, 9.0]), Some(4.0));
        assert_eq!(lower_median(&[4.0, 1.0, 9.0, 5.0]), Some(4.0));
    }

    proptest! {
        #[test]
        fn a_common_shift_should_not_change_the_result(
            pairs in prop::collection::vec((-10.0f64..10.0, -10.0f64..10.0), 2..50), shift in -5.0f64..5.0,
        ) {
            let (before, after): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
            let shifted: Vec<f64> = after.iter().map(|x| x - shift).collect();
            let (a, b) = (paired(&before, &after), paired(&before, &shifted));
            prop_assert!((b.mean - a.mean - shift).abs() < 1e-9);
            prop_assert!((b.standard_error - a.standard_error).abs() < 1e-9);
        }
    }
}
