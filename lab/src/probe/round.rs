//! One judged round of E8: scores by each rule, and worth.

use super::{At, Rule};
use alice_data::TokenSource;
use alice_model::{Llama, TorchOracle};
use alice_score::{Candidate, LossOracle, Paired, paired, score_round};
use alice_spec::RunSpec;
use alice_update::{Layout, Sparse, Update, aggregate};
use anyhow::Result;
use tch::Kind;

/// A round's updates and the model they are for.
pub(super) struct Round<'a> {
    pub(super) spec: &'a RunSpec,
    pub(super) theta: &'a [f32],
    pub(super) layout: &'a Layout,
    pub(super) updates: &'a [Update],
    pub(super) factors: &'a [f32],
    pub(super) previous: Option<f32>,
    pub(super) entry_weight: u32,
}

/// An update's score by a rule.
pub(super) struct Score {
    pub(super) improvement: f64,
    pub(super) z: f64,
    pub(super) accepted: bool,
}

/// Worth of each update, on all sequences and on each half of them.
pub(super) struct Worth {
    pub(super) whole: Vec<f64>,
    pub(super) first_half: Vec<f64>,
    pub(super) second_half: Vec<f64>,
    /// Gain of the step of all.
    pub(super) step: f64,
}

impl Round<'_> {
    /// Scores of all updates by a rule.
    // Each update has a key of its own, because those of one key would be judged together. Ids ascend: decisions come
    // back in their order, and are matched with worth by position.
    pub(super) fn scores(
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
                let candidates: Vec<Candidate<Update>> = (0u8..)
                    .zip(self.updates)
                    .map(|(id, update)| Candidate {
                        id: [id; 32],
                        miner: [id; 32],
                        // Eight newcomers would need 2.04 standard errors, and E8 asks about the gate of the long run.
                        has_accepted_work: true,
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
                Ok(slopes
                    .iter()
                    .map(|slopes| self.judged(&paired(slopes, &zero), 1.0))
                    .collect())
            }
            Rule::Part(at) => {
                let step = self.step(&self.weighted());
                // Share of the step that is taken before the part, and share of the part itself.
                let (taken, of_part) = match at {
                    At::Start => (0.0, 0.0),
                    At::Middle => (0.5, 0.5),
                    At::End => (1.0, 1.0),
                };
                let mut base = self.theta.to_vec();
                aggregate::apply(&mut base, &step, taken);
                let mut scores = Vec::new();
                for part in self.parts() {
                    let mut at = base.clone();
                    aggregate::apply(&mut at, &part, -of_part);
                    let before = oracle.losses(&at, split)?;
                    aggregate::apply(&mut at, &part, 1.0);
                    let after = oracle.losses(&at, split)?;
                    scores.push(self.judged(&paired(&before, &after), self.updates.len() as f64));
                }
                Ok(scores)
            }
        }
    }

    fn judged(&self, paired: &Paired, times: f64) -> Score {
        let z = paired.mean / paired.standard_error;
        Score {
            improvement: times * paired.mean,
            z,
            accepted: z >= self.spec.score.z,
        }
    }

    /// Part of each update in the step: its entries times its factor, over the coordinate's divisor.
    fn parts(&self) -> Vec<Sparse> {
        // Counted as the mean counts them, or the parts would not add up to the step.
        let mut senders = vec![0u32; self.theta.len()];
        for index in self.updates.iter().flat_map(|update| &update.indices) {
            senders[*index as usize] += 1;
        }
        let least = self.updates.len() as f64 / f64::from(self.entry_weight);
        let alpha = self.spec.outer.alpha;
        let part = |(update, factor): (&Update, &f32)| Sparse {
            indices: update.indices.clone(),
            values: std::iter::zip(&update.indices, &update.values)
                .map(|(index, value)| {
                    let divisor = f64::from(senders[*index as usize]).max(least);
                    (alpha * f64::from(factor * value) / divisor) as f32
                })
                .collect(),
        };
        self.updates.iter().zip(self.factors).map(part).collect()
    }

    /// α f ⟨∇ℓ_j, u⟩ for each update and each sequence j.
    fn slopes(&self, model: &mut Llama, reserve: &TokenSource, split: &[u32]) -> Result<Vec<Vec<f64>>> {
        model.load(self.theta)?;
        for parameter in model.parameters() {
            let _ = parameter.set_requires_grad(true);
        }
        let mut slopes = vec![Vec::with_capacity(split.len()); self.updates.len()];
        // Sequence by sequence, though a batch would be faster: the standard error needs a slope for each.
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

    /// Worth of each update: loss after the step in which that update is empty less the loss after the
    /// whole step. R stays the same; a coordinate of which it was one of several senders has one less.
    pub(super) fn worth(&self, oracle: &mut TorchOracle, sequences: &[u32]) -> Result<Worth> {
        let weighted = self.weighted();
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
            // Emptied and not removed: without it R would be smaller, and every other entry heavier.
            others[left_out].0 = &empty;
            let without = oracle.losses(&self.moved(&others), sequences)?;
            worth.whole.push(paired(&without, &with).mean);
            worth.first_half.push(paired(&without[..half], &with[..half]).mean);
            worth.second_half.push(paired(&without[half..], &with[half..]).mean);
        }
        Ok(worth)
    }

    fn weighted(&self) -> Vec<(&Update, f32)> {
        self.updates.iter().zip(self.factors.iter().copied()).collect()
    }

    /// The step of these updates: α times their mean.
    fn step(&self, updates: &[(&Update, f32)]) -> Sparse {
        let mut step = aggregate::mean(self.layout, updates, self.entry_weight);
        step.values
            .iter_mut()
            .for_each(|value| *value *= self.spec.outer.alpha as f32);
        step
    }

    /// The weights after the step of these updates.
    fn moved(&self, updates: &[(&Update, f32)]) -> Vec<f32> {
        let mut moved = self.theta.to_vec();
        aggregate::apply(&mut moved, &self.step(updates), 1.0);
        moved
    }
}
