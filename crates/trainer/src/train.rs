//! The training loop of a task.

use crate::{
    Moments, MomentsFrom, Options, Progress, Task, TaskResult, TrainError,
    adamw::AdamW,
    carry::{self, Carry, CarryError},
    error::advise,
    micro_batches::in_micro_batches,
};
use alice_model::{Device, Llama};
use alice_spec::InnerSpec;
use std::io::Read;
use std::ops::ControlFlow;
use std::time::Instant;
use tch::{Kind, TchError, Tensor};

/// Runs a task: `steps` batches of `batch_sequences`. Only the fragment learns: gradients are clipped to the norm of
/// its parameters, and the others stay as they are in θ.
///
/// ```no_run
/// # let text = "";
/// # let (spec, theta, sequences) = (alice_spec::RunSpec::parse(text).unwrap(), vec![], vec![]);
/// use alice_trainer::{Options, Task, train};
/// use std::ops::ControlFlow;
///
/// let task = Task { spec: &spec, fragment: 0, theta: &theta, sequences: &sequences };
/// let result = train(&task, alice_model::Device::Cpu, Options::default(), &mut |p| {
///     println!("step {} of {}: loss {:.3}", p.step, p.steps, p.loss);
///     ControlFlow::Continue(())
/// })?;
/// let improved: Vec<f32> = theta.iter().zip(&result.d).map(|(theta, d)| theta - d).collect();
/// # Ok::<(), alice_trainer::TrainError>(())
/// ```
///
/// # Errors
/// The task is not one of the run, the device has too little memory, training is not finite, or `progress` stopped it.
pub fn train(
    task: &Task,
    device: Device,
    options: Options,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<TaskResult, TrainError> {
    train_carrying(task, device, options, Carry::default(), progress)
}

/// [`train`], with an optimiser that continues from the moments of an earlier task and leaves its own for the next one.
/// With moments from an earlier task there is no warm-up, which only bridges the first, poor estimates of the moments.
///
/// # Errors
/// As [`train`]. Moments that cannot be read or written are no error: they are in the result.
pub fn train_carrying(
    task: &Task,
    device: Device,
    options: Options,
    carry: Carry<'_>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<TaskResult, TrainError> {
    check(task)?;
    run(task, device, options, carry, progress).map_err(|error| advise(error, options))
}

fn run(
    task: &Task,
    device: Device,
    options: Options,
    carry: Carry<'_>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<TaskResult, TrainError> {
    let spec = task.spec;
    let learning = spec.fragment_tensors(task.fragment);
    let mut model = Llama::with_learning(spec, device, learning, options.precision)?;
    model.load(task.theta)?;
    let label = carry::label(spec, task.fragment);
    let (mut optimizer, moments) = optimizer(&spec.inner, &model, options.moments, &label, carry.from)?;
    let warm_up = !matches!(moments, MomentsFrom::Carried { .. });
    let mut micro_batch = options.micro_batch.unwrap_or(spec.inner.batch_sequences) as usize;
    let batch_sequences = spec.inner.batch_sequences as usize;
    let (mut loss_first, mut loss_last, mut tokens) = (f64::NAN, f64::NAN, 0u64);
    let started = Instant::now();
    // The order of sequences, batches and sums is fixed: the same machine with the same options gives the same bits.
    for (step, batch) in (1u32..).zip(task.sequences.chunks(batch_sequences)) {
        let objective = |losses: &Tensor| mean_share(losses, batch.len());
        let loss = in_micro_batches(
            batch,
            &mut micro_batch,
            || optimizer.zero_grad(),
            |part| model.backward(&model.batch(part)?, options.checkpoint, &objective),
        )?;
        // Before the step: an update of NaN would cost the miner an epoch's upload and be refused by the server.
        finite(loss, step, "loss")?;
        finite(optimizer.clip()?, step, "gradient")?;
        optimizer.step(match warm_up {
            true => learning_rate(&spec.inner, step),
            false => spec.inner.learning_rate,
        })?;
        tokens += batch.len() as u64 * u64::from(spec.model.context);
        if step == 1 {
            loss_first = loss;
        }
        loss_last = loss;
        let report = Progress {
            step,
            steps: spec.inner.steps,
            loss,
            tokens_per_second: tokens as f64 / started.elapsed().as_secs_f64(),
            micro_batch: micro_batch as u32,
        };
        // After every step, so that stopping a task never takes longer than a step.
        if progress(report).is_break() {
            return Err(TrainError::Cancelled { step });
        }
    }
    // The speed that is reported is that of the steps, without writing the moments.
    let seconds = started.elapsed().as_secs_f64();
    // A full disk costs the next task its moments, and not this one its update.
    let written = carry.to.map_or(Ok(()), |to| carry::write(&optimizer, &label, to));
    // Its moments are freed before the update is computed, which needs as much memory as one of them.
    drop(optimizer);
    Ok(TaskResult {
        d: pseudo_gradient(&model, task)?,
        loss_first,
        loss_last,
        tokens,
        seconds,
        micro_batch: micro_batch as u32,
        moments,
        moments_lost: written.err().map(|error| error.to_string()),
    })
}

/// An optimiser of the parameters that learn, with the moments from `from` if they can be used.
fn optimizer<'a>(
    inner: &'a InnerSpec,
    model: &Llama,
    moments: Moments,
    label: &[u8; 32],
    from: Option<&mut dyn Read>,
) -> Result<(AdamW<'a>, MomentsFrom), TrainError> {
    let new = || AdamW::with_moments(inner, model.learning(), moments);
    let Some(from) = from else {
        return Ok((new()?, MomentsFrom::Nothing));
    };
    let mut optimizer = new()?;
    match carry::read(&mut optimizer, label, from) {
        Ok(()) => {
            let steps = optimizer.steps();
            Ok((optimizer, MomentsFrom::Carried { steps }))
        }
        // A device that fails would fail again in the first step; everything else is about the file.
        Err(CarryError::Torch(error)) => Err(error.into()),
        Err(error) => {
            // Some of its moments have been overwritten. The new one is made after the old one's memory is free.
            drop(optimizer);
            Ok((new()?, MomentsFrom::Refused(error.to_string())))
        }
    }
}

/// Refuses a task that is not one of its run.
fn check(task: &Task) -> Result<(), TrainError> {
    let spec = task.spec;
    let context = spec.model.context;
    let found = task.sequences.iter().filter(|s| s.len() == context as usize).count() as u64;
    let expected = spec.task_sequences();
    if found != expected || task.sequences.len() as u64 != expected {
        return Err(TrainError::Sequences {
            expected,
            found,
            context,
        });
    }
    if task.fragment >= spec.task.fragments {
        return Err(TrainError::Fragment {
            fragment: task.fragment,
            last: spec.task.fragments.saturating_sub(1),
        });
    }
    Ok(())
}

/// Share of the batch's loss that belongs to a micro-batch with token losses `[sequences, tokens − 1]`: their sum over
/// sequences of the mean over tokens, by the sequences of the whole batch. Shares add up to the batch's mean loss.
fn mean_share(losses: &Tensor, batch_sequences: usize) -> Result<Tensor, TchError> {
    losses
        .f_mean_dim(1, false, Kind::Float)?
        .f_sum(Kind::Float)?
        .f_div_scalar(batch_sequences as f64)
}

/// θ_start − θ_end of the parameters that learn, `[parameters of the fragment]`.
fn pseudo_gradient(model: &Llama, task: &Task) -> Result<Vec<f32>, TrainError> {
    let mut d = model.store_learning()?;
    let start = task.theta.get(model.learning_range()).unwrap_or_default();
    d.iter_mut().zip(start).for_each(|(d, start)| *d = start - *d);
    if d.iter().all(|v| v.is_finite()) {
        return Ok(d);
    }
    Err(TrainError::NotFinite {
        step: task.spec.inner.steps,
        what: "update",
    })
}

/// Learning rate of a step, counted from 1: linear warm-up over the task's first steps, then constant.
fn learning_rate(spec: &InnerSpec, step: u32) -> f64 {
    spec.learning_rate * (f64::from(step) / f64::from(spec.warmup_steps.max(1))).min(1.0)
}

fn finite(value: f64, step: u32, what: &'static str) -> Result<(), TrainError> {
    if value.is_finite() {
        Ok(())
    } else {
        Err(TrainError::NotFinite { step, what })
    }
}

#[cfg(test)]
mod tests;
