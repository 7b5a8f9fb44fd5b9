//! The lab: experiments on real text, one command each. Results are stored, so an interrupted experiment continues
//! where it stopped, and arms that experiments share run once.

mod arm;
mod experiments;
mod network;
mod probe;
mod report;

use anyhow::{Context, Result, bail};
use clap::Parser;
use network::{Bench, Outcome};
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Steps of the network, and sequences of a step over all workers, of most tables in the book.
const ROUNDS: u32 = 24;
const BATCH: u32 = 8;

/// Training experiments on real text: how the network's choices change the loss.
#[derive(Parser)]
#[command(after_help = "Example: lab e1 e3 --text ~/.cache/alice/corpus-sotu --rounds 24 --seeds 3")]
struct Args {
    /// e1, e3, e4, e5, e6, e7, e8, e9, e10, e11, e12, e13, e14, e15, deltas, deltas96, or all.
    #[arg(required = true)]
    experiments: Vec<String>,
    /// Folder of .txt files.
    #[arg(long)]
    text: PathBuf,
    /// Steps of the network in a run.
    #[arg(long, default_value_t = ROUNDS)]
    rounds: u32,
    /// Seeds: first weights and order of the text.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Runs at the same time, one thread each.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Sequences of a step over all workers.
    #[arg(long, default_value_t = BATCH, value_parser = multiple_of_eight)]
    batch: u32,
    /// cpu, cuda, cuda:N or metal; e8 runs on the CPU.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// I/N: only every N-th of the runs that are missing, from the I-th on (from 0), for N processes side by side, each
    /// with its own --out; put their runs.jsonl (and e8.json) together afterwards.
    #[arg(long, value_parser = share, default_value = "0/1")]
    share: (usize, usize),
    /// Held-out sequences.
    #[arg(long, default_value_t = 256)]
    held_out: u64,
    /// Folder for results (kept) and the built corpus.
    #[arg(long, default_value = "bench-results")]
    out: PathBuf,
    /// Only prints the tables and plots of the stored results.
    #[arg(long)]
    report: bool,
}

/// Arms have up to eight workers, which share the batch evenly.
fn multiple_of_eight(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|n: &u32| *n > 0 && n.is_multiple_of(8));
    number.ok_or_else(|| "must be a multiple of 8".into())
}

fn share(text: &str) -> Result<(usize, usize), String> {
    let parts = text
        .split_once('/')
        .and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    parts
        .filter(|(i, n)| i < n)
        .ok_or_else(|| "must be I/N with I below N, for example 0/8".into())
}

fn main() -> Result<()> {
    let args = Args::parse();
    let scale = experiments::Scale {
        rounds: args.rounds,
        batch: args.batch,
    };
    let mut experiments = experiments::all(scale);
    let all = args.experiments.iter().any(|name| name == "all");
    let judge = all || args.experiments.iter().any(|name| name == "e8");
    if !all {
        for name in args.experiments.iter().filter(|name| *name != "e8") {
            if !experiments.iter().any(|e| e.name == name) {
                let known: Vec<_> = experiments.iter().map(|e| e.name).collect();
                bail!(
                    "there is no experiment '{name}'; there are {}, e8, or all",
                    known.join(", ")
                );
            }
        }
        experiments.retain(|e| args.experiments.iter().any(|name| name == e.name));
    }
    std::fs::create_dir_all(&args.out).with_context(|| format!("creating {}", args.out.display()))?;
    let mut bench = Bench::open(&args.text, &args.out.join("corpus"), args.held_out)?;
    bench.device = args.device.parse::<alice_model::DeviceChoice>()?.resolve()?;
    // Everything that a result depends on apart from the arm and the seed.
    let model = format!("{}/{}", hex::encode(bench.spec.run_hash()), bench.held_out.len());
    let results = args.out.join("runs.jsonl");
    let done = Mutex::new(read_results(&results)?);
    if !args.report {
        run_missing(&args, &bench, &experiments, &model, &done, &results)?;
    }
    let done = done.into_inner().unwrap_or_default();
    // Another scale has other plots.
    let suffix = match (args.rounds, args.batch) {
        (ROUNDS, BATCH) => String::new(),
        (rounds, batch) => format!("-{rounds}x{batch}"),
    };
    for experiment in &experiments {
        let table = report::Table::new(experiment, &done, &model, args.seeds, bench.spec.parameters());
        print!("{table}");
        let path = args.out.join(format!("{}{suffix}.svg", experiment.name));
        std::fs::write(&path, table.svg()).with_context(|| format!("writing {}", path.display()))?;
    }
    if judge {
        probe::experiment(&bench, &args.out, args.rounds, args.seeds, args.share, args.report)?;
    }
    Ok(())
}

/// Runs every arm and seed without a result, `--jobs` at a time.
fn run_missing(
    args: &Args,
    bench: &Bench,
    experiments: &[experiments::Experiment],
    model: &str,
    done: &Done,
    results: &Path,
) -> Result<()> {
    // Runs are parallel, not operations: a model this small is too little work for a second thread, and one thread has
    // one order of sums, so a run repeats to the bit.
    alice_model::set_threads(1);
    let mut queue = VecDeque::new();
    // Seed by seed, so that an interrupted experiment has something of every arm.
    for seed in 1..=args.seeds {
        for (label, arm) in experiments.iter().flat_map(|e| &e.arms) {
            let key = arm.key(model, seed);
            let known = done.lock().is_ok_and(|done| done.contains_key(&key));
            // The base arm is in most experiments: without the second test `lab all` would train it ten times.
            if !known && !queue.iter().any(|(_, _, k, _)| *k == key) {
                queue.push_back((label.clone(), arm.clone(), key, seed));
            }
        }
    }
    let (first, of) = args.share;
    // Every N-th and not a block: seeds follow one another in the queue, and all processes should begin with the first.
    let queue: VecDeque<_> = queue.into_iter().skip(first).step_by(of).collect();
    let total = queue.len();
    let tokens: u64 = queue
        .iter()
        .map(|(_, arm, _, _)| arm.tokens(bench.spec.model.context))
        .sum();
    eprintln!("{total} runs, {:.1} million tokens", tokens as f64 / 1e6);
    let queue = Mutex::new(queue);
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..args.jobs.max(1))
            .map(|_| scope.spawn(|| work(bench, &queue, done, results, total)))
            .collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a run panicked"))??;
        }
        Ok(())
    })
}

type Queue = Mutex<VecDeque<(String, arm::Arm, String, u64)>>;
type Done = Mutex<BTreeMap<String, Outcome>>;

/// Takes runs from the queue until it is empty; stores each result at once.
fn work(bench: &Bench, queue: &Queue, done: &Done, results: &Path, total: usize) -> Result<()> {
    let poisoned = || anyhow::anyhow!("another run panicked");
    loop {
        let (next, left) = {
            let mut queue = queue.lock().map_err(|_| poisoned())?;
            (queue.pop_front(), queue.len())
        };
        let Some((label, arm, key, seed)) = next else {
            return Ok(());
        };
        let outcome = network::run(bench, &arm, seed).with_context(|| format!("{label}, seed {seed}"))?;
        eprintln!(
            "{}/{total}  {:.4} nats  {:.0} s  {label}, seed {seed}",
            total - left,
            outcome.loss,
            outcome.seconds
        );
        // The lock is held while the line is written, so that the lines of two runs do not mix.
        let mut done = done.lock().map_err(|_| poisoned())?;
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(results)?;
        writeln!(
            file,
            "{}",
            serde_json::json!({ "key": key, "arm": arm, "seed": seed, "outcome": outcome })
        )?;
        done.insert(key, outcome);
    }
}

fn read_results(path: &Path) -> Result<BTreeMap<String, Outcome>> {
    #[derive(serde::Deserialize)]
    struct Line {
        key: String,
        outcome: Outcome,
    }
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let mut results = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        // A process that was killed while it wrote leaves half a line at the end: that run is repeated.
        match serde_json::from_str::<Line>(line) {
            Ok(line) => drop(results.insert(line.key, line.outcome)),
            Err(error) => eprintln!("{}:{number} is not a result and is left out ({error})", path.display()),
        }
    }
    Ok(results)
}
