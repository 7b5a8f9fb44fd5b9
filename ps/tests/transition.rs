//! Architecture invariant 3: the same accepted updates give the same next model, bit by bit.

use alice_ps::transition::{Accepted, Base, transition};
use alice_score::{LossOracle, OracleError};
use alice_spec::RunSpec;
use alice_store::model_root;
use alice_update::{Header, Layout, Update, decode, encode};

/// Half the squared distance to zero, the same for every sequence but for an offset.
struct Quadratic;

impl LossOracle for Quadratic {
    fn losses(&mut self, theta: &[f32], sequences: &[u32]) -> Result<Vec<f64>, OracleError> {
        let loss: f64 = theta.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / 2.0;
        Ok(sequences.iter().map(|s| loss + f64::from(*s)).collect())
    }
}

fn spec() -> RunSpec {
    let mut spec = RunSpec::parse(include_str!("../../chain-spec/runs/dev.toml")).unwrap();
    (
        spec.model.hidden,
        spec.model.layers,
        spec.model.heads,
        spec.model.kv_heads,
        spec.model.ffn,
    ) = (16, 1, 2, 2, 16);
    spec.validate().unwrap();
    spec
}

fn update(spec: &RunSpec, layout: &Layout, seed: u32) -> Update {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let values: Vec<f32> = (0..layout.total())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.4
        })
        .collect();
    let bytes = encode(layout, &spec.update, &Header::default(), &values).unwrap().bytes;
    decode(layout, &spec.update, &bytes).unwrap()
}

#[test]
fn the_same_accepted_updates_should_give_the_same_model() {
    let spec = spec();
    let (layout, tensors) = (Layout::from_spec(&spec), spec.tensors());
    let theta = vec![0.01f32; layout.total()];
    let root = model_root(&tensors, &theta);
    let updates: Vec<Update> = (0..5).map(|seed| update(&spec, &layout, seed)).collect();
    let base = Base {
        spec: &spec,
        tensors: &tensors,
        layout: &layout,
        fragments: std::slice::from_ref(&layout),
        theta: &theta,
        root,
    };
    let accepted: Vec<Accepted<'_>> = updates
        .iter()
        .enumerate()
        .map(|(i, update)| Accepted {
            id: [i as u8; 32],
            fragment: 0,
            update,
            factor: 0.01 * (i + 1) as f32,
        })
        .collect();
    let guard_split = [1, 2, 3, 4];
    let first = transition(&base, &accepted, &guard_split, &mut Quadratic).unwrap();
    // Another process collects them in another order, on another thread.
    let mut turned = accepted.clone();
    turned.reverse();
    let second = std::thread::scope(|scope| {
        scope
            .spawn(|| transition(&base, &turned, &guard_split, &mut Quadratic).unwrap())
            .join()
            .unwrap()
    });
    assert_eq!(first.model_root, second.model_root);
    assert_eq!(first.aggregate, second.aggregate);
    assert!(first.guard.alpha_used > 0.0 && first.model_root != root);
    let bits = |theta: &[f32]| theta.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&first.guard.theta_next), bits(&second.guard.theta_next));
    // Anything else that is accepted is another model.
    let fewer = transition(&base, &accepted[1..], &guard_split, &mut Quadratic).unwrap();
    assert_ne!(fewer.model_root, first.model_root);
}

#[test]
fn a_step_that_hurts_should_be_skipped() {
    let spec = spec();
    let (layout, tensors) = (Layout::from_spec(&spec), spec.tensors());
    let theta = vec![0.01f32; layout.total()];
    let root = model_root(&tensors, &theta);
    let away = Update {
        indices: (0..100).collect(),
        values: vec![-1.0; 100],
        ..Update::default()
    };
    let base = Base {
        spec: &spec,
        tensors: &tensors,
        layout: &layout,
        fragments: std::slice::from_ref(&layout),
        theta: &theta,
        root,
    };
    let accepted = [Accepted {
        id: [1; 32],
        fragment: 0,
        update: &away,
        factor: 1.0,
    }];
    let made = transition(&base, &accepted, &[1, 2, 3], &mut Quadratic).unwrap();
    assert_eq!(
        (made.guard.alpha_used, made.guard.halvings, made.model_root),
        (0.0, 3, root)
    );
}
