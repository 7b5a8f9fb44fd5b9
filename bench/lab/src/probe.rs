//! E8: how a score judges honest updates over a whole run. Every update of a round is measured by each rule on the same
//! sequences; what it is worth is measured on others, as what the step loses without it.

use crate::arm::Arm;
use crate::experiments::{self, Scale};
use crate::network::{self, Bench};
use alice_data::{TokenSource, permutation};
use alice_model::{Device, Llama, TorchOracle, init_theta};
use alice_primitives::tagged_hash;
use alice_score::{Candidate, LossOracle, paired, reference_norm, score_round};
use alice_spec::RunSpec;
use alice_update::{ErrorFeedback, Layout, Update, aggregate};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Kind;

/// Rounds between two that are judged.
const EVERY: u32 = 3;
/// Sequences that an update is worth something on.
const GAIN_SEQUENCES: usize = 512;

/// A rule that gives an update its improvement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Rule {
    /// Fall of the loss over κ of the step, divided by κ, in thousandths.
    Probe(u32),
    /// α f ⟨∇ℓ, u⟩.
    Linear,
}

impl Rule {
    /// κ = 1, the run's κ, one update's part in a mean of eight, and the limit κ → 0.
    const ALL: [Self; 4] = [Self::Probe(1000), Self::Probe(200), Self::Probe(125), Self::Linear];

    fn name(self) -> String {
        match self {
            Self::Probe(125) => "κ = 1/R".into(),
            Self::Probe(thousandths) => format!("κ = {}", f64::from(thousandths) / 1000.0),
            Self::Linear => "linear".into(),
        }
    }
}

/// What a rule said over a run.
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
}

/// A run's judgements.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    judged: Vec<Judged>,
    /// Rank correlation of the worth measured on two halves of its sequences: no rule can be expected to reach more.
    ceiling: f64,
    judged_rounds: u32,
}

/// Sums over the rounds of a run.
#[derive(Default)]
struct Sums {
    refused: f64,
    z: f64,
    rank: f64,
    improvement: f64,
}

/// Runs E8 for the seeds that have no result yet and prints the table of all.
pub fn experiment(bench: &Bench, out: &Path, rounds: u32, seeds: u64, report: bool) -> Result<()> {
    let path = out.join("e8.json");
    let mut done: BTreeMap<String, Outcome> = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let arms = [("equal tasks", false), ("tasks of 4, 8, 15 and 30 steps", true)];
    let key = |uneven: bool, seed: u64| {
        let arm = experiments::ours(Scale { rounds, batch: 8 });
        let model = hex::encode(bench.spec.run_hash());
        format!("{}/{uneven}", arm.key(&model, seed))
    };
    for seed in (1..=seeds).filter(|_| !report) {
        for (label, uneven) in arms {
            if done.contains_key(&key(uneven, seed)) {
                continue;
            }
            let outcome = run(bench, rounds, seed, uneven)?;
            eprintln!("e8: {label}, seed {seed}, {} rounds judged", outcome.judged_rounds);
            done.insert(key(uneven, seed), outcome);
            let part = path.with_extension("part");
            std::fs::write(&part, serde_json::to_vec_pretty(&done)?)?;
            std::fs::rename(&part, &path)?;
        }
    }
    println!("\ne8: How does a score judge honest updates?\n");
    println!("| workers | rule | refused | mean z | rank agreement | mean score / gain of the step |");
    println!("|---|---|---|---|---|---|");
    for (label, uneven) in arms {
        let outcomes: Vec<&Outcome> = (1..=seeds).filter_map(|seed| done.get(&key(uneven, seed))).collect();
        for rule in Rule::ALL {
            let of = |value: &dyn Fn(&Judged) -> f64| {
                let values: Vec<f64> = outcomes
                    .iter()
                    .filter_map(|o| o.judged.iter().find(|j| j.rule == rule).map(value))
                    .collect();
                crate::report::Summary::of(&values).map_or("no result".into(), |s| s.to_string())
            };
            let (refused, z) = (of(&|j| 100.0 * j.refused), of(&|j| j.z));
            let (rank, of_gain) = (of(&|j| j.rank), of(&|j| j.of_gain));
            println!("| {label} | {} | {refused} % | {z} | {rank} | {of_gain} |", rule.name());
        }
        let ceilings: Vec<f64> = outcomes.iter().map(|o| o.ceiling).collect();
        if let Some(ceiling) = crate::report::Summary::of(&ceilings) {
            println!("| {label} | two halves of the worth's sequences | | | {ceiling} | |");
        }
    }
    Ok(())
}

/// A run of our arm in which every third round is judged. With `uneven`, workers do a different share of their task.
fn run(bench: &Bench, rounds: u32, seed: u64, uneven: bool) -> Result<Outcome> {
    let spec = &bench.spec;
    let arm = experiments::ours(Scale { rounds, batch: 8 });
    let codec = arm.codec.context("our arm is compressed")?;
    let entry_weight = arm.outer.entry_weight.unwrap_or(1);
    let layout = Layout::from_spec(spec);
    let everything = 0..spec.tensors().len();
    let mut model = Llama::new(spec, Device::Cpu)?;
    let reserve = bench.reserve()?;
    let mut oracle = TorchOracle::new(spec, bench.reserve()?, Device::Cpu)?;
    let mut theta = init_theta(spec, &tagged_hash("alice/lab/init", &[&seed.to_le_bytes()]));
    let mut workers: Vec<_> = (0..arm.workers)
        .map(|_| (None, ErrorFeedback::new(0..theta.len())))
        .collect();
    let mut previous = None;
    let mut sums: BTreeMap<Rule, Sums> = Rule::ALL.into_iter().map(|rule| (rule, Sums::default())).collect();
    let (mut ceiling, mut gain, mut judged_rounds) = (0.0, 0.0, 0u32);
    for round in 0..rounds {
        let mut updates = Vec::new();
        for (w, (optimizer, feedback)) in (0u32..).zip(&mut workers) {
            let steps = if uneven { [30, 15, 8, 4][w as usize % 4] } else { 30 };
            let arm = Arm { steps, ..arm.clone() };
            let d = network::local(bench, &arm, seed, &mut model, &everything, optimizer, &theta, round, w)?;
            updates.push(network::send(spec, &codec, &layout, feedback, d, round)?.0);
        }
        let norms: Vec<f64> = updates.iter().map(Update::norm).collect();
        let reference = reference_norm(previous, &norms);
        let factors: Vec<f32> = norms
            .iter()
            .map(|norm| alice_score::FACTOR_MAX.min(reference / *norm as f32))
            .collect();
        if round % EVERY == 0 {
            let at = Round {
                spec,
                theta: &theta,
                layout: &layout,
                updates: &updates,
                factors: &factors,
                previous,
                entry_weight,
            };
            let order = tagged_hash("alice/lab/e8", &[&seed.to_le_bytes(), &round.to_le_bytes()]);
            let n = reserve.sequences();
            let pick = |range: std::ops::Range<usize>| -> Vec<u32> {
                range.map(|i| permutation(&order, n, i as u64) as u32).collect()
            };
            let scoring = spec.score.sequences as usize;
            let (split, other) = (pick(0..scoring), pick(scoring..scoring + GAIN_SEQUENCES));
            let worth = at.worth(&mut oracle, &other)?;
            ceiling += spearman(&worth.first_half, &worth.second_half);
            gain += worth.step;
            judged_rounds += 1;
            for (rule, sums) in &mut sums {
                let scores = at.scores(*rule, &mut model, &mut oracle, &reserve, &split)?;
                let n = scores.len() as f64;
                sums.refused += scores.iter().filter(|s| !s.accepted).count() as f64 / n;
                sums.z += scores.iter().map(|s| s.z).sum::<f64>() / n;
                sums.improvement += scores.iter().map(|s| s.improvement).sum::<f64>() / n;
                let improvements: Vec<f64> = scores.iter().map(|s| s.improvement).collect();
                sums.rank += spearman(&improvements, &worth.whole);
            }
        }
        let mut median = norms.clone();
        median.sort_by(f64::total_cmp);
        previous = median.get((median.len() - 1) / 2).map(|norm| *norm as f32);
        let weighted: Vec<(&Update, f32)> = updates.iter().zip(factors.iter().copied()).collect();
        let mean = aggregate::mean(&layout, &weighted, entry_weight);
        aggregate::apply(&mut theta, &mean, arm.outer.alpha as f32);
    }
    let rounds = f64::from(judged_rounds.max(1));
    let judged = sums
        .into_iter()
        .map(|(rule, sums)| Judged {
            rule,
            refused: sums.refused / rounds,
            z: sums.z / rounds,
            rank: sums.rank / rounds,
            of_gain: sums.improvement / gain,
        })
        .collect();
    Ok(Outcome {
        judged,
        ceiling: ceiling / rounds,
        judged_rounds,
    })
}

/// A round's updates and the model they are for.
struct Round<'a> {
    spec: &'a RunSpec,
    theta: &'a [f32],
    layout: &'a Layout,
    updates: &'a [Update],
    factors: &'a [f32],
    previous: Option<f32>,
    entry_weight: u32,
}

/// An update's score by a rule.
struct Score {
    improvement: f64,
    z: f64,
    accepted: bool,
}

/// What each update is worth, on all sequences and on each half of them.
struct Worth {
    whole: Vec<f64>,
    first_half: Vec<f64>,
    second_half: Vec<f64>,
    /// Gain of the step of all.
    step: f64,
}

impl Round<'_> {
    fn scores(
        &self,
        rule: Rule,
        model: &mut Llama,
        oracle: &mut TorchOracle,
        reserve: &TokenSource,
        split: &[u32],
    ) -> Result<Vec<Score>> {
        match rule {
            Rule::Probe(thousandths) => {
                let mut spec = self.spec.clone();
                spec.score.probe = f64::from(thousandths) / 1000.0;
                let candidates: Vec<Candidate> = (0u8..)
                    .zip(self.updates)
                    .map(|(id, update)| Candidate {
                        id: [id; 32],
                        miner: [id; 32],
                        proven: true,
                        fragment: 0,
                        update: update.clone(),
                    })
                    .collect();
                let round = score_round(
                    oracle,
                    &spec,
                    &mut self.theta.to_vec(),
                    split,
                    &candidates,
                    &[self.previous],
                    &mut |_| (),
                )?;
                let scores = round.decisions.iter().map(|d| Score {
                    improvement: d.improvement,
                    z: d.improvement / d.standard_error,
                    accepted: d.accepted,
                });
                Ok(scores.collect())
            }
            Rule::Linear => {
                let slopes = self.slopes(model, reserve, split)?;
                let zero = vec![0.0; split.len()];
                let scores = slopes.iter().map(|slopes| {
                    let paired = paired(slopes, &zero);
                    let z = paired.mean / paired.standard_error;
                    Score {
                        improvement: paired.mean,
                        z,
                        accepted: z >= self.spec.score.z,
                    }
                });
                Ok(scores.collect())
            }
        }
    }

    /// α f ⟨∇ℓ_j, u⟩ for each update and each sequence j.
    fn slopes(&self, model: &mut Llama, reserve: &TokenSource, split: &[u32]) -> Result<Vec<Vec<f64>>> {
        model.load(self.theta)?;
        for parameter in model.parameters() {
            let _ = parameter.set_requires_grad(true);
        }
        let mut slopes = vec![Vec::with_capacity(split.len()); self.updates.len()];
        for sequence in split {
            let tokens = model.batch(&[reserve.sequence((*sequence).into())?])?;
            for parameter in model.parameters() {
                let mut gradient = parameter.grad();
                if gradient.defined() {
                    let _ = gradient.f_zero_()?;
                }
            }
            model.token_losses(&tokens)?.f_mean(Kind::Float)?.f_backward()?;
            let mut gradient = Vec::with_capacity(self.theta.len());
            for parameter in model.parameters() {
                gradient.extend(Vec::<f32>::try_from(parameter.grad().f_flatten(0, -1)?)?);
            }
            for ((slopes, update), factor) in slopes.iter_mut().zip(self.updates).zip(self.factors) {
                let product: f64 = update
                    .indices
                    .iter()
                    .zip(&update.values)
                    .map(|(i, v)| f64::from(gradient[*i as usize]) * f64::from(*v))
                    .sum();
                slopes.push(self.spec.outer.alpha * f64::from(*factor) * product);
            }
        }
        Ok(slopes)
    }

    /// What the step loses without each update: loss after the step in which that update is empty less the loss after the
    /// whole step. R stays the same; a coordinate of which it was one of several senders has one less.
    fn worth(&self, oracle: &mut TorchOracle, sequences: &[u32]) -> Result<Worth> {
        let weighted: Vec<(&Update, f32)> = self.updates.iter().zip(self.factors.iter().copied()).collect();
        let before = oracle.losses(self.theta, sequences)?;
        let with = oracle.losses(&self.moved(&weighted), sequences)?;
        let half = sequences.len() / 2;
        let mut worth = Worth {
            whole: Vec::new(),
            first_half: Vec::new(),
            second_half: Vec::new(),
            step: paired(&before, &with).mean,
        };
        let empty = Update::default();
        for left_out in 0..weighted.len() {
            let mut others = weighted.clone();
            others[left_out].0 = &empty;
            let without = oracle.losses(&self.moved(&others), sequences)?;
            worth.whole.push(paired(&without, &with).mean);
            worth.first_half.push(paired(&without[..half], &with[..half]).mean);
            worth.second_half.push(paired(&without[half..], &with[half..]).mean);
        }
        Ok(worth)
    }

    /// The weights after the step of these updates.
    fn moved(&self, updates: &[(&Update, f32)]) -> Vec<f32> {
        let mut moved = self.theta.to_vec();
        let mean = aggregate::mean(self.layout, updates, self.entry_weight);
        aggregate::apply(&mut moved, &mean, self.spec.outer.alpha as f32);
        moved
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
        let outcome = run(&bench, 4, 1, false).unwrap();
        assert_eq!(outcome.judged_rounds, 2);
        let of = |rule: Rule| outcome.judged.iter().find(|j| j.rule == rule).unwrap();
        // Honest updates of a young model help, and every rule sees it.
        for rule in Rule::ALL {
            let judged = of(rule);
            assert!(judged.refused < 0.2 && judged.z > 1.64, "{judged:?}");
        }
        let (probe, linear) = (of(Rule::Probe(125)).of_gain, of(Rule::Linear).of_gain);
        assert!((probe / linear - 1.0).abs() < 0.5, "{probe} {linear}");
    }
}
