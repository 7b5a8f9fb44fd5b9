//! Run specifications small enough for a test, and a sample commitment.

pub use alice_primitives::fixtures::commitment;
use alice_spec::{ModelSpec, RunSpec};

/// Run `dev` as it is in `chain-spec/runs`.
pub fn dev() -> RunSpec {
    parse(include_str!("../../../chain-spec/runs/dev.toml"))
}

/// Run `dev-moe`, a mixture of experts, as it is in `chain-spec/runs`.
pub fn dev_moe() -> RunSpec {
    parse(include_str!("../../../chain-spec/runs/dev-moe.toml"))
}

/// Run `dev` with changes, checked like any other specification.
///
/// ```
/// let spec = alice_testkit::fixtures::dev_with(|spec| spec.model.layers = 1);
/// assert_eq!(spec.model.layers, 1);
/// ```
pub fn dev_with(change: impl FnOnce(&mut RunSpec)) -> RunSpec {
    let mut spec = dev();
    change(&mut spec);
    if let Err(error) = spec.validate() {
        panic!("the test's run specification is not valid: {error}");
    }
    spec
}

/// Sizes of a model, for [`Shape::of_dev`].
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden: u32,
    /// Blocks.
    pub layers: u32,
    /// Attention heads; they divide `hidden`.
    pub heads: u32,
    /// Heads of keys and values; they divide `heads`.
    pub kv_heads: u32,
    /// Width of the feed-forward layer.
    pub ffn: u32,
}

impl Shape {
    /// The smallest model that still has every kind of tensor: about 10,000 parameters, almost all of them embeddings.
    pub const TINY: Self = Self {
        hidden: 16,
        layers: 1,
        heads: 2,
        kv_heads: 2,
        ffn: 16,
    };

    /// Run `dev` with a model of this shape.
    pub fn of_dev(self) -> RunSpec {
        dev_with(|spec| self.apply(&mut spec.model))
    }

    /// Gives a model this shape.
    pub fn apply(self, model: &mut ModelSpec) {
        model.hidden = self.hidden;
        model.layers = self.layers;
        model.heads = self.heads;
        model.kv_heads = self.kv_heads;
        model.ffn = self.ffn;
    }
}

/// Run `dev` with the model [`Shape::TINY`].
pub fn tiny() -> RunSpec {
    Shape::TINY.of_dev()
}

fn parse(text: &str) -> RunSpec {
    RunSpec::parse(text).unwrap_or_else(|error| panic!("a preset of the repository is not valid: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixtures_should_be_valid_and_small() {
        dev_moe();
        assert!(
            (5_000..20_000).contains(&tiny().parameters()),
            "{}",
            tiny().parameters()
        );
    }

    #[test]
    #[should_panic(expected = "not valid")]
    fn dev_with_should_refuse_an_invalid_change() {
        dev_with(|spec| spec.model.heads = 0);
    }
}
