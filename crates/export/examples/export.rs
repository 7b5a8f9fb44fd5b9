//! A small program around the crate, used by `tests/weights.py`. Weights are random with a larger deviation than a
//! first state's, so that logits are not flat, and norms are not all one, so that they count.
//!
//! ```text
//! export random SPEC VOCAB OUT.f32        writes weights of the run's shape for VOCAB ids
//! export hf bf16|f32 SPEC VOCAB TOKENIZER_DIR WEIGHTS.f32 OUT SHARD_BYTES
//! export gguf bf16|f32|q8_0 SPEC VOCAB TOKENIZER_DIR WEIGHTS.f32 OUT ROOT
//! export verify SPEC VOCAB DIR [WEIGHTS.f32]
//! ```
//!
//! VOCAB replaces the run's vocabulary, so that a learned tokenizer can be tried with any run's shape.

use alice_export::*;
use alice_program::output::print;
use alice_spec::RunSpec;
use alice_tokenizer::{TOKENIZER_MODEL_FILE, Tokenizer};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

fn spec(path: &str, vocab: &str) -> Result<RunSpec, Box<dyn Error>> {
    let mut spec = RunSpec::parse(&std::fs::read_to_string(path)?)?;
    spec.model.vocab = vocab.parse()?;
    Ok(spec)
}

/// The run of a folder's tokenizer, and that tokenizer.
fn spec_with(path: &str, vocab: &str, dir: &str) -> Result<(RunSpec, Tokenizer), Box<dyn Error>> {
    let (mut spec, tokenizer) = (
        spec(path, vocab)?,
        Tokenizer::read_model(&Path::new(dir).join(TOKENIZER_MODEL_FILE))?,
    );
    spec.data.tokenizer = tokenizer.spec_name();
    Ok((spec, tokenizer))
}

fn random(spec: &RunSpec, path: &str) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut rng = ChaCha20Rng::from_seed([42; 32]);
    for tensor in spec.tensors() {
        // Uniform in ±√3·σ has deviation σ.
        let (centre, deviation) = match tensor.shape[..] {
            [_] => (1.0, 0.2),
            _ => (0.0, 1.5 / f64::from(spec.model.hidden).sqrt()),
        };
        for _ in 0..tensor.len() {
            let uniform = f64::from(rng.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0;
            let value = (centre + uniform * deviation * 3f64.sqrt()) as f32;
            out.write_all(&value.to_le_bytes())?;
        }
    }
    out.flush()?;
    Ok(())
}

fn about() -> About {
    About {
        tokens_trained: 15_360,
        losses: vec![
            LossRow {
                epoch: 1,
                tokens: 7_680,
                loss: 5.5836,
            },
            LossRow {
                epoch: 2,
                tokens: 15_360,
                loss: 2.9189,
            },
        ],
        genesis_hash: Some([7; 32]),
        ..About::new(2)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut quiet = |_| ();
    let started = Instant::now();
    let bytes = match args[..] {
        ["random", file, vocab, out] => {
            let spec = spec(file, vocab)?;
            random(&spec, out)?;
            spec.parameters() * 4
        }
        ["hf", dtype, file, vocab, dir, weights, out, shard] => {
            let (spec, tokenizer) = spec_with(file, vocab, dir)?;
            let options = HfOptions {
                dtype: if dtype == "f32" { Dtype::F32 } else { Dtype::Bf16 },
                shard_bytes: shard.parse()?,
                about: about(),
                model_root: None,
            };
            let mut weights = ThetaFile::open(&spec.tensors(), Path::new(weights))?;
            let done = export_hf(Path::new(out), &spec, &tokenizer, &mut weights, &options, &mut quiet)?;
            let root = hex::encode(done.model_root);
            print(&format!("model root {root}, {} shards\n", done.shards))?;
            done.bytes
        }
        ["gguf", kind, file, vocab, dir, weights, out, root] => {
            let (spec, tokenizer) = spec_with(file, vocab, dir)?;
            let mut model_root = [0; 32];
            hex::decode_to_slice(root, &mut model_root)?;
            let options = GgufOptions {
                kind: match kind {
                    "f32" => GgufType::F32,
                    "q8_0" => GgufType::Q8_0,
                    _ => GgufType::Bf16,
                },
                about: about(),
                model_root,
            };
            let mut weights = ThetaFile::open(&spec.tensors(), Path::new(weights))?;
            export_gguf(Path::new(out), &spec, &tokenizer, &mut weights, &options, &mut quiet)?.bytes
        }
        ["verify", file, vocab, dir] => report(&verify(
            Path::new(dir),
            VerifyOptions {
                spec: Some(&spec_with(file, vocab, dir)?.0),
                ..Default::default()
            },
            &mut quiet,
        )?)?,
        ["verify", file, vocab, dir, weights] => {
            let (spec, _) = spec_with(file, vocab, dir)?;
            let mut weights = ThetaFile::open(&spec.tensors(), Path::new(weights))?;
            report(&verify(
                Path::new(dir),
                VerifyOptions {
                    spec: Some(&spec),
                    weights: Some(&mut weights),
                    ..Default::default()
                },
                &mut quiet,
            )?)?
        }
        _ => return Err("see the top of examples/export.rs".into()),
    };
    let seconds = started.elapsed().as_secs_f64();
    let speed = bytes as f64 / seconds / 1e6;
    print(&format!("{bytes} bytes in {seconds:.2} s, {speed:.0} MB/s\n"))?;
    Ok(())
}

fn report(found: &VerifyReport) -> io::Result<u64> {
    let root = hex::encode(found.alice.model_root);
    print(&format!("{:?}, model root {root}\n", found.proof))?;
    Ok(found.bytes)
}
