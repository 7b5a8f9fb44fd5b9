//! Whole networks: the pay of cheats, learning in spite of them, and the same bits from the same history.

use alice_sim::{Report, Simulation, Strategy, spec};

fn run(fragments: u32, machines: &[(Strategy, usize)], rounds: u32) -> (Simulation, Report) {
    let machines: Vec<Strategy> = machines
        .iter()
        .flat_map(|(strategy, number)| vec![*strategy; *number])
        .collect();
    let mut network = Simulation::new(spec(fragments), &machines, 1).unwrap();
    network.run(rounds).unwrap();
    let report = network.report();
    (network, report)
}

fn pay_for_machine(report: &Report, strategy: Strategy) -> f64 {
    report.row(strategy).unwrap().pay_for_machine.unwrap()
}

#[test]
fn honest_miners_should_lower_the_loss_and_earn_alike() {
    for fragments in [1, 2] {
        let (network, report) = run(fragments, &[(Strategy::Honest, 6)], 12);
        let last = report.epochs.last().unwrap();
        assert_eq!(report.epochs.len(), 12);
        assert!(last.loss < network.first_loss() - 0.5, "{report}{last:?}");
        let row = report.row(Strategy::Honest).unwrap();
        assert!(row.accepted >= 70, "{report}");
        let budgets: u128 = report
            .epochs
            .iter()
            .map(|e| alice_primitives::emission::budget(e.epoch))
            .sum();
        // Shares are rounded down, by less than a planck for each payment.
        assert!(
            report.minted <= budgets && budgets - report.minted < 12 * 6,
            "{} {budgets}",
            report.minted
        );
    }
}

#[test]
fn cheats_should_earn_less_and_the_model_should_learn_in_spite_of_them() {
    let cheats = [
        Strategy::Negated,
        Strategy::Noise,
        Strategy::Replay,
        Strategy::Garbage,
        Strategy::Late,
        Strategy::Lazy,
    ];
    let mut machines = vec![(Strategy::Honest, 6), (Strategy::Inflated, 1)];
    machines.extend(cheats.map(|strategy| (strategy, 1)));
    let (network, report) = run(1, &machines, 16);
    assert!(report.epochs.last().unwrap().loss < network.first_loss() - 0.5);
    for strategy in [Strategy::Negated, Strategy::Noise, Strategy::Garbage, Strategy::Late] {
        assert!(pay_for_machine(&report, strategy) < 0.05, "{report}");
    }
    assert_eq!(report.row(Strategy::Garbage).unwrap().refused["malformed"], 16);
    assert_eq!(report.row(Strategy::Late).unwrap().refused["late"], 16);
    assert!(pay_for_machine(&report, Strategy::Lazy) < 0.8, "{report}");
    // Magnitude pays nobody.
    assert!(pay_for_machine(&report, Strategy::Inflated) < 1.05, "{report}");
}

#[test]
fn the_same_history_should_have_the_same_bits_and_a_restart_should_change_nothing() {
    let machines = [
        (Strategy::Honest, 3),
        (Strategy::Churning, 2),
        (Strategy::Negated, 1),
        (Strategy::FourKeys, 1),
    ];
    let (_, report) = run(2, &machines, 6);
    assert_eq!(run(2, &machines, 6).1, report);
    // The server crashes after every block.
    let all: Vec<Strategy> = machines.iter().flat_map(|(s, n)| vec![*s; *n]).collect();
    let mut network = Simulation::new(spec(2), &all, 1).unwrap();
    while network.report().epochs.len() < 6 {
        network.advance(true).unwrap();
        network.restart();
    }
    assert_eq!(network.report().epochs, report.epochs);
    assert_ne!(
        Simulation::new(spec(2), &all, 2).unwrap().first_loss(),
        network.first_loss()
    );
}

#[test]
fn rounding_the_published_aggregate_should_cost_little() {
    let loss = |bits: u8| {
        let mut spec = spec(1);
        spec.update.publish_bits = bits;
        let mut network = Simulation::new(spec, &[Strategy::Honest; 24], 1).unwrap();
        network.run(8).unwrap();
        network.report().epochs.last().unwrap().loss - 3.0
    };
    let exact = loss(alice_sim::EXACT);
    for bits in [8, 4] {
        let of_bits = loss(bits);
        assert!((of_bits / exact - 1.0).abs() < 0.1, "{bits} bits: {of_bits} {exact}");
    }
}

#[test]
fn more_keys_than_tasks_should_be_an_error() {
    let error = Simulation::new(spec(1), &[Strategy::FourKeys; 65], 1).unwrap_err();
    assert!(error.to_string().contains("256 tasks"), "{error}");
}
