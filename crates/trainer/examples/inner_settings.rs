//! Tries inner settings on real text: one task from the first state for each learning rate, then tasks in a row, and
//! the held-out loss after each. Build the corpus first (`corpus_roots` of alice-corpus), then
//! `cargo run --release -p alice-trainer --example inner_settings -- SPEC CORPUS_DIR TASKS THREADS RATE [RATE…]`.

use alice_data::{Manifest, TokenSource, epoch_seed, task_sequences};
use alice_init::init_theta;
use alice_model::{Device, TorchOracle, set_threads};
use alice_program::output::print;
use alice_score::LossOracle;
use alice_spec::RunSpec;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [spec, corpus, tasks, threads, rates @ ..] = &arguments[..] else {
        return Err("usage: inner_settings SPEC CORPUS_DIR TASKS THREADS RATE [RATE…]".into());
    };
    set_threads(threads.parse()?);
    let mut spec = RunSpec::parse(&std::fs::read_to_string(spec)?)?;
    let corpus = Path::new(corpus);
    let open = |name: &str| -> Result<TokenSource, Box<dyn std::error::Error>> {
        Ok(TokenSource::open(
            Manifest::read(&corpus.join(name))?,
            corpus,
            spec.model.context,
        )?)
    };
    let training = open(alice_data::CORPUS_FILE)?;
    let mut oracle = TorchOracle::new(&spec, open(alice_data::RESERVE_FILE)?, Device::Cpu)?;
    let held_out: Vec<u32> = (0..spec.score.sequences)
        .map(|i| i * 37 % oracle.sequences() as u32)
        .collect();
    let started = Instant::now();
    let start = init_theta(&spec, &[0; 32]);
    print(&format!(
        "{} parameters drawn in {:.2} s\n",
        start.len(),
        started.elapsed().as_secs_f64()
    ))?;
    let started = Instant::now();
    let losses = oracle.losses(&start, &held_out)?;
    let seconds = started.elapsed().as_secs_f64();
    print(&format!(
        "held-out loss at the start {:.4}; {} sequences scored in {seconds:.2} s\n",
        mean(&losses),
        losses.len()
    ))?;
    for rate in rates {
        spec.inner.learning_rate = rate.parse()?;
        let mut theta = start.clone();
        for task in 0..tasks.parse::<u32>()? {
            let seed = epoch_seed(&[0; 32], &[0; 32], task);
            let numbers = task_sequences(&spec, training.sequences(), &seed, 0);
            let sequences = numbers
                .iter()
                .map(|i| training.sequence(*i))
                .collect::<Result<Vec<_>, _>>()?;
            let work = alice_trainer::Task {
                spec: &spec,
                fragment: 0,
                theta: &theta,
                sequences: &sequences,
            };
            let go_on = &mut |_| ControlFlow::Continue(());
            let result = alice_trainer::train(&work, Device::Cpu, Default::default(), go_on)?;
            theta.iter_mut().zip(&result.d).for_each(|(t, d)| *t -= d);
            let losses = oracle.losses(&theta, &held_out)?;
            print(&format!(
                "rate {rate} task {task}: training {:.4} → {:.4}, held-out {:.4}, {:.0} tokens/s\n",
                result.loss_first,
                result.loss_last,
                mean(&losses),
                result.tokens as f64 / result.seconds
            ))?;
        }
    }
    Ok(())
}

fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len().max(1) as f64
}
