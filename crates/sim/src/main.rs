//! Runs a network of scripted miners and reports what each strategy earned.

use alice_sim::{SimError, Simulation, Strategy, spec};
use clap::Parser;
use std::io::Write;
use std::process::ExitCode;

/// A network of scripted miners on a problem whose truth is known.
#[derive(Parser)]
#[command(after_help = "Example: sim honest=8 negated=4 four-keys=1 --epochs 100")]
struct Args {
    /// Machines by strategy: honest, churning, lazy, negated, noise, inflated, replay, four-keys, stale,
    /// garbage, late.
    #[arg(required = true, value_parser = machines, value_name = "STRATEGY=NUMBER")]
    machines: Vec<(Strategy, usize)>,
    /// Rounds.
    #[arg(long, default_value_t = 60)]
    epochs: u32,
    /// Fragments of the model: 1 or 2.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=2))]
    fragments: u32,
    /// Bits of the published aggregate: 2, 4, 8, or 32 for unrounded f32.
    #[arg(long, default_value_t = 8, value_parser = bits)]
    publish_bits: u8,
    /// c: an entry of one update weighs at most c / R in the mean of R updates [default: that of run dev]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    entry_weight: Option<u32>,
    /// Seed of the problem and of all random draws.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn machines(text: &str) -> Result<(Strategy, usize), String> {
    let (name, number) = text.split_once('=').unwrap_or((text, "1"));
    let number = number
        .parse()
        .map_err(|_| format!("'{number}' is not a number of machines"))?;
    Ok((name.parse()?, number))
}

fn bits(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(bits @ (2 | 4 | 8 | alice_sim::EXACT)) => Ok(bits),
        _ => Err(format!("'{text}' is not 2, 4, 8 or 32")),
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), SimError> {
    let machines: Vec<Strategy> = args
        .machines
        .iter()
        // More than `tasks_max` is refused anyway; the limit keeps a mistyped number from taking all memory before
        // that.
        .flat_map(|(strategy, number)| std::iter::repeat_n(*strategy, (*number).min(1000)))
        .collect();
    let mut spec = spec(args.fragments);
    spec.update.publish_bits = args.publish_bits;
    spec.outer.entry_weight = args.entry_weight.unwrap_or(spec.outer.entry_weight);
    let mut simulation = Simulation::new(spec, &machines, args.seed)?;
    simulation.run(args.epochs)?;
    // A closed pipe is no error: a reader such as `head` has seen enough.
    let _ = std::io::stdout().write_all(text(&simulation).as_bytes());
    Ok(())
}

fn text(simulation: &Simulation) -> String {
    let (report, mut text) = (simulation.report(), String::new());
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    line(report.to_string());
    line(format!("first loss {:.4} nats", simulation.first_loss()));
    for epoch in report.epochs.iter().step_by((report.epochs.len() / 10).max(1)) {
        line(format!(
            "epoch {}: loss {:.4}, {} of {} updates accepted, α {}",
            epoch.epoch, epoch.loss, epoch.accepted, epoch.submitted, epoch.alpha
        ));
    }
    if let Some(last) = report.epochs.last() {
        let root: String = last.root.iter().map(|byte| format!("{byte:02x}")).collect();
        line(format!("last loss {:.4} nats, model root {root}", last.loss));
        line(format!(
            "published aggregates of {} bytes on average",
            simulation.published_bytes() / report.epochs.len().max(1) as u64
        ));
    }
    text
}
