//! The decoder beside the model that trains.

use alice_init::init_theta;
use alice_model::{Decoder, DecoderConfig, Device, Experts, Llama, ModelError, Precision};
use alice_spec::RunSpec;
use std::collections::HashMap;
use tch::Tensor;

fn spec(kv_heads: u32) -> RunSpec {
    let mut spec = RunSpec::parse(include_str!("../../../chain-spec/runs/dev.toml")).unwrap();
    spec.model.hidden = 32;
    spec.model.layers = 2;
    spec.model.heads = 4;
    spec.model.kv_heads = kv_heads;
    spec.model.ffn = 48;
    spec.model.context = 24;
    spec.validate().unwrap();
    spec
}

/// Weights at which attention is far from uniform and norms are not one.
fn weights(spec: &RunSpec) -> Vec<f32> {
    let rough = |(i, v): (usize, f32)| match v {
        1.0 => 0.7 + (i % 7) as f32 * 0.1,
        _ => v * 10.0,
    };
    init_theta(spec, &[3; 32]).into_iter().enumerate().map(rough).collect()
}

/// All tensors by name.
fn tensors(spec: &RunSpec) -> HashMap<String, Tensor> {
    let (theta, mut by_name, mut at) = (weights(spec), HashMap::new(), 0);
    for tensor in spec.tensors() {
        let shape: Vec<i64> = tensor.shape.iter().map(|n| *n as i64).collect();
        let values = &theta[at..at + tensor.len() as usize];
        by_name.insert(tensor.name.clone(), Tensor::from_slice(values).view(&shape[..]));
        at += tensor.len() as usize;
    }
    by_name
}

fn load(spec: &RunSpec, config: DecoderConfig, precision: Precision) -> Result<Decoder, ModelError> {
    let by_name = tensors(spec);
    Decoder::load(config, precision, Device::Cpu, &mut |tensor| {
        Ok(by_name[&tensor.name].shallow_clone())
    })
}

fn text() -> Vec<u32> {
    (0..24).map(|t| (t * 31 + 5) % 259).collect()
}

/// Logits after every prefix that starts with the first `first` tokens.
fn step_by_step(decoder: &Decoder, text: &[u32], first: usize) -> Vec<Vec<f32>> {
    let mut cache = decoder.cache(text.len()).unwrap();
    let mut all = vec![decoder.forward(&text[..first], &mut cache).unwrap()];
    for token in &text[first..] {
        all.push(decoder.forward(&[*token], &mut cache).unwrap());
    }
    assert_eq!((cache.len(), cache.capacity()), (text.len(), text.len()));
    all
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_step_should_give_the_logits_of_the_model_that_trains() {
    let mut experts = spec(2);
    experts.model.architecture = "mixtral".into();
    experts.model.moe = Some(alice_spec::MoeSpec {
        experts: 5,
        top_k: 2,
        router_aux_loss: 0.01,
    });
    experts.validate().unwrap();
    for spec in [spec(1), spec(2), spec(4), experts] {
        let mut llama = Llama::new(&spec, Device::Cpu).unwrap();
        llama.load(&weights(&spec)).unwrap();
        let short: Vec<u16> = text().iter().map(|t| *t as u16).collect();
        let whole = llama.forward(&llama.batch(&[short]).unwrap()).unwrap().squeeze_dim(0);
        let decoder = load(&spec, (&spec).into(), Precision::F32).unwrap();
        for first in [1, 7, 24] {
            for (number, logits) in step_by_step(&decoder, &text(), first).iter().enumerate() {
                let expected = Vec::<f32>::try_from(whole.select(0, (first + number) as i64 - 1)).unwrap();
                let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
                assert!(scale > 1.0, "the logits are large enough to tell");
                let off = largest_difference(logits, &expected);
                assert!(
                    off <= scale * 1e-5,
                    "{:?}, first {first}, step {number}: {off}",
                    spec.model
                );
            }
        }
    }
}

#[test]
fn bf16_should_stay_close_to_f32() {
    let spec = spec(2);
    let exact = load(&spec, (&spec).into(), Precision::F32).unwrap();
    let half = load(&spec, (&spec).into(), Precision::Bf16).unwrap();
    for (a, b) in step_by_step(&exact, &text(), 5)
        .iter()
        .zip(step_by_step(&half, &text(), 5))
    {
        let scale = a.iter().fold(0f32, |m, v| m.max(v.abs()));
        let off = largest_difference(a, &b);
        assert!(off > 0.0 && off < scale * 0.05, "{off} of {scale}");
    }
}

#[test]
fn a_tied_head_should_be_the_embedding() {
    let spec = spec(4);
    let config = DecoderConfig {
        tied: true,
        ..(&spec).into()
    };
    assert!(config.tensors().iter().all(|t| t.name != "lm_head.weight"));
    let tied = load(&spec, config, Precision::F32).unwrap();
    let by_name = tensors(&spec);
    let copied = Decoder::load((&spec).into(), Precision::F32, Device::Cpu, &mut |tensor| {
        let name = tensor.name.replace("lm_head.weight", "model.embed_tokens.weight");
        Ok::<_, ModelError>(by_name[&name].shallow_clone())
    });
    assert_eq!(
        step_by_step(&tied, &text(), 3),
        step_by_step(&copied.unwrap(), &text(), 3)
    );
}

#[test]
fn a_run_should_have_the_layout_that_its_specification_says() {
    let spec = spec(2);
    let config = DecoderConfig::from(&spec);
    assert_eq!(config.tensors(), spec.tensors());
    assert_eq!(config.parameters(), spec.parameters());
}

#[test]
fn what_does_not_fit_should_be_refused() {
    let spec = spec(2);
    let decoder = load(&spec, (&spec).into(), Precision::F32).unwrap();
    let mut cache = decoder.cache(4).unwrap();
    let mut refused = |tokens: &[u32], what: &str| {
        let message = decoder.forward(tokens, &mut cache).unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    };
    refused(&[], "no tokens");
    refused(&[259], "token 259");
    refused(&[1; 5], "do not fit a cache of 4");
    decoder.forward(&[1, 2], &mut cache).unwrap();
    let message = decoder.forward(&[1, 2], &mut cache).unwrap_err().to_string();
    assert!(message.contains("one by one"), "{message}");
    assert_eq!(cache.len(), 2, "a refused call appends nothing");
    for tokens in [0, 25] {
        assert!(decoder.cache(tokens).unwrap_err().to_string().contains("1 to 24"));
    }
}

#[test]
fn impossible_configurations_and_shapes_should_be_refused() {
    let spec = spec(2);
    let good = DecoderConfig::from(&spec);
    let change = |f: &dyn Fn(&mut DecoderConfig)| {
        let mut config = good.clone();
        f(&mut config);
        load(&spec, config, Precision::F32).unwrap_err().to_string()
    };
    for (message, what) in [
        (change(&|c| c.layers = 1 << 40), "number of blocks"),
        (
            change(&|c| {
                c.layers = 4096;
                c.experts = Some(Experts { count: 4096, top_k: 2 });
            }),
            "4096 experts in each of 4096 blocks",
        ),
        (change(&|c| c.kv_heads = 3), "do not divide"),
        (change(&|c| c.head_dim = 7), "even width"),
        (change(&|c| c.context = 0), "context is 0"),
        (change(&|c| c.rope_theta = f64::NAN), "rotary base"),
        (change(&|c| c.rms_norm_eps = -1.0), "epsilon"),
        (change(&|c| c.ffn = 47), "[48, 32], [47, 32] is expected"),
    ] {
        assert!(message.contains(what), "{message}");
    }
}
