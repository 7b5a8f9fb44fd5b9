//! A device against the CPU: the same tasks from the same weights. A device sums in another order, and an optimiser
//! without history makes a full step even of a gradient that is nearly zero. So results are close, not equal; the
//! constants here say how far apart they may be.

use crate::case::{OptionArgs, device, spec, text, train, weights};
use alice_model::{Device, Llama};
use alice_spec::RunSpec;
use alice_trainer::TaskResult;
use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

// Differences grow with every step: limits for a whole task would have to be wide enough to hide a wrong kernel.
const STEPS: u32 = 8;
/// Largest difference of a sequence's loss before training, nats per token; and of a step's mean loss.
// An H100 was 1.9e-6 apart at most in f32 (docs/measurements/trainer.md#on-a-gpu): a wrong kernel fails, another order
// of sums does not.
const LOSS_APART: f64 = 1e-3;
/// Largest ‖d − d'‖ / ‖d'‖ in f32.
// An H100 was 9.4e-4 apart at most, with 8-bit moments.
const UPDATE_APART: f64 = 0.02;
/// Smallest cosine of d and d' in bf16, whose 8 significant bits turn the signs of small gradients.
// An H100 had 0.995 with experts and 0.999 without.
const COSINE_BF16: f64 = 0.9;
/// Memory left free for the task that has to be cut up, bytes.
const LEFT_FREE: u64 = 2 << 30;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// cuda, cuda:N or metal.
    #[arg(long, default_value = "cuda")]
    device: String,
    /// CPU threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Also fills the device's memory and trains a task that has to be cut up (NVIDIA only).
    #[arg(long)]
    short_of_memory: bool,
}

/// One task and its options.
struct Case {
    model: &'static str,
    fragments: u32,
    fragment: u32,
    options: OptionArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let device = device(&args.device)?;
    alice_model::set_threads(args.threads);
    println!("| model | learns | options | sequences' losses apart | first and last loss apart | d apart | cosine |");
    println!("|---|---|---|---|---|---|---|");
    let mut wrong = Vec::new();
    for case in cases() {
        wrong.extend(compare(&case, device)?);
    }
    if args.short_of_memory {
        short_of_memory(device)?;
    }
    ensure!(wrong.is_empty(), "too far from the CPU: {}", wrong.join("; "));
    Ok(())
}

fn cases() -> Vec<Case> {
    let of = |model, fragments, fragment, checkpoint, moments_8bit, bf16| Case {
        model,
        fragments,
        fragment,
        options: OptionArgs {
            checkpoint,
            moments_8bit,
            bf16,
        },
    };
    vec![
        of("dev", 1, 0, false, false, false),
        of("10m", 1, 0, false, false, false),
        // The first fragment has the embedding, the last the head, and in one between them the backward pass ends
        // early.
        of("10m", 4, 0, false, false, false),
        of("10m", 4, 1, true, true, false),
        of("10m", 4, 3, true, false, false),
        // The options of `genesis-7b` on a card of 24 GiB.
        of("10m", 4, 1, true, true, true),
        of("10m", 1, 0, false, false, true),
        of("dev-moe", 1, 0, false, false, false),
        of("dev-moe", 2, 1, true, true, true),
    ]
}

/// Trains a case on both; what is too far apart.
fn compare(case: &Case, device: Device) -> Result<Option<String>> {
    let mut spec = spec(case.model)?;
    spec.task.fragments = case.fragments;
    (spec.inner.steps, spec.inner.warmup_steps, spec.inner.batch_sequences) = (STEPS, 2, 4);
    spec.validate()?;
    let (theta, options) = (weights(&spec), case.options.options(None));
    let run = |device| train(&spec, case.fragment, &theta, device, options, &mut |_| ());
    let (here, there) = (run(Device::Cpu)?, run(device)?);
    let sequences = losses_apart(&spec, &theta, device)?;
    let loss = (here.loss_first - there.loss_first)
        .abs()
        .max((here.loss_last - there.loss_last).abs());
    let (apart, cosine) = distance(&there, &here);
    let flags: Vec<_> = case.options.flags().collect();
    let name = format!(
        "{} | {} of {} | {}",
        case.model,
        case.fragment,
        case.fragments,
        flags.join(" ")
    );
    println!("| {name} | {sequences:.1e} | {loss:.1e} | {apart:.1e} | {cosine:.6} |");
    // A NaN is far from everything.
    let near = match case.options.bf16 {
        false => sequences < LOSS_APART && loss < LOSS_APART && apart < UPDATE_APART,
        // Not by the losses of steps: those of bf16 were 1.2e-3 apart. Sequences are measured in f32 in either case.
        true => sequences < LOSS_APART && cosine > COSINE_BF16,
    };
    Ok((!near).then_some(name))
}

/// Largest difference of the losses that sequences have before training, in f32: what a parameter server scores with.
fn losses_apart(spec: &RunSpec, theta: &[f32], device: Device) -> Result<f64> {
    let losses = |device| -> Result<Tensor> {
        let mut model = Llama::new(spec, device)?;
        model.load(theta)?;
        let tokens = model.batch(text(spec).get(..8).unwrap_or_default())?;
        Ok(tch::no_grad(|| model.sequence_losses(&tokens))?)
    };
    let apart = losses(Device::Cpu)?.f_sub(&losses(device)?)?.f_abs()?.f_max()?;
    Ok(apart.f_double_value(&[])?)
}

/// ‖a − b‖ / ‖b‖ and the cosine of both updates.
fn distance(a: &TaskResult, b: &TaskResult) -> (f64, f64) {
    let (mut aa, mut bb, mut ab, mut apart) = (0f64, 0f64, 0f64, 0f64);
    for (a, b) in a.d.iter().zip(&b.d) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        aa += a * a;
        bb += b * b;
        ab += a * b;
        apart += (a - b) * (a - b);
    }
    ((apart / bb).sqrt(), ab / (aa * bb).sqrt())
}

/// Trains with little memory left: micro-batches must become smaller until the task fits, and its losses stay.
fn short_of_memory(device: Device) -> Result<()> {
    let mut spec = spec("50m")?;
    // 128 sequences, because a batch of this model must be too large for 2 GiB, or nothing is cut up.
    (spec.inner.steps, spec.inner.warmup_steps, spec.inner.batch_sequences) = (2, 1, 128);
    spec.validate()?;
    let (theta, options) = (weights(&spec), OptionArgs::default().options(None));
    let run = || train(&spec, 0, &theta, device, options, &mut |_| ());
    let free = || alice_model::memory(device).map_or(0, |memory| memory.free);
    let before = free();
    ensure!(before > LEFT_FREE, "the device does not say that it has memory free");
    let ballast = Tensor::f_zeros([(before - LEFT_FREE) as i64], (Kind::Uint8, device))?;
    let short = run()?;
    drop(ballast);
    println!(
        "\n{:.1} GiB left free: a batch of {} sequences was trained in micro-batches of {}",
        LEFT_FREE as f64 / (1u64 << 30) as f64,
        spec.inner.batch_sequences,
        short.micro_batch
    );
    ensure!(
        short.micro_batch < spec.inner.batch_sequences,
        "the batch fitted at once: nothing was tried"
    );
    let whole = run()?;
    let (apart, _) = distance(&short, &whole);
    println!(
        "against the same task with all memory (micro-batches of {}): d apart {apart:.1e}",
        whole.micro_batch
    );
    ensure!(apart < UPDATE_APART, "micro-batches changed the update");
    Ok(())
}
