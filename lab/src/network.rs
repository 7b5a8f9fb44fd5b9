//! A whole network in one process: every worker's local steps with the real model, the real codec and error feedback,
//! the real aggregate and step. All updates are accepted; scoring is not part of these experiments.

use crate::arm::{Arm, Codec, Outer};
use alice_data::{Manifest, TokenSource, permutation};
use alice_init::init_theta;
use alice_model::{Device, Llama};
use alice_primitives::tagged_hash;
use alice_spec::{RunSpec, UpdateSpec};
use alice_trainer::AdamW;
use alice_update::{ErrorFeedback, Header, Layout, Sparse, Update, aggregate, decode, encode};
use anyhow::{Context, Result};
use std::ops::Range;
use std::path::PathBuf;
use tch::Kind;

/// Local warm-up of a task whose moments start from nothing, steps.
const TASK_WARMUP: u32 = 3;
/// The rate ends at this share of its peak.
const RATE_END: f64 = 0.1;

/// What came of a run.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Outcome {
    /// Held-out loss after the last round, nats per token.
    pub loss: f64,
    /// (round, held-out loss) along the way.
    pub curve: Vec<(u32, f64)>,
    /// Mean bytes of an update; zero where nothing is compressed.
    pub update_bytes: f64,
    /// Mean bytes of the published aggregate; zero where it is not published.
    pub published_bytes: f64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Processor time is not measured: the machine is shared. Wall time, seconds.
    pub seconds: f64,
}

/// Text and model of all runs.
pub struct Bench {
    /// Model shape, optimiser constants, codec constants.
    pub spec: RunSpec,
    /// Training text.
    pub corpus: TokenSource,
    reserve: Manifest,
    work: PathBuf,
    /// Held-out sequences.
    pub held_out: Vec<Vec<u16>>,
    /// Where the model runs.
    pub device: Device,
}

/// A worker between rounds.
struct Worker<'a> {
    /// One optimiser for each fragment.
    optimizers: Vec<Option<AdamW<'a>>>,
    feedback: Vec<ErrorFeedback>,
    /// For each fragment the weights that its residual was left at; empty before, or where no arm asks.
    left_at: Vec<Vec<f32>>,
}

/// What a worker sends in a round.
enum Sent {
    Dense(Vec<f32>),
    Coded(Update),
}

/// Runs an arm with one seed.
pub fn run(bench: &Bench, arm: &Arm, seed: u64) -> Result<Outcome> {
    let started = std::time::Instant::now();
    let mut spec = bench.spec.clone();
    spec.model.layers = arm.layers.unwrap_or(spec.model.layers);
    let spec = &spec;
    let mut model = Llama::new(spec, bench.device)?;
    let mut theta = init_theta(spec, &tagged_hash("alice/lab/init", &[&seed.to_le_bytes()]));
    let mut theta_before = theta.clone();
    let whole = Layout::from_spec(spec);
    let mut fragmented = spec.clone();
    fragmented.task.fragments = arm.fragments;
    let groups: Vec<Range<usize>> = (0..arm.fragments).map(|p| fragmented.fragment_tensors(p)).collect();
    let layouts: Vec<Layout> = groups.iter().map(|group| whole.fragment(group.clone())).collect();
    let mut workers: Vec<Worker> = (0..arm.workers)
        .map(|_| Worker {
            optimizers: groups.iter().map(|_| None).collect(),
            feedback: groups.iter().map(|_| ErrorFeedback::new(0..theta.len())).collect(),
            left_at: groups.iter().map(|_| Vec::new()).collect(),
        })
        .collect();
    let mut velocity = vec![0f32; theta.len()];
    let mut outcome = Outcome {
        loss: f64::NAN,
        curve: Vec::new(),
        update_bytes: 0.0,
        published_bytes: 0.0,
        tokens: 0,
        seconds: 0.0,
    };
    let (mut updates, mut published) = (0u32, 0u32);
    for round in 0..arm.rounds {
        let base = if arm.base_lag == 1 {
            theta_before.clone()
        } else {
            theta.clone()
        };
        let mut by_group: Vec<Vec<Sent>> = groups.iter().map(|_| Vec::new()).collect();
        let mut absent: Vec<bool> = (0..arm.workers).map(|w| draw(seed, round, w) < arm.churn).collect();
        if absent.iter().all(|absent| *absent) {
            absent[0] = false;
        }
        for (w, worker) in (0u32..).zip(&mut workers) {
            if absent[w as usize] {
                continue;
            }
            let group = fragmented.fragment_of(round, w) as usize;
            let d = local(
                bench,
                arm,
                seed,
                &mut model,
                &groups[group],
                &mut worker.optimizers[group],
                &base,
                round,
                w,
            )?;
            outcome.tokens += u64::from(arm.steps * arm.batch_sequences * spec.model.context);
            let sent = match &arm.codec {
                None => Sent::Dense(d),
                Some(codec) => {
                    let feedback = &mut worker.feedback[group];
                    let d = match codec.settle {
                        true => settled(d, feedback.residual(), &worker.left_at[group], &base),
                        false => d,
                    };
                    if codec.settle {
                        worker.left_at[group].clone_from(&base);
                    }
                    let (update, bytes) = send(spec, codec, &layouts[group], feedback, d, round)?;
                    updates += 1;
                    outcome.update_bytes += bytes as f64;
                    Sent::Coded(update)
                }
            };
            by_group[group].push(sent);
        }
        theta_before.clone_from(&theta);
        for (layout, sent) in layouts.iter().zip(&by_group) {
            let Some(mean) = mean(layout, sent, arm.outer) else {
                continue;
            };
            let bits = arm.codec.and_then(|codec| codec.publish_bits);
            let mean = match bits {
                None => mean,
                Some(bits) => {
                    let seed = tagged_hash("alice/lab/rounding", &[&seed.to_le_bytes(), &round.to_le_bytes()]);
                    let bytes = aggregate::encode_aggregate(layout, bits, &mean, seed);
                    published += 1;
                    outcome.published_bytes += bytes.len() as f64;
                    aggregate::decode_aggregate(layout, &bytes)?
                }
            };
            outer_step(arm, &mut theta, &mut velocity, &mean, layout.covered());
        }
        if (round + 1) % 4 == 0 || round + 1 == arm.rounds {
            outcome.loss = held_out_loss(bench, &mut model, &theta)?;
            outcome.curve.push((round + 1, outcome.loss));
        }
    }
    outcome.update_bytes /= f64::from(updates.max(1));
    outcome.published_bytes /= f64::from(published.max(1));
    outcome.seconds = started.elapsed().as_secs_f64();
    Ok(outcome)
}

/// H local steps from `base`; d = θ_start − θ_end.
#[allow(clippy::too_many_arguments)]
pub fn local<'a>(
    bench: &'a Bench,
    arm: &Arm,
    seed: u64,
    model: &mut Llama,
    group: &Range<usize>,
    optimizer: &mut Option<AdamW<'a>>,
    base: &[f32],
    round: u32,
    worker: u32,
) -> Result<Vec<f32>> {
    model.load(base)?;
    for (index, parameter) in model.parameters().iter().enumerate() {
        let _ = parameter.set_requires_grad(group.contains(&index));
    }
    if optimizer.is_none() || !arm.keep_moments {
        *optimizer = Some(AdamW::new(&bench.spec.inner, &model.parameters()[group.clone()])?);
    }
    let optimizer = optimizer.as_mut().context("an optimiser was made above")?;
    let order = tagged_hash("alice/lab/order", &[&seed.to_le_bytes()]);
    let n = bench.corpus.sequences();
    for step in 0..arm.steps {
        // The same text in the same order, however many workers share it.
        let first = (u64::from(round * arm.steps + step) * u64::from(arm.workers) + u64::from(worker))
            * u64::from(arm.batch_sequences);
        let batch = (first..first + u64::from(arm.batch_sequences))
            .map(|i| bench.corpus.sequence(permutation(&order, n, i)))
            .collect::<Result<Vec<_>, _>>()?;
        optimizer.zero_grad();
        let losses = model.token_losses(&model.batch(&batch)?)?;
        losses.f_mean(Kind::Float)?.f_backward()?;
        let norm = optimizer.clip()?;
        anyhow::ensure!(
            norm.is_finite(),
            "the gradient is not finite in round {round}; lower the learning rate"
        );
        optimizer.step(rate(arm, round, step))?;
    }
    let mut d = model.store()?;
    d.iter_mut().zip(base).for_each(|(d, start)| *d = start - *d);
    Ok(d)
}

/// Inner learning rate of a step.
fn rate(arm: &Arm, round: u32, step: u32) -> f64 {
    let total = f64::from(arm.rounds * arm.steps);
    let at = f64::from(round * arm.steps + step + 1);
    let warmup = (total / 20.0).max(1.0);
    let shape = if at < warmup {
        at / warmup
    } else {
        let done = (at - warmup) / (total - warmup).max(1.0);
        RATE_END + (1.0 - RATE_END) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    };
    let task = if arm.keep_moments {
        1.0
    } else {
        (f64::from(step + 1) / f64::from(TASK_WARMUP)).min(1.0)
    };
    arm.learning_rate * shape * task
}

/// Compresses d + residual as the miner does; what the parameter server decodes, and its bytes.
pub fn send(
    spec: &RunSpec,
    codec: &Codec,
    layout: &Layout,
    feedback: &mut ErrorFeedback,
    d: Vec<f32>,
    round: u32,
) -> Result<(Update, usize)> {
    let wire = UpdateSpec {
        budget_bytes: codec.budget_bytes.unwrap_or(1 << 30),
        value_bits: codec.value_bits,
        k_max: codec.k_max,
        ..spec.update.clone()
    };
    let header = Header {
        run_hash: [0; 32],
        epoch: round,
        base_root: [0; 32],
    };
    let combined = match codec.decay {
        Some(_) => feedback.combine(&d),
        None => d,
    };
    let of_layout = combined.get(layout.covered()).context("the layout is the model's")?;
    let encoded = encode(layout, &wire, &header, of_layout)?;
    let decoded = decode(layout, &wire, &encoded.bytes)?;
    if let Some(decay) = codec.decay {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&round.to_le_bytes());
        feedback.commit(id, combined, &decoded, decay as f32);
        feedback.accepted(id);
    }
    Ok((decoded, encoded.bytes.len()))
}

/// d, less what the network has already done of the residual since it was left: d + residual is then what is still to be
/// done.
fn settled(mut d: Vec<f32>, residual: &[f32], left_at: &[f32], now: &[f32]) -> Vec<f32> {
    for (((d, r), then), now) in d.iter_mut().zip(residual).zip(left_at).zip(now) {
        // In the direction of a pseudo-gradient: θ went from `then` to `now`.
        let done = (then - now) * r.signum();
        *d -= r.signum() * done.clamp(0.0, r.abs());
    }
    d
}

/// Mean of what was sent; none if nothing was.
fn mean(layout: &Layout, sent: &[Sent], outer: Outer) -> Option<Sparse> {
    if sent.is_empty() {
        return None;
    }
    let coded: Vec<(&Update, f32)> = sent
        .iter()
        .filter_map(|sent| match sent {
            Sent::Coded(update) => Some((update, 1.0)),
            Sent::Dense(_) => None,
        })
        .collect();
    if coded.len() == sent.len() {
        let weight = match outer {
            Outer { by_senders: true, .. } => coded.len() as u32,
            _ => outer.entry_weight.unwrap_or(1),
        };
        return Some(aggregate::mean(layout, &coded, weight));
    }
    let covered = layout.covered();
    let mut sums = vec![0f64; covered.len()];
    for sent in sent {
        if let Sent::Dense(d) = sent {
            sums.iter_mut()
                .zip(&d[covered.clone()])
                .for_each(|(sum, d)| *sum += f64::from(*d));
        }
    }
    Some(Sparse {
        indices: covered.map(|i| i as u64).collect(),
        values: sums.iter().map(|sum| (sum / sent.len() as f64) as f32).collect(),
    })
}

fn outer_step(arm: &Arm, theta: &mut [f32], velocity: &mut [f32], mean: &Sparse, covered: Range<usize>) {
    let (alpha, momentum) = (arm.outer.alpha as f32, arm.outer.momentum as f32);
    if momentum == 0.0 {
        aggregate::apply(theta, mean, alpha);
        return;
    }
    velocity[covered.clone()].iter_mut().for_each(|v| *v *= momentum);
    for (&index, &g) in mean.indices.iter().zip(&mean.values) {
        velocity[index as usize] += g;
        theta[index as usize] -= alpha * g;
    }
    for (theta, v) in theta[covered.clone()].iter_mut().zip(&velocity[covered]) {
        *theta -= alpha * momentum * v;
    }
}

fn held_out_loss(bench: &Bench, model: &mut Llama, theta: &[f32]) -> Result<f64> {
    model.load(theta)?;
    let mut sum = 0.0;
    for part in bench.held_out.chunks(32) {
        let losses = tch::no_grad(|| model.sequence_losses(&model.batch(part)?))?;
        sum += losses.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(sum / bench.held_out.len() as f64)
}

/// Uniform on [0, 1): whether a worker misses a round.
fn draw(seed: u64, round: u32, worker: u32) -> f64 {
    let hash = tagged_hash(
        "alice/lab/churn",
        &[&seed.to_le_bytes(), &round.to_le_bytes(), &worker.to_le_bytes()],
    );
    let word = hash.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    f64::from(word) / 4_294_967_296.0
}

impl Bench {
    /// The model of run `dev` and its text, built from the folder of documents `text` into `work`.
    pub fn open(text: &std::path::Path, work: &std::path::Path, held_out: u64) -> Result<Self> {
        let mut spec = RunSpec::parse(include_str!("../../chain-spec/runs/dev.toml"))?;
        spec.update.chunk = 4096;
        // Arms say it themselves; results that are kept belong to the run without it.
        spec.outer.entry_weight = 1;
        let built =
            alice_data::build(text, work).with_context(|| format!("building a corpus of {}", text.display()))?;
        let corpus = TokenSource::open(built.corpus, work, spec.model.context)?;
        let reserve = TokenSource::open(built.reserve.clone(), work, spec.model.context)?;
        let every = (reserve.sequences() / held_out.max(1)).max(1);
        let held_out = (0..held_out.min(reserve.sequences()))
            .map(|i| reserve.sequence(i * every))
            .collect::<Result<Vec<_>, _>>()?;
        anyhow::ensure!(!held_out.is_empty(), "the text is too short to hold anything out");
        Ok(Self {
            spec,
            corpus,
            reserve: built.reserve,
            work: work.to_path_buf(),
            held_out,
            device: Device::Cpu,
        })
    }

    /// The reserve that the held-out sequences are from.
    pub fn reserve(&self) -> Result<TokenSource> {
        Ok(TokenSource::open(
            self.reserve.clone(),
            &self.work,
            self.spec.model.context,
        )?)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::experiments;

    /// Four layers over the licence.
    pub fn bench(dir: &std::path::Path) -> Bench {
        let text = dir.join("text");
        std::fs::create_dir_all(&text).unwrap();
        for i in 0..20 {
            std::fs::write(
                text.join(format!("{i}.txt")),
                format!("{i}\n{}", include_str!("../../LICENSE")),
            )
            .unwrap();
        }
        let mut bench = Bench::open(&text, &dir.join("work"), 16).unwrap();
        bench.spec.model.layers = 4;
        bench.spec.model.hidden = 32;
        bench.spec.model.ffn = 64;
        bench
    }

    #[test]
    fn every_kind_of_arm_should_learn_and_repeat_itself() {
        let dir = tempfile::tempdir().unwrap();
        let bench = bench(dir.path());
        for experiment in experiments::all(experiments::Scale { rounds: 2, batch: 8 }) {
            let (label, arm) = experiment.arms.last().unwrap();
            let arm = Arm {
                steps: 4,
                ..arm.clone()
            };
            let first = run(&bench, &arm, 1).unwrap();
            assert!(first.loss < 259f64.ln(), "{}, {label}: {}", experiment.name, first.loss);
            assert_eq!(first.loss, run(&bench, &arm, 1).unwrap().loss, "{label}");
            assert_ne!(first.loss, run(&bench, &arm, 2).unwrap().loss, "{label}");
        }
    }
}
