//! From accepted updates to the model's next step, in one function.
//!
//! **Architecture invariant:** θ(e+1) is plain Rust over IEEE floats in a fixed order. Given the same θ, the same
//! accepted updates with their factors, and the same α from the guard, every machine comes to the same root. The guard
//! alone looks at losses; its α is in the manifest.

use alice_primitives::Hash;
use alice_score::{GuardResult, LossOracle, OracleError, guarded_step};
use alice_spec::RunSpec;
use alice_update::{
    DecodeError, Entries, Layout,
    aggregate::{AcceptedUpdate, AggregateRules, EncodedAggregate, aggregate_round},
};

/// Why a step could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransitionError {
    /// Losses could not be measured.
    #[error("the guard could not measure the loss: {0}")]
    Oracle(#[from] OracleError),
    /// Our own encoding does not decode: a bug, never a miner's doing.
    #[error("the published aggregate does not decode: {0}; this is a bug, please report it")]
    Published(#[from] DecodeError),
}

/// A step of the model: θ(e+1) = θ(e) − α_used·D, as [`alice_update::aggregate::apply`] makes it.
#[derive(Debug)]
pub struct Transition {
    /// D, as it is published.
    pub d: EncodedAggregate,
    /// Decision of the guard, with α_used; zero if the step is skipped.
    pub guard: GuardResult,
}

/// Base of a round's step.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// Run.
    pub spec: &'a RunSpec,
    /// Layout of the flat vector.
    pub layout: &'a Layout,
    /// Layouts of the run's fragments.
    pub fragments: &'a [Layout],
    /// Root of θ(e).
    pub root: Hash,
}

/// Steps 1 to 4 of docs/spec/protocol.md#aggregation-and-model-step: mean, published aggregate, step guard. `accepted`
/// may be in any order: it is put into ascending order of id first. `theta` is θ(e); the guard moves it, and it is θ(e)
/// bit for bit afterwards.
pub fn transition<U: Entries>(
    base: &Base<'_>,
    theta: &mut [f32],
    accepted: &[AcceptedUpdate<'_, U>],
    guard_split: &[u32],
    oracle: &mut dyn LossOracle,
) -> Result<Transition, TransitionError> {
    let rules = AggregateRules {
        layout: base.layout,
        fragments: base.fragments,
        entry_weight: base.spec.outer.entry_weight,
        publish_bits: base.spec.update.publish_bits,
    };
    let d = aggregate_round(&rules, &base.root, accepted)?;
    let alpha = base.spec.outer.alpha as f32;
    let guard = guarded_step(oracle, theta, &d, alpha, base.spec.score.z, guard_split)?;
    Ok(Transition { d, guard })
}
