//! Architecture invariant 3: the same accepted updates give the same next model, bit by bit.

use alice_primitives::Hash;
use alice_ps::round::transition::{Base, transition};
use alice_score::{LossOracle, OracleError};
use alice_spec::RunSpec;
use alice_store::model_root;
use alice_testkit::fixtures::tiny;
use alice_update::{
    EncodedUpdate, Entries, Header, Layout, Update,
    aggregate::{self, AcceptedUpdate},
    decode, encode,
};

/// Half the squared distance to zero, the same for every sequence but for an offset.
struct Quadratic;

impl LossOracle for Quadratic {
    fn losses(&mut self, theta: &[f32], sequences: &[u32]) -> Result<Vec<f64>, OracleError> {
        let loss: f64 = theta.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / 2.0;
        Ok(sequences.iter().map(|s| loss + f64::from(*s)).collect())
    }
}

fn update(spec: &RunSpec, layout: &Layout, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let values: Vec<f32> = (0..layout.total())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.4
        })
        .collect();
    encode(layout, &spec.update, &Header::default(), &values).unwrap().bytes
}

fn accepted<U>(updates: &[U]) -> Vec<AcceptedUpdate<'_, U>> {
    let numbered = updates.iter().enumerate();
    numbered
        .map(|(i, update)| AcceptedUpdate {
            id: [i as u8; 32],
            fragment: 0,
            update,
            factor: 0.01 * (i + 1) as f32,
        })
        .collect()
}

/// The step's root, what was published, α and the weights.
fn made<U: Entries>(
    base: &Base<'_>,
    theta: &[f32],
    accepted: &[AcceptedUpdate<'_, U>],
) -> (Hash, Vec<u8>, f32, Vec<u32>) {
    let mut weights = theta.to_vec();
    let made = transition(base, &mut weights, accepted, &[1, 2, 3, 4], &mut Quadratic).unwrap();
    assert_eq!(bits(&weights), bits(theta), "only measured");
    let alpha = made.guard.alpha_used;
    aggregate::apply(&mut weights, &made.d, alpha);
    let root = model_root(&base.spec.tensors(), &weights);
    (root, made.d.bytes().to_vec(), alpha, bits(&weights))
}

fn bits(theta: &[f32]) -> Vec<u32> {
    theta.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn the_same_accepted_updates_should_give_the_same_model() {
    let spec = tiny();
    let (layout, tensors) = (Layout::from_spec(&spec), spec.tensors());
    let theta = vec![0.01f32; layout.total()];
    let root = model_root(&tensors, &theta);
    let sent: Vec<Vec<u8>> = (0..5).map(|seed| update(&spec, &layout, seed)).collect();
    let decoded: Vec<Update> = sent
        .iter()
        .map(|bytes| decode(&layout, &spec.update, bytes).unwrap())
        .collect();
    let encoded: Vec<EncodedUpdate> = sent
        .into_iter()
        .map(|bytes| EncodedUpdate::check(&layout, &spec.update, bytes).unwrap())
        .collect();
    let base = Base {
        spec: &spec,
        layout: &layout,
        fragments: std::slice::from_ref(&layout),
        root,
    };
    let first = made(&base, &theta, &accepted(&decoded));
    // Another process collects them in another order, on another thread, and reads them as they were sent.
    let mut turned = accepted(&encoded);
    turned.reverse();
    let second = std::thread::scope(|scope| scope.spawn(|| made(&base, &theta, &turned)).join().unwrap());
    assert!(first.2 > 0.0 && first.0 != root);
    assert_eq!(first, second);
    // Anything else that is accepted is another model.
    assert_ne!(made(&base, &theta, &accepted(&decoded)[1..]).0, first.0);
}

#[test]
fn a_step_that_hurts_should_be_skipped() {
    let spec = tiny();
    let (layout, tensors) = (Layout::from_spec(&spec), spec.tensors());
    let mut theta = vec![0.01f32; layout.total()];
    let root = model_root(&tensors, &theta);
    let away = Update {
        indices: (0..100).collect(),
        values: vec![-1.0; 100],
        ..Update::default()
    };
    let base = Base {
        spec: &spec,
        layout: &layout,
        fragments: std::slice::from_ref(&layout),
        root,
    };
    let accepted = [AcceptedUpdate {
        id: [1; 32],
        fragment: 0,
        update: &away,
        factor: 1.0,
    }];
    let made = transition(&base, &mut theta, &accepted, &[1, 2, 3], &mut Quadratic).unwrap();
    assert_eq!((made.guard.alpha_used, made.guard.halvings), (0.0, 3));
    assert_eq!(model_root(&tensors, &theta), root);
}
