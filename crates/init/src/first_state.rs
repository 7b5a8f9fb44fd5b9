//! The model's first state, the same bits on every machine (docs/spec/protocol.md#first-state).

use crate::normal::normal;
use alice_primitives::{Hash, tagged_hash, tags};
use alice_spec::RunSpec;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

/// The weights before the first step: normal with standard deviation `init_std`, the projections that write to the
/// residual stream scaled by 1/√(2·layers) (Radford et al. 2019, section 2.3), norms one.
///
/// Drawn by ChaCha20 seeded with `H(INIT, genesis, run_hash)`, one stream of it for each tensor, through Box and
/// Muller's transform in f64 with the pure-Rust `ln`, `sin` and `cos` of `libm`. So nobody chose them, anyone can draw
/// them again, and the genesis message is inside them.
pub fn init_theta(spec: &RunSpec, genesis: &Hash) -> Vec<f32> {
    let mut theta = Vec::with_capacity(spec.parameters() as usize);
    let done: Result<(), std::convert::Infallible> = init_tensors(spec, genesis, |values| {
        theta.extend_from_slice(values);
        Ok(())
    });
    match done {
        Ok(()) => theta,
    }
}

/// The weights of [`init_theta`] tensor by tensor in canonical order, with at most one in memory.
///
/// # Errors
/// The first error of `each`.
pub fn init_tensors<E>(spec: &RunSpec, genesis: &Hash, mut each: impl FnMut(&[f32]) -> Result<(), E>) -> Result<(), E> {
    let seed = tagged_hash(tags::INIT, &[genesis, &spec.run_hash()]);
    let std = f64::from(spec.model.init_std_millionths) / 1e6;
    // `sqrt` and division are exact by IEEE 754, so this is the same everywhere.
    let residual_std = std / f64::from(2 * spec.model.layers).sqrt();
    // A stream for each tensor, so that a tensor can be drawn again without those before it.
    let mut values = Vec::new();
    for (stream, tensor) in spec.tensors().iter().enumerate() {
        let len = tensor.len() as usize;
        values.clear();
        if tensor.shape.len() == 1 {
            values.resize(len, 1.0);
        } else {
            let residual = writes_to_residual(&tensor.name);
            let mut rng = ChaCha20Rng::from_seed(seed);
            rng.set_stream(stream as u64);
            normal(&mut rng, len, if residual { residual_std } else { std }, &mut values);
        }
        each(&values)?;
    }
    Ok(())
}

/// Whether a matrix writes to the residual stream: the output of attention, and the last projection of a feed-forward
/// layer or of an expert.
fn writes_to_residual(name: &str) -> bool {
    ["o_proj.weight", "down_proj.weight", ".w2.weight"]
        .iter()
        .any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small, and of its own sizes: a change of the preset must not change what is tested.
    fn spec() -> RunSpec {
        let mut spec = RunSpec::parse(include_str!("../../../chain-spec/runs/dev.toml")).unwrap();
        spec.model.hidden = 24;
        spec.model.layers = 3;
        spec.model.heads = 4;
        spec.model.kv_heads = 2;
        spec.model.ffn = 40;
        spec.validate().unwrap();
        spec
    }

    #[test]
    fn first_state_should_follow_genesis_and_run() {
        let spec = spec();
        let theta = init_theta(&spec, &[1; 32]);
        assert_eq!(theta.len() as u64, spec.parameters());
        assert_eq!(theta, init_theta(&spec, &[1; 32]));
        assert_ne!(theta, init_theta(&spec, &[2; 32]));
        let mut other = spec.clone();
        other.inner.steps += 1;
        assert_ne!(theta, init_theta(&other, &[1; 32]));
    }

    #[test]
    fn draws_should_have_the_promised_moments() {
        let spec = spec();
        let theta = init_theta(&spec, &[1; 32]);
        let std = f64::from(spec.model.init_std_millionths) / 1e6;
        let mut rest = theta.as_slice();
        for tensor in spec.tensors() {
            let (values, after) = rest.split_at(tensor.len() as usize);
            rest = after;
            if tensor.shape.len() == 1 {
                assert!(values.iter().all(|v| *v == 1.0), "{}", tensor.name);
                continue;
            }
            let n = values.len() as f64;
            let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
            let found = (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n).sqrt();
            let residual = tensor.name.contains("o_proj") || tensor.name.contains("down_proj");
            let expected = if residual { std / 6f64.sqrt() } else { std };
            assert!(mean.abs() < 5.0 * expected / n.sqrt(), "{}: mean {mean}", tensor.name);
            assert!(
                (found / expected - 1.0).abs() < 5.0 / (2.0 * n).sqrt(),
                "{}: std {found}",
                tensor.name
            );
        }
    }
}
