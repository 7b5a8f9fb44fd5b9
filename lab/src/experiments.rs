//! The experiments: a question each, and the arms that answer it.

use crate::arm::{Arm, Codec, Outer};

/// An experiment.
pub struct Experiment {
    /// Short name on the command line.
    pub name: &'static str,
    /// The question.
    pub question: &'static str,
    /// Labelled arms; the others are compared with the first.
    pub arms: Vec<(String, Arm)>,
    /// A published law for the arms, in their order: A and a of the loss A · N^a of a model of N parameters that is
    /// trained on 20 tokens for each. Empty if there is none.
    pub law: &'static [(f64, f64)],
}

/// AdamW data parallel, and DiLoCo with M = 1, 2, 4, 8 and H = 30: Charles et al. 2025, "Communication-Efficient
/// Language Model Training Scales Reliably and Robustly: Scaling Laws for DiLoCo" (arXiv 2503.09799), fitted from 35 M
/// to 2.4 B parameters.
const DILOCO_LAW: [(f64, f64); 5] = [
    (18.129, -0.0953),
    (18.363, -0.0961),
    (18.768, -0.0969),
    (19.762, -0.0992),
    (21.051, -0.1018),
];

/// Length of an experiment's runs, the same for every arm.
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

/// Steps of a task of a fourth of the model that take the FLOPs of 30 steps of all of it. For each parameter and token:
/// 2 forwards in either; backwards 2 for activations, which end at the fragment's first layer (10/16 of the layers on
/// average), and 2 for weights, of a fourth of them. 6 / (2 + 1.25 + 0.5) = 1.6.
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
    // 0.7 and 0.9 are the outer step size and momentum of the DiLoCo paper (Douillard et al. 2023).
    alpha: 0.7,
    momentum: 0.9,
    by_senders: false,
    entry_weight: None,
};

/// Dense DiLoCo with M workers.
fn diloco(workers: u32, scale: Scale) -> Arm {
    Arm {
        workers,
        // Workers share the batch, so that every arm sees the same number of tokens.
        batch_sequences: scale.batch / workers,
        steps: 30,
        rounds: scale.rounds,
        // Not tuned for each arm, which favours the data-parallel one (docs/lab.md#how-it-was-done).
        learning_rate: 4e-3,
        // As the miner by default: moments that start at zero in each task cost 7 % with full tasks and a fifth with
        // fragments (E3, E7).
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
        // With one worker and α = 1 the step ends at the weights where local training ended.
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
    // β of run `dev`. The best one differs by density and by how seldom a worker comes back (E4, E13).
    decay: Some(0.95),
    // No budget: bytes follow from the density, which is what E3 and E4 ask about.
    budget_bytes: None,
    // As small runs publish. Four bits lose nothing either, see `deltas`.
    publish_bits: Some(8),
    settle: false,
};

fn coded(scale: Scale, codec: Codec) -> Arm {
    Arm {
        codec: Some(codec),
        ..ours(scale)
    }
}

/// Arms of an experiment with their labels.
type Arms = Vec<(String, Arm)>;

/// Name on the command line, question, arms.
type Definition = (&'static str, &'static str, fn(Scale) -> Arms);

/// All experiments.
const EXPERIMENTS: [Definition; 15] = [
    ("e1", "What do local steps cost, at equal tokens?", local_steps),
    (
        "e3",
        "Do 1.56 % of the coordinates in two bits do as well as dense DiLoCo?",
        compression,
    ),
    ("e4", "Which residual decay for which density?", decay_by_density),
    (
        "e5",
        "How many bits of a value, and is error feedback needed?",
        value_bits,
    ),
    (
        "e6",
        "Mean over all or over senders; plain or Nesterov; how long a step?",
        outer_steps,
    ),
    (
        "e7",
        "Full tasks at 0.14 % or fragments at four times that, with equal bytes?",
        fragments_at_equal_bytes,
    ),
    (
        "e11",
        "All parameters, or fragments with as many more of the coordinates, at equal bytes and equal tokens?",
        fragments_at_equal_tokens,
    ),
    ("e13", "Which decay if a residual grows old?", decay_of_old_residuals),
    (
        "e14",
        "Ours and dense DiLoCo, by decay: for long runs",
        decay_in_long_runs,
    ),
    (
        "e12",
        "Should a residual lose the part that the network has done meanwhile?",
        settled_residuals,
    ),
    ("e15", "More fragments, shorter residuals?", deep_fragments),
    ("e9", "What does churn cost?", churn),
    (
        "e10",
        "What does training on the weights of the round before cost?",
        staleness,
    ),
    ("deltas", "How many bits of the published aggregate?", published_bits),
    (
        "deltas96",
        "How many bits of the published aggregate, with 96 workers?",
        published_bits_of_many,
    ),
];

/// All experiments at a scale.
pub fn all(scale: Scale) -> Vec<Experiment> {
    EXPERIMENTS
        .into_iter()
        .map(|(name, question, arms)| Experiment {
            name,
            question,
            arms: arms(scale),
            // The law is of DiLoCo by M, and no other experiment has arms by M only.
            law: if name == "e1" { &DILOCO_LAW } else { &[] },
        })
        .collect()
}

/// The arm that most experiments compare with.
fn base(scale: Scale) -> (String, Arm) {
    ("ours: 1.56 %, 2 bits, β 0.95".into(), ours(scale))
}

/// Ours in P fragments with at most `k_max` entries in a chunk.
fn in_fragments(scale: Scale, fragments: u32, k_max: u32) -> Arm {
    Arm {
        fragments,
        ..coded(scale, Codec { k_max, ..OURS })
    }
}

/// Ours within a budget of bytes. 2,100 bytes are those of genesis-7b for each parameter: 16,000,000 · 8 bits over
/// 6.74e9 parameters.
fn in_budget(scale: Scale, k_max: u32, decay: f64, fragments: u32, budget_bytes: u64) -> Arm {
    let codec = Codec {
        k_max,
        decay: Some(decay),
        budget_bytes: Some(budget_bytes),
        ..OURS
    };
    Arm {
        fragments,
        ..coded(scale, codec)
    }
}

/// An arm with each of several residual decays, labelled by `label` and the decay.
fn by_decay(label: &str, arm: &Arm, decays: &[f64]) -> Arms {
    let of = |decay: &f64| {
        let codec = Codec {
            decay: Some(*decay),
            ..arm.codec.unwrap_or(OURS)
        };
        let arm = Arm {
            codec: Some(codec),
            ..arm.clone()
        };
        (format!("{label}, β {decay}"), arm)
    };
    decays.iter().map(of).collect()
}

fn local_steps(scale: Scale) -> Arms {
    let mut arms = vec![("AdamW, data parallel".into(), data_parallel(scale))];
    arms.extend([1, 2, 4, 8].map(|m| (format!("dense DiLoCo, M = {m}"), diloco(m, scale))));
    arms
}

fn compression(scale: Scale) -> Arms {
    let from_nothing = Arm {
        keep_moments: false,
        ..ours(scale)
    };
    let dense = Arm {
        outer: PLAIN,
        codec: None,
        ..ours(scale)
    };
    vec![
        ("dense DiLoCo, M = 8".into(), diloco(8, scale)),
        base(scale),
        ("ours, moments from nothing in each task".into(), from_nothing),
        ("ours, an entry weighs 1 / R".into(), ours_over_all(scale)),
        ("dense, plain step".into(), dense),
    ]
}

fn decay_by_density(scale: Scale) -> Arms {
    let mut arms = vec![base(scale)];
    // 6 of 4,096 is about the density of `genesis-7b` over all parameters, 64 that of E3; 20 lies between.
    for (percent, k_max) in [("0.15", 6), ("0.5", 20), ("1.56", K_DENSE)] {
        let arm = coded(scale, Codec { k_max, ..OURS });
        // The hypothesis that density / (1 − β) is constant asks for 0.995 at 0.15 % and 0.985 at 0.5 %, so the list
        // reaches that far.
        let decays = [0.6, 0.8, 0.9, 0.95, 0.99, 0.995];
        arms.extend(by_decay(&format!("{percent} %"), &arm, &decays));
    }
    arms
}

fn value_bits(scale: Scale) -> Arms {
    let mut arms = vec![base(scale)];
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
    arms
}

fn outer_steps(scale: Scale) -> Arms {
    let by_senders = |outer| Outer {
        by_senders: true,
        ..outer
    };
    let at_most = |entry_weight| Outer {
        entry_weight: Some(entry_weight),
        ..PLAIN
    };
    let alpha = |alpha| Outer { alpha, ..PLAIN };
    [
        ("over all, plain", PLAIN),
        ("over senders, plain", by_senders(PLAIN)),
        ("over all, Nesterov", NESTEROV),
        ("over senders, Nesterov", by_senders(NESTEROV)),
        ("over senders, at most 2 / R for an entry", at_most(2)),
        ("over senders, at most 4 / R for an entry", at_most(4)),
        // Longer steps for everybody, to see how much of the gain of the mean over senders is only step length: two
        // thirds to four fifths.
        ("over all, α 2", alpha(2.0)),
        ("over all, α 4", alpha(4.0)),
    ]
    .map(|(label, outer)| (label.into(), Arm { outer, ..ours(scale) }))
    .to_vec()
}

fn fragments_at_equal_bytes(scale: Scale) -> Arms {
    let of = |decay, fragments| in_budget(scale, K_DENSE, decay, fragments, 2_100);
    let equal_flops = Arm {
        steps: EQUAL_FLOPS_STEPS,
        // β of the better fragment arm, so that the FLOPs are the only difference.
        ..of(0.8, 4)
    };
    let from_nothing = Arm {
        keep_moments: false,
        ..of(0.98, 4)
    };
    vec![
        base(scale),
        // Two decays for each: the longer is by the hypothesis of constant density / (1 − β), the shorter by E4 and
        // E13. With one of them only, the comparison would be between decays.
        ("full, 2,100 bytes, β 0.995".into(), of(0.995, 1)),
        ("full, 2,100 bytes, β 0.95".into(), of(0.95, 1)),
        ("4 fragments, 2,100 bytes, β 0.98".into(), of(0.98, 4)),
        ("4 fragments, 2,100 bytes, β 0.8".into(), of(0.8, 4)),
        ("4 fragments, 2,100 bytes, β 0.8, equal FLOPs".into(), equal_flops),
        (
            "4 fragments, 2,100 bytes, moments from nothing in each task".into(),
            from_nothing,
        ),
    ]
}

fn fragments_at_equal_tokens(scale: Scale) -> Arms {
    vec![
        base(scale),
        // P times the density in 1/P of the parameters: about the same bytes an update.
        ("2 fragments, 3.12 %".into(), in_fragments(scale, 2, 2 * K_DENSE)),
        ("4 fragments, 6.25 %".into(), in_fragments(scale, 4, 4 * K_DENSE)),
    ]
}

/// A residual decays when its worker comes back to the fragment, which is every P rounds.
fn decay_of_old_residuals(scale: Scale) -> Arms {
    let lagging = Arm {
        base_lag: 1,
        ..ours(scale)
    };
    let two = in_fragments(scale, 2, 2 * K_DENSE);
    // The density that `genesis-7b` has within a fragment, 1.4 to 1.7 %.
    let four = in_fragments(scale, 4, K_DENSE);
    let four_in_budget = in_budget(scale, K_DENSE, 0.98, 4, 2_100);
    let mut arms = vec![base(scale)];
    arms.extend(by_decay("2 fragments, 3.12 %", &two, &[0.95, 0.9, 0.8, 0.6]));
    arms.extend(by_decay("4 fragments, 1.56 %", &four, &[0.95, 0.8, 0.6]));
    arms.extend(by_decay("4 fragments, 2,100 bytes", &four_in_budget, &[0.98, 0.9, 0.8]));
    arms.extend(by_decay("base_lag 1", &lagging, &[0.95, 0.8, 0.6]));
    arms
}

fn decay_in_long_runs(scale: Scale) -> Arms {
    let mut arms = vec![("dense DiLoCo, M = 8".into(), diloco(8, scale))];
    arms.extend(by_decay("ours: 1.56 %, 2 bits", &ours(scale), &[0.95, 0.8, 0.6]));
    arms
}

/// Pairs, plain and settled: residuals grow old if a worker comes back to a fragment only every few rounds.
fn settled_residuals(scale: Scale) -> Arms {
    let bounded = Arm {
        outer: Outer {
            // A residual is stale because others have done its work, at up to 4/R each (E13): half of that shows how
            // much the weight does.
            entry_weight: Some(2),
            ..PLAIN
        },
        ..in_fragments(scale, 2, 2 * K_DENSE)
    };
    let plain = [
        base(scale),
        ("2 fragments, 3.12 %".into(), in_fragments(scale, 2, 2 * K_DENSE)),
        ("2 fragments, 3.12 %, 2 / R".into(), bounded),
        (
            "4 fragments, 2,100 bytes, β 0.98".into(),
            in_budget(scale, K_DENSE, 0.98, 4, 2_100),
        ),
        (
            "full, 2,100 bytes, β 0.995".into(),
            in_budget(scale, K_DENSE, 0.995, 1, 2_100),
        ),
    ];
    let pair = |(label, arm): (String, Arm)| {
        let codec = arm.codec.map(|codec| Codec { settle: true, ..codec });
        let settled = (format!("{label}, settled"), Arm { codec, ..arm.clone() });
        [(label, arm), settled]
    };
    plain.into_iter().flat_map(pair).collect()
}

/// A deeper model in as many fragments as the 7B run has, an update of the bytes of 1.6 % of an eighth: by P and decay.
fn deep_fragments(scale: Scale) -> Arms {
    let of = |(fragments, decay): (u32, f64)| {
        let label = match fragments {
            1 => "full".into(),
            p => format!("{p} fragments"),
        };
        let arm = Arm {
            layers: Some(8),
            // Twice the entries of other arms, so that the bytes and not `k_max` bound an update: at eight fragments
            // 4,100 bytes are 1.7 %, more than 64 of 4,096.
            ..in_budget(scale, 2 * K_DENSE, decay, fragments, 4_100)
        };
        (format!("8 layers, 4,100 bytes, {label}, β {decay}"), arm)
    };
    // 0.95 with fragments is left out: E13 has it a third behind. 0 is what the phases have.
    [(1, 0.95), (4, 0.8), (4, 0.6), (8, 0.8), (8, 0.6), (8, 0.0)]
        .map(of)
        .to_vec()
}

fn churn(scale: Scale) -> Arms {
    let of = |churn: f64| {
        let label = format!("{} % of the workers miss a round", churn * 100.0);
        (label, Arm { churn, ..ours(scale) })
    };
    let mut arms = vec![base(scale)];
    // A missing worker is not replaced, so these arms train on fewer tokens than `Arm::tokens` counts.
    arms.extend([0.1, 0.3, 0.5].map(of));
    arms
}

fn staleness(scale: Scale) -> Arms {
    let lagging = Arm {
        base_lag: 1,
        ..ours(scale)
    };
    vec![base(scale), ("base_lag 1".into(), lagging)]
}

/// An arm by the width of the published aggregate.
fn by_published_bits(arm: &Arm) -> Arms {
    let published = |publish_bits| Arm {
        codec: Some(Codec { publish_bits, ..OURS }),
        ..arm.clone()
    };
    let mut arms = vec![("f32, as it is".into(), published(None))];
    arms.extend([8, 4, 2].map(|bits| (format!("{bits} bits"), published(Some(bits)))));
    arms
}

fn published_bits(scale: Scale) -> Arms {
    by_published_bits(&ours(scale))
}

/// Twelve times the workers with one sequence each, for a quarter of the rounds: three times the tokens.
fn published_bits_of_many(scale: Scale) -> Arms {
    by_published_bits(&Arm {
        workers: MANY,
        batch_sequences: 1,
        rounds: (scale.rounds / 4).max(1),
        ..ours(scale)
    })
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
