//! Models for the measurements, and the trainer's options as flags.

use alice_model::{Device, DeviceChoice};
use alice_spec::RunSpec;
use alice_trainer::{Moments, Options, Precision, Task, TaskResult};
use anyhow::{Context, Result};
use std::{ops::ControlFlow, path::Path};

/// Options of the trainer.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct OptionArgs {
    /// Activation checkpointing.
    #[arg(long)]
    pub checkpoint: bool,
    /// Moments of 8 bits.
    #[arg(long)]
    pub moments_8bit: bool,
    /// Products in bf16.
    #[arg(long)]
    pub bf16: bool,
}

impl OptionArgs {
    /// The trainer's options.
    pub fn options(&self, micro_batch: Option<u32>) -> Options {
        Options {
            micro_batch,
            precision: if self.bf16 { Precision::Bf16 } else { Precision::F32 },
            moments: if self.moments_8bit {
                Moments::Bits8
            } else {
                Moments::F32
            },
            checkpoint: self.checkpoint,
        }
    }

    /// The options as flags, for a child process.
    pub fn flags(&self) -> impl Iterator<Item = &'static str> {
        [
            (self.checkpoint, "--checkpoint"),
            (self.moments_8bit, "--moments-8bit"),
            (self.bf16, "--bf16"),
        ]
        .into_iter()
        .filter_map(|(on, flag)| on.then_some(flag))
    }
}

/// A device by its name, after checking that it works.
pub fn device(name: &str) -> Result<Device> {
    Ok(name.parse::<DeviceChoice>()?.resolve()?)
}

/// Weights for the measurements: uniform with a standard deviation of 0.02, norms one. Not the run's first state, whose
/// normal draws take minutes for billions of weights.
pub fn weights(spec: &RunSpec) -> Vec<f32> {
    let mut theta = vec![1f32; spec.parameters() as usize];
    // A value follows from its index alone, so any number of threads makes the same weights.
    let (mut rest, mut at) = (theta.as_mut_slice(), 0u64);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for tensor in spec.tensors() {
        let (values, after) = rest.split_at_mut(tensor.len() as usize);
        if tensor.shape.len() > 1 {
            std::thread::scope(|scope| {
                let part = values.len().div_ceil(threads).max(1);
                for (start, values) in (at..).step_by(part).zip(values.chunks_mut(part)) {
                    scope.spawn(move || (start..).zip(values).for_each(|(i, value)| *value = spread(i)));
                }
            });
        }
        (rest, at) = (after, at + tensor.len());
    }
    theta
}

/// A number of [−0.02·√3, 0.02·√3) that looks random.
fn spread(i: u64) -> f32 {
    // 24 bits, which an f32 holds exactly; 0.034641 is 0.02·√3, for a uniform number of [−a, a) deviates by a/√3.
    ((mixed(i) >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 0.034_641
}

/// The finaliser of splitmix64 (Steele, Lea and Flood 2014).
fn mixed(i: u64) -> u64 {
    let mut x = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A task's text: every sequence counts upwards from a token of its own, so that there is something to learn.
pub fn text(spec: &RunSpec) -> Vec<Vec<u16>> {
    let vocab = u64::from(spec.model.vocab);
    (0..spec.task_sequences())
        .map(|s| {
            (0..u64::from(spec.model.context))
                .map(|t| ((mixed(s) % vocab + t * (1 + s % 3)) % vocab) as u16)
                .collect()
        })
        .collect()
}

/// Trains one task from these weights.
pub fn train(
    spec: &RunSpec,
    fragment: u32,
    theta: &[f32],
    device: Device,
    options: Options,
    each: &mut dyn FnMut(alice_trainer::Progress),
) -> Result<TaskResult> {
    let task = Task {
        spec,
        fragment,
        theta,
        sequences: &text(spec),
    };
    Ok(alice_trainer::train(&task, device, options, &mut |progress| {
        each(progress);
        ControlFlow::Continue(())
    })?)
}

/// A built-in run, `10m`, `50m`, `100m`, `1b` or a file.
pub fn spec(name: &str) -> Result<RunSpec> {
    let sized = |hidden, layers, heads, ffn, vocab| -> Result<RunSpec> {
        let mut spec = RunSpec::parse(alice_spec::preset("small").context("the run small is built in")?)?;
        let m = &mut spec.model;
        // No grouped queries: the PyTorch model of bench/trainer.py has square projections of keys and values.
        (m.hidden, m.layers, m.heads, m.kv_heads) = (hidden, layers, heads, heads);
        (m.ffn, m.vocab, m.context) = (ffn, vocab, 256);
        spec.inner.batch_sequences = 4;
        spec.validate()?;
        Ok(spec)
    };
    match name {
        "10m" => sized(256, 10, 4, 704, 4096),
        "50m" => sized(512, 12, 8, 1408, 8192),
        "100m" => sized(768, 12, 12, 1920, 12288),
        "1b" => sized(2048, 22, 16, 5632, 32000),
        _ => match alice_spec::preset(name) {
            Some(text) => Ok(RunSpec::parse(text)?),
            None => {
                let path = Path::new(name);
                let text =
                    std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
                Ok(RunSpec::parse(&text)?)
            }
        },
    }
}
