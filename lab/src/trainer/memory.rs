//! Peak memory of a task, measured in a process of its own, minus the memory after libtorch has run a small task of the
//! same kind.
//!
//! On the CPU it is the largest resident size. glibc returns freed memory at once in that process, so that the
//! measurement is the need of the tensors; `--keep-freed` leaves it at its default. On an NVIDIA GPU it is what
//! libtorch's allocator has taken from the device by the end: it gives nothing back unless the device is full, so this
//! is what a card must have, gaps between its blocks included. Other programs must not use the card meanwhile.

use crate::case::{OptionArgs, device, spec, train, weights};
use alice_trainer::{MemoryWatch, plan};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::process::Command;

/// Steps: the second is the first with all gradients in place.
const STEPS: u32 = 2;
const MIB: f64 = (1u64 << 20) as f64;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Models: 10m, 50m, 100m, 1b, a built-in run or a file.
    #[arg(long, value_delimiter = ',', default_values_t = ["10m".to_owned(), "50m".to_owned()])]
    model: Vec<String>,
    /// Fragments that the model is cut into, one of which is trained; 1: full tasks.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4])]
    fragments: Vec<u32>,
    /// Fragment that is trained, if there are several.
    #[arg(long, default_value_t = 1)]
    fragment: u32,
    /// Sequences that go through the model at once.
    #[arg(long, default_value_t = 4)]
    micro_batch: u32,
    /// cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// CPU threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// glibc keeps freed memory as it does by default.
    #[arg(long)]
    keep_freed: bool,
    /// JSON, one measurement a line.
    #[arg(long)]
    json: bool,
    /// Measures this one combination in this process.
    #[arg(long, hide = true)]
    child: bool,
    #[command(flatten)]
    options: OptionArgs,
    /// Every combination of checkpointing and moments, and bf16 with checkpointing.
    #[arg(long)]
    all: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if args.child {
        return child(args);
    }
    if !args.json {
        println!(
            "| model | learns | precision | moments | checkpointing | planned, MiB | measured, MiB | planned / measured |"
        );
        println!("|---|---|---|---|---|---|---|---|");
    }
    for model in &args.model {
        for fragments in &args.fragments {
            for options in combinations(args) {
                print_one(args, model, *fragments, &options)?;
            }
        }
    }
    Ok(())
}

fn combinations(args: &Args) -> Vec<OptionArgs> {
    if !args.all {
        return vec![args.options.clone()];
    }
    let of = |checkpoint, moments_8bit, bf16| OptionArgs {
        checkpoint,
        moments_8bit,
        bf16,
    };
    vec![
        of(false, false, false),
        of(true, false, false),
        of(false, true, false),
        of(true, true, false),
        of(true, true, true),
    ]
}

fn print_one(args: &Args, model: &str, fragments: u32, options: &OptionArgs) -> Result<()> {
    // A process for each: a peak never falls, so a second task could only be seen if it needed more than the first.
    let mut command = Command::new(std::env::current_exe()?);
    if !args.keep_freed {
        // Setting it also stops glibc from raising the threshold by itself, after which it keeps freed tensors: peaks
        // were then 23 to 65 % above the plan (docs/measurements/trainer.md).
        command.env("MALLOC_MMAP_THRESHOLD_", "65536");
    }
    let output = command
        .args(["memory", "--child", "--model", model])
        .args([
            "--fragments",
            &fragments.to_string(),
            "--fragment",
            &args.fragment.to_string(),
        ])
        .args([
            "--micro-batch",
            &args.micro_batch.to_string(),
            "--threads",
            &args.threads.to_string(),
            "--device",
            &args.device,
        ])
        .args(options.flags())
        .output()?;
    ensure!(
        output.status.success(),
        "the measuring process failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let line = String::from_utf8(output.stdout)?;
    if args.json {
        print!("{line}");
        return Ok(());
    }
    let v: serde_json::Value = serde_json::from_str(&line)?;
    let number = |key: &str| v.get(key).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
    println!(
        "| {:.1} M | {} | {} | {} | {} | {:.0} | {:.0} | {:.3} |",
        number("parameters") / 1e6,
        if fragments == 1 {
            "all".into()
        } else {
            format!("{:.1} M", number("learning") / 1e6)
        },
        if options.bf16 { "bf16" } else { "f32" },
        if options.moments_8bit { "8-bit" } else { "f32" },
        if options.checkpoint { "on" } else { "off" },
        number("planned") / MIB,
        number("measured") / MIB,
        number("planned") / number("measured")
    );
    Ok(())
}

fn child(args: &Args) -> Result<()> {
    let (Some(model), Some(fragments)) = (args.model.first(), args.fragments.first()) else {
        anyhow::bail!("a model and a number of fragments are needed");
    };
    let mut spec = spec(model)?;
    spec.task.fragments = *fragments;
    spec.inner.steps = STEPS;
    spec.inner.warmup_steps = 1;
    spec.inner.batch_sequences = args.micro_batch;
    spec.validate()?;
    let fragment = if *fragments == 1 { 0 } else { args.fragment };
    let options = args.options.options(Some(args.micro_batch));
    let device = device(&args.device)?;
    alice_model::set_threads(args.threads);
    let mut small = spec.clone();
    (small.model.hidden, small.model.ffn, small.model.vocab) = (64, 128, 259);
    (small.model.heads, small.model.kv_heads, small.model.context) = (2, 2, 32);
    // Before the watch starts, for the weights on the host are not in the plan: a miner has them in a mapped file.
    let theta = weights(&spec);
    train(&small, fragment, &weights(&small), device, options, &mut |_| ())?;
    let watch = MemoryWatch::start(device).context("nothing tells how much memory is taken of this device")?;
    let mut speed = 0f64;
    let result = train(&spec, fragment, &theta, device, options, &mut |p| {
        speed = p.tokens_per_second
    })?;
    // A trainer short of memory halves its batch, and its peak would then be that of another plan.
    ensure!(Some(result.micro_batch) == options.micro_batch, "memory was short");
    let peak = watch.peak().context("memory can no longer be measured")?;
    let need = plan::need(&spec, fragment, options, device);
    let line = json!({
        "model": model, "fragments": fragments, "fragment": fragment,
        "parameters": spec.parameters(), "learning": spec.fragment_parameters(fragment),
        "planned": need.total(), "measured": peak, "need": need,
        "tokens_per_second": speed,
    });
    println!("{line}");
    Ok(())
}
