//! Folders on disk, good and bad. The weights are random, the tokenizer is the byte tokenizer.

use alice_generate::*;
use alice_model::{Decoder, Device, Precision};
use alice_tokenizer::{TOKENIZER_CONFIG_FILE, TOKENIZER_MODEL_FILE, Tokenizer};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize_to_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const CONTEXT: usize = 32;
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

struct Made {
    dir: TempDir,
}

impl Made {
    fn new() -> Self {
        let made = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        made.json(CONFIG_FILE, &config());
        made.json(GENERATION_CONFIG_FILE, &json!({"eos_token_id": 2}));
        Tokenizer::bytes().write_files(made.path(), CONTEXT as u32).unwrap();
        let mut index = BTreeMap::new();
        let tensors = tensors();
        let (first, second) = tensors.split_at(tensors.len() / 2);
        for (part, file) in [first, second].into_iter().zip(SHARDS) {
            made.shard(file, part);
            index.extend(part.iter().map(|(name, ..)| (name.clone(), file)));
        }
        made.json(INDEX_FILE, &json!({"metadata": {}, "weight_map": index}));
        made
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn json(&self, name: &str, value: &Value) {
        std::fs::write(self.file(name), value.to_string()).unwrap();
    }

    fn change(&self, name: &str, f: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&std::fs::read(self.file(name)).unwrap()).unwrap();
        f(&mut value);
        self.json(name, &value);
    }

    fn shard(&self, file: &str, tensors: &[(String, Vec<usize>, Vec<u8>)]) {
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        serialize_to_file(views, None, &self.file(file)).unwrap();
    }

    /// One shard again, with other tensors.
    fn reshape(&self, f: impl Fn(&mut Vec<(String, Vec<usize>, Vec<u8>)>)) {
        let mut all = tensors();
        f(&mut all);
        for shard in SHARDS {
            std::fs::remove_file(self.file(shard)).unwrap();
        }
        self.shard(SINGLE_FILE, &all);
    }

    fn load(&self) -> (Folder, Decoder) {
        let mut folder = Folder::open(self.path()).unwrap();
        let decoder = folder.load(Precision::F32, Device::Cpu).unwrap();
        (folder, decoder)
    }

    fn refused(&self, what: &str) -> GenerateError {
        let error = Folder::open(self.path()).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(what) && !message.contains('\n'), "{message}");
        error
    }
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": CONTEXT, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5, "rope_scaling": null, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "vocab_size": 259,
    })
}

fn tensors() -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let mut rng = ChaCha20Rng::from_seed([5; 32]);
    let (q, kv, ffn): ([usize; 2], [usize; 2], [usize; 2]) = ([16, 16], [8, 16], [24, 16]);
    let mut all = vec![("model.embed_tokens.weight".to_string(), vec![259, 16])];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![16]),
            ("self_attn.q_proj", q.into()),
            ("self_attn.k_proj", kv.into()),
            ("self_attn.v_proj", kv.into()),
            ("self_attn.o_proj", q.into()),
            ("post_attention_layernorm", vec![16]),
            ("mlp.gate_proj", ffn.into()),
            ("mlp.up_proj", ffn.into()),
            ("mlp.down_proj", vec![16, 24]),
        ] {
            all.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    all.push(("model.norm.weight".into(), vec![16]));
    all.push(("lm_head.weight".into(), vec![259, 16]));
    let mut value = || ((rng.next_u32() as f64 / f64::from(u32::MAX) - 0.5) * 1.4) as f32;
    all.into_iter()
        .map(|(name, shape)| {
            let bytes = (0..shape.iter().product())
                .flat_map(|_| value().to_le_bytes())
                .collect();
            (name, shape, bytes)
        })
        .collect()
}

fn request(prompt: &[u8], max_tokens: usize) -> Request<'_> {
    Request {
        prompt,
        max_tokens,
        sampling: Sampling::greedy(),
        seed: 1,
    }
}

fn run((folder, decoder): &(Folder, Decoder), request: &Request<'_>) -> Result<Generated, GenerateError> {
    let mut shown = String::new();
    let done = generate(folder, decoder, request, &mut |text| {
        shown += text;
        ControlFlow::Continue(())
    })?;
    assert_eq!(shown, done.text, "what is streamed is the text");
    let bytes: Vec<u8> = done
        .tokens
        .iter()
        .flat_map(|t| folder.tokenizer().token_bytes(*t))
        .collect();
    assert_eq!(done.text, String::from_utf8_lossy(&bytes));
    Ok(done)
}

#[test]
fn a_text_should_be_that_of_the_whole_model_each_time() {
    let loaded = Made::new().load();
    let done = run(&loaded, &request(b"The", 12)).unwrap();
    assert_eq!(
        (done.prompt_tokens, done.stop, done.tokens.len()),
        (3, StopReason::MaxTokens, 12)
    );
    assert!(done.tokens_per_second().unwrap() > 0.0);
    // Without a cache: everything anew for every token.
    let mut ids = loaded.0.encode(b"The").unwrap();
    for token in &done.tokens {
        let mut cache = loaded.1.cache(CONTEXT).unwrap();
        let logits = loaded.1.forward(&ids, &mut cache).unwrap();
        if ids.len() == 3 {
            assert_eq!(logits, done.prompt_logits);
        }
        let largest = (0..logits.len())
            .max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
            .unwrap();
        assert_eq!(*token as usize, largest);
        ids.push(*token);
    }
}

#[test]
fn chance_should_be_repeatable() {
    let loaded = Made::new().load();
    let draw = |seed| {
        let sampling = Sampling {
            temperature: 1.0,
            top_k: 50,
            top_p: 0.9,
            repetition_penalty: 1.1,
        };
        let request = Request {
            sampling,
            seed,
            ..request(b"ab", 20)
        };
        run(&loaded, &request).unwrap().tokens
    };
    assert_eq!(draw(3), draw(3));
    assert_ne!(draw(3), draw(4));
}

#[test]
fn a_text_should_end_where_the_context_is_full() {
    let loaded = Made::new().load();
    let done = run(&loaded, &request(&[b'x'; CONTEXT - 2], 1000)).unwrap();
    // The last token is chosen with a full context.
    assert_eq!((done.stop, done.tokens.len()), (StopReason::Context, 3));
    let done = run(&loaded, &request(&[b'x'; CONTEXT], 1000)).unwrap();
    assert_eq!((done.stop, done.tokens.len()), (StopReason::Context, 1));
    let error = run(&loaded, &request(&[b'x'; CONTEXT + 1], 1)).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("33 tokens"), "{error}");
}

#[test]
fn a_text_should_end_at_the_end_token_and_when_the_caller_asks() {
    let made = Made::new();
    let first = run(&made.load(), &request(b"The", 5)).unwrap().tokens;
    made.json(GENERATION_CONFIG_FILE, &json!({"eos_token_id": [2, first[1]]}));
    let (folder, decoder) = made.load();
    assert_eq!(folder.end(), [2, first[1]]);
    let done = generate(&folder, &decoder, &request(b"The", 5), &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!((done.stop, &done.tokens[..]), (StopReason::End, &first[..2]));
    let done = generate(&folder, &decoder, &request(b"The", 5), &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!((done.stop, done.tokens.len()), (StopReason::Asked, 1));
}

#[test]
fn prompts_of_any_bytes_should_be_taken_and_empty_ones_refused() {
    let loaded = Made::new().load();
    for prompt in [&b"\0"[..], b"a\0b\0", b"\xff\xfe", "🦙".as_bytes()] {
        let done = run(&loaded, &request(prompt, 3)).unwrap();
        assert_eq!(done.prompt_tokens, prompt.len());
    }
    let error = run(&loaded, &request(b"", 3)).unwrap_err();
    assert!(matches!(error, GenerateError::EmptyPrompt) && error.is_usage());
    let error = run(&loaded, &request(b"a", 0)).unwrap_err();
    assert!(error.to_string().contains("--max-tokens"), "{error}");
}

#[test]
fn what_cannot_be_should_be_refused_before_weights_are_read() {
    let made = Made::new();
    let folder = Folder::open(made.path()).unwrap();
    assert_eq!(request(&[b'x'; CONTEXT], 1).check(&folder).unwrap().len(), CONTEXT);
    let mut hot = request(b"a", 1);
    hot.sampling.temperature = f64::NAN;
    for (bad, words) in [
        (request(&[b'x'; CONTEXT + 1], 1), "33 tokens"),
        (request(b"a", 0), "--max-tokens"),
        (request(b"", 1), "empty"),
        (hot, "--temperature"),
    ] {
        let error = bad.check(&folder).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_begin_token_should_be_put_before_texts_where_the_tokenizer_asks() {
    let made = Made::new();
    made.json(TOKENIZER_CONFIG_FILE, &json!({"tokenizer_class": "LlamaTokenizer"}));
    assert_eq!(made.load().0.encode(b"a").unwrap(), [1, 100]);
    made.change(TOKENIZER_CONFIG_FILE, |c| c["add_bos_token"] = json!(false));
    assert_eq!(made.load().0.encode(b"a").unwrap(), [100]);
}

#[test]
fn choices_should_be_those_of_the_folder_unless_told_otherwise() {
    let made = Made::new();
    assert_eq!(made.load().0.sampling(), Sampling::greedy());
    let chance = json!({"do_sample": true, "temperature": 0.8, "top_p": 0.95, "eos_token_id": 2});
    made.json(GENERATION_CONFIG_FILE, &chance);
    let expected = Sampling {
        temperature: 0.8,
        top_p: 0.95,
        ..Sampling::greedy()
    };
    assert_eq!(made.load().0.sampling(), expected);
}

#[test]
fn tied_embeddings_should_need_no_head() {
    let made = Made::new();
    made.change(CONFIG_FILE, |c| c["tie_word_embeddings"] = json!(true));
    let with_head = run(&made.load(), &request(b"The", 5)).unwrap();
    made.reshape(|all| all.retain(|(name, ..)| name != "lm_head.weight"));
    let without = run(&made.load(), &request(b"The", 5)).unwrap();
    assert_eq!(with_head.prompt_logits, without.prompt_logits);
    made.change(CONFIG_FILE, |c| c["tie_word_embeddings"] = json!(false));
    made.refused("no shard in");
}

#[test]
fn a_folder_without_a_model_should_be_a_usage_error() {
    let made = Made::new();
    std::fs::remove_file(made.file(CONFIG_FILE)).unwrap();
    assert!(made.refused("there is no config.json").is_usage());
    let made = Made::new();
    std::fs::remove_file(made.file(TOKENIZER_MODEL_FILE)).unwrap();
    assert!(!made.refused("tokenizer.model is missing").is_usage());
    let made = Made::new();
    std::fs::remove_file(made.file(INDEX_FILE)).unwrap();
    made.refused("model.safetensors.index.json is missing");
    let made = Made::new();
    std::fs::remove_file(made.file(SHARDS[1])).unwrap();
    made.refused("of-00002.safetensors is missing");
}

#[test]
fn truncated_shards_should_be_refused() {
    let made = Made::new();
    let path = made.file(SHARDS[0]);
    let whole = std::fs::read(&path).unwrap();
    for (len, what) in [
        (whole.len() - 1, "it is cut off or damaged"),
        (whole.len() / 2, "it is cut off or damaged"),
        (100, "its header would have"),
        (7, "7 bytes are no safetensors file"),
        (0, "0 bytes are no safetensors file"),
    ] {
        std::fs::write(&path, &whole[..len]).unwrap();
        made.refused(what);
    }
    std::fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
    made.refused("it is cut off or damaged");
}

#[test]
fn git_lfs_pointers_should_be_named_in_every_file() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 9\n";
    for name in [SHARDS[0], INDEX_FILE, CONFIG_FILE, TOKENIZER_MODEL_FILE] {
        let made = Made::new();
        let path = made.file(name);
        std::fs::write(&path, pointer).unwrap();
        let message = made.refused("a Git LFS pointer: run git lfs pull").to_string();
        assert_eq!(message.matches(path.to_str().unwrap()).count(), 1, "{message}");
    }
}

#[test]
fn hostile_headers_should_be_refused_before_anything_is_allocated() {
    let made = Made::new();
    let path = made.file(SHARDS[0]);
    let header = |json: &str, data: usize| {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.bytes());
        bytes.extend(vec![0; data]);
        bytes
    };
    for (bytes, what) in [
        (
            [&u64::MAX.to_le_bytes()[..], b"{}"].concat(),
            "its header would have 18446744073709551615 bytes",
        ),
        (header("{", 0), "its header: "),
        (header("[]", 0), "its header: "),
        (
            header("{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[4,20]}}", 20),
            "its header: ",
        ),
        (
            header("{\"a\":{\"dtype\":\"F32\",\"shape\":[9],\"data_offsets\":[0,16]}}", 16),
            "its header: ",
        ),
        (
            header(
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[18446744073709551615,9],\"data_offsets\":[0,16]}}",
                16,
            ),
            "its header: ",
        ),
        (
            header("{\"a\":{\"dtype\":\"I64\",\"shape\":[2],\"data_offsets\":[0,16]}}", 16),
            "tensor a in I64",
        ),
    ] {
        std::fs::write(&path, bytes).unwrap();
        made.refused(what);
    }
}

#[test]
fn tensors_that_do_not_fit_the_configuration_should_be_refused() {
    let made = Made::new();
    made.change(CONFIG_FILE, |c| c["intermediate_size"] = json!(25));
    made.refused("mlp.gate_proj.weight with the shape [24, 16], config.json needs [25, 16]");
    let made = Made::new();
    made.change(CONFIG_FILE, |c| c["num_hidden_layers"] = json!(1));
    made.refused("config.json has no place for");
    let made = Made::new();
    made.reshape(|all| all.push(("model.layers.0.self_attn.q_proj.bias".into(), vec![1], vec![0; 4])));
    made.refused("q_proj.bias, which config.json has no place for");
    let made = Made::new();
    made.reshape(|all| {
        all.push((
            "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
            vec![1],
            vec![0; 4],
        ))
    });
    made.load();
    let made = Made::new();
    made.shard(SHARDS[1], &tensors());
    made.refused("is in another shard too");
}

#[test]
fn a_tokenizer_of_another_model_should_be_refused() {
    let made = Made::new();
    made.change(CONFIG_FILE, |c| c["vocab_size"] = json!(260));
    made.refused("has 259 ids, config.json has a vocabulary of 260");
    let made = Made::new();
    std::fs::write(made.file(TOKENIZER_MODEL_FILE), b"no model").unwrap();
    let message = made.refused("not a tokenizer.model of this kind").to_string();
    assert_eq!(
        message.matches(TOKENIZER_MODEL_FILE).count(),
        2,
        "the path once, the kind once: {message}"
    );
}

#[test]
fn what_is_not_computed_here_should_be_refused_by_name() {
    for (key, value, what) in [
        (
            "architectures",
            json!(["MambaForCausalLM"]),
            "the architecture 'MambaForCausalLM'",
        ),
        ("architectures", json!([]), "the architecture ''"),
        ("attention_bias", json!(true), "biases"),
        ("mlp_bias", json!(true), "biases"),
        ("hidden_act", json!("gelu"), "the activation 'gelu'"),
        ("quantization_config", json!({"bits": 4}), "quantised weights"),
        ("sliding_window", json!(1), "attention to the last 1 tokens only"),
        ("rope_scaling", json!({"factor": 2.0}), "scaled rotary embeddings"),
        (
            "rope_scaling",
            json!({"type": "linear", "factor": 2.0}),
            "scaled rotary embeddings",
        ),
        (
            "rope_parameters",
            json!({"rope_type": "llama3", "rope_theta": 1e4}),
            "scaled rotary embeddings",
        ),
    ] {
        let made = Made::new();
        made.change(CONFIG_FILE, |c| c[key] = value);
        assert!(matches!(made.refused(what), GenerateError::Unsupported { .. }));
    }
    let made = Made::new();
    made.change(CONFIG_FILE, |c| {
        c["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 5e5});
        c["architectures"] = Value::Null;
    });
    assert_eq!(made.load().0.model().rope_theta, 5e5);
}

#[test]
fn configurations_that_make_no_sense_should_be_refused() {
    for (key, value, what) in [
        ("hidden_size", json!(-1), "the width is -1"),
        ("hidden_size", json!("wide"), "invalid type"),
        ("num_hidden_layers", json!(1u64 << 40), "number of blocks"),
        ("num_attention_heads", json!(0), "number of heads"),
        ("num_key_value_heads", json!(3), "do not divide"),
        ("head_dim", json!(3), "even width"),
        ("max_position_embeddings", json!(0), "the context is 0"),
        ("rms_norm_eps", json!(-1), "epsilon"),
        ("vocab_size", Value::Null, "invalid type"),
    ] {
        let made = Made::new();
        made.change(CONFIG_FILE, |c| c[key] = value);
        made.refused(what);
    }
    let made = Made::new();
    std::fs::write(made.file(CONFIG_FILE), b"{").unwrap();
    made.refused("config.json is not valid");
    std::fs::write(made.file(CONFIG_FILE), vec![b' '; (1 << 20) + 1]).unwrap();
    made.refused("larger than");
    let made = Made::new();
    made.change(INDEX_FILE, |i| {
        i["weight_map"]["lm_head.weight"] = json!("../else.safetensors")
    });
    made.refused("no plain file name");
}

#[test]
fn broken_weights_should_give_an_error_and_no_text() {
    let made = Made::new();
    made.reshape(|all| {
        for (name, _, bytes) in all {
            if name == "model.norm.weight" {
                bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            }
        }
    });
    let error = run(&made.load(), &request(b"The", 5)).unwrap_err();
    assert!(error.to_string().contains("no finite logits after 3 tokens"), "{error}");
}
