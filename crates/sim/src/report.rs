//! What a simulation comes to.

use crate::chain::Chain;
use crate::miner::{Miner, Strategy};
use crate::network::Epoch;
use std::collections::BTreeMap;
use std::fmt;

/// What a machine did and got.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Tasks' worth of training.
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

/// All machines that behave the same way.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Their way.
    pub strategy: Strategy,
    /// Machines.
    pub machines: u32,
    /// Tasks' worth of training that they did.
    pub work: f64,
    /// Their accepted updates.
    pub accepted: u32,
    /// Their refused ones by reason.
    pub refused: BTreeMap<&'static str, u32>,
    /// Planck that they were paid.
    pub paid: u128,
    /// Pay for a task's worth of training, over that of honest miners. None where one of the two did no work.
    pub pay_for_work: Option<f64>,
    /// Pay for a machine, over that of an honest one.
    pub pay_for_machine: Option<f64>,
}

/// A simulation's outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// One row for each way to behave.
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

    /// The row of a way to behave.
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
