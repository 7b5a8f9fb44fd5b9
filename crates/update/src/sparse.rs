//! Sparse vectors over the flat model vector.

/// What an update says of itself. Whether it fits the round is the caller's check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Run it was made for.
    pub run_hash: [u8; 32],
    /// Epoch it was made for.
    pub epoch: u32,
    /// Root of the model it was trained from.
    pub base_root: [u8; 32],
}

/// A decoded update: d = θ_start − θ_end, so that *subtracting* it lowers the loss.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Update {
    /// Its header.
    pub header: Header,
    /// Flat indices, ascending and unique.
    pub indices: Vec<u32>,
    /// One value for each index.
    pub values: Vec<f32>,
}

impl Update {
    /// Euclidean norm, summed in ascending order of index.
    pub fn norm(&self) -> f64 {
        let mut sum = 0.0f64;
        for &value in &self.values {
            let value = f64::from(value);
            sum += value * value;
        }
        sum.sqrt()
    }

    /// `dst += factor · update`: a multiplication and an addition in f32, each rounded. Indices beyond `dst` are left
    /// out.
    pub fn add_scaled(&self, dst: &mut [f32], factor: f32) {
        add_scaled(&self.indices, &self.values, dst, factor);
    }
}

/// A sparse vector: the aggregate of a round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sparse {
    /// Flat indices, ascending and unique.
    pub indices: Vec<u32>,
    /// One value for each index.
    pub values: Vec<f32>,
}

/// `dst[index] += factor · value`, two roundings for each coordinate; what lies beyond `dst` is left out.
pub(crate) fn add_scaled(indices: &[u32], values: &[f32], dst: &mut [f32], factor: f32) {
    for (&index, &value) in indices.iter().zip(values) {
        if let Some(slot) = dst.get_mut(index as usize) {
            let step = factor * value;
            *slot += step;
        }
    }
}
