//! Speed of a task whose weights and text come from files, so that another program can train the same.

use crate::case::{OptionArgs, device, spec};
use alice_trainer::Task;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A built-in run, 10m, 50m, 100m, 1b or a file.
    #[arg(long)]
    model: String,
    /// Weights, f32 little-endian in canonical order.
    #[arg(long)]
    theta: PathBuf,
    /// Tokens, u16 little-endian: steps · batch sequences of the run's context.
    #[arg(long)]
    tokens: PathBuf,
    /// Steps.
    #[arg(long, default_value_t = 8)]
    steps: u32,
    /// Sequences in a step.
    #[arg(long, default_value_t = 4)]
    batch: u32,
    /// cpu, cuda, cuda:N or metal.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// CPU threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[command(flatten)]
    options: OptionArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let mut spec = spec(&args.model)?;
    spec.inner.steps = args.steps;
    spec.inner.batch_sequences = args.batch;
    spec.inner.warmup_steps = 1;
    spec.validate()?;
    // From a file and not from the seed of a generator: PyTorch must start at the same bits.
    let theta: Vec<f32> = words::<4>(&args.theta)?
        .iter()
        .map(|w| f32::from_le_bytes(*w))
        .collect();
    let tokens: Vec<u16> = words::<2>(&args.tokens)?
        .iter()
        .map(|w| u16::from_le_bytes(*w))
        .collect();
    ensure!(
        tokens.len() as u64 == spec.task_sequences() * u64::from(spec.model.context),
        "{} has {} tokens, a task has {} sequences of {}",
        args.tokens.display(),
        tokens.len(),
        spec.task_sequences(),
        spec.model.context
    );
    let sequences: Vec<Vec<u16>> = tokens
        .chunks(spec.model.context as usize)
        .map(<[u16]>::to_vec)
        .collect();
    alice_model::set_threads(args.threads);
    let task = Task {
        spec: &spec,
        fragment: 0,
        theta: &theta,
        sequences: &sequences,
    };
    let (mut losses, mut seconds, mut before) = (Vec::new(), Vec::new(), Instant::now());
    let (mut cpu, mut cpu_before) = (Vec::new(), cpu_seconds());
    alice_trainer::train(
        &task,
        device(&args.device)?,
        args.options.options(None),
        &mut |progress| {
            // The first times include making model and optimiser; bench/trainer.py leaves out two steps.
            losses.push(progress.loss);
            seconds.push(before.elapsed().as_secs_f64());
            cpu.push(cpu_seconds() - cpu_before);
            (before, cpu_before) = (Instant::now(), cpu_seconds());
            ControlFlow::Continue(())
        },
    )?;
    println!(
        "{}",
        // With the optimiser's constants, which bench/trainer.py hands to PyTorch.
        json!({ "losses": losses, "seconds": seconds, "cpu": cpu, "inner": spec.inner })
    );
    Ok(())
}

/// Processor time of the whole process so far, all threads.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn words<const N: usize>(path: &Path) -> Result<Vec<[u8; N]>> {
    let bytes = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    Ok(bytes.as_chunks::<N>().0.to_vec())
}
