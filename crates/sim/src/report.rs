//! Result of a simulation: work, accepted updates and pay by strategy.

use crate::chain::Chain;
use crate::miner::{Miner, Strategy};
use crate::simulation::Epoch;
use std::collections::BTreeMap;
use std::fmt;

/// Work and verdicts of one machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Training done, in tasks.
    pub work: f64,
    accepted: u32,
    score: u64,
    refused: BTreeMap<&'static str, u32>,
}

impl Tally {
    pub fn accept(&mut self, score: u64) {
        self.accepted += 1;
        self.score += score;
    }

    pub fn refuse(&mut self, code: &'static str) {
        *self.refused.entry(code).or_default() += 1;
    }
}

/// Totals of all machines with the same strategy.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The strategy.
    pub strategy: Strategy,
    /// Number of machines.
    pub machines: u32,
    /// Training done, in tasks.
    pub work: f64,
    /// Accepted updates.
    pub accepted: u32,
    /// Refused updates by reason.
    pub refused: BTreeMap<&'static str, u32>,
    /// Pay, planck.
    pub paid: u128,
    /// Pay for a task's worth of training relative to honest miners. `None` if either did no work.
    pub pay_for_work: Option<f64>,
    /// Pay for a machine relative to an honest one. `None` without honest machines.
    pub pay_for_machine: Option<f64>,
}

/// Result of a simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// One row for each strategy.
    pub rows: Vec<Row>,
    /// Finished rounds.
    pub epochs: Vec<Epoch>,
    /// Planck minted in all.
    pub minted: u128,
}

impl Report {
    pub(crate) fn new(machines: &[Miner], tallies: &[Tally], chain: &Chain, epochs: &[Epoch]) -> Self {
        let mut rows: BTreeMap<Strategy, Row> = BTreeMap::new();
        for (number, (miner, tally)) in (0u32..).zip(machines.iter().zip(tallies)) {
            let row = rows.entry(miner.strategy).or_insert_with(|| Row {
                strategy: miner.strategy,
                machines: 0,
                work: 0.0,
                accepted: 0,
                refused: BTreeMap::new(),
                paid: 0,
                pay_for_work: None,
                pay_for_machine: None,
            });
            row.machines += 1;
            row.work += tally.work;
            row.accepted += tally.accepted;
            row.paid += chain.balances.get(&number).copied().unwrap_or_default();
            for (code, count) in &tally.refused {
                *row.refused.entry(code).or_default() += count;
            }
        }
        let of = |row: &Row| {
            let paid = row.paid as f64;
            let per_work = (row.work > 0.0).then(|| paid / row.work);
            (per_work, paid / f64::from(row.machines))
        };
        let honest = rows.get(&Strategy::Honest).map(of);
        for row in rows.values_mut() {
            let (per_work, per_machine) = of(row);
            if let Some((Some(honest_work), honest_machine)) = honest {
                row.pay_for_work = per_work.map(|pay| pay / honest_work);
                row.pay_for_machine = Some(per_machine / honest_machine);
            }
        }
        Self {
            rows: rows.into_values().collect(),
            epochs: epochs.to_vec(),
            minted: chain.minted,
        }
    }

    /// Row of a strategy; `None` if no machine has it.
    pub fn row(&self, strategy: Strategy) -> Option<&Row> {
        self.rows.iter().find(|row| row.strategy == strategy)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| behaves | machines | accepted | refused | pay for a machine | pay for work |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        let ratio = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
        for row in &self.rows {
            let refused: Vec<String> = row.refused.iter().map(|(code, n)| format!("{n} {code}")).collect();
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {} |",
                row.strategy,
                row.machines,
                row.accepted,
                refused.join(", "),
                ratio(row.pay_for_machine),
                ratio(row.pay_for_work)
            )?;
        }
        Ok(())
    }
}
