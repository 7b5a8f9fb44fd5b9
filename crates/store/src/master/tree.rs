//! The hashes below a model root, kept so that a step hashes again only what it touched.
//!
//! A tensor's leaf is the plain BLAKE3 of its bytes. BLAKE3 is a binary tree over chunks of 1 KiB whose left subtrees
//! are full (BLAKE3 paper, section 2.1), so every aligned group of a power of two of chunks is a subtree by itself,
//! with a chaining value of its own. Those are kept; the few thousand merges above them are done again at every step.

use crate::root::root_of;
use alice_primitives::Hash;
use alice_spec::TensorShape;
use blake3::Hasher;
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use codec::Encode;

/// Bytes that are hashed together: a power of two of BLAKE3's chunks. Small enough that a row of an embedding does not
/// drag in a whole matrix, large enough for SIMD (16 KiB) and for 32 bytes of sidecar to weigh nothing (0.01 %).
pub(crate) const GROUP_BYTES: u64 = 256 << 10;
/// Bytes between two calls of a progress callback.
const BATCH_BYTES: u64 = 128 << 20;
/// Minimum bytes for each thread: with fewer, a thread is not worth its start.
const THREAD_BYTES: u64 = 8 << 20;

/// A part of one tensor that is hashed by itself.
#[derive(Clone, Copy, Debug)]
struct Group {
    /// First byte in the file.
    start: u64,
    /// One past the last byte in the file.
    end: u64,
    /// First byte in the tensor.
    offset: u64,
    /// The whole tensor: its value is the BLAKE3 itself, not a subtree's.
    whole: bool,
}

/// The groups of a run's weights.
#[derive(Debug)]
pub(crate) struct Groups {
    tensors: Vec<TensorShape>,
    groups: Vec<Group>,
    /// Exclusive end of each tensor's groups.
    ends: Vec<usize>,
    parameters: u64,
    id: Hash,
}

impl Groups {
    pub fn new(tensors: &[TensorShape]) -> Self {
        let (mut groups, mut ends, mut start) = (Vec::new(), Vec::with_capacity(tensors.len()), 0u64);
        for tensor in tensors {
            let len = tensor.len().saturating_mul(4);
            // Aligned within the tensor, not within the file: BLAKE3 counts its chunks from the tensor's first byte.
            let mut offset = 0;
            // An empty tensor has a group, too: the BLAKE3 of nothing.
            loop {
                let size = (len - offset).min(GROUP_BYTES);
                groups.push(Group {
                    start: start + offset,
                    end: start + offset + size,
                    offset,
                    whole: size == len,
                });
                offset += size;
                if offset >= len {
                    break;
                }
            }
            ends.push(groups.len());
            start += len;
        }
        let names: Vec<_> = tensors.iter().map(|t| (&t.name, &t.shape)).collect();
        Self {
            tensors: tensors.to_vec(),
            groups,
            ends,
            parameters: start / 4,
            id: *blake3::hash(&names.encode()).as_bytes(),
        }
    }

    /// Coordinates of the model.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Identifies the tensors: files of another run have another one.
    pub fn id(&self) -> &Hash {
        &self.id
    }

    /// Number of groups.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Collects the groups of coordinates that ascend.
    pub fn marker(&self) -> Marker<'_> {
        Marker {
            groups: &self.groups,
            end: 0,
            touched: Vec::new(),
        }
    }

    /// Bytes in some groups.
    pub fn bytes_in(&self, which: &[usize]) -> u64 {
        which
            .iter()
            .filter_map(|&g| self.groups.get(g))
            .map(|g| g.end - g.start)
            .sum()
    }

    /// Hashes some groups of `bytes` again into `values`, on all cores. `progress` is called with the bytes done and
    /// the bytes in all.
    pub fn hash(&self, bytes: &[u8], which: &[usize], values: &mut [Hash], progress: &mut dyn FnMut(u64, u64)) {
        let (all, mut done) = (self.bytes_in(which), 0);
        progress(done, all);
        let threads_max = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        for batch in which.chunks((BATCH_BYTES / GROUP_BYTES) as usize) {
            let size = self.bytes_in(batch);
            let threads = (size / THREAD_BYTES).clamp(1, threads_max) as usize;
            let hash_part = |part: &[usize]| -> Vec<Hash> { part.iter().map(|&g| self.value(bytes, g)).collect() };
            let hashes: Vec<Hash> = if threads == 1 {
                hash_part(batch)
            } else {
                std::thread::scope(|scope| {
                    let parts: Vec<_> = batch
                        .chunks(batch.len().div_ceil(threads))
                        .map(|part| scope.spawn(move || hash_part(part)))
                        .collect();
                    parts
                        .into_iter()
                        .flat_map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                        .collect()
                })
            };
            for (&group, hash) in batch.iter().zip(hashes) {
                if let Some(slot) = values.get_mut(group) {
                    *slot = hash;
                }
            }
            done += size;
            progress(done, all);
        }
    }

    fn value(&self, bytes: &[u8], group: usize) -> Hash {
        let Some(group) = self.groups.get(group) else {
            return Hash::default();
        };
        let part = bytes.get(group.start as usize..group.end as usize).unwrap_or_default();
        if group.whole {
            return *blake3::hash(part).as_bytes();
        }
        let mut hasher = Hasher::new();
        hasher.set_input_offset(group.offset);
        hasher.update(part).finalize_non_root()
    }

    /// The model root above the values of all groups.
    pub fn root(&self, values: &[Hash]) -> Hash {
        let mut from = 0;
        root_of(self.tensors.iter().zip(&self.ends).map(|(tensor, &to)| {
            let content = whole(values.get(from..to).unwrap_or_default());
            from = to;
            (&tensor.name, &tensor.shape, content)
        }))
    }
}

/// Which groups were touched, in ascending order.
pub(crate) struct Marker<'a> {
    groups: &'a [Group],
    /// End of the last group that was marked, bytes.
    end: u64,
    touched: Vec<usize>,
}

impl Marker<'_> {
    /// Marks the group of a coordinate; coordinates beyond the weights have none.
    pub fn mark(&mut self, coordinate: u64) {
        let byte = coordinate.saturating_mul(4);
        if byte < self.end {
            return;
        }
        let group = self.groups.partition_point(|g| g.end <= byte);
        if let Some(found) = self.groups.get(group) {
            self.end = found.end;
            self.touched.push(group);
        }
    }

    /// The groups.
    pub fn touched(self) -> Vec<usize> {
        self.touched
    }
}

/// BLAKE3 of a tensor from the values of its groups.
fn whole(values: &[Hash]) -> Hash {
    match values {
        [] => *blake3::hash(&[]).as_bytes(),
        [only] => *only,
        _ => {
            let (left, right) = values.split_at(left_groups(values.len()));
            *merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).as_bytes()
        }
    }
}

fn subtree(values: &[Hash]) -> Hash {
    match values {
        [] => Hash::default(),
        [only] => *only,
        _ => {
            let (left, right) = values.split_at(left_groups(values.len()));
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

/// Groups in the left subtree of `count`: the largest power of two below it.
fn left_groups(count: usize) -> usize {
    count.div_ceil(2).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model_root, theta::to_le_bytes};
    use proptest::prelude::*;

    fn tensors(lens: &[u64]) -> Vec<TensorShape> {
        let named = |(i, len): (usize, &u64)| TensorShape {
            name: format!("t{i}"),
            shape: vec![*len],
        };
        lens.iter().enumerate().map(named).collect()
    }

    fn values_of(groups: &Groups, bytes: &[u8]) -> Vec<Hash> {
        let mut values = vec![Hash::default(); groups.len()];
        let all: Vec<usize> = (0..groups.len()).collect();
        groups.hash(bytes, &all, &mut values, &mut |_, _| ());
        values
    }

    fn theta(len: u64, seed: u32) -> Vec<f32> {
        (0..len as u32)
            .map(|i| f32::from_bits(i.wrapping_add(seed).wrapping_mul(2_654_435_761)))
            .collect()
    }

    #[test]
    fn left_groups_should_be_the_largest_power_of_two_below() {
        let expected = [
            (2, 1),
            (3, 2),
            (4, 2),
            (5, 4),
            (7, 4),
            (8, 4),
            (9, 8),
            (1 << 20, 1 << 19),
        ];
        for (count, left) in expected {
            assert_eq!(left_groups(count), left, "{count}");
        }
    }

    #[test]
    fn root_should_be_the_model_root_at_every_edge_of_a_group() {
        let group = GROUP_BYTES / 4;
        for len in [
            0,
            1,
            255,
            256,
            257,
            group - 1,
            group,
            group + 1,
            2 * group,
            2 * group + 1,
            7 * group + 3,
            8 * group,
        ] {
            let tensors = tensors(&[3, len, 1]);
            let theta = theta(len + 4, 1);
            let groups = Groups::new(&tensors);
            let values = values_of(&groups, &to_le_bytes(&theta));
            assert_eq!(groups.root(&values), model_root(&tensors, &theta), "{len} values");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn root_should_be_the_model_root_after_hashing_only_what_was_touched(
            lens in proptest::collection::vec(0u64..400_000, 1..4),
            changes in proptest::collection::btree_set(0u64..1_200_000, 0..20),
            seed: u32,
        ) {
            let (tensors, total) = (tensors(&lens), lens.iter().sum());
            let mut theta = theta(total, seed);
            let groups = Groups::new(&tensors);
            let mut values = values_of(&groups, &to_le_bytes(&theta));
            prop_assert_eq!(groups.root(&values), model_root(&tensors, &theta));
            let changes: Vec<u64> = changes.into_iter().filter(|c| *c < total).collect();
            for &change in &changes {
                theta[change as usize] = 0.5;
            }
            let mut marker = groups.marker();
            changes.iter().for_each(|&c| marker.mark(c));
            let touched = marker.touched();
            prop_assert!(touched.len() <= changes.len() && touched.is_sorted());
            groups.hash(&to_le_bytes(&theta), &touched, &mut values, &mut |_, _| ());
            prop_assert_eq!(groups.root(&values), model_root(&tensors, &theta));
        }
    }
}
