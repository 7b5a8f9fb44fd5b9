//! The miners' half of a round: claim, train, compress, send.

use super::{Arrival, GENESIS, Round, SimError, Simulation, TRAINING_SEQUENCES};
use crate::miner::Strategy;
use crate::problem::Numbers;
use alice_data::{epoch_seed, task_sequences};
use alice_primitives::{Hash, tagged_hash};
use alice_update::{Header, encode};
use std::collections::BTreeMap;

/// A key's request for a task.
struct Claim {
    machine: usize,
    key: Hash,
}

impl Simulation {
    /// Opens a round: every machine claims its tasks, trains and sends.
    pub(super) fn open(&mut self, epoch: u32, deadline: u32) -> Result<(), SimError> {
        let seed = epoch_seed(&GENESIS, &self.spec.run_hash(), epoch);
        let mut sent: BTreeMap<usize, (u32, Vec<f32>)> = BTreeMap::new();
        let mut arrivals = Vec::new();
        for (slice, Claim { machine, key }) in (0u32..).zip(self.claims(epoch)) {
            let fragment = self.spec.fragment_of(epoch, slice);
            let id = tagged_hash("alice/sim/id", &[&key, &epoch.to_le_bytes()]);
            // A machine with several keys trains once and sends the same work under each.
            let known = sent.get(&machine);
            if known.is_some_and(|(trained, _)| *trained != fragment) {
                // The machine trained another fragment: its work is of no use for this key's task.
                continue;
            }
            let combined = match known {
                Some((_, combined)) => combined.clone(),
                None => {
                    let sequences = task_sequences(&self.spec, TRAINING_SEQUENCES, &seed, slice);
                    self.train(machine, fragment, &sequences)?
                }
            };
            let is_copy = sent.contains_key(&machine);
            let bytes = self.send(machine, fragment, epoch, id, &combined, is_copy)?;
            sent.insert(machine, (fragment, combined));
            let Some(miner) = self.machines.get_mut(machine) else {
                continue;
            };
            let block = match miner.strategy {
                Strategy::Late => deadline,
                // Any block before the deadline.
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

    /// Claims of a round, in the order of their slices.
    fn claims(&mut self, epoch: u32) -> Vec<Claim> {
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
        // The server gives out slices in the order in which keys ask. A hash stands for that order: random, but the
        // same in every run.
        claims.sort_unstable();
        let claims = claims.into_iter();
        claims.map(|(_, machine, key)| Claim { machine, key }).collect()
    }

    /// The vector that a machine encodes for a task: its pseudo-gradient d and its residual, or whatever its strategy
    /// sends in place of d.
    fn train(&mut self, machine: usize, fragment: u32, sequences: &[u64]) -> Result<Vec<f32>, SimError> {
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
        // About the size of an honest update.
        let noise = |numbers: &mut Numbers| covered.clone().map(|_| 0.1 * numbers.normal()).collect::<Vec<f32>>();
        let d = match miner.strategy {
            Strategy::Lazy => train(&self.theta, batches.get(..batches.len() / 8).unwrap_or_default()),
            Strategy::Negated => train(&self.theta, &batches).iter().map(|v| -v).collect(),
            Strategy::Inflated => train(&self.theta, &batches).iter().map(|v| 1000.0 * v).collect(),
            Strategy::Stale => train(&self.theta_before, &batches),
            Strategy::Noise | Strategy::Garbage => noise(&mut miner.numbers),
            // Nothing is published before the first step.
            Strategy::Replay if self.last_aggregate.indices.is_empty() => noise(&mut miner.numbers),
            Strategy::Replay => {
                let mut d = vec![0.0; covered.len()];
                for (index, value) in self.last_aggregate.indices.iter().zip(&self.last_aggregate.values) {
                    let position = (*index as usize).checked_sub(covered.start);
                    if let Some(slot) = position.and_then(|position| d.get_mut(position)) {
                        *slot = *value;
                    }
                }
                d
            }
            Strategy::Honest | Strategy::Churning | Strategy::FourKeys | Strategy::Late => train(&self.theta, &batches),
        };
        Ok(match miner.feedback.get(fragment as usize) {
            Some(feedback) => feedback.combine(&d),
            None => d,
        })
    }

    /// Encodes and commits; the bytes that are sent. `is_copy`: the same work under another key, which leaves the
    /// residual alone.
    fn send(
        &mut self,
        machine: usize,
        fragment: u32,
        epoch: u32,
        id: Hash,
        combined: &[f32],
        is_copy: bool,
    ) -> Result<Vec<u8>, SimError> {
        let (Some(miner), Some(layout)) = (self.machines.get_mut(machine), self.fragments.get(fragment as usize))
        else {
            return Ok(Vec::new());
        };
        // Long enough for a header and many chunks, so that it is refused for its contents.
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
        // Committed once: it is one piece of work, under however many keys it is sent.
        if let Some(feedback) = miner.feedback.get_mut(fragment as usize).filter(|_| !is_copy) {
            feedback.commit(id, combined.to_vec(), &encoded.sent, decay);
        }
        Ok(encoded.bytes)
    }
}
