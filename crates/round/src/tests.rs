use super::*;
use proptest::prelude::*;

const RULES: Rules = Rules {
    epoch_blocks: 30,
    deadline_block: 18,
    seed_blocks: 2,
    open_margin_blocks: 8,
    late_window_epochs: 24,
};

fn head(best: u32) -> Event {
    Event::Head {
        best,
        finalized: best.saturating_sub(2),
        may_open: true,
    }
}

fn run(state: State, events: &[Event]) -> (State, Vec<Effect>) {
    let mut all = Vec::new();
    let mut state = state;
    for event in events {
        let (next, effects) = step(state, *event, &RULES);
        state = next;
        all.extend(effects);
    }
    (state, all)
}

fn at(epoch: u32, stage: Stage) -> State {
    State {
        round: Some((epoch, stage)),
        ..State::default()
    }
}

#[test]
fn a_round_should_go_through_all_stages_to_settled() {
    let (state, effects) = run(State::default(), &[head(61)]);
    assert_eq!(effects, [Effect::Open { epoch: 2, deadline: 78 }]);
    assert_eq!(state.phase(), Phase::Open);
    let (state, effects) = run(state, &[head(77)]);
    assert!(effects.is_empty());
    let (state, effects) = run(state, &[head(78), head(81)]);
    assert_eq!(effects, [Effect::Seal { epoch: 2 }]);
    assert_eq!(state.phase(), Phase::Sealed);
    let (state, effects) = run(state, &[head(82)]);
    assert_eq!(
        effects,
        [Effect::FetchSeed {
            epoch: 2,
            first: 79,
            last: 80
        }]
    );
    let (state, effects) = run(state, &[Event::SeedReady { epoch: 2 }, head(83)]);
    assert_eq!(effects, [Effect::Score { epoch: 2 }]);
    assert_eq!(state.phase(), Phase::Scoring);
    let (state, effects) = run(state, &[Event::Scored { epoch: 2, attest: true }, head(84), head(89)]);
    assert!(effects.is_empty(), "the epoch is not over");
    assert_eq!(state.phase(), Phase::Settling);
    let (state, effects) = run(state, &[head(90)]);
    assert_eq!(
        effects,
        [
            Effect::Open {
                epoch: 3,
                deadline: 108
            },
            Effect::Follow { epoch: 2 }
        ]
    );
    let chain = |status| Event::Chain { epoch: 2, status };
    let (state, effects) = run(state, &[chain(ChainStatus::Open), chain(ChainStatus::Open)]);
    assert_eq!(effects, [Effect::Attest { epoch: 2 }]);
    let (state, effects) = run(state, &[chain(ChainStatus::Accepted)]);
    assert_eq!(
        effects,
        [Effect::Record {
            epoch: 2,
            status: ChainStatus::Accepted
        }]
    );
    let (state, effects) = run(state, &[chain(ChainStatus::Final)]);
    assert_eq!(
        effects,
        [
            Effect::Record {
                epoch: 2,
                status: ChainStatus::Final
            },
            Effect::Pay { epoch: 2 }
        ]
    );
    let settled = ChainStatus::Settled { block: 95 };
    let (state, effects) = run(state, &[chain(settled)]);
    assert_eq!(
        effects,
        [Effect::Record {
            epoch: 2,
            status: settled
        }]
    );
    assert!(state.settlements.is_empty());
    assert_eq!(state.phase(), Phase::Open);
}

#[test]
fn a_round_should_open_late_only_with_the_margin() {
    for (block, opens) in [
        (60, true),
        (70, true),
        (71, false),
        (78, false),
        (89, false),
        (90, true),
    ] {
        let (_, effects) = run(State::default(), &[head(block)]);
        assert_eq!(effects.len(), usize::from(opens), "block {block}");
    }
    let shut = Event::Head {
        best: 60,
        finalized: 58,
        may_open: false,
    };
    assert!(run(State::default(), &[shut]).1.is_empty());
}

#[test]
fn a_round_should_open_once_an_epoch_and_not_before_the_last_is_scored() {
    let (state, effects) = run(State::default(), &[head(60), head(60), head(61)]);
    assert_eq!(effects.len(), 1);
    // Still scoring when the next epoch begins.
    let scoring = State {
        round: Some((2, Stage::Scoring)),
        ..state
    };
    let (state, effects) = run(scoring, &[head(90), head(95)]);
    assert!(effects.is_empty());
    let (state, effects) = run(
        state,
        &[
            Event::Scored {
                epoch: 2,
                attest: false,
            },
            head(96),
        ],
    );
    assert_eq!(
        effects,
        [Effect::Open {
            epoch: 3,
            deadline: 108
        }]
    );
    // Scored within its own epoch: no second round of the same epoch.
    let (_, effects) = run(
        State {
            round: Some((3, Stage::Scored)),
            ..state
        },
        &[head(97)],
    );
    assert!(effects.is_empty());
}

#[test]
fn a_reorganisation_should_not_take_the_deadline_back() {
    let (state, _) = run(State::default(), &[head(60), head(78)]);
    assert_eq!(state.round, Some((2, Stage::Sealed)));
    let (state, effects) = run(state, &[head(76)]);
    assert_eq!((state.round, effects.len()), (Some((2, Stage::Sealed)), 0));
}

#[test]
fn the_seed_should_wait_for_finality_and_be_asked_for_again() {
    let stalled = Event::Head {
        best: 100,
        finalized: 79,
        may_open: true,
    };
    let (state, effects) = run(at(2, Stage::Sealed), &[stalled]);
    assert!(effects.is_empty());
    let done = Event::Head {
        best: 101,
        finalized: 80,
        may_open: true,
    };
    let fetch = Effect::FetchSeed {
        epoch: 2,
        first: 79,
        last: 80,
    };
    assert_eq!(run(state, &[done, done]).1, [fetch, fetch]);
}

#[test]
fn an_open_round_should_go_on_after_a_restart() {
    let state = State::restore(Some((2, Stage::Open)), []);
    let (state, effects) = run(state, &[head(70)]);
    assert_eq!((state.phase(), effects.len()), (Phase::Open, 0));
    // Down over the deadline and into the next epoch: sealed, seeded, scored, and the next round waits for it.
    let (_, effects) = run(State::restore(Some((2, Stage::Open)), []), &[head(95)]);
    assert_eq!(
        effects,
        [
            Effect::Seal { epoch: 2 },
            Effect::FetchSeed {
                epoch: 2,
                first: 79,
                last: 80
            }
        ]
    );
}

#[test]
fn interrupted_scoring_should_start_again() {
    let state = State::restore(Some((2, Stage::Scoring)), []);
    let (state, effects) = run(state, &[head(85), Event::SeedReady { epoch: 2 }]);
    assert_eq!(
        effects,
        [
            Effect::FetchSeed {
                epoch: 2,
                first: 79,
                last: 80
            },
            Effect::Score { epoch: 2 }
        ]
    );
    assert_eq!(state.phase(), Phase::Scoring);
}

#[test]
fn settlements_should_be_attested_in_epoch_order() {
    let mut state = State::restore(Some((4, Stage::Scored)), [2, 4]);
    state.best = 160;
    let open = |epoch| Event::Chain {
        epoch,
        status: ChainStatus::Open,
    };
    let (state, effects) = run(state, &[open(4), open(2)]);
    assert_eq!(effects, [Effect::Attest { epoch: 2 }]);
    // In its dispute window a veto could still replace it.
    let accepted = Event::Chain {
        epoch: 2,
        status: ChainStatus::Accepted,
    };
    let (state, effects) = run(state, &[accepted, open(4)]);
    assert_eq!(
        effects,
        [Effect::Record {
            epoch: 2,
            status: ChainStatus::Accepted
        }]
    );
    let last = Event::Chain {
        epoch: 2,
        status: ChainStatus::Final,
    };
    let (_, effects) = run(state, &[last, open(4)]);
    assert_eq!(effects.last(), Some(&Effect::Attest { epoch: 4 }));
}

#[test]
fn a_commitment_that_cannot_be_accepted_should_not_hold_up_later_epochs() {
    let mut state = State::restore(Some((4, Stage::Scored)), [2, 4]);
    state.best = 160;
    let open = |epoch| Event::Chain {
        epoch,
        status: ChainStatus::Open,
    };
    let lost = Event::Unattestable { epoch: 2 };
    let (mut state, effects) = run(state, &[open(2), lost, open(2), open(4)]);
    assert_eq!(effects, [Effect::Attest { epoch: 2 }, Effect::Attest { epoch: 4 }]);
    // It is not sent again, but followed until its time is over.
    state.best = RULES.attestable_until(2);
    let forfeited = Event::Chain {
        epoch: 2,
        status: ChainStatus::Forfeited,
    };
    let (state, effects) = run(state, &[open(2), forfeited]);
    assert_eq!(
        effects,
        [Effect::Record {
            epoch: 2,
            status: ChainStatus::Forfeited
        }]
    );
    assert_eq!(state.settlements.keys().copied().collect::<Vec<_>>(), [4]);
}

#[test]
fn lost_transactions_should_be_sent_again_after_some_blocks() {
    let mut state = State::restore(Some((2, Stage::Scored)), [2]);
    state.best = 90;
    let open = Event::Chain {
        epoch: 2,
        status: ChainStatus::Open,
    };
    let shut = |best| Event::Head {
        best,
        finalized: best,
        may_open: false,
    };
    let (_, effects) = run(state, &[open, shut(91), open, shut(92), open, shut(93), open]);
    let sent = effects.iter().filter(|e| matches!(e, Effect::Attest { .. })).count();
    assert_eq!(sent, 2);
}

#[test]
fn a_round_should_be_given_up_after_the_late_window() {
    let open = Event::Chain {
        epoch: 2,
        status: ChainStatus::Open,
    };
    let mut state = State::restore(Some((2, Stage::Scored)), [2]);
    state.best = RULES.epoch_start(3 + 24) - 1;
    let (mut state, effects) = run(state, &[open]);
    assert_eq!(effects, [Effect::Attest { epoch: 2 }]);
    state.best += 1;
    let (state, effects) = run(state, &[open]);
    assert_eq!(
        effects,
        [],
        "it is for the finalised chain to say that the epoch is forfeited"
    );
    let forfeited = Event::Chain {
        epoch: 2,
        status: ChainStatus::Forfeited,
    };
    let (state, effects) = run(state, &[forfeited]);
    assert_eq!(
        effects,
        [Effect::Record {
            epoch: 2,
            status: ChainStatus::Forfeited
        }]
    );
    assert!(state.settlements.is_empty());
}

#[test]
fn a_veto_should_reopen_the_settlement() {
    let mut state = State::restore(Some((2, Stage::Scored)), [2]);
    state.best = 92;
    let chain = |status| Event::Chain { epoch: 2, status };
    let (_, effects) = run(state, &[chain(ChainStatus::Accepted), chain(ChainStatus::Open)]);
    assert_eq!(effects.last(), Some(&Effect::Attest { epoch: 2 }));
}

#[test]
fn a_round_without_accepted_work_should_not_be_attested() {
    let (state, _) = run(
        at(2, Stage::Scoring),
        &[Event::Scored {
            epoch: 2,
            attest: false,
        }],
    );
    assert!(state.settlements.is_empty());
    assert_eq!(state.phase(), Phase::Idle);
}

#[test]
fn answers_that_do_not_fit_should_change_nothing() {
    let before = at(3, Stage::Open);
    let events = [
        Event::SeedReady { epoch: 2 },
        Event::SeedReady { epoch: 3 },
        Event::Scored { epoch: 3, attest: true },
        Event::Chain {
            epoch: 1,
            status: ChainStatus::Final,
        },
    ];
    let (after, effects) = run(before.clone(), &events);
    assert_eq!((after, effects), (before, vec![]));
}

proptest! {
    /// Whatever comes, an epoch opens at most once, never after its margin, and is scored only after it was sealed.
    #[test]
    fn rounds_should_keep_their_order(blocks in proptest::collection::vec(0u32..1200, 1..200), seed_lost: bool) {
        let mut state = State::default();
        let (mut opened, mut sealed) = (Vec::new(), Vec::new());
        for best in blocks {
            let mut queue = vec![head(best)];
            while let Some(event) = queue.pop() {
                let (next, effects) = step(state, event, &RULES);
                state = next;
                for effect in effects {
                    match effect {
                        Effect::Open { epoch, deadline } => {
                            prop_assert!(state.best + RULES.open_margin_blocks <= deadline);
                            prop_assert!(opened.last().is_none_or(|last| *last < epoch));
                            opened.push(epoch);
                        }
                        Effect::Seal { epoch } => sealed.push(epoch),
                        Effect::FetchSeed { epoch, .. } if seed_lost => queue.push(Event::SeedUnavailable { epoch }),
                        Effect::FetchSeed { epoch, .. } => queue.push(Event::SeedReady { epoch }),
                        Effect::Void { epoch } => {
                            prop_assert_eq!(sealed.last(), Some(&epoch));
                            prop_assert!(seed_lost && state.best >= RULES.attestable_until(epoch));
                        }
                        Effect::Score { epoch } => {
                            prop_assert_eq!(sealed.last(), Some(&epoch));
                            queue.push(Event::Scored { epoch, attest: true });
                        }
                        Effect::Follow { epoch } => queue.push(Event::Chain { epoch, status: ChainStatus::Final }),
                        Effect::Attest { .. } | Effect::Pay { .. } | Effect::Record { .. } => {}
                    }
                }
            }
        }
    }
}

#[test]
fn a_sealed_round_should_be_voided_when_its_seed_is_unavailable_until_the_late_window_ends() {
    let until = RULES.attestable_until(2);
    let sealed = at(2, Stage::Sealed);
    let unavailable = Event::SeedUnavailable { epoch: 2 };
    let fetch = Effect::FetchSeed {
        epoch: 2,
        first: 79,
        last: 80,
    };
    let (state, effects) = run(sealed, &[head(until - 1), unavailable]);
    assert_eq!(
        (state.phase(), effects),
        (Phase::Sealed, vec![fetch]),
        "there is time left"
    );
    let (state, effects) = run(state, &[head(until), unavailable]);
    assert_eq!(effects, [fetch, Effect::Void { epoch: 2 }]);
    assert_eq!(state.phase(), Phase::Idle, "nothing of it is settled");
    // A second answer changes nothing, and the next round opens.
    let (state, effects) = run(state, &[unavailable, head(until + 1)]);
    assert!(matches!(effects[..], [Effect::Open { .. }]), "{effects:?}");
    assert_eq!(state.phase(), Phase::Open);
    // A seed that comes at the last moment is used.
    let (state, effects) = run(
        at(2, Stage::Sealed),
        &[head(until), Event::SeedReady { epoch: 2 }, unavailable],
    );
    assert_eq!(effects, [fetch, Effect::Score { epoch: 2 }]);
    assert_eq!(state.phase(), Phase::Scoring);
}
