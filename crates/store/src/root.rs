//! The model root: Merkle root over (tensor name, shape, BLAKE3 of its bytes) in canonical order
//! (docs/spec/protocol.md#model-root).

use crate::{merkle, theta::for_each_le_block};
use alice_primitives::{Hash, tagged_hash, tags};
use alice_spec::TensorShape;
use codec::Encode;

/// Root of the weights `theta`: the tensors of the run, one after the other, as f32 little endian.
///
/// # Panics
/// If `theta` does not have exactly the coordinates of `tensors`: a caller that mixes two runs.
pub fn model_root(tensors: &[TensorShape], theta: &[f32]) -> Hash {
    let total: u64 = tensors.iter().map(TensorShape::len).sum();
    assert_eq!(
        total,
        theta.len() as u64,
        "model root: coordinates of the tensors and of theta differ"
    );
    let mut rest = theta;
    let contents: Vec<(&TensorShape, Hash)> = tensors
        .iter()
        .map(|tensor| {
            let (values, after) = rest.split_at(tensor.len() as usize);
            rest = after;
            let mut hasher = blake3::Hasher::new();
            for_each_le_block(values, |bytes| {
                hasher.update(bytes);
            });
            let content: Hash = *hasher.finalize().as_bytes();
            (tensor, content)
        })
        .collect();
    root_of(
        contents
            .iter()
            .map(|(tensor, content)| (&tensor.name, &tensor.shape, *content)),
    )
}

/// The model root over (name, shape, BLAKE3 of the f32 little-endian bytes) of tensors in canonical order.
pub fn root_of<'a>(tensors: impl Iterator<Item = (&'a String, &'a Vec<u64>, Hash)>) -> Hash {
    let leaves: Vec<Hash> = tensors
        .map(|tensor| tagged_hash(tags::MODEL_LEAF, &[&tensor.encode()]))
        .collect();
    merkle::root(tags::MODEL_NODE, &leaves)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> Vec<TensorShape> {
        vec![
            TensorShape {
                name: "a".into(),
                shape: vec![2, 3],
            },
            TensorShape {
                name: "b".into(),
                shape: vec![4],
            },
            TensorShape {
                name: "c".into(),
                shape: vec![1, 1],
            },
        ]
    }

    #[test]
    fn root_should_match_the_golden_value() {
        // Golden: every manifest and commitment depends on it.
        let theta: Vec<f32> = (0..11).map(|i| i as f32 * 0.25 - 1.0).collect();
        assert_eq!(
            hex::encode(model_root(&tensors(), &theta)),
            "cfe3e0c276564f74117838a74bd00696024156fca87fcefe2ea0aa9ad371588c"
        );
    }

    #[test]
    fn root_should_depend_on_every_value_name_and_shape() {
        let theta = vec![0.5f32; 11];
        let base = model_root(&tensors(), &theta);
        for i in 0..theta.len() {
            let mut other = theta.clone();
            other[i] = -0.5;
            assert_ne!(model_root(&tensors(), &other), base, "coordinate {i}");
        }
        let mut renamed = tensors();
        renamed[1].name = "x".into();
        assert_ne!(model_root(&renamed, &theta), base);
        let mut reshaped = tensors();
        reshaped[0].shape = vec![3, 2];
        assert_ne!(model_root(&reshaped, &theta), base);
    }
}
