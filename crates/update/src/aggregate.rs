//! From accepted updates to the model's next state (protocol §6), operation by operation: anyone with θ(e), the accepted
//! updates and the manifest's f_i and α recomputes θ(e+1) bit for bit.

pub use crate::publish::{Published, decode_published, publish, published_bytes_max};

use crate::layout::Layout;
use crate::sparse::{Entries, Sparse, Update, add_scaled};
use alice_primitives::{tagged_hash, tags};

/// Mean of the accepted updates over the union of their coordinates (§6.1–2), ascending by index.
///
/// `updates` stand in ascending order of submission id, each with its factor f_i. For each coordinate: f_i · v_i is
/// rounded to f32, the products are summed in f64 in the given order, the sum is divided in f64 and rounded to f32. The
/// divisor is the number s of updates that have the coordinate, but at least R / c, R being the number of *all* updates
/// and c the run's `entry_weight` (f64, one division). So an entry weighs at most c / R, however few send its coordinate: with
/// c = 1 this is the mean over all, and the larger c, the more it is one over senders. Entries beyond the layout are left
/// out.
pub fn mean(layout: &Layout, updates: &[(&Update, f32)], entry_weight: u32) -> Sparse {
    let least = updates.len() as f64 / f64::from(entry_weight.max(1));
    let mut cursors: Vec<_> = updates
        .iter()
        .map(|(update, factor)| (update.indices.iter().zip(&update.values).peekable(), *factor))
        .collect();
    let mut sums = vec![0.0f64; layout.chunk()];
    let mut senders = vec![0u32; layout.chunk()];
    let mut mean = Sparse::default();
    for range in layout.chunks() {
        for (entries, factor) in &mut cursors {
            while let Some((&index, &value)) = entries.next_if(|entry| (*entry.0 as usize) < range.end) {
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
        for ((index, sum), senders) in range.zip(&mut sums).zip(&mut senders) {
            let senders = std::mem::take(senders);
            if senders > 0 {
                let divisor = f64::from(senders).max(least);
                mean.indices.push(index as u64);
                mean.values.push((std::mem::take(sum) / divisor) as f32);
            }
        }
    }
    mean
}

/// Δ over the whole model: [`mean`] of each fragment over its own updates, so that R_p counts those alone. The fragments
/// stand in the order of the model and do not overlap; `updates` are in ascending order of id, each with its fragment's
/// number. Those of a fragment that does not exist are left out.
pub fn mean_of_fragments(fragments: &[Layout], updates: &[(u32, &Update, f32)], entry_weight: u32) -> Sparse {
    let mut all = Sparse::default();
    for (number, layout) in (0u32..).zip(fragments) {
        let own: Vec<(&Update, f32)> = updates
            .iter()
            .filter(|(fragment, _, _)| *fragment == number)
            .map(|(_, update, factor)| (*update, *factor))
            .collect();
        if own.is_empty() {
            continue;
        }
        let mean = mean(layout, &own, entry_weight);
        all.indices.extend(mean.indices);
        all.values.extend(mean.values);
    }
    all
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

/// The same step, by itself, where `theta` holds only the coordinates from `start` on: a model that is not in memory as a whole
/// is stepped piece by piece.
pub fn apply_at(start: u64, theta: &mut [f32], d: &Sparse, alpha: f32) {
    // θ + (−α)·d has the same bits as θ − α·d: negation is exact.
    add_scaled(&d.indices, &d.values, start, theta, -alpha);
}
