//! The simulation: a virtual clock in blocks, the effects of the round machine, and the miners' arrivals.
//!
//! A block is one call of [`Simulation::advance`]. It feeds the head to `alice_round::step` and carries out the
//! effects; effects that have an answer (a seed, a scored round, the chain's status) feed it back until nothing is left
//! to do. So a round takes the same path as on the server, and only the ends are scripted: [`Problem`] for the language
//! model, [`Chain`] for the chain, [`Strategy`] for the miners.

mod scoring;
mod training;

use crate::chain::Chain;
use crate::miner::{Miner, Strategy};
use crate::problem::{Numbers, Problem};
use crate::report::{Report, Tally};
use alice_data::validation_seed;
use alice_primitives::{Hash, tagged_hash};
use alice_round::{Effect, Event, Rules, State, step};
use alice_score::OracleError;
use alice_spec::{RunSpec, TensorShape};
use alice_store::model_root;
use alice_update::{DecodeError, EncodeError, ErrorFeedback, Layout, Sparse};
use std::collections::{BTreeMap, BTreeSet};

/// Genesis hash of the simulated chain.
const GENESIS: Hash = [7; 32];
/// Sequences of the training text, far more than the tasks of a simulation draw.
const TRAINING_SEQUENCES: u64 = 1 << 24;
/// Sequences of the validation reserve, the held-out text.
const RESERVE_SEQUENCES: u64 = 1 << 20;
/// Distance of the finalised block from the best one, blocks.
const FINALITY_LAG_BLOCKS: u32 = 2;
/// Epochs after which a round cannot be attested any more; the chain's default.
const LATE_WINDOW_EPOCHS: u32 = 24;
/// A value of `update.publish_bits` that no run may have: the step uses the mean itself, unrounded. It shows the cost
/// of rounding.
pub const EXACT: u8 = 32;
/// Standard deviation of a sequence's noise around the minimum.
// As large as the first distance to the minimum, whose variance is 1: a sequence says as much about itself as about the
// truth.
const NOISE: f32 = 1.0;

/// Why a simulation ended early. Scripted miners cannot cause any of these.
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
    /// More keys than an epoch has slices.
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
    /// Number of the epoch.
    pub epoch: u32,
    /// Updates that arrived in time.
    pub submitted: u32,
    /// Accepted updates.
    pub accepted: u32,
    /// True loss of the model after the round, nats.
    pub loss: f64,
    /// Step size of the model's step; zero if it was skipped.
    pub alpha: f32,
    /// Root of the model after the round.
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

/// A network of machines that train a [`Problem`], in one process.
#[derive(Debug)]
pub struct Simulation {
    spec: RunSpec,
    rules: Rules,
    problem: Problem,
    tensors: Vec<TensorShape>,
    whole: Layout,
    fragments: Vec<Layout>,
    theta: Vec<f32>,
    /// Weights of the round before, on which [`Strategy::Stale`] trains.
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

impl Simulation {
    /// A simulation of these machines before its first round. The same arguments give the same history.
    pub fn new(spec: RunSpec, machines: &[Strategy], seed: u64) -> Result<Self, SimError> {
        // Each key needs a slice of its own in every epoch.
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
            // A stream of its own for each machine, so that adding one does not change the draws of the others.
            numbers: Numbers::new(seed ^ (number + 1).wrapping_mul(0x2545_f491_4f6c_dd1d)),
        };
        Ok(Self {
            rules: Rules::new(&spec, LATE_WINDOW_EPOCHS),
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

    /// Lets the clock run until `rounds` more rounds are decided and paid.
    pub fn run(&mut self, rounds: u32) -> Result<(), SimError> {
        let target = self.epochs.len() + rounds as usize;
        // Until the last settlement too, or the report would lack the pay of the last rounds.
        while self.epochs.len() < target || !self.state.settlements.is_empty() {
            self.advance(self.epochs.len() < target)?;
        }
        Ok(())
    }

    /// Makes one block. No new round opens unless `may_open`.
    pub fn advance(&mut self, may_open: bool) -> Result<(), SimError> {
        self.block += 1;
        self.feed(Event::Head {
            best: self.block,
            finalized: self.block.saturating_sub(FINALITY_LAG_BLOCKS),
            may_open,
        })
    }

    /// Drops the server's memory and restores it from its store, as after a crash.
    pub fn restart(&mut self) {
        let unsettled: Vec<u32> = self.state.settlements.keys().copied().collect();
        self.state = State::restore(self.state.round, unsettled);
    }

    /// Report of all rounds so far.
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

    /// Takes an event through the round machine, and the events that its effects answer with, until none is left.
    fn feed(&mut self, event: Event) -> Result<(), SimError> {
        // First in, first out: an event is handled before those that its effects cause.
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

    /// Refuses arrivals from the deadline on.
    fn drop_late_arrivals(&mut self) {
        let Some(round) = &mut self.round else {
            return;
        };
        for late in round.arrivals.extract_if(.., |arrival| arrival.block >= round.deadline) {
            if let Some(tally) = self.tallies.get_mut(late.machine) {
                tally.refuse("late");
            }
        }
    }

    /// Carries out an effect; the event that answers it, if it has one.
    fn carry_out(&mut self, effect: Effect) -> Result<Option<Event>, SimError> {
        let block = self.block;
        Ok(match effect {
            Effect::Open { epoch, deadline } => {
                self.open(epoch, deadline)?;
                None
            }
            Effect::Seal { .. } => {
                self.drop_late_arrivals();
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
                // By the best block, where a server asks the finalised one: this chain has no forks.
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
}
