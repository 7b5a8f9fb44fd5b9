//! Sparse vectors over the flat model vector.

/// Header of an update. The caller checks whether it fits the round.
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
    /// Indices in the whole model's flat vector, ascending and unique.
    pub indices: Vec<u64>,
    /// One value for each index.
    pub values: Vec<f32>,
}

impl Update {
    /// `dst += factor · update`: a multiplication and an addition in f32, each rounded. Indices beyond `dst` are left
    /// out.
    pub fn add_scaled(&self, dst: &mut [f32], factor: f32) {
        add_scaled(&self.indices, &self.values, 0, dst, factor);
    }

    /// Like [`Update::add_scaled`] for a `dst` that holds only the coordinates from `start` on.
    pub fn add_scaled_at(&self, start: u64, dst: &mut [f32], factor: f32) {
        add_scaled(&self.indices, &self.values, start, dst, factor);
    }
}

/// A sparse vector, such as the aggregate of a round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sparse {
    /// Indices in the whole model's flat vector, ascending and unique.
    pub indices: Vec<u64>,
    /// One value for each index.
    pub values: Vec<f32>,
}

impl Sparse {
    /// Collects all entries.
    pub fn of(entries: &impl Entries) -> Self {
        let count = entries.count();
        let (mut indices, mut values) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for (index, value) in entries.entries() {
            indices.push(index);
            values.push(value);
        }
        Self { indices, values }
    }
}

/// A sparse vector, decoded or not: its entries in ascending order of index, which can be walked more than once.
pub trait Entries {
    /// (index in the whole model's flat vector, value).
    fn entries(&self) -> impl Iterator<Item = (u64, f32)>;

    /// Number of entries.
    fn count(&self) -> usize {
        self.entries().count()
    }

    /// Euclidean norm: squares in f64, summed in ascending order of index.
    fn norm(&self) -> f64 {
        let mut sum = 0.0f64;
        for (_, value) in self.entries() {
            let value = f64::from(value);
            sum += value * value;
        }
        sum.sqrt()
    }
}

impl Entries for Sparse {
    fn entries(&self) -> impl Iterator<Item = (u64, f32)> {
        self.indices.iter().copied().zip(self.values.iter().copied())
    }
}

/// An index without a value, or a value without an index, is left out.
impl Entries for Update {
    fn entries(&self) -> impl Iterator<Item = (u64, f32)> {
        self.indices.iter().copied().zip(self.values.iter().copied())
    }
}

/// `dst[index − start] += factor · value`, two roundings for each coordinate. Indices outside of `dst` are left out.
pub(crate) fn add_scaled(indices: &[u64], values: &[f32], start: u64, dst: &mut [f32], factor: f32) {
    // Indices ascend, so those inside of `dst` are one run.
    let from = indices.partition_point(|&index| index < start);
    let inside = indices.iter().zip(values).skip(from);
    for (&index, &value) in inside {
        let Some(slot) = dst.get_mut((index - start) as usize) else {
            break;
        };
        let step = factor * value;
        *slot += step;
    }
}
