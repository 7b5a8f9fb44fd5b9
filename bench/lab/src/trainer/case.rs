//! Models to measure with, and the options of the trainer as flags.

use alice_spec::RunSpec;
use alice_trainer::{Moments, Options, Precision};
use anyhow::{Context, Result};
use std::path::Path;

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
    /// For the trainer.
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

    /// As flags again.
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

/// A built-in run, `10m`, `50m` or a file.
pub fn spec(name: &str) -> Result<RunSpec> {
    let sized = |hidden, layers, heads, ffn, vocab| -> Result<RunSpec> {
        let mut spec = RunSpec::parse(alice_spec::preset("small").context("the run small is built in")?)?;
        let m = &mut spec.model;
        (m.hidden, m.layers, m.heads, m.kv_heads) = (hidden, layers, heads, heads);
        (m.ffn, m.vocab, m.context) = (ffn, vocab, 256);
        spec.inner.batch_sequences = 4;
        spec.validate()?;
        Ok(spec)
    };
    match name {
        "10m" => sized(256, 10, 4, 704, 4096),
        "50m" => sized(512, 12, 8, 1408, 8192),
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
