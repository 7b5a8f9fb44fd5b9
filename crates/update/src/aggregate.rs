//! From accepted updates to the model's next state (docs/spec/protocol.md#aggregation-and-model-step).
//!
//! Anyone with θ(e), the accepted updates and the manifest's f_i and α recomputes θ(e+1) bit for bit. Four steps, each
//! a function here:
//!
//! 1. [`WeightedMean`]: the mean over the union of the coordinates, each update scaled by its factor.
//! 2. [`rounding_seed`]: the seed of the stochastic rounding, from the model and the accepted ids.
//! 3. [`EncodedAggregate::encode`]: D, the mean rounded to a few bits, as it is published.
//! 4. [`apply`]: θ(e+1) = θ(e) − α·D.
//!
//! [`aggregate_round`] is steps 1 to 3 in one pure function. The server, the auditor and the simulation call it, so
//! none of them can drift from the others; `tests/update_format.py` repeats it in another language.
//!
//! **Order of summation.** Floating-point addition is not associative, so the order is part of the protocol: updates in
//! ascending order of submission id, for each coordinate by itself. Products are rounded to f32, sums are kept in f64
//! and rounded to f32 once, at the end.
//!
//! **The step uses D, not the mean.** Whoever joins later sees only what was published. A step with the exact mean
//! would give the server a model that nobody can recompute.

pub use crate::aggregate_codec::{EncodedAggregate, aggregate_bytes_max, decode_aggregate, encode_aggregate};

use crate::error::DecodeError;
use crate::layout::Layout;
use crate::sparse::{Entries, Sparse, Update};
use alice_primitives::{tagged_hash, tags};
use std::iter::Peekable;

/// An accepted update, with what the round decided about it.
#[derive(Debug)]
pub struct AcceptedUpdate<'a, U> {
    /// Submission.
    pub id: [u8; 32],
    /// Fragment that its task trained.
    pub fragment: u32,
    /// Its update.
    pub update: &'a U,
    /// f_i, which brings its norm to the reference.
    pub factor: f32,
}

// Derived ones would ask the same of `U`, of which there is only a reference.
impl<U> Clone for AcceptedUpdate<'_, U> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<U> Copy for AcceptedUpdate<'_, U> {}

/// Constants of a run that its aggregates depend on.
#[derive(Clone, Copy, Debug)]
pub struct AggregateRules<'a> {
    /// Layout of the whole model.
    pub layout: &'a Layout,
    /// Layouts of the run's fragments, in the order of the model.
    pub fragments: &'a [Layout],
    /// c, `outer.entry_weight` of the run: one update's entry weighs at most c / R.
    pub entry_weight: u32,
    /// Bits of a published level, `update.publish_bits` of the run.
    pub publish_bits: u8,
}

/// The published aggregate D of a round: mean, rounding seed, encoding, and a check that it decodes.
///
/// `model_root` is the root of θ(e). `accepted` may be in any order: it is put into ascending order of id first. An
/// error means that our own encoding does not decode: a bug, never a miner's doing.
///
/// ```
/// use alice_update::aggregate::{AcceptedUpdate, AggregateRules, aggregate_round, apply};
/// use alice_update::{Entries, Layout, Update};
///
/// let layout = Layout::new(&[8], 8);
/// let rules = AggregateRules {
///     layout: &layout,
///     fragments: std::slice::from_ref(&layout),
///     entry_weight: 1,
///     publish_bits: 8,
/// };
/// let (a, b) = (
///     Update { indices: vec![0, 3], values: vec![0.5, 1.0], ..Update::default() },
///     Update { indices: vec![3], values: vec![1.0], ..Update::default() },
/// );
/// let accepted = [(1, &a), (2, &b)].map(|(id, update)| AcceptedUpdate {
///     id: [id; 32],
///     fragment: 0,
///     update,
///     factor: 1.0,
/// });
/// let d = aggregate_round(&rules, &[7; 32], &accepted)?;
/// assert_eq!(d.entries().map(|(index, _)| index).collect::<Vec<_>>(), [0, 3]);
///
/// // The model's step: θ(e+1) = θ(e) − α·D.
/// let mut theta = vec![0.0f32; layout.total()];
/// apply(&mut theta, &d, 1.0);
/// assert!((theta[3] + 1.0).abs() < 0.02);
/// # Ok::<(), alice_update::DecodeError>(())
/// ```
pub fn aggregate_round<U: Entries>(
    rules: &AggregateRules<'_>,
    model_root: &[u8; 32],
    accepted: &[AcceptedUpdate<'_, U>],
) -> Result<EncodedAggregate, DecodeError> {
    let mut accepted = accepted.to_vec();
    // The order of summation, and of the ids in the seed.
    accepted.sort_unstable_by_key(|accepted| accepted.id);
    let ids: Vec<[u8; 32]> = accepted.iter().map(|accepted| accepted.id).collect();
    let mean = WeightedMean {
        fragments: rules.fragments,
        updates: accepted.iter().map(|a| (a.fragment, a.update, a.factor)).collect(),
        entry_weight: rules.entry_weight,
    };
    let seed = rounding_seed(model_root, &ids);
    EncodedAggregate::encode(rules.layout, rules.publish_bits, &mean, seed)
}

/// Weighted mean of a round's accepted updates over the union of their coordinates (docs/spec/protocol.md#mean).
///
/// Lazy: its entries are computed as they are walked, chunk by chunk, from updates that may themselves still be
/// encoded. Memory is one chunk, however large the model is.
///
/// `updates` are in ascending order of submission id. For each coordinate, f_i · v_i is rounded to f32, the products
/// are summed in f64 in the given order, and the sum is divided in f64 and rounded to f32. The divisor is the number s
/// of updates that have the coordinate, but at least R / c (f64, one division), where R is the number of *all* updates
/// of the fragment and c the run's `entry_weight`. So one entry weighs at most c / R, however few updates send its
/// coordinate: c = 1 gives the mean over all updates, and a large c the mean over senders.
///
/// Each fragment has its own R. Fragments are in the order of the model and do not overlap. Entries beyond their
/// fragment's layout are left out, and so are updates of a fragment that does not exist.
#[derive(Debug)]
pub struct WeightedMean<'a, U> {
    /// Layouts of the run's fragments.
    pub fragments: &'a [Layout],
    /// (fragment, update, factor f_i).
    pub updates: Vec<(u32, &'a U, f32)>,
    /// c.
    pub entry_weight: u32,
}

impl<U: Entries> Entries for WeightedMean<'_, U> {
    fn entries(&self) -> impl Iterator<Item = (u64, f32)> {
        (0u32..).zip(self.fragments).flat_map(|(number, layout)| {
            let mut cursors: Vec<_> = self
                .updates
                .iter()
                .filter(|(fragment, _, _)| *fragment == number)
                .map(|(_, update, factor)| (update.entries().peekable(), *factor))
                .collect();
            let divisor_min = cursors.len() as f64 / f64::from(self.entry_weight.max(1));
            let mut sums = ChunkSums::new(layout.chunk());
            // A round of many fragments has no updates for most of them: their chunks need no walk.
            let chunks = (!cursors.is_empty()).then(|| layout.chunks()).into_iter().flatten();
            chunks.flat_map(move |range| {
                for (entries, factor) in &mut cursors {
                    sums.add(&range, entries, *factor);
                }
                sums.take_means(range, divisor_min)
            })
        })
    }
}

/// Sums of a chunk's coordinates.
struct ChunkSums {
    /// Σ f_i · v_i of each coordinate.
    sums: Vec<f64>,
    /// Updates that have the coordinate.
    senders: Vec<u32>,
}

impl ChunkSums {
    fn new(chunk: usize) -> Self {
        Self {
            sums: vec![0.0; chunk],
            senders: vec![0; chunk],
        }
    }

    /// Adds an update's entries up to the end of the chunk `range`; its cursor stays at the first entry of the next
    /// one.
    fn add(
        &mut self,
        range: &std::ops::Range<usize>,
        entries: &mut Peekable<impl Iterator<Item = (u64, f32)>>,
        factor: f32,
    ) {
        while let Some((index, value)) = entries.next_if(|entry| (entry.0 as usize) < range.end) {
            // An entry before its fragment: left out.
            let Some(position) = (index as usize).checked_sub(range.start) else {
                continue;
            };
            if let (Some(sum), Some(senders)) = (self.sums.get_mut(position), self.senders.get_mut(position)) {
                // Rounded to f32 before the sum: two operations, as the protocol says, and never a fused one.
                let scaled = factor * value;
                *sum += f64::from(scaled);
                *senders = senders.saturating_add(1);
            }
        }
    }

    /// Means of the coordinates that were sent; the sums are zero again afterwards.
    fn take_means(&mut self, range: std::ops::Range<usize>, divisor_min: f64) -> Vec<(u64, f32)> {
        let coordinates = range.zip(self.sums.iter_mut().zip(&mut self.senders));
        let sent = coordinates.filter(|(_, (_, senders))| **senders > 0);
        let means = sent.map(|(index, (sum, senders))| {
            let divisor = f64::from(std::mem::take(senders)).max(divisor_min);
            (index as u64, (std::mem::take(sum) / divisor) as f32)
        });
        means.collect()
    }
}

/// [`WeightedMean`] of updates of one layout, collected.
pub fn mean(layout: &Layout, updates: &[(&Update, f32)], entry_weight: u32) -> Sparse {
    Sparse::of(&WeightedMean {
        fragments: std::slice::from_ref(layout),
        updates: updates.iter().map(|(update, factor)| (0, *update, *factor)).collect(),
        entry_weight,
    })
}

/// Seed of the stochastic rounding. It follows from what was accepted, so nobody can choose it without changing that.
///
/// `model_root` is the root of θ(e), `accepted_ids` the accepted submissions in ascending order.
pub fn rounding_seed(model_root: &[u8; 32], accepted_ids: &[[u8; 32]]) -> [u8; 32] {
    tagged_hash(tags::ROUNDING_SEED, &[model_root, accepted_ids.as_flattened()])
}

/// The model's step (docs/spec/protocol.md#model-step): `theta[j] −= alpha · d[j]`, a multiplication and a subtraction
/// in f32, each rounded. Entries beyond `theta` are left out.
pub fn apply(theta: &mut [f32], d: &impl Entries, alpha: f32) {
    for (index, value) in d.entries() {
        // Entries ascend, so all later ones are beyond `theta` as well.
        let Some(weight) = usize::try_from(index).ok().and_then(|index| theta.get_mut(index)) else {
            break;
        };
        let step = alpha * value;
        *weight -= step;
    }
}
