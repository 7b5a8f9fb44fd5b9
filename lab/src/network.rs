//! A whole network in one process: every worker's local steps with the real model, the real codec and error feedback,
//! the real aggregate and step. All updates are accepted; scoring is not part of these experiments.

use crate::arm::{Arm, Codec, Outer};
use alice_data::{Manifest, TokenSource, permutation};
use alice_init::init_theta;
use alice_model::{Device, Llama};
use alice_primitives::tagged_hash;
use alice_spec::{RunSpec, UpdateSpec};
use alice_trainer::AdamW;
use alice_update::aggregate::{self, EncodedAggregate};
use alice_update::{ErrorFeedback, Header, Layout, Sparse, Update, decode, encode};
use anyhow::{Context, Result};
use std::ops::Range;
use std::path::PathBuf;
use tch::Kind;

/// Warm-up steps of a task whose moments start at zero.
const TASK_WARMUP: u32 = 3;
/// Final learning rate relative to its peak.
const RATE_END: f64 = 0.1;

/// Result of a run.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Outcome {
    /// Held-out loss after the last round, nats per token.
    pub loss: f64,
    /// (round, held-out loss), every fourth round.
    pub curve: Vec<(u32, f64)>,
    /// Mean size of an update, bytes; zero if nothing is compressed.
    pub update_bytes: f64,
    /// Mean size of the published aggregate, bytes; zero if it is not rounded.
    pub published_bytes: f64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Wall time, seconds. Not processor time: runs share the machine.
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
    /// For each fragment the weights at which its residual was last written; empty before, or if the arm does not
    /// settle.
    left_at: Vec<Vec<f32>>,
}

/// A worker's update of a round.
enum Sent {
    Dense(Vec<f32>),
    Coded(Update),
}

/// Runs an arm with one seed.
pub fn run(bench: &Bench, arm: &Arm, seed: u64) -> Result<Outcome> {
    let started = std::time::Instant::now();
    let mut run = Run::new(bench, arm, seed)?;
    for round in 0..arm.rounds {
        let sent = run.train(round)?;
        run.step(round, &sent)?;
        // A held-out loss is a forward pass of 256 sequences, and a round trains on 240: measured in each round, it
        // would be a quarter of the time.
        if (round + 1) % 4 == 0 || round + 1 == arm.rounds {
            run.outcome.loss = held_out_loss(bench, &mut run.model, &run.theta)?;
            run.outcome.curve.push((round + 1, run.outcome.loss));
        }
    }
    let mut outcome = run.outcome;
    outcome.update_bytes /= f64::from(run.updates.max(1));
    outcome.published_bytes /= f64::from(run.published.max(1));
    outcome.seconds = started.elapsed().as_secs_f64();
    Ok(outcome)
}

/// A run between two rounds.
struct Run<'a> {
    bench: &'a Bench,
    arm: &'a Arm,
    seed: u64,
    /// The bench's specification with the arm's layers and fragments.
    spec: RunSpec,
    model: Llama,
    theta: Vec<f32>,
    /// Weights of the round before, for arms that train on them.
    theta_before: Vec<f32>,
    /// Tensors of each fragment.
    groups: Vec<Range<usize>>,
    layouts: Vec<Layout>,
    workers: Vec<Worker<'a>>,
    /// Of the outer optimiser.
    velocity: Vec<f32>,
    outcome: Outcome,
    /// Compressed updates and published aggregates so far, whose bytes are in the outcome.
    updates: u32,
    published: u32,
}

impl<'a> Run<'a> {
    fn new(bench: &'a Bench, arm: &'a Arm, seed: u64) -> Result<Self> {
        let mut spec = bench.spec.clone();
        spec.model.layers = arm.layers.unwrap_or(spec.model.layers);
        // Weights and layout are those of the whole model; only the rotation of tasks goes by fragments.
        let model = Llama::new(&spec, bench.device)?;
        // From the seed alone and not from the arm, so that arms are paired.
        let theta = init_theta(&spec, &tagged_hash("alice/lab/init", &[&seed.to_le_bytes()]));
        let whole = Layout::from_spec(&spec);
        spec.task.fragments = arm.fragments;
        let groups: Vec<Range<usize>> = (0..arm.fragments).map(|p| spec.fragment_tensors(p)).collect();
        let worker = |_| Worker {
            optimizers: groups.iter().map(|_| None).collect(),
            feedback: groups.iter().map(|_| ErrorFeedback::new(0..theta.len())).collect(),
            left_at: groups.iter().map(|_| Vec::new()).collect(),
        };
        Ok(Self {
            bench,
            arm,
            seed,
            model,
            theta_before: theta.clone(),
            layouts: groups.iter().map(|group| whole.fragment(group.clone())).collect(),
            workers: (0..arm.workers).map(worker).collect(),
            velocity: vec![0f32; theta.len()],
            outcome: Outcome {
                loss: f64::NAN,
                curve: Vec::new(),
                update_bytes: 0.0,
                published_bytes: 0.0,
                tokens: 0,
                seconds: 0.0,
            },
            updates: 0,
            published: 0,
            spec,
            theta,
            groups,
        })
    }

    /// Local steps of all workers that take part. What they send, by fragment.
    fn train(&mut self, round: u32) -> Result<Vec<Vec<Sent>>> {
        let (bench, arm, seed) = (self.bench, self.arm, self.seed);
        let base = match arm.base_lag {
            1 => self.theta_before.clone(),
            _ => self.theta.clone(),
        };
        let mut absent: Vec<bool> = (0..arm.workers).map(|w| draw(seed, round, w) < arm.churn).collect();
        // A round without any update would compare nothing.
        if absent.iter().all(|absent| *absent) {
            absent[0] = false;
        }
        let mut by_group: Vec<Vec<Sent>> = self.groups.iter().map(|_| Vec::new()).collect();
        for (w, worker) in (0u32..).zip(&mut self.workers) {
            if absent[w as usize] {
                continue;
            }
            let group = self.spec.fragment_of(round, w) as usize;
            let (tensors, optimizer) = (&self.groups[group], &mut worker.optimizers[group]);
            let d = local(bench, arm, seed, &mut self.model, tensors, optimizer, &base, round, w)?;
            self.outcome.tokens += u64::from(arm.steps * arm.batch_sequences * self.spec.model.context);
            by_group[group].push(match &arm.codec {
                None => Sent::Dense(d),
                Some(codec) => {
                    let feedback = &mut worker.feedback[group];
                    let d = match codec.settle {
                        true => settled(d, feedback.residual(), &worker.left_at[group], &base),
                        false => d,
                    };
                    if codec.settle {
                        // After `settled`, which compares with the weights of the last visit.
                        worker.left_at[group].clone_from(&base);
                    }
                    let (update, bytes) = send(&self.spec, codec, &self.layouts[group], feedback, d, round)?;
                    self.updates += 1;
                    self.outcome.update_bytes += bytes as f64;
                    Sent::Coded(update)
                }
            });
        }
        Ok(by_group)
    }

    /// The network's step, fragment by fragment.
    fn step(&mut self, round: u32, sent: &[Vec<Sent>]) -> Result<()> {
        // Before any fragment steps: with a lag all fragments train on one and the same earlier state.
        self.theta_before.clone_from(&self.theta);
        for (layout, sent) in self.layouts.iter().zip(sent) {
            let Some(mean) = mean(layout, sent, self.arm.outer) else {
                continue;
            };
            let d = match self.arm.codec.and_then(|codec| codec.publish_bits) {
                None => mean,
                Some(bits) => {
                    // A rounding of its own in each round, or the errors of stochastic rounding would add up instead of
                    // cancelling.
                    let seed = [&self.seed.to_le_bytes()[..], &round.to_le_bytes()];
                    let seed = tagged_hash("alice/lab/rounding", &seed);
                    let published = EncodedAggregate::encode(layout, bits, &mean, seed)?;
                    self.published += 1;
                    self.outcome.published_bytes += published.bytes().len() as f64;
                    Sparse::of(&published)
                }
            };
            outer_step(self.arm, &mut self.theta, &mut self.velocity, &d, layout.covered());
        }
        Ok(())
    }
}

/// H local steps from `base`; returns d = θ_start − θ_end.
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
    // One model for all workers, one after the other: M of them would need M times the memory and be no faster on one
    // thread.
    model.load(base)?;
    for (index, parameter) in model.parameters().iter().enumerate() {
        let _ = parameter.set_requires_grad(group.contains(&index));
    }
    // Moments belong to the fragment's tensors, which is why each fragment has an optimiser of its own.
    if optimizer.is_none() || !arm.keep_moments {
        *optimizer = Some(AdamW::new(&bench.spec.inner, &model.parameters()[group.clone()])?);
    }
    let optimizer = optimizer.as_mut().context("an optimiser was made above")?;
    // From the seed alone and not from the arm: arms with the same seed are compared pair by pair, on the same text.
    let order = tagged_hash("alice/lab/order", &[&seed.to_le_bytes()]);
    let n = bench.corpus.sequences();
    for step in 0..arm.steps {
        // The same text in the same order for any number of workers.
        let first = (u64::from(round * arm.steps + step) * u64::from(arm.workers) + u64::from(worker))
            * u64::from(arm.batch_sequences);
        let batch = (first..first + u64::from(arm.batch_sequences))
            .map(|i| bench.corpus.sequence(permutation(&order, n, i)))
            .collect::<Result<Vec<_>, _>>()?;
        optimizer.zero_grad();
        let losses = model.token_losses(&model.batch(&batch)?)?;
        losses.f_mean(Kind::Float)?.f_backward()?;
        let norm = optimizer.clip()?;
        // One step with an infinite gradient and every later number of the arm is NaN.
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
    // One schedule over the whole run and not one for each task: the arms differ in when they communicate, not in their
    // learning rate.
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

/// Compresses d + residual as the miner does. Returns the update as the parameter server decodes it, and its size.
pub fn send(
    spec: &RunSpec,
    codec: &Codec,
    layout: &Layout,
    feedback: &mut ErrorFeedback,
    d: Vec<f32>,
    round: u32,
) -> Result<(Update, usize)> {
    let wire = UpdateSpec {
        // A gigabyte is more than any update of these models, so only `k_max` bounds it.
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
    // From the bytes and not from the encoder: an entry that does not survive the wire would go unseen otherwise.
    let decoded = decode(layout, &wire, &encoded.bytes)?;
    if let Some(decay) = codec.decay {
        let mut id = [0; 32];
        // The round is enough: a residual has one commit in a round at most.
        id[..4].copy_from_slice(&round.to_le_bytes());
        // Accepted at once: scoring is not part of these experiments.
        feedback.commit(id, combined, &decoded, decay as f32);
        feedback.accepted(id);
    }
    Ok((decoded, encoded.bytes.len()))
}

/// d without the part of the residual that the network has done since the residual was written: d + residual is then
/// the remaining work.
fn settled(mut d: Vec<f32>, residual: &[f32], left_at: &[f32], now: &[f32]) -> Vec<f32> {
    for (((d, r), then), now) in d.iter_mut().zip(residual).zip(left_at).zip(now) {
        // In the direction of a pseudo-gradient: θ went from `then` to `now`.
        let done = (then - now) * r.signum();
        *d -= r.signum() * done.clamp(0.0, r.abs());
    }
    d
}

/// Mean of the updates; `None` without any.
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
            // c = R: the divisor is then the number of senders, since R / c = 1.
            Outer { by_senders: true, .. } => coded.len() as u32,
            _ => outer.entry_weight.unwrap_or(1),
        };
        return Some(aggregate::mean(layout, &coded, weight));
    }
    let covered = layout.covered();
    // In f64, as the real aggregate sums: rounding must not be a difference between dense and sparse arms.
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
    // All of the velocity decays, also where the sparse mean has no entry: absent there means g = 0.
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
    // In parts: the logits of all 256 sequences at once would be the largest tensor of a run.
    for part in bench.held_out.chunks(32) {
        let losses = tch::no_grad(|| model.sequence_losses(&model.batch(part)?))?;
        // In f64: differences between arms are in the third digit and later.
        sum += losses.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(sum / bench.held_out.len() as f64)
}

/// Uniform on [0, 1), for whether a worker misses a round.
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
        // `k_max` of the arms are entries of 4,096, whatever chunk the run has.
        spec.update.chunk = 4096;
        // Each arm sets its own; the keys of stored results contain the run with 1.
        spec.outer.entry_weight = 1;
        let built = alice_corpus::build_development(text, work)
            .with_context(|| format!("building a corpus of {}", text.display()))?;
        let corpus = TokenSource::open(built.corpus, work, spec.model.context)?;
        let reserve = TokenSource::open(built.reserve.clone(), work, spec.model.context)?;
        // Spread over the whole reserve: its first sequences are all of one address or two.
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

    /// The validation reserve, from which the held-out sequences are taken.
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
