use super::*;
use alice_init::init_theta;

fn spec() -> RunSpec {
    let mut spec = RunSpec::parse(include_str!("../../../../chain-spec/runs/dev.toml")).unwrap();
    spec.model.hidden = 32;
    spec.model.layers = 2;
    spec.model.heads = 4;
    spec.model.kv_heads = 2;
    spec.model.ffn = 48;
    spec.model.context = 24;
    spec.validate().unwrap();
    spec
}

fn model(spec: &RunSpec) -> Llama {
    let mut model = Llama::new(spec, Device::Cpu).unwrap();
    model.load(&init_theta(spec, &[1; 32])).unwrap();
    model
}

fn sequences(count: u16, len: u16) -> Vec<Vec<u16>> {
    (0..count)
        .map(|s| (0..len).map(|t| (s * 83 + t * 31) % 259).collect())
        .collect()
}

fn close(a: &Tensor, b: &Tensor, tolerance: f64) {
    let difference = (a - b).abs().max().double_value(&[]);
    assert!(difference <= tolerance, "largest difference {difference}");
}

#[test]
fn weights_should_survive_load_and_store_bit_by_bit() {
    let spec = spec();
    let theta = init_theta(&spec, &[1; 32]);
    let mut model = model(&spec);
    assert_eq!(model.store().unwrap(), theta);
    let other = init_theta(&spec, &[2; 32]);
    model.load(&other).unwrap();
    assert_eq!(model.store().unwrap(), other);
    let message = model.load(&theta[1..]).unwrap_err().to_string();
    assert!(message.contains("coordinates"), "{message}");
    assert_eq!(model.store().unwrap(), other, "a refused load changes nothing");
}

#[test]
fn forward_should_give_a_distribution_near_uniform_at_the_start() {
    let spec = spec();
    let model = model(&spec);
    let tokens = model.batch(&sequences(3, 24)).unwrap();
    let logits = model.forward(&tokens).unwrap();
    assert_eq!(logits.size(), [3, 24, 259]);
    let losses = Vec::<f64>::try_from(model.sequence_losses(&tokens).unwrap()).unwrap();
    assert_eq!(losses.len(), 3);
    for loss in losses {
        assert!((loss - 259f64.ln()).abs() < 0.1, "{loss}");
    }
}

#[test]
fn losses_should_be_those_of_the_logits() {
    let spec = spec();
    let model = model(&spec);
    let tokens = model.batch(&sequences(2, 10)).unwrap();
    let log_probabilities = model.forward(&tokens).unwrap().log_softmax(-1, Kind::Double);
    let picked = log_probabilities
        .narrow(1, 0, 9)
        .gather(2, &tokens.narrow(1, 1, 9).unsqueeze(2), false);
    let expected = -picked.squeeze_dim(2).mean_dim(1, false, Kind::Double);
    close(&model.sequence_losses(&tokens).unwrap(), &expected, 1e-6);
}

#[test]
fn a_later_token_should_not_change_earlier_logits() {
    let spec = spec();
    let model = model(&spec);
    let mut text = sequences(1, 24);
    let before = model.forward(&model.batch(&text).unwrap()).unwrap();
    text[0][15] = 258 - text[0][15];
    let after = model.forward(&model.batch(&text).unwrap()).unwrap();
    close(&before.narrow(1, 0, 15), &after.narrow(1, 0, 15), 0.0);
    let changed = (before - after).narrow(1, 15, 9).abs().amax([0, 2], false);
    assert!(
        Vec::<f32>::try_from(changed).unwrap().iter().all(|c| *c > 0.0),
        "every later position sees it"
    );
}

/// Norms other than one, and weights of a size at which attention is far from uniform.
fn rough_theta(spec: &RunSpec) -> Vec<f32> {
    let draws = init_theta(spec, &[3; 32]);
    draws
        .iter()
        .enumerate()
        .map(|(i, v)| {
            if *v == 1.0 {
                0.7 + (i % 7) as f32 * 0.1
            } else {
                v * 10.0
            }
        })
        .collect()
}

/// The same model written a second time, straight from the papers' formulas in f64 with plain loops.
fn reference_logits(spec: &RunSpec, theta: &[f32], tokens: &[u16]) -> Vec<Vec<f64>> {
    let m = &spec.model;
    let mut weights = HashMap::new();
    let mut rest = theta;
    for tensor in spec.tensors() {
        let (values, after) = rest.split_at(tensor.len() as usize);
        rest = after;
        weights.insert(tensor.name, values.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>());
    }
    let product = |name: &str, x: &[f64]| -> Vec<f64> {
        weights[name]
            .chunks(x.len())
            .map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
            .collect()
    };
    let norm = |name: &str, x: &[f64]| -> Vec<f64> {
        let scale = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + 1e-5).sqrt();
        x.iter().zip(&weights[name]).map(|(x, w)| x * scale * w).collect()
    };
    let dim = (m.hidden / m.heads) as usize;
    let rotate = |x: &[f64], position: usize| -> Vec<f64> {
        let mut out = x.to_vec();
        for head in out.chunks_mut(dim) {
            for i in 0..dim / 2 {
                let angle = position as f64 * f64::from(m.rope_theta).powf(-2.0 * i as f64 / dim as f64);
                let (a, b) = (head[i], head[i + dim / 2]);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + dim / 2] = b * angle.cos() + a * angle.sin();
            }
        }
        out
    };
    let add = |x: &mut [f64], y: &[f64]| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    let hidden = m.hidden as usize;
    let mut stream: Vec<Vec<f64>> = tokens
        .iter()
        .map(|t| weights["model.embed_tokens.weight"][usize::from(*t) * hidden..][..hidden].to_vec())
        .collect();
    for layer in 0..m.layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let normed: Vec<_> = stream.iter().map(|x| norm(&name("input_layernorm"), x)).collect();
        let project = |part: &str| normed.iter().map(|x| product(&name(part), x)).collect::<Vec<_>>();
        let (q, k, v) = (
            project("self_attn.q_proj"),
            project("self_attn.k_proj"),
            project("self_attn.v_proj"),
        );
        let turned = |x: Vec<Vec<f64>>| x.iter().enumerate().map(|(p, x)| rotate(x, p)).collect::<Vec<_>>();
        let (q, k) = (turned(q), turned(k));
        for at in 0..tokens.len() {
            let mut mixed = vec![0.0; hidden];
            for head in 0..m.heads as usize {
                let shared = head / (m.heads / m.kv_heads) as usize * dim;
                let query = &q[at][head * dim..][..dim];
                let scores: Vec<f64> = (0..=at)
                    .map(|p| query.iter().zip(&k[p][shared..]).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt())
                    .collect();
                let largest = scores.iter().fold(f64::MIN, |m, s| m.max(*s));
                let scores: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = scores.iter().sum();
                for (p, score) in scores.iter().enumerate() {
                    for i in 0..dim {
                        mixed[head * dim + i] += score / total * v[p][shared + i];
                    }
                }
            }
            add(&mut stream[at], &product(&name("self_attn.o_proj"), &mixed));
        }
        let swiglu = |x: &[f64], [gate, up, down]: [&str; 3]| -> Vec<f64> {
            let (gate, up) = (product(&name(gate), x), product(&name(up), x));
            let gated: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            product(&name(down), &gated)
        };
        for x in &mut stream {
            let normed = norm(&name("post_attention_layernorm"), x);
            let Some(moe) = &m.moe else {
                add(x, &swiglu(&normed, ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]));
                continue;
            };
            let logits = product(&name("block_sparse_moe.gate"), &normed);
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            let chosen = &order[..moe.top_k as usize];
            // The softmax over all experts, divided by its sum over the chosen: the others cancel out.
            let total: f64 = chosen.iter().map(|e| logits[*e].exp()).sum();
            for e in chosen {
                let w = ["w1", "w3", "w2"].map(|w| format!("block_sparse_moe.experts.{e}.{w}"));
                let mut out = swiglu(&normed, w.each_ref().map(String::as_str));
                out.iter_mut().for_each(|v| *v *= logits[*e].exp() / total);
                add(x, &out);
            }
        }
    }
    stream
        .iter()
        .map(|x| product("lm_head.weight", &norm("model.norm.weight", x)))
        .collect()
}

#[test]
fn forward_should_agree_with_plain_loops_over_the_formulas() {
    let dense = spec();
    let mut experts = spec();
    experts.model.architecture = "mixtral".into();
    experts.model.moe = Some(alice_spec::MoeSpec {
        experts: 5,
        top_k: 2,
        router_aux_loss: 0.01,
    });
    experts.validate().unwrap();
    for spec in [dense, experts] {
        let theta = rough_theta(&spec);
        let mut model = Llama::new(&spec, Device::Cpu).unwrap();
        model.load(&theta).unwrap();
        let text = sequences(1, 20);
        let found = model
            .forward(&model.batch(&text).unwrap())
            .unwrap()
            .to_kind(Kind::Double)
            .reshape([-1]);
        let expected: Vec<f64> = reference_logits(&spec, &theta, &text[0]).concat();
        let scale = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
        assert!(scale > 1.0, "the logits are large enough to tell");
        close(&found, &Tensor::from_slice(&expected), scale * 1e-5);
    }
}

#[test]
fn gradients_should_reach_every_parameter() {
    let spec = spec();
    let model = model(&spec);
    let tokens = model.batch(&sequences(2, 24)).unwrap();
    model.token_losses(&tokens).unwrap().mean(Kind::Float).backward();
    for (parameter, tensor) in model.parameters().iter().zip(spec.tensors()) {
        let gradient = parameter.grad();
        assert!(
            gradient.defined() && gradient.abs().max().double_value(&[]) > 0.0,
            "{}",
            tensor.name
        );
    }
}

#[test]
fn batches_that_do_not_fit_should_be_refused() {
    let spec = spec();
    let model = model(&spec);
    for (bad, what) in [
        (vec![], "sequences of 0 tokens"),
        (vec![vec![1]], "sequences of 1 tokens"),
        (vec![vec![1; 25]], "sequences of 25 tokens"),
        (vec![vec![1, 2], vec![1, 2, 3]], "of 2 and of 3"),
        (vec![vec![1, 259]], "token 259"),
    ] {
        let message = model.batch(&bad).unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    }
}

/// Gradients of the mean loss for every tensor that learns, in f32.
fn gradients(model: &Llama, tokens: &Tensor, checkpoint: bool) -> Vec<Tensor> {
    for parameter in model.learning() {
        parameter.shallow_clone().zero_grad();
    }
    model.backward(tokens, checkpoint, &|l| l.f_mean(Kind::Float)).unwrap();
    model.learning().iter().map(|p| p.grad().copy()).collect()
}

/// ‖a − b‖ / ‖b‖.
fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |t: &Tensor| t.to_kind(Kind::Double).norm().double_value(&[]);
    norm(&(a.to_kind(Kind::Double) - b.to_kind(Kind::Double))) / norm(b).max(1e-30)
}

fn deep_spec() -> RunSpec {
    let mut spec = spec();
    spec.model.layers = 5;
    spec.task.fragments = 3;
    spec
}

fn of_fragment(spec: &RunSpec, fragment: u32, precision: Precision) -> Llama {
    let tensors = spec.fragment_tensors(fragment);
    let mut model = Llama::with_learning(spec, Device::Cpu, tensors, precision).unwrap();
    model.load(&rough_theta(spec)).unwrap();
    model
}

#[test]
fn a_fragment_should_have_the_gradients_that_the_whole_model_has_there() {
    let spec = deep_spec();
    let mut whole = Llama::new(&spec, Device::Cpu).unwrap();
    whole.load(&rough_theta(&spec)).unwrap();
    let tokens = whole.batch(&sequences(3, 24)).unwrap();
    let expected = gradients(&whole, &tokens, false);
    for fragment in 0..3 {
        let range = spec.fragment_tensors(fragment);
        let model = of_fragment(&spec, fragment, Precision::F32);
        assert_eq!(model.learning().len(), range.len());
        for checkpoint in [false, true] {
            let found = gradients(&model, &tokens, checkpoint);
            for (found, expected) in found.iter().zip(&expected[range.clone()]) {
                let difference = relative(found, expected);
                assert!(difference <= 1e-6, "fragment {fragment}, {checkpoint}: {difference}");
            }
        }
        let frozen = |index: &usize| !range.contains(index);
        for index in (0..model.parameters().len()).filter(frozen) {
            assert!(!model.parameters()[index].grad().defined());
        }
    }
}

#[test]
fn blocks_computed_again_should_give_the_same_value_and_gradients() {
    let spec = deep_spec();
    let mut model = Llama::new(&spec, Device::Cpu).unwrap();
    model.load(&rough_theta(&spec)).unwrap();
    let tokens = model.batch(&sequences(2, 20)).unwrap();
    let expected = gradients(&model, &tokens, false);
    for (found, expected) in gradients(&model, &tokens, true).iter().zip(&expected) {
        assert!(relative(found, expected) <= 1e-6);
    }
    // A second pass adds up.
    let objective: Objective = &|l| l.f_mean(Kind::Float);
    let value = model.backward(&tokens, true, objective).unwrap();
    assert!((value - model.backward(&tokens, false, objective).unwrap()).abs() < 1e-6);
    for (parameter, expected) in model.learning().iter().zip(&expected) {
        assert!(relative(&parameter.grad(), &(expected * 3.0)) <= 1e-5);
    }
}

#[test]
fn only_what_learns_should_be_f32_in_a_model_of_bf16() {
    let spec = deep_spec();
    let reference = of_fragment(&spec, 1, Precision::F32);
    let model = of_fragment(&spec, 1, Precision::Bf16);
    let range = spec.fragment_tensors(1);
    for (index, parameter) in model.parameters().iter().enumerate() {
        let learns = range.contains(&index);
        assert_eq!(parameter.kind() == Kind::Float, learns);
        assert_eq!(parameter.kind() == Kind::BFloat16, !learns);
    }
    // Parameters that learn go in and out bit by bit.
    let theta = rough_theta(&spec);
    assert_eq!(model.store_learning().unwrap(), theta[model.learning_range()]);
    let tokens = model.batch(&sequences(3, 24)).unwrap();
    let loss = |model: &Llama| {
        model
            .token_losses(&tokens)
            .unwrap()
            .mean(Kind::Double)
            .double_value(&[])
    };
    let (found, expected) = (loss(&model), loss(&reference));
    assert!((found - expected).abs() < 0.02 * expected, "{found} and {expected}");
    let expected = gradients(&reference, &tokens, false);
    for checkpoint in [false, true] {
        for (found, expected) in gradients(&model, &tokens, checkpoint).iter().zip(&expected) {
            assert_eq!(found.kind(), Kind::Float);
            // bf16 has 8 bits: 2⁻⁹ a rounding, some tens of them one after another.
            let difference = relative(found, expected);
            assert!(difference < 0.1, "{difference}");
        }
    }
}

#[test]
fn a_range_without_tensors_should_learn_nothing() {
    let spec = deep_spec();
    let model = of_fragment(&spec, 7, Precision::F32);
    assert!(model.learning().is_empty());
    assert_eq!(model.learning_range(), 0..0);
}
