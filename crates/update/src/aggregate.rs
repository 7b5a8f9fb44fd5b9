//! From accepted updates to the model's next state (protocol §6), operation by operation: anyone with θ(e), the accepted
//! updates and the manifest's f_i and α recomputes θ(e+1) bit for bit.

pub use crate::publish::{Published, decode_published, publish, published_bytes_max};

use crate::layout::Layout;
use crate::sparse::{Entries, Sparse, Update};
use alice_primitives::{tagged_hash, tags};

/// Mean of the accepted updates of a run over the union of their coordinates (§6.1–2), for each fragment over its own updates, so
/// that R counts those alone. Its entries are made as they are walked, from `updates` that may themselves be encoded: a chunk
/// is all that is kept.
///
/// `updates` stand in ascending order of submission id, each with its fragment's number and its factor f_i. For each coordinate:
/// f_i · v_i is rounded to f32, the products are summed in f64 in the given order, the sum is divided in f64 and rounded to f32.
/// The divisor is the number s of updates that have the coordinate, but at least R / c, R being the number of *all* updates of
/// the fragment and c the run's `entry_weight` (f64, one division). So an entry weighs at most c / R, however few send its
/// coordinate: with c = 1 this is the mean over all, and the larger c, the more it is one over senders. The fragments stand in
/// the order of the model and do not overlap; entries beyond their fragment's layout are left out, and so are updates of a
/// fragment that does not exist.
#[derive(Debug)]
pub struct Mean<'a, U> {
    /// Layouts of the run's fragments.
    pub fragments: &'a [Layout],
    /// (fragment, update, factor).
    pub updates: Vec<(u32, &'a U, f32)>,
    /// c.
    pub entry_weight: u32,
}

impl<U: Entries> Entries for Mean<'_, U> {
    fn entries(&self) -> impl Iterator<Item = (u64, f32)> {
        (0u32..).zip(self.fragments).flat_map(|(number, layout)| {
            let mut own: Vec<_> = self
                .updates
                .iter()
                .filter(|(fragment, _, _)| *fragment == number)
                .map(|(_, update, factor)| (update.entries().peekable(), *factor))
                .collect();
            let least = own.len() as f64 / f64::from(self.entry_weight.max(1));
            let mut sums = vec![0.0f64; layout.chunk()];
            let mut senders = vec![0u32; layout.chunk()];
            // Nothing was sent for most of the fragments where there are many.
            let chunks = (!own.is_empty()).then(|| layout.chunks()).into_iter().flatten();
            chunks.flat_map(move |range| {
                for (entries, factor) in &mut own {
                    while let Some((index, value)) = entries.next_if(|entry| (entry.0 as usize) < range.end) {
                        let Some(at) = (index as usize).checked_sub(range.start) else {
                            continue;
                        };
                        if let (Some(sum), Some(senders)) = (sums.get_mut(at), senders.get_mut(at)) {
                            let scaled = *factor * value;
                            *sum += f64::from(scaled);
                            *senders = senders.saturating_add(1);
                        }
                    }
                }
                let coordinates = range.zip(sums.iter_mut().zip(&mut senders));
                let means = coordinates.filter(|(_, (_, senders))| **senders > 0);
                let means = means.map(|(index, (sum, senders))| {
                    let divisor = f64::from(std::mem::take(senders)).max(least);
                    (index as u64, (std::mem::take(sum) / divisor) as f32)
                });
                means.collect::<Vec<_>>()
            })
        })
    }
}

/// [`Mean`] of updates of one layout, at once.
pub fn mean(layout: &Layout, updates: &[(&Update, f32)], entry_weight: u32) -> Sparse {
    Sparse::of(&Mean {
        fragments: std::slice::from_ref(layout),
        updates: updates.iter().map(|(update, factor)| (0, *update, *factor)).collect(),
        entry_weight,
    })
}

/// Seed of the stochastic rounding: nobody can choose it without changing what was accepted.
///
/// `model_root` is the root of θ(e), `accepted_ids` the accepted submissions in ascending order.
pub fn rounding_seed(model_root: &[u8; 32], accepted_ids: &[[u8; 32]]) -> [u8; 32] {
    tagged_hash(tags::ROUNDING_SEED, &[model_root, accepted_ids.as_flattened()])
}

/// The model's step (§6.5): `theta[j] −= alpha · d[j]`, a multiplication and a subtraction in f32, each rounded. Entries beyond
/// `theta` are left out.
pub fn apply(theta: &mut [f32], d: &impl Entries, alpha: f32) {
    for (index, value) in d.entries() {
        let Some(slot) = usize::try_from(index).ok().and_then(|at| theta.get_mut(at)) else {
            break;
        };
        let step = alpha * value;
        *slot -= step;
    }
}
