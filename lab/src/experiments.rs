//! The experiments: which arms, and what each asks.

use crate::arm::{Arm, Codec, Outer};

/// An experiment.
pub struct Experiment {
    /// Short name on the command line.
    pub name: &'static str,
    /// The question.
    pub question: &'static str,
    /// Labelled arms; the first is what the others are compared with.
    pub arms: Vec<(String, Arm)>,
    /// A published law for the arms, in their order: A and a of the loss A · N^a of a model of N parameters that is trained
    /// on 20 tokens for each. Empty where there is none.
    pub law: &'static [(f64, f64)],
}

/// AdamW data parallel, and DiLoCo with M = 1, 2, 4, 8 and H = 30: Charles et al. 2025, "Communication-Efficient Language Model
/// Training Scales Reliably and Robustly: Scaling Laws for DiLoCo" (arXiv 2503.09799), fitted from 35 M to 2.4 B parameters.
const DILOCO_LAW: [(f64, f64); 5] = [
    (18.129, -0.0953),
    (18.363, -0.0961),
    (18.768, -0.0969),
    (19.762, -0.0992),
    (21.051, -0.1018),
];

/// How long the runs of an experiment are, the same for every arm.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Steps of the network.
    pub rounds: u32,
    /// Sequences of one step over all workers; a multiple of eight, the most workers that an arm has.
    pub batch: u32,
}

/// Entries in a chunk of 4,096 at a density of 1.56 %.
const K_DENSE: u32 = 64;

/// Workers of `deltas96`.
const MANY: u32 = 96;

/// Steps of a task of a fourth of the model that take the FLOPs of 30 steps of all of it. For each parameter and token: 2
/// forwards in either; backwards 2 for activations, which end at the fragment's first layer (10/16 of the layers on average),
/// and 2 for weights, of a fourth of them. 6 / (2 + 1.25 + 0.5) = 1.6.
const EQUAL_FLOPS_STEPS: u32 = 48;

/// Plain steps with the mean over all.
const PLAIN: Outer = Outer {
    alpha: 1.0,
    momentum: 0.0,
    by_senders: false,
    entry_weight: None,
};
/// The runs' step: an entry weighs at most four times what it would in the mean over all.
const BOUNDED: Outer = Outer {
    entry_weight: Some(4),
    ..PLAIN
};
/// DiLoCo's outer optimiser.
const NESTEROV: Outer = Outer {
    alpha: 0.7,
    momentum: 0.9,
    by_senders: false,
    entry_weight: None,
};

/// Dense DiLoCo with M workers.
fn diloco(workers: u32, scale: Scale) -> Arm {
    Arm {
        workers,
        batch_sequences: scale.batch / workers,
        steps: 30,
        rounds: scale.rounds,
        learning_rate: 4e-3,
        keep_moments: true,
        outer: NESTEROV,
        codec: None,
        fragments: 1,
        churn: 0.0,
        base_lag: 0,
        layers: None,
    }
}

/// AdamW with the gradients of all workers averaged in every step: one worker with the whole batch, no outer step.
fn data_parallel(scale: Scale) -> Arm {
    Arm {
        outer: PLAIN,
        ..diloco(1, scale)
    }
}

/// Ours, as the runs have it: eight workers, 1.56 % density, two bits, error feedback, entries of at most 4/R.
pub fn ours(scale: Scale) -> Arm {
    Arm {
        outer: BOUNDED,
        codec: Some(OURS),
        ..diloco(8, scale)
    }
}

/// Ours with the mean over all: entries of 1/R.
pub fn ours_over_all(scale: Scale) -> Arm {
    Arm {
        outer: PLAIN,
        ..ours(scale)
    }
}

const OURS: Codec = Codec {
    k_max: K_DENSE,
    value_bits: 2,
    decay: Some(0.95),
    budget_bytes: None,
    publish_bits: Some(8),
    settle: false,
};

fn coded(scale: Scale, codec: Codec) -> Arm {
    Arm {
        codec: Some(codec),
        ..ours(scale)
    }
}

/// All experiments at a scale.
pub fn all(scale: Scale) -> Vec<Experiment> {
    let dp = || ("AdamW, data parallel".to_string(), data_parallel(scale));
    let base = || ("ours: 1.56 %, 2 bits, β 0.95".to_string(), ours(scale));
    let mut list = Vec::new();
    let mut add = |name, question, arms| {
        list.push(Experiment {
            name,
            question,
            arms,
            law: if name == "e1" { &DILOCO_LAW } else { &[] },
        })
    };

    let mut arms = vec![dp()];
    arms.extend([1, 2, 4, 8].map(|m| (format!("dense DiLoCo, M = {m}"), diloco(m, scale))));
    add("e1", "What do local steps cost, at equal tokens?", arms);

    add(
        "e3",
        "Do 1.56 % of the coordinates in two bits do as well as dense DiLoCo?",
        vec![
            ("dense DiLoCo, M = 8".into(), diloco(8, scale)),
            base(),
            (
                "ours, moments from nothing in each task".into(),
                Arm {
                    keep_moments: false,
                    ..ours(scale)
                },
            ),
            ("ours, an entry weighs 1 / R".into(), ours_over_all(scale)),
            (
                "dense, plain step".into(),
                Arm {
                    outer: PLAIN,
                    codec: None,
                    ..ours(scale)
                },
            ),
        ],
    );

    let mut arms = vec![base()];
    for (percent, k_max) in [("0.15", 6), ("0.5", 20), ("1.56", K_DENSE)] {
        for decay in [0.6, 0.8, 0.9, 0.95, 0.99, 0.995] {
            let codec = Codec {
                k_max,
                decay: Some(decay),
                ..OURS
            };
            arms.push((format!("{percent} %, β {decay}"), coded(scale, codec)));
        }
    }
    add("e4", "Which residual decay for which density?", arms);

    let mut arms = vec![base()];
    for value_bits in [1, 2, 4, 8] {
        for (text, decay) in [("", Some(0.95)), (", no error feedback", None)] {
            let codec = Codec {
                value_bits,
                decay,
                ..OURS
            };
            arms.push((format!("{value_bits} bits{text}"), coded(scale, codec)));
        }
    }
    add("e5", "How many bits of a value, and is error feedback needed?", arms);

    let with = |outer| Arm { outer, ..ours(scale) };
    add(
        "e6",
        "Mean over all or over senders; plain or Nesterov; how long a step?",
        vec![
            ("over all, plain".into(), with(PLAIN)),
            (
                "over senders, plain".into(),
                with(Outer {
                    by_senders: true,
                    ..PLAIN
                }),
            ),
            ("over all, Nesterov".into(), with(NESTEROV)),
            (
                "over senders, Nesterov".into(),
                with(Outer {
                    by_senders: true,
                    ..NESTEROV
                }),
            ),
            (
                "over senders, at most 2 / R for an entry".into(),
                with(Outer {
                    entry_weight: Some(2),
                    ..PLAIN
                }),
            ),
            (
                "over senders, at most 4 / R for an entry".into(),
                with(Outer {
                    entry_weight: Some(4),
                    ..PLAIN
                }),
            ),
            ("over all, α 2".into(), with(Outer { alpha: 2.0, ..PLAIN })),
            ("over all, α 4".into(), with(Outer { alpha: 4.0, ..PLAIN })),
        ],
    );

    // The bytes of genesis-7b for each parameter: 16,000,000 · 8 bits over 6.74e9 parameters.
    let tight = |k_max, decay, fragments, budget: u64| Arm {
        fragments,
        ..coded(
            scale,
            Codec {
                k_max,
                decay: Some(decay),
                budget_bytes: Some(budget),
                ..OURS
            },
        )
    };
    add(
        "e7",
        "Full tasks at 0.14 % or fragments at four times that, with equal bytes?",
        vec![
            base(),
            ("full, 2,100 bytes, β 0.995".into(), tight(K_DENSE, 0.995, 1, 2_100)),
            ("full, 2,100 bytes, β 0.95".into(), tight(K_DENSE, 0.95, 1, 2_100)),
            (
                "4 fragments, 2,100 bytes, β 0.98".into(),
                tight(K_DENSE, 0.98, 4, 2_100),
            ),
            ("4 fragments, 2,100 bytes, β 0.8".into(), tight(K_DENSE, 0.8, 4, 2_100)),
            (
                "4 fragments, 2,100 bytes, β 0.8, equal FLOPs".into(),
                Arm {
                    steps: EQUAL_FLOPS_STEPS,
                    ..tight(K_DENSE, 0.8, 4, 2_100)
                },
            ),
            (
                "4 fragments, 2,100 bytes, moments from nothing in each task".into(),
                Arm {
                    keep_moments: false,
                    ..tight(K_DENSE, 0.98, 4, 2_100)
                },
            ),
        ],
    );

    let fragments = |fragments, k_max| Arm {
        fragments,
        ..coded(scale, Codec { k_max, ..OURS })
    };
    add(
        "e11",
        "All parameters, or fragments with as many more of the coordinates, at equal bytes and equal tokens?",
        vec![
            base(),
            ("2 fragments, 3.12 %".into(), fragments(2, 2 * K_DENSE)),
            ("4 fragments, 6.25 %".into(), fragments(4, 4 * K_DENSE)),
        ],
    );

    // A residual decays when its worker comes back to the fragment, which is every P rounds.
    let decays = |arm: Arm, decays: &[f64]| -> Vec<Arm> {
        let with = |decay: &f64| Codec {
            decay: Some(*decay),
            ..arm.codec.unwrap_or(OURS)
        };
        let arm = &arm;
        decays
            .iter()
            .map(|decay| Arm {
                codec: Some(with(decay)),
                ..arm.clone()
            })
            .collect()
    };
    let lagging = Arm {
        base_lag: 1,
        ..ours(scale)
    };
    let mut arms = vec![base()];
    for (label, of) in [
        (
            "2 fragments, 3.12 %",
            decays(fragments(2, 2 * K_DENSE), &[0.95, 0.9, 0.8, 0.6]),
        ),
        ("4 fragments, 1.56 %", decays(fragments(4, K_DENSE), &[0.95, 0.8, 0.6])),
        (
            "4 fragments, 2,100 bytes",
            decays(tight(K_DENSE, 0.98, 4, 2_100), &[0.98, 0.9, 0.8]),
        ),
        ("base_lag 1", decays(lagging, &[0.95, 0.8, 0.6])),
    ] {
        arms.extend(of.into_iter().map(|arm| {
            let decay = arm.codec.and_then(|codec| codec.decay).unwrap_or_default();
            (format!("{label}, β {decay}"), arm)
        }));
    }
    add("e13", "Which decay where a residual grows old?", arms);

    let mut arms = vec![("dense DiLoCo, M = 8".to_string(), diloco(8, scale))];
    arms.extend(decays(ours(scale), &[0.95, 0.8, 0.6]).into_iter().map(|arm| {
        let decay = arm.codec.and_then(|codec| codec.decay).unwrap_or_default();
        (format!("ours: 1.56 %, 2 bits, β {decay}"), arm)
    }));
    add("e14", "Ours beside dense DiLoCo, by decay: for long runs", arms);

    // Each beside itself: residuals grow old where a worker comes back to a fragment only every few rounds.
    let mut arms = Vec::new();
    for (label, arm) in [
        base(),
        ("2 fragments, 3.12 %".into(), fragments(2, 2 * K_DENSE)),
        (
            "2 fragments, 3.12 %, 2 / R".into(),
            Arm {
                outer: Outer {
                    entry_weight: Some(2),
                    ..PLAIN
                },
                ..fragments(2, 2 * K_DENSE)
            },
        ),
        (
            "4 fragments, 2,100 bytes, β 0.98".into(),
            tight(K_DENSE, 0.98, 4, 2_100),
        ),
        ("full, 2,100 bytes, β 0.995".into(), tight(K_DENSE, 0.995, 1, 2_100)),
    ] {
        let codec = arm.codec.map(|codec| Codec { settle: true, ..codec });
        arms.push((label.clone(), arm.clone()));
        arms.push((format!("{label}, settled"), Arm { codec, ..arm }));
    }
    add(
        "e12",
        "Should a residual lose what the network has done meanwhile?",
        arms,
    );

    // A deeper model in as many fragments as the 7B run has, an update with what 1.6 % of an eighth takes: by P and decay.
    let deep = |fragments, decay| Arm {
        layers: Some(8),
        ..tight(2 * K_DENSE, decay, fragments, 4_100)
    };
    let of = [(1, 0.95), (4, 0.8), (4, 0.6), (8, 0.8), (8, 0.6), (8, 0.0)];
    let label = |(p, decay): (u32, f64)| match p {
        1 => format!("8 layers, 4,100 bytes, full, β {decay}"),
        _ => format!("8 layers, 4,100 bytes, {p} fragments, β {decay}"),
    };
    add(
        "e15",
        "More fragments, shorter residuals?",
        of.map(|case| (label(case), deep(case.0, case.1))).to_vec(),
    );

    let mut arms = vec![base()];
    arms.extend([0.1, 0.3, 0.5].map(|churn| {
        (
            format!("{} % of the workers miss a round", churn * 100.0),
            Arm { churn, ..ours(scale) },
        )
    }));
    add("e9", "What does churn cost?", arms);

    add(
        "e10",
        "What does training on the weights of the round before cost?",
        vec![
            base(),
            (
                "base_lag 1".into(),
                Arm {
                    base_lag: 1,
                    ..ours(scale)
                },
            ),
        ],
    );

    let deltas = |arm: &Arm| {
        let published = |bits| Arm {
            codec: Some(Codec {
                publish_bits: bits,
                ..OURS
            }),
            ..arm.clone()
        };
        let mut arms = vec![("f32, as it is".to_string(), published(None))];
        arms.extend([8, 4, 2].map(|bits| (format!("{bits} bits"), published(Some(bits)))));
        arms
    };
    add(
        "deltas",
        "How many bits of the published aggregate?",
        deltas(&ours(scale)),
    );
    // Twelve times the workers with a sequence each, for a quarter of the rounds: three times the tokens.
    let many = Arm {
        workers: MANY,
        batch_sequences: 1,
        rounds: (scale.rounds / 4).max(1),
        ..ours(scale)
    };
    add(
        "deltas96",
        "How many bits of the published aggregate, with 96 workers?",
        deltas(&many),
    );
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_of_an_experiment_should_see_equal_tokens() {
        for experiment in all(Scale { rounds: 10, batch: 8 }) {
            // One arm has equal FLOPs instead, and says so.
            let equal = experiment
                .arms
                .iter()
                .filter(|(label, _)| !label.ends_with("equal FLOPs"));
            let tokens: Vec<u64> = equal.map(|(_, arm)| arm.tokens(128)).collect();
            assert!(experiment.arms.len() - tokens.len() <= 1);
            assert!(
                tokens.windows(2).all(|w| w[0] == w[1]),
                "{}: {tokens:?}",
                experiment.name
            );
            let labels: std::collections::BTreeSet<_> = experiment.arms.iter().map(|(label, _)| label).collect();
            assert_eq!(labels.len(), experiment.arms.len());
        }
    }
}
