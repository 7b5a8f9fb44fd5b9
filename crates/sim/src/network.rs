//! The network: a clock in blocks, the round machine's effects carried out, miners' arrivals.

use crate::chain::Chain;
use crate::miner::{Miner, Strategy};
use crate::problem::{Numbers, Problem};
use crate::report::{Report, Tally};
use alice_data::{draw_splits, epoch_seed, task_sequences, validation_seed};
use alice_primitives::{Hash, tagged_hash};
use alice_round::{Effect, Event, Rules, State, step};
use alice_score::{Candidate, OracleError, guarded_step, score_round};
use alice_spec::{RunSpec, TensorShape};
use alice_store::model_root;
use alice_update::{
    DecodeError, EncodeError, ErrorFeedback, Header, Layout, Sparse, Update, aggregate, decode, encode,
};
use std::collections::{BTreeMap, BTreeSet};

const GENESIS: Hash = [7; 32];
/// Sequences of training text and of the reserve.
const TRAINING: u64 = 1 << 24;
const RESERVE: u64 = 1 << 20;
/// Finality follows the best block at this distance.
const FINALITY_LAG: u32 = 2;
/// Epochs after which a round cannot be attested any more.
const LATE_WINDOW: u32 = 24;
/// `update.publish_bits` that stands for the aggregate as it is, in f32. No run may have it.
pub const EXACT: u8 = 32;
/// Noise of what a sequence says.
const NOISE: f32 = 1.0;

/// Why a simulation ended early. None of it is a miner's doing.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// Losses could not be computed.
    #[error(transparent)]
    Oracle(#[from] OracleError),
    /// An update could not be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The published aggregate does not decode: a bug.
    #[error("the published aggregate does not decode: {0}")]
    Published(#[from] DecodeError),
    /// The slices of an epoch do not suffice.
    #[error("the run has {tasks_max} tasks in an epoch, the machines have {keys} keys; take fewer machines")]
    Tasks {
        /// `round.tasks_max` of the run.
        tasks_max: u32,
        /// Keys of all machines.
        keys: usize,
    },
}

/// A finished round.
#[derive(Clone, Debug, PartialEq)]
pub struct Epoch {
    /// Its number.
    pub epoch: u32,
    /// Updates that arrived in time.
    pub submitted: u32,
    /// Accepted ones.
    pub accepted: u32,
    /// True loss of the model after it, nats.
    pub loss: f64,
    /// Step size of the model's step; zero if it was skipped.
    pub alpha: f32,
    /// Root of the model after it.
    pub root: Hash,
}

/// An update on its way.
#[derive(Clone, Debug)]
struct Arrival {
    block: u32,
    machine: usize,
    key: Hash,
    id: Hash,
    fragment: u32,
    bytes: Vec<u8>,
}

/// The round that is open or being decided.
#[derive(Clone, Debug)]
struct Round {
    deadline: u32,
    arrivals: Vec<Arrival>,
    seed: Hash,
}

/// A network of machines that train a [`Problem`].
#[derive(Debug)]
pub struct Network {
    spec: RunSpec,
    rules: Rules,
    problem: Problem,
    tensors: Vec<TensorShape>,
    whole: Layout,
    fragments: Vec<Layout>,
    theta: Vec<f32>,
    /// Of the round before: what [`Strategy::Stale`] trains on.
    theta_before: Vec<f32>,
    root: Hash,
    last_aggregate: Sparse,
    median_norms: Vec<Option<f32>>,
    keys_with_accepted_work: BTreeSet<Hash>,
    machines: Vec<Miner>,
    state: State,
    round: Option<Round>,
    block: u32,
    chain: Chain,
    scores: BTreeMap<u32, BTreeMap<u32, u64>>,
    epochs: Vec<Epoch>,
    tallies: Vec<Tally>,
    published_bytes: u64,
}

impl Network {
    /// A network of these machines before its first round. The same arguments give the same history.
    pub fn new(spec: RunSpec, machines: &[Strategy], seed: u64) -> Result<Self, SimError> {
        let keys: usize = machines.iter().map(|m| m.keys() as usize).sum();
        if keys > spec.round.tasks_max as usize {
            return Err(SimError::Tasks {
                tasks_max: spec.round.tasks_max,
                keys,
            });
        }
        let (whole, tensors) = (Layout::from_spec(&spec), spec.tensors());
        let fragments: Vec<Layout> = (0..spec.task.fragments)
            .map(|p| whole.fragment(spec.fragment_tensors(p)))
            .collect();
        let problem = Problem::new(whole.total(), NOISE, seed);
        let theta = problem.first_theta();
        let miner = |(number, strategy): (u64, &Strategy)| Miner {
            strategy: *strategy,
            feedback: fragments
                .iter()
                .map(|layout| ErrorFeedback::new(layout.covered()))
                .collect(),
            numbers: Numbers::new(seed ^ (number + 1).wrapping_mul(0x2545_f491_4f6c_dd1d)),
        };
        Ok(Self {
            rules: Rules::new(&spec, LATE_WINDOW),
            root: model_root(&tensors, &theta),
            theta_before: theta.clone(),
            last_aggregate: Sparse::default(),
            median_norms: vec![None; fragments.len()],
            keys_with_accepted_work: BTreeSet::new(),
            machines: (0..).zip(machines).map(miner).collect(),
            state: State::default(),
            round: None,
            block: 0,
            chain: Chain::default(),
            scores: BTreeMap::new(),
            epochs: Vec::new(),
            tallies: machines.iter().map(|_| Tally::default()).collect(),
            published_bytes: 0,
            spec,
            problem,
            tensors,
            whole,
            fragments,
            theta,
        })
    }

    /// Lets the clock run until so many more rounds are decided and paid.
    pub fn run(&mut self, rounds: u32) -> Result<(), SimError> {
        let wanted = self.epochs.len() + rounds as usize;
        while self.epochs.len() < wanted || !self.state.settlements.is_empty() {
            self.advance(self.epochs.len() < wanted)?;
        }
        Ok(())
    }

    /// One block. No new round opens unless `may_open`.
    pub fn advance(&mut self, may_open: bool) -> Result<(), SimError> {
        self.block += 1;
        self.feed(Event::Head {
            best: self.block,
            finalized: self.block.saturating_sub(FINALITY_LAG),
            may_open,
        })
    }

    /// Forgets what the server has in memory and restores it from what its store holds, as after a crash.
    pub fn restart(&mut self) {
        let unsettled: Vec<u32> = self.state.settlements.keys().copied().collect();
        self.state = State::restore(self.state.round, unsettled);
    }

    /// What happened so far.
    pub fn report(&self) -> Report {
        Report::new(&self.machines, &self.tallies, &self.chain, &self.epochs)
    }

    /// Bytes of all published aggregates.
    pub fn published_bytes(&self) -> u64 {
        self.published_bytes
    }

    /// True loss of the first model.
    pub fn first_loss(&self) -> f64 {
        self.problem.true_loss(&self.problem.first_theta())
    }

    fn feed(&mut self, event: Event) -> Result<(), SimError> {
        let mut events = std::collections::VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let (state, effects) = step(std::mem::take(&mut self.state), event, &self.rules);
            self.state = state;
            for effect in effects {
                events.extend(self.carry_out(effect)?);
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect) -> Result<Option<Event>, SimError> {
        let block = self.block;
        Ok(match effect {
            Effect::Open { epoch, deadline } => {
                self.open(epoch, deadline)?;
                None
            }
            Effect::Seal { .. } => {
                if let Some(round) = &mut self.round {
                    for late in round.arrivals.extract_if(.., |a| a.block >= round.deadline) {
                        if let Some(tally) = self.tallies.get_mut(late.machine) {
                            tally.refuse("late");
                        }
                    }
                }
                None
            }
            Effect::FetchSeed { epoch, first, last } => {
                let vrf = |number: u32| tagged_hash("alice/sim/vrf", &[&GENESIS, &number.to_le_bytes()]);
                let outputs: Vec<Hash> = (first..=last).map(vrf).collect();
                if let Some(round) = &mut self.round {
                    round.seed = validation_seed(&outputs);
                }
                Some(Event::SeedReady { epoch })
            }
            Effect::Score { epoch } => {
                let attest = self.score(epoch)?;
                Some(Event::Scored { epoch, attest })
            }
            Effect::Follow { epoch } => {
                let status = self.chain.status(epoch, block);
                Some(Event::Chain { epoch, status })
            }
            Effect::Attest { epoch } => {
                self.chain.attest(epoch, block);
                None
            }
            Effect::Pay { epoch } => {
                let none = BTreeMap::new();
                self.chain.pay(epoch, self.scores.get(&epoch).unwrap_or(&none), block);
                None
            }
            // The simulated chain keeps its blocks, so the seed of a round is never missing.
            Effect::Record { .. } | Effect::Void { .. } => None,
        })
    }

    /// Every machine claims its tasks, trains and sends.
    fn open(&mut self, epoch: u32, deadline: u32) -> Result<(), SimError> {
        let mut claims: Vec<(Hash, usize, Hash)> = Vec::new();
        for (machine, miner) in self.machines.iter_mut().enumerate() {
            if !miner.takes_part() {
                continue;
            }
            for number in 0..miner.strategy.keys() {
                let key = tagged_hash("alice/sim/key", &[&machine.to_le_bytes(), &number.to_le_bytes()]);
                let order = tagged_hash("alice/sim/claim", &[&key, &epoch.to_le_bytes()]);
                claims.push((order, machine, key));
            }
        }
        // The order in which keys ask is chance; slices go by it.
        claims.sort_unstable();
        let seed = epoch_seed(&GENESIS, &self.spec.run_hash(), epoch);
        let mut sent: BTreeMap<usize, (u32, Vec<f32>)> = BTreeMap::new();
        let mut arrivals = Vec::new();
        for (slice, (_, machine, key)) in (0u32..).zip(claims) {
            let fragment = self.spec.fragment_of(epoch, slice);
            let id = tagged_hash("alice/sim/id", &[&key, &epoch.to_le_bytes()]);
            let known = sent.get(&machine);
            if known.is_some_and(|(of, _)| *of != fragment) {
                // What it trained is of no use for this key's task.
                continue;
            }
            let combined = match known {
                Some((_, combined)) => combined.clone(),
                None => self.work(machine, fragment, &task_sequences(&self.spec, TRAINING, &seed, slice))?,
            };
            let bytes = self.send(machine, fragment, epoch, id, &combined, sent.contains_key(&machine))?;
            sent.insert(machine, (fragment, combined));
            let Some(miner) = self.machines.get_mut(machine) else {
                continue;
            };
            let block = match miner.strategy {
                Strategy::Late => deadline,
                _ => self.block + 1 + (miner.numbers.bits() % u64::from(deadline - self.block - 1)) as u32,
            };
            arrivals.push(Arrival {
                block,
                machine,
                key,
                id,
                fragment,
                bytes,
            });
        }
        self.round = Some(Round {
            deadline,
            arrivals,
            seed: [0; 32],
        });
        Ok(())
    }

    /// What a machine encodes for a task: d and its residual, or what it has instead.
    fn work(&mut self, machine: usize, fragment: u32, sequences: &[u64]) -> Result<Vec<f32>, SimError> {
        let (Some(miner), Some(layout), Some(tally)) = (
            self.machines.get_mut(machine),
            self.fragments.get(fragment as usize),
            self.tallies.get_mut(machine),
        ) else {
            return Ok(Vec::new());
        };
        tally.work += miner.strategy.work();
        let covered = layout.covered();
        let batches: Vec<&[u64]> = sequences.chunks(self.spec.inner.batch_sequences as usize).collect();
        let train = |theta: &[f32], batches: &[&[u64]]| self.problem.train(theta, covered.clone(), batches);
        let noise = |numbers: &mut Numbers| covered.clone().map(|_| 0.1 * numbers.normal()).collect::<Vec<f32>>();
        let d = match miner.strategy {
            Strategy::Lazy => train(&self.theta, batches.get(..batches.len() / 8).unwrap_or_default()),
            Strategy::Negated => train(&self.theta, &batches).iter().map(|v| -v).collect(),
            Strategy::Inflated => train(&self.theta, &batches).iter().map(|v| 1000.0 * v).collect(),
            Strategy::Stale => train(&self.theta_before, &batches),
            Strategy::Noise | Strategy::Garbage => noise(&mut miner.numbers),
            Strategy::Replay if self.last_aggregate.indices.is_empty() => noise(&mut miner.numbers),
            Strategy::Replay => {
                let mut d = vec![0.0; covered.len()];
                for (index, value) in self.last_aggregate.indices.iter().zip(&self.last_aggregate.values) {
                    let at = (*index as usize).checked_sub(covered.start);
                    if let Some(slot) = at.and_then(|at| d.get_mut(at)) {
                        *slot = *value;
                    }
                }
                d
            }
            _ => train(&self.theta, &batches),
        };
        Ok(match miner.feedback.get(fragment as usize) {
            Some(feedback) => feedback.combine(&d),
            None => d,
        })
    }

    /// Encodes and commits. `again`: the same work under another key, which leaves the residual alone.
    fn send(
        &mut self,
        machine: usize,
        fragment: u32,
        epoch: u32,
        id: Hash,
        combined: &[f32],
        again: bool,
    ) -> Result<Vec<u8>, SimError> {
        let (Some(miner), Some(layout)) = (self.machines.get_mut(machine), self.fragments.get(fragment as usize))
        else {
            return Ok(Vec::new());
        };
        if miner.strategy == Strategy::Garbage {
            return Ok((0..4096).map(|_| miner.numbers.bits() as u8).collect());
        }
        let header = Header {
            run_hash: self.spec.run_hash(),
            epoch,
            base_root: self.root,
        };
        let encoded = encode(layout, &self.spec.update, &header, combined)?;
        let decay = self.spec.update.feedback_decay as f32;
        if let Some(feedback) = miner.feedback.get_mut(fragment as usize).filter(|_| !again) {
            feedback.commit(id, combined.to_vec(), &encoded.sent, decay);
        }
        Ok(encoded.bytes)
    }

    /// Decides the round and makes the model's step (docs/spec/protocol.md#scoring). Whether somebody is to be paid.
    fn score(&mut self, epoch: u32) -> Result<bool, SimError> {
        let Some(round) = self.round.take() else {
            return Ok(false);
        };
        let (split, guard_split) = draw_splits(&self.spec, &round.seed, RESERVE);
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
                Err(code) => self.verdict(arrival, None, Some(code)),
            }
        }
        let decided = score_round(
            &mut self.problem,
            &self.spec,
            &mut self.theta,
            &split,
            &candidates,
            &self.median_norms,
            &mut |_| (),
        )?;
        let scores = self.scores.entry(epoch).or_default();
        let mut verdicts = Vec::new();
        for decision in &decided.decisions {
            let Some(arrival) = round.arrivals.iter().find(|a| a.id == decision.id) else {
                continue;
            };
            if decision.accepted {
                *scores.entry(arrival.machine as u32).or_default() += decision.score;
                self.keys_with_accepted_work.insert(arrival.key);
            }
            let refusal = (!decision.accepted).then_some(match decision.outcome {
                alice_score::Outcome::Degenerate => "degenerate",
                _ => "no improvement",
            });
            verdicts.push((arrival, decision.score, refusal));
        }
        let attest = scores.values().any(|score| *score > 0);
        for (arrival, score, refusal) in verdicts {
            self.verdict(arrival, Some(score), refusal);
        }
        candidates.sort_unstable_by_key(|c| c.id);
        let accepted: Vec<(Hash, u32, &Update, f32)> = candidates
            .iter()
            .zip(&decided.decisions)
            .filter(|(_, decision)| decision.accepted)
            .map(|(c, decision)| (c.id, c.fragment, &c.update, decision.factor))
            .collect();
        let alpha = self.step(&accepted, &guard_split)?;
        for (kept, now) in self.median_norms.iter_mut().zip(&decided.median_norms) {
            *kept = now.or(*kept);
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

    fn read(&self, arrival: &Arrival, epoch: u32) -> Result<Update, &'static str> {
        let layout = self.fragments.get(arrival.fragment as usize).ok_or("malformed")?;
        let update = decode(layout, &self.spec.update, &arrival.bytes).map_err(|_| "malformed")?;
        match update.header.base_root == self.root && update.header.epoch == epoch {
            true => Ok(update),
            false => Err("wrong base"),
        }
    }

    /// Tells a miner what came of its update.
    fn verdict(&mut self, arrival: &Arrival, score: Option<u64>, refusal: Option<&'static str>) {
        if let Some(tally) = self.tallies.get_mut(arrival.machine) {
            match refusal {
                Some(code) => tally.refuse(code),
                None => tally.accept(score.unwrap_or_default()),
            }
        }
        let feedback = self.machines.get_mut(arrival.machine);
        if let Some(feedback) = feedback.and_then(|m| m.feedback.get_mut(arrival.fragment as usize)) {
            match refusal {
                Some(_) => feedback.refused(arrival.id),
                None => feedback.accepted(arrival.id),
            }
        }
    }

    /// Mean, publication, guard, step, root. The α of the step.
    fn step(&mut self, accepted: &[(Hash, u32, &Update, f32)], guard_split: &[u32]) -> Result<f32, SimError> {
        self.theta_before.clone_from(&self.theta);
        if accepted.is_empty() {
            return Ok(0.0);
        }
        let ids: Vec<Hash> = accepted.iter().map(|a| a.0).collect();
        let mean = aggregate::WeightedMean {
            fragments: &self.fragments,
            updates: accepted.iter().map(|a| (a.1, a.2, a.3)).collect(),
            entry_weight: self.spec.outer.entry_weight,
        };
        let d = match self.spec.update.publish_bits {
            EXACT => Sparse::of(&mean),
            bits => {
                let seed = aggregate::rounding_seed(&self.root, &ids);
                let published = aggregate::encode_aggregate(&self.whole, bits, &mean, seed);
                self.published_bytes += published.len() as u64;
                aggregate::decode_aggregate(&self.whole, &published)?
            }
        };
        let (alpha, z) = (self.spec.outer.alpha as f32, self.spec.score.z);
        let guard = guarded_step(&mut self.problem, &mut self.theta, &d, alpha, z, guard_split)?;
        aggregate::apply(&mut self.theta, &d, guard.alpha_used);
        self.root = model_root(&self.tensors, &self.theta);
        self.last_aggregate = d;
        Ok(guard.alpha_used)
    }
}
