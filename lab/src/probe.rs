//! E8: how scores judge honest updates over a whole run. Every update of a round is scored by each rule on the same
//! sequences. Its *worth*, the loss that the step has without it, is measured on other sequences.

mod round;

use crate::arm::Arm;
use crate::experiments::{self, Scale};
use crate::network::{self, Bench};
use crate::report::{Summary, dots};
use alice_data::{TokenSource, permutation};
use alice_init::init_theta;
use alice_model::{Device, Llama, TorchOracle};
use alice_primitives::tagged_hash;
use alice_score::{lower_median, reference_norm};
use alice_spec::RunSpec;
use alice_update::{Entries, ErrorFeedback, Layout, Update, aggregate};
use anyhow::{Context, Result};
use round::Round;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Every third round is judged.
// A judged round costs losses of about 15,000 sequences (ten steps on 512, seven rules on 128 for eight updates), a
// trained one 240 sequences forward and back: with every round judged a run would take nearly three times as long.
const EVERY: u32 = 3;
/// Sequences on which worth is measured.
// Four times the sequences of a score, for worth is the yardstick: its halves agree to 0.91 to 0.96
// (docs/lab.md#e8-how-a-score-judges-honest-updates).
const GAIN_SEQUENCES: usize = 512;
/// Steps of uneven tasks: worker w does those at w mod 4.
// Halved each time, so that eight workers are two of each length and 4 is about the eighth that a lazy machine does.
const UNEVEN: [u32; 4] = [30, 15, 8, 4];

/// Label of the worth's agreement with itself, the ceiling of every rule's agreement.
const HALVES: &str = "two halves of the worth's text";

/// A rule that gives an update its improvement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Rule {
    /// Fall of the loss over κ of the step, divided by κ, in thousandths.
    Probe(u32),
    /// α f ⟨∇ℓ, u⟩.
    Linear,
    /// Fall of the loss over the update's part of the step, R times: the parts of all add up to the step.
    Part(At),
}

/// Point at which an update's part is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum At {
    /// To the model before the step.
    Start,
    /// Half way of the step, half of the part before it and half behind: one point of the integral along the step of
    /// the gradient times the part (Aumann and Shapley 1974), which sums to the step's gain.
    Middle,
    /// Last, to all the other parts.
    End,
}

impl Rule {
    /// κ = 1, the run's κ, one update's part in a mean of eight, the limit κ → 0, and the part that it has in the step.
    const ALL: [Self; 7] = [
        // Thousandths: a rule is a key of a map and of stored results, and an f64 has no order.
        Self::Probe(1000),
        Self::Probe(200),
        Self::Probe(125),
        Self::Linear,
        Self::Part(At::Start),
        Self::Part(At::Middle),
        Self::Part(At::End),
    ];

    fn name(self) -> String {
        match self {
            Self::Probe(125) => "κ = 1/R".into(),
            Self::Probe(thousandths) => format!("κ = {}", f64::from(thousandths) / 1000.0),
            Self::Linear => "linear".into(),
            Self::Part(At::Start) => "part, first".into(),
            Self::Part(At::Middle) => "part, in the middle".into(),
            Self::Part(At::End) => "part, last".into(),
        }
    }
}

/// Scores of a rule over a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Judged {
    rule: Rule,
    /// Share of the updates that the gate refuses.
    refused: f64,
    /// Mean of improvement over its standard error.
    z: f64,
    /// Spearman's rank correlation of improvement and worth in a round, mean over rounds.
    rank: f64,
    /// Mean improvement over the gain of the step that is made of all of them.
    of_gain: f64,
    /// Mean improvement by the length of the task, as in [`UNEVEN`]; empty in results of before it was kept.
    #[serde(default)]
    by_task: Vec<f64>,
}

/// A run's judgements.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    judged: Vec<Judged>,
    /// Rank correlation of the worth measured on two halves of its sequences: no rule can be expected to reach more.
    ceiling: f64,
    judged_rounds: u32,
    /// Mean worth by the length of the task.
    #[serde(default)]
    worth_by_task: Vec<f64>,
    /// Mean norm of an update, over the round's median, by the length of the task.
    #[serde(default)]
    norm_by_task: Vec<f64>,
}

impl Outcome {
    /// Whether it has everything that is measured today: results of older versions lack some of it.
    fn is_complete(&self) -> bool {
        let has = |rule: &Rule| self.judged.iter().any(|judged| judged.rule == *rule);
        Rule::ALL.iter().all(has) && !self.worth_by_task.is_empty()
    }
}

/// Sums over the rounds of a run.
#[derive(Default)]
struct Sums {
    by_task: [f64; UNEVEN.len()],
    refused: f64,
    z: f64,
    rank: f64,
    improvement: f64,
}

/// A case of E8: label, arm, and whether workers do tasks of uneven length.
type Case = (String, Arm, bool);

/// E8 with its stored results.
struct Experiment {
    cases: Vec<Case>,
    /// Hash of the run, part of every result's key.
    model: String,
    seeds: u64,
    done: BTreeMap<String, Outcome>,
}

/// Runs E8 for the seeds that have no result yet and prints the tables of all.
pub fn experiment(
    bench: &Bench,
    out: &Path,
    rounds: u32,
    seeds: u64,
    share: (usize, usize),
    report: bool,
) -> Result<()> {
    let path = out.join("e8.json");
    let done = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let mut experiment = Experiment {
        cases: cases(rounds),
        model: hex::encode(bench.spec.run_hash()),
        seeds,
        done,
    };
    if !report {
        for (seed, (label, arm, uneven)) in experiment.missing().into_iter().skip(share.0).step_by(share.1) {
            let outcome = run(bench, &arm, seed, uneven)?;
            eprintln!("e8: {label}, seed {seed}, {} rounds judged", outcome.judged_rounds);
            let key = experiment.key(&arm, uneven, seed);
            experiment.done.insert(key, outcome);
            // Written after every run and renamed: an interrupted experiment loses one run, never the file.
            let part = path.with_extension("part");
            std::fs::write(&part, serde_json::to_vec_pretty(&experiment.done)?)?;
            std::fs::rename(&part, &path)?;
        }
    }
    experiment.print_rules(out)?;
    experiment.print_tasks();
    Ok(())
}

/// Both weights of an entry, with equal and with uneven tasks.
fn cases(rounds: u32) -> Vec<Case> {
    let scale = Scale { rounds, batch: 8 };
    let weights = [
        ("4 / R", experiments::ours(scale)),
        ("1 / R", experiments::ours_over_all(scale)),
    ];
    let tasks = [("equal tasks", false), ("tasks of 4, 8, 15 and 30 steps", true)];
    weights
        .iter()
        .flat_map(|(weight, arm)| tasks.map(|(task, uneven)| (format!("{task}, {weight}"), arm.clone(), uneven)))
        .collect()
}

impl Experiment {
    fn key(&self, arm: &Arm, uneven: bool, seed: u64) -> String {
        format!("{}/{uneven}", arm.key(&self.model, seed))
    }

    /// Runs without a complete result.
    fn missing(&self) -> Vec<(u64, Case)> {
        self.cases
            .iter()
            .flat_map(|case| (1..=self.seeds).map(move |seed| (seed, case)))
            .filter(|(seed, (_, arm, uneven))| {
                let outcome = self.done.get(&self.key(arm, *uneven, *seed));
                !outcome.is_some_and(Outcome::is_complete)
            })
            .map(|(seed, case)| (seed, case.clone()))
            .collect()
    }

    /// Results of a case, one for each seed that has one.
    fn outcomes(&self, arm: &Arm, uneven: bool) -> Vec<&Outcome> {
        (1..=self.seeds)
            .filter_map(|seed| self.done.get(&self.key(arm, uneven, seed)))
            .collect()
    }

    /// Prints the table of rules and writes the plot of their rank agreement.
    fn print_rules(&self, out: &Path) -> Result<()> {
        println!("\ne8: How does a score judge honest updates?\n");
        println!("| workers | rule | refused | mean z | rank agreement | mean score / gain of the step |");
        println!("|---|---|---|---|---|---|");
        let mut plotted = Vec::new();
        for (label, arm, uneven) in &self.cases {
            let outcomes = self.outcomes(arm, *uneven);
            let mut ranks = Vec::new();
            for rule in Rule::ALL {
                let of = |value: &dyn Fn(&Judged) -> f64| {
                    let values: Vec<f64> = outcomes
                        .iter()
                        .filter_map(|o| o.judged.iter().find(|j| j.rule == rule).map(value))
                        .collect();
                    Summary::of(&values)
                };
                let text = |summary: Option<Summary>| summary.map_or("no result".into(), |s| s.to_string());
                let (refused, z) = (text(of(&|j| 100.0 * j.refused)), text(of(&|j| j.z)));
                let (rank, of_gain) = (of(&|j| j.rank), text(of(&|j| j.of_gain)));
                println!(
                    "| {label} | {} | {refused} % | {z} | {} | {of_gain} |",
                    rule.name(),
                    text(rank)
                );
                ranks.push(rank);
            }
            let ceilings: Vec<f64> = outcomes.iter().map(|o| o.ceiling).collect();
            let ceiling = Summary::of(&ceilings);
            if let Some(ceiling) = ceiling {
                println!("| {label} | {HALVES} | | | {ceiling} | |");
            }
            ranks.push(ceiling);
            plotted.push((label.clone(), ranks));
        }
        let rows: Vec<String> = Rule::ALL.map(Rule::name).into_iter().chain([HALVES.into()]).collect();
        let title = "e8: rank agreement of honest updates' scores with what the step loses without them";
        let plot = out.join("e8.svg");
        std::fs::write(&plot, dots(title, &rows, &plotted)).with_context(|| format!("writing {}", plot.display()))
    }

    /// Prints the scores of short tasks relative to full ones.
    fn print_tasks(&self) {
        println!("\nOver the 30 steps' score, tasks of 15, 8 and 4 steps:\n");
        println!("| workers | rule | 15 | 8 | 4 |");
        println!("|---|---|---|---|---|");
        for (label, arm, _) in self.cases.iter().filter(|(_, _, uneven)| *uneven) {
            let outcomes = self.outcomes(arm, true);
            let row = |name: String, of: &dyn Fn(&Outcome) -> Option<Vec<f64>>| {
                let ratio = |task: usize| {
                    let ratios = outcomes
                        .iter()
                        .filter_map(|o| Some(of(o)?.get(task)? / of(o)?.first()?));
                    let summary = Summary::of(&ratios.collect::<Vec<f64>>());
                    summary.map_or("no result".into(), |s| s.to_string())
                };
                println!("| {label} | {name} | {} | {} | {} |", ratio(1), ratio(2), ratio(3));
            };
            for rule in Rule::ALL {
                row(rule.name(), &|o| {
                    Some(o.judged.iter().find(|j| j.rule == rule)?.by_task.clone())
                });
            }
            row("worth".into(), &|o| Some(o.worth_by_task.clone()));
            row("norm of the update".into(), &|o| Some(o.norm_by_task.clone()));
        }
    }
}

/// Sums over the judged rounds of a run.
struct Totals {
    sums: BTreeMap<Rule, Sums>,
    ceiling: f64,
    gain: f64,
    judged_rounds: u32,
    worth_by_task: [f64; UNEVEN.len()],
    norm_by_task: [f64; UNEVEN.len()],
}

/// Model, oracle and text that rounds are judged with.
struct Judge<'a> {
    spec: &'a RunSpec,
    seed: u64,
    reserve: TokenSource,
    oracle: TorchOracle,
}

/// A run of our arm in which every third round is judged. With `uneven`, workers do a different share of their task.
fn run(bench: &Bench, arm: &Arm, seed: u64, uneven: bool) -> Result<Outcome> {
    let spec = &bench.spec;
    let codec = arm.codec.context("our arm is compressed")?;
    let entry_weight = arm.outer.entry_weight.unwrap_or(1);
    let layout = Layout::from_spec(spec);
    let everything = 0..spec.tensors().len();
    let mut model = Llama::new(spec, Device::Cpu)?;
    let mut judge = Judge {
        spec,
        seed,
        reserve: bench.reserve()?,
        oracle: TorchOracle::new(spec, bench.reserve()?, Device::Cpu)?,
    };
    let mut theta = init_theta(spec, &tagged_hash("alice/lab/init", &[&seed.to_le_bytes()]));
    let mut workers: Vec<_> = (0..arm.workers)
        .map(|_| (None, ErrorFeedback::new(0..theta.len())))
        .collect();
    let mut previous = None;
    let mut totals = Totals::new();
    for number in 0..arm.rounds {
        let mut updates = Vec::new();
        for (w, (optimizer, feedback)) in (0u32..).zip(&mut workers) {
            let steps = match uneven {
                true => UNEVEN[w as usize % UNEVEN.len()],
                false => arm.steps,
            };
            // In the arm and not only in the loop, so that the learning rate of a short task takes the same course over
            // the rounds.
            let arm = Arm { steps, ..arm.clone() };
            let d = network::local(bench, &arm, seed, &mut model, &everything, optimizer, &theta, number, w)?;
            updates.push(network::send(spec, &codec, &layout, feedback, d, number)?.0);
        }
        let norms: Vec<f64> = updates.iter().map(Update::norm).collect();
        let reference = reference_norm(previous, &norms);
        let factors: Vec<f32> = norms
            .iter()
            .map(|norm| alice_score::FACTOR_MAX.min(reference / *norm as f32))
            .collect();
        if number % EVERY == 0 {
            let round = Round {
                spec,
                theta: &theta,
                layout: &layout,
                updates: &updates,
                factors: &factors,
                previous,
                entry_weight,
            };
            judge.round(&round, number, &norms, &mut model, &mut totals)?;
        }
        // Of all updates, since all are accepted here (docs/spec/scoring.md#common-norm).
        previous = lower_median(&norms).map(|median| median as f32);
        let weighted: Vec<(&Update, f32)> = updates.iter().zip(factors.iter().copied()).collect();
        // The step takes every update, also those that a rule would refuse: all rules are asked about the same run.
        let mean = aggregate::mean(&layout, &weighted, entry_weight);
        aggregate::apply(&mut theta, &mean, arm.outer.alpha as f32);
    }
    Ok(totals.outcome())
}

impl Judge<'_> {
    /// Judges a round by every rule and adds the results to the totals.
    fn round(
        &mut self,
        round: &Round,
        number: u32,
        norms: &[f64],
        model: &mut Llama,
        totals: &mut Totals,
    ) -> Result<()> {
        let order = tagged_hash("alice/lab/e8", &[&self.seed.to_le_bytes(), &number.to_le_bytes()]);
        let n = self.reserve.sequences();
        let pick = |range: std::ops::Range<usize>| -> Vec<u32> {
            range.map(|i| permutation(&order, n, i as u64) as u32).collect()
        };
        // Worth is measured on other sequences than scores, or both would share the noise of the text.
        let scoring = self.spec.score.sequences as usize;
        let (split, other) = (pick(0..scoring), pick(scoring..scoring + GAIN_SEQUENCES));
        let worth = round.worth(&mut self.oracle, &other)?;
        // Halves have more noise than the whole, so the true ceiling is somewhat higher.
        totals.ceiling += spearman(&worth.first_half, &worth.second_half);
        totals.gain += worth.step;
        add_by_task(&mut totals.worth_by_task, &worth.whole);
        let median = lower_median(norms).unwrap_or(1.0);
        let over_median: Vec<f64> = norms.iter().map(|norm| norm / median).collect();
        add_by_task(&mut totals.norm_by_task, &over_median);
        totals.judged_rounds += 1;
        for (rule, sums) in &mut totals.sums {
            let scores = round.scores(*rule, model, &mut self.oracle, &self.reserve, &split)?;
            let n = scores.len() as f64;
            sums.refused += scores.iter().filter(|s| !s.accepted).count() as f64 / n;
            sums.z += scores.iter().map(|s| s.z).sum::<f64>() / n;
            sums.improvement += scores.iter().map(|s| s.improvement).sum::<f64>() / n;
            let improvements: Vec<f64> = scores.iter().map(|s| s.improvement).collect();
            sums.rank += spearman(&improvements, &worth.whole);
            add_by_task(&mut sums.by_task, &improvements);
        }
        Ok(())
    }
}

impl Totals {
    fn new() -> Self {
        Self {
            sums: Rule::ALL.into_iter().map(|rule| (rule, Sums::default())).collect(),
            ceiling: 0.0,
            gain: 0.0,
            judged_rounds: 0,
            worth_by_task: [0.0; UNEVEN.len()],
            norm_by_task: [0.0; UNEVEN.len()],
        }
    }

    /// Means over the judged rounds.
    fn outcome(self) -> Outcome {
        let rounds = f64::from(self.judged_rounds.max(1));
        let judged = self.sums.into_iter().map(|(rule, sums)| Judged {
            rule,
            refused: sums.refused / rounds,
            z: sums.z / rounds,
            rank: sums.rank / rounds,
            // A ratio of sums: in a mean of ratios a late round with hardly any gain would outweigh all others.
            of_gain: sums.improvement / self.gain,
            by_task: sums.by_task.map(|sum| sum / rounds).to_vec(),
        });
        Outcome {
            judged: judged.collect(),
            ceiling: self.ceiling / rounds,
            judged_rounds: self.judged_rounds,
            worth_by_task: self.worth_by_task.map(|sum| sum / rounds).to_vec(),
            norm_by_task: self.norm_by_task.map(|sum| sum / rounds).to_vec(),
        }
    }
}

/// Adds the mean over the workers with each length of task.
fn add_by_task(sums: &mut [f64; UNEVEN.len()], values: &[f64]) {
    let of_each = values.len() as f64 / UNEVEN.len() as f64;
    for (w, value) in values.iter().enumerate() {
        sums[w % UNEVEN.len()] += value / of_each;
    }
}

/// Spearman's rank correlation; ties do not occur among measured numbers.
fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let ranks = |values: &[f64]| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|i, j| values[*i].total_cmp(&values[*j]));
        let mut ranks = vec![0.0; values.len()];
        for (rank, index) in order.into_iter().enumerate() {
            ranks[index] = rank as f64;
        }
        ranks
    };
    let n = a.len() as f64;
    let squares: f64 = ranks(a).iter().zip(ranks(b)).map(|(x, y)| (x - y) * (x - y)).sum();
    1.0 - 6.0 * squares / (n * (n * n - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spearman_should_see_order_and_nothing_else() {
        assert_eq!(spearman(&[1.0, 2.0, 10.0], &[0.1, 0.2, 0.3]), 1.0);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        assert_eq!(spearman(&[1.0, 2.0, 3.0, 4.0], &[2.0, 1.0, 4.0, 3.0]), 0.6);
    }

    #[test]
    fn a_run_should_be_judged_and_the_linear_rule_be_the_probes_limit() {
        let dir = tempfile::tempdir().unwrap();
        let bench = network::tests::bench(dir.path());
        let arm = experiments::ours(Scale { rounds: 4, batch: 8 });
        let outcome = run(&bench, &arm, 1, false).unwrap();
        assert_eq!(outcome.judged_rounds, 2);
        let of = |rule: Rule| outcome.judged.iter().find(|j| j.rule == rule).unwrap();
        // Honest updates of a young model help, and every rule sees it.
        for rule in Rule::ALL {
            let judged = of(rule);
            if !matches!(rule, Rule::Part(At::End)) {
                assert!(judged.refused < 0.2 && judged.z > 1.64, "{judged:?}");
            }
        }
        // Only in the middle do the gains of the parts add up to the step's: first they come to more, last to less,
        // which the gate may refuse.
        let middle = of(Rule::Part(At::Middle)).of_gain;
        assert!((middle - 1.0).abs() < 0.2, "{middle}");
        let (first, last) = (of(Rule::Part(At::Start)).of_gain, of(Rule::Part(At::End)).of_gain);
        assert!(last < middle && middle < first, "{last} {middle} {first}");
        let (probe, linear) = (of(Rule::Probe(125)).of_gain, of(Rule::Linear).of_gain);
        assert!((probe / linear - 1.0).abs() < 0.5, "{probe} {linear}");
    }
}
