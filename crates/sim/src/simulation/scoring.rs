//! The server's half of a round: read, score, step the model (docs/spec/protocol.md#scoring).

use super::{Arrival, EXACT, Epoch, RESERVE_SEQUENCES, Round, SimError, Simulation};
use alice_data::draw_splits;
use alice_score::{Candidate, Decision, Outcome, confirm_step, guarded_step, score_round};
use alice_store::model_root;
use alice_update::aggregate::{self, AcceptedUpdate, AggregateRules, WeightedMean, aggregate_round};
use alice_update::{Sparse, Update, decode};

impl Simulation {
    /// Decides the round and makes the model's step. Whether somebody is to be paid.
    pub(super) fn score(&mut self, epoch: u32) -> Result<bool, SimError> {
        let Some(round) = self.round.take() else {
            return Ok(false);
        };
        let (scoring_split, guard_split) = draw_splits(&self.spec, &round.seed, RESERVE_SEQUENCES);
        let mut candidates = self.candidates(&round, epoch);
        let decided = score_round(
            &mut self.problem,
            &self.spec,
            &mut self.theta,
            &scoring_split,
            &candidates,
            &self.median_norms,
            &mut |_| (),
        )?;
        let attest = self.deliver_verdicts(epoch, &round, &decided.decisions);
        // Decisions are in this order.
        candidates.sort_unstable_by_key(|candidate| candidate.id);
        let accepted: Vec<AcceptedUpdate<'_, Update>> = candidates
            .iter()
            .zip(&decided.decisions)
            .filter(|(_, decision)| decision.accepted)
            .map(|(candidate, decision)| AcceptedUpdate {
                id: candidate.id,
                fragment: candidate.fragment,
                update: &candidate.update,
                factor: decision.factor,
            })
            .collect();
        let alpha = self.take_step(&accepted, &scoring_split, &guard_split, &decided.losses_before)?;
        for (norm, now) in self.median_norms.iter_mut().zip(&decided.median_norms) {
            *norm = now.or(*norm);
        }
        self.epochs.push(Epoch {
            epoch,
            submitted: round.arrivals.len() as u32,
            accepted: accepted.len() as u32,
            loss: self.problem.true_loss(&self.theta),
            alpha,
            root: self.root,
        });
        Ok(attest)
    }

    /// Arrivals that can be read, as candidates; the others get their verdict at once.
    fn candidates(&mut self, round: &Round, epoch: u32) -> Vec<Candidate<Update>> {
        let mut candidates = Vec::new();
        for arrival in &round.arrivals {
            match self.read(arrival, epoch) {
                Ok(update) => candidates.push(Candidate {
                    id: arrival.id,
                    miner: arrival.key,
                    has_accepted_work: self.keys_with_accepted_work.contains(&arrival.key),
                    fragment: arrival.fragment,
                    update,
                }),
                Err(code) => self.verdict(arrival, Err(code)),
            }
        }
        candidates
    }

    fn read(&self, arrival: &Arrival, epoch: u32) -> Result<Update, &'static str> {
        let layout = self.fragments.get(arrival.fragment as usize).ok_or("malformed")?;
        let update = decode(layout, &self.spec.update, &arrival.bytes).map_err(|_| "malformed")?;
        match update.header.base_root == self.root && update.header.epoch == epoch {
            true => Ok(update),
            false => Err("wrong base"),
        }
    }

    /// Adds up the scores of the epoch and gives every miner its verdict. Whether somebody is to be paid.
    fn deliver_verdicts(&mut self, epoch: u32, round: &Round, decisions: &[Decision]) -> bool {
        for decision in decisions {
            let Some(arrival) = round.arrivals.iter().find(|arrival| arrival.id == decision.id) else {
                continue;
            };
            let verdict = match decision.outcome {
                Outcome::Accepted => Ok(decision.score),
                Outcome::NoImprovement => Err("no improvement"),
                Outcome::Degenerate => Err("degenerate"),
            };
            if verdict.is_ok() {
                let scores = self.scores.entry(epoch).or_default();
                // By machine, as if its keys had one payout account: the report compares pay for a machine, under
                // however many keys.
                *scores.entry(arrival.machine as u32).or_default() += decision.score;
                self.keys_with_accepted_work.insert(arrival.key);
            }
            self.verdict(arrival, verdict);
        }
        let scores = self.scores.entry(epoch).or_default();
        scores.values().any(|score| *score > 0)
    }

    /// Gives a miner its verdict: the score, or the reason of the refusal.
    fn verdict(&mut self, arrival: &Arrival, verdict: Result<u64, &'static str>) {
        if let Some(tally) = self.tallies.get_mut(arrival.machine) {
            match verdict {
                Ok(score) => tally.accept(score),
                Err(code) => tally.refuse(code),
            }
        }
        let feedback = self.machines.get_mut(arrival.machine);
        if let Some(feedback) = feedback.and_then(|miner| miner.feedback.get_mut(arrival.fragment as usize)) {
            match verdict {
                Ok(_) => feedback.accepted(arrival.id),
                Err(_) => feedback.refused(arrival.id),
            }
        }
    }

    /// Aggregate, step guard, step, root: the server's own functions in the server's order. Returns α of the step.
    fn take_step(
        &mut self,
        accepted: &[AcceptedUpdate<'_, Update>],
        scoring_split: &[u32],
        guard_split: &[u32],
        losses_before: &[f64],
    ) -> Result<f32, SimError> {
        // Also without a step: stale miners lag by a round, not by a step.
        self.theta_before.clone_from(&self.theta);
        if accepted.is_empty() {
            return Ok(0.0);
        }
        let d = self.aggregate(accepted)?;
        let (alpha, z) = (self.spec.outer.alpha as f32, self.spec.score.z);
        let mut guard = guarded_step(&mut self.problem, &mut self.theta, &d, alpha, z, guard_split)?;
        confirm_step(
            &mut self.problem,
            &mut self.theta,
            &d,
            &mut guard,
            scoring_split,
            losses_before,
        )?;
        aggregate::apply(&mut self.theta, &d, guard.alpha_used);
        // Recomputed over all weights; the server updates its tree, to the same root.
        self.root = model_root(&self.tensors, &self.theta);
        self.last_aggregate = d;
        Ok(guard.alpha_used)
    }

    /// D of the round: as it is published, or the mean itself if the simulation publishes [`EXACT`] values.
    fn aggregate(&mut self, accepted: &[AcceptedUpdate<'_, Update>]) -> Result<Sparse, SimError> {
        let (entry_weight, publish_bits) = (self.spec.outer.entry_weight, self.spec.update.publish_bits);
        if publish_bits == EXACT {
            return Ok(Sparse::of(&WeightedMean {
                fragments: &self.fragments,
                updates: accepted.iter().map(|a| (a.fragment, a.update, a.factor)).collect(),
                entry_weight,
            }));
        }
        let rules = AggregateRules {
            layout: &self.whole,
            fragments: &self.fragments,
            entry_weight,
            publish_bits,
        };
        let published = aggregate_round(&rules, &self.root, accepted)?;
        self.published_bytes += published.bytes().len() as u64;
        Ok(Sparse::of(&published))
    }
}
