//! Recomputes the worked round of `docs/spec/scoring.md` from its tables, so that page and code cannot drift apart.

use alice_score::{Candidate, LossOracle, OracleError, Outcome, RoundScore, score_round};
use alice_spec::RunSpec;
use alice_update::Sparse;
use std::collections::BTreeMap;

const PAGE: &str = include_str!("../../../docs/spec/scoring.md");
/// Half a unit of the last digit that the page gives.
const TOLERANCE: f64 = 5e-7;

type Table = Vec<Vec<String>>;

/// Cells of the four tables between the markers, without header rows: input, decisions, reference norms, shares.
fn tables() -> [Table; 4] {
    let (_, block) = PAGE.split_once("<!-- worked-round:begin -->").unwrap();
    let (block, _) = block.split_once("<!-- worked-round:end -->").unwrap();
    let mut tables: Vec<Table> = Vec::new();
    let mut in_table = false;
    for line in block.lines() {
        if line.starts_with("|---") {
            tables.push(Vec::new());
            in_table = true;
        } else if let (true, Some(row)) = (in_table, line.strip_prefix('|')) {
            let cells = row.trim_end().trim_end_matches('|').split('|');
            let cells = cells.map(|cell| cell.trim().to_owned()).collect();
            tables.last_mut().unwrap().push(cells);
        } else {
            in_table = false;
        }
    }
    tables.try_into().unwrap()
}

fn number(cell: &str) -> f64 {
    cell.parse().unwrap_or_else(|_| panic!("'{cell}' is not a number"))
}

fn assert_close(found: f64, cell: &str, row: &[String]) {
    assert!((found - number(cell)).abs() <= TOLERANCE, "{found} in {row:?}");
}

/// Losses from the page: θ first, then the updates in the order of their ids.
struct Script(Vec<Vec<f64>>);

impl LossOracle for Script {
    fn losses(&mut self, _: &[f32], _: &[u32]) -> Result<Vec<f64>, OracleError> {
        Ok(self.0.remove(0))
    }
}

/// Decides the round of the input table; `norms` has ν before the round in its second column.
fn decide(input: &Table, norms: &Table) -> RoundScore {
    let candidates: Vec<Candidate<Sparse>> = input[1..]
        .iter()
        .map(|row| Candidate {
            id: [number(&row[0]) as u8; 32],
            miner: [row[1].as_bytes()[0]; 32],
            has_accepted_work: row[2] == "yes",
            fragment: number(&row[3]) as u32,
            update: Sparse {
                indices: vec![0],
                values: vec![number(&row[4]) as f32],
            },
        })
        .collect();
    let losses = input.iter().map(|row| row[5..].iter().map(|loss| number(loss)));
    let mut oracle = Script(losses.map(Iterator::collect).collect());
    let before: Vec<Option<f32>> = norms.iter().map(|row| row[1].parse().ok()).collect();
    let mut spec = RunSpec::parse(alice_spec::preset("dev").unwrap()).unwrap();
    spec.task.fragments = 2;
    (spec.score.probe, spec.score.z, spec.outer.alpha) = (0.2, 1.64, 1.0);
    let split = [0, 1, 2, 3];
    score_round(
        &mut oracle,
        &spec,
        &mut [0.0],
        &split,
        &candidates,
        &before,
        &mut |_| (),
    )
    .unwrap()
}

#[test]
fn worked_round_should_be_what_the_code_decides() {
    let [input, expected, norms, _] = tables();
    let round = decide(&input, &norms);
    assert_eq!(round.decisions.len(), expected.len());
    for (decision, row) in round.decisions.iter().zip(&expected) {
        assert_eq!(decision.id[0], number(&row[0]) as u8);
        assert_close(decision.factor.into(), &row[1], row);
        assert_close(decision.improvement, &row[2], row);
        assert_close(decision.standard_error, &row[3], row);
        // Threshold and pooled evidence are in the reason only, with two digits.
        let threshold = format!("{:.2} standard errors", number(&row[5]));
        assert!(decision.detail.contains(&threshold), "{}", decision.detail);
        match decision.detail.split_once("together reach ") {
            Some((_, evidence)) => assert_eq!(evidence, format!("{:.2}", number(&row[4]))),
            None => assert_close(decision.improvement / decision.standard_error, &row[4], row),
        }
        let outcome = match decision.outcome {
            Outcome::Accepted => "accepted",
            Outcome::NoImprovement => "no_improvement",
            Outcome::Degenerate => "degenerate",
        };
        assert_eq!((outcome, decision.score.to_string()), (row[6].as_str(), row[7].clone()));
    }
    for (norm, row) in round.median_norms.iter().zip(&norms) {
        assert_close(norm.unwrap().into(), &row[2], row);
    }
}

#[test]
fn worked_shares_should_be_the_scores_over_their_sum() {
    let [input, _, norms, shares] = tables();
    let mut scores: BTreeMap<String, u64> = BTreeMap::new();
    for (decision, row) in decide(&input, &norms).decisions.iter().zip(&input[1..]) {
        *scores.entry(row[1].clone()).or_default() += decision.score;
    }
    let total: u64 = scores.values().sum();
    let found: Table = scores
        .into_iter()
        .map(|(key, score)| {
            let share = 100.0 * score as f64 / total as f64;
            vec![key, score.to_string(), format!("{share:.4} %")]
        })
        .collect();
    assert_eq!(found, shares);
}
