//! Normal draws that are the same bits on every machine.

use rand_chacha::ChaCha20Rng;
use rand_core::RngCore;

/// Appends `len` normal draws of mean 0 by the transform of Box and Muller (1958) in f64. Two uniform u64 make two
/// normals; the second of the last pair is dropped if `len` is odd.
pub(crate) fn normal(rng: &mut ChaCha20Rng, len: usize, std: f64, out: &mut Vec<f32>) {
    /// 2⁻⁵³: f64 has 53 significant bits.
    const STEP: f64 = 1.0 / (1u64 << 53) as f64;
    let end = out.len() + len;
    while out.len() < end {
        // The radius is in (0, 1], so that the logarithm is finite; the angle is in [0, 1).
        let radius_uniform = ((rng.next_u64() >> 11) + 1) as f64 * STEP;
        let angle_uniform = (rng.next_u64() >> 11) as f64 * STEP;
        // `libm` and not the standard library, whose functions call the C library of the machine: their last bit
        // differs between systems.
        let radius = (-2.0 * libm::log(radius_uniform)).sqrt() * std;
        let angle = core::f64::consts::TAU * angle_uniform;
        out.push((radius * libm::cos(angle)) as f32);
        if out.len() < end {
            out.push((radius * libm::sin(angle)) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng;

    fn digest(theta: &[f32]) -> String {
        let bytes: Vec<u8> = theta.iter().flat_map(|v| v.to_le_bytes()).collect();
        blake3::hash(&bytes).to_hex().to_string()
    }

    #[test]
    fn normals_should_match_the_golden_value() {
        // Golden: the genesis model of every run depends on these bits.
        let mut draws = Vec::new();
        let mut rng = ChaCha20Rng::from_seed([7; 32]);
        rng.set_stream(5);
        normal(&mut rng, 100_001, 0.02, &mut draws);
        assert_eq!(
            digest(&draws),
            "74a28026198708dc77a74c2aa4ae383675e3f87d4271b77ca011f255587d5e8a"
        );
    }
}
