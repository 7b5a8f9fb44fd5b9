//! A model with experts that was made of a dense one computes what the dense one does, and learns from there.

use alice_init::{
    init_theta,
    upcycle::{UpcycleError, upcycle},
};
use alice_model::{Device, Llama};
use alice_primitives::Hash;
use alice_spec::{MoeSpec, RunSpec, TensorShape};
use tch::Kind;

fn dense() -> RunSpec {
    let mut spec = RunSpec::parse(include_str!("../../../chain-spec/runs/dev.toml")).unwrap();
    spec.model.hidden = 32;
    spec.model.layers = 2;
    spec.model.kv_heads = 2;
    spec.model.ffn = 48;
    spec.model.context = 24;
    spec.validate().unwrap();
    spec
}

fn sparse(ffn: u32, top_k: u32) -> RunSpec {
    let mut spec = dense();
    spec.name = "sparse".into();
    spec.model.architecture = "mixtral".into();
    spec.model.ffn = ffn;
    spec.model.moe = Some(MoeSpec {
        experts: 4,
        top_k,
        router_aux_loss: 0.01,
    });
    spec.validate().unwrap();
    spec
}

/// Weights of a size at which logits are far from flat.
fn dense_theta(spec: &RunSpec) -> Vec<f32> {
    let draws = init_theta(spec, &[3; 32]);
    draws.iter().map(|v| if *v == 1.0 { 1.1 } else { v * 8.0 }).collect()
}

fn made(run: &RunSpec, root: &Hash) -> Result<Vec<f32>, UpcycleError> {
    let (dense, mut theta) = (dense(), Vec::new());
    let source = dense_theta(&dense);
    let read = |number: usize, tensor: &TensorShape| {
        let start: u64 = dense.tensors()[..number].iter().map(TensorShape::len).sum();
        Ok(source[start as usize..][..tensor.len() as usize].to_vec())
    };
    upcycle(&dense, root, run, read, |_, values| {
        theta.extend_from_slice(values);
        Ok::<_, UpcycleError>(())
    })?;
    assert_eq!(theta.len() as u64, run.parameters());
    Ok(theta)
}

#[test]
fn experts_should_compute_what_the_dense_model_does() {
    let logits = |spec: &RunSpec, theta: &[f32]| {
        let mut model = Llama::new(spec, Device::Cpu).unwrap();
        model.load(theta).unwrap();
        let text = (0..3u16).map(|s| (0..24).map(|t| (s * 83 + t * 31) % 259).collect());
        let tokens = model.batch(&text.collect::<Vec<_>>()).unwrap();
        tch::no_grad(|| model.forward(&tokens).unwrap())
    };
    let expected = logits(&dense(), &dense_theta(&dense()));
    let span = (expected.max() - expected.min()).double_value(&[]);
    assert!(span > 1.0, "logits span {span}: too flat to tell");
    for (ffn, top_k) in [(48, 1), (48, 2), (64, 2), (80, 4)] {
        let run = sparse(ffn, top_k);
        let found = logits(&run, &made(&run, &[1; 32]).unwrap());
        let difference = (&found - &expected).abs().max().double_value(&[]);
        assert!(difference <= 1e-4, "ffn {ffn}, top {top_k}: {difference}");
    }
}

#[test]
fn a_step_should_make_the_experts_differ() {
    let run = sparse(48, 2);
    let mut model = Llama::new(&run, Device::Cpu).unwrap();
    model.load(&made(&run, &[1; 32]).unwrap()).unwrap();
    let text: Vec<Vec<u16>> = (0..3u16)
        .map(|s| (0..24).map(|t| (s * 83 + t * 31) % 259).collect())
        .collect();
    model
        .token_losses(&model.batch(&text).unwrap())
        .unwrap()
        .mean(Kind::Float)
        .backward();
    let mut gradients = Vec::new();
    for (parameter, tensor) in model.parameters().iter().zip(run.tensors()) {
        if tensor.name.starts_with("model.layers.1.block_sparse_moe.experts.") && tensor.name.ends_with("w1.weight") {
            gradients.push(parameter.grad());
        }
    }
    assert_eq!(gradients.len(), 4);
    for other in &gradients[1..] {
        let difference = (other - &gradients[0]).abs().max().double_value(&[]);
        assert!(
            difference > 0.01 * gradients[0].abs().max().double_value(&[]),
            "{difference}"
        );
    }
}
