use super::*;
use crate::Precision;
use alice_init::init_theta;
use alice_model::ModelError;
use alice_spec::RunSpec;

const LICENSE: &str = include_str!("../../../../LICENSE");

/// A small model and a task of 24 steps.
fn spec() -> RunSpec {
    let mut spec = RunSpec::parse(include_str!("../../../../chain-spec/runs/dev.toml")).unwrap();
    spec.model.hidden = 64;
    spec.model.layers = 2;
    spec.model.ffn = 128;
    spec.model.context = 48;
    spec.inner.steps = 24;
    spec.inner.batch_sequences = 6;
    spec.inner.learning_rate = 5e-3;
    spec.inner.warmup_steps = 3;
    spec.validate().unwrap();
    spec
}

/// Real text, every fourth sequence of it held out.
fn text(spec: &RunSpec) -> (Vec<Vec<u16>>, Vec<Vec<u16>>) {
    // Byte tokens: byte b is id b + 3.
    let tokens: Vec<u16> = LICENSE.bytes().map(|byte| u16::from(byte) + 3).collect();
    let all = tokens.chunks_exact(spec.model.context as usize).map(<[u16]>::to_vec);
    let (held_out, training): (Vec<_>, Vec<_>) = all.enumerate().partition(|(i, _)| i % 4 == 3);
    let strip = |part: Vec<(usize, Vec<u16>)>| part.into_iter().map(|(_, s)| s);
    (
        strip(training).take(spec.task_sequences() as usize).collect(),
        strip(held_out).collect(),
    )
}

fn held_out_loss(spec: &RunSpec, theta: &[f32], sequences: &[Vec<u16>]) -> f64 {
    let mut model = Llama::new(spec, Device::Cpu).unwrap();
    model.load(theta).unwrap();
    tch::no_grad(|| {
        model
            .sequence_losses(&model.batch(sequences).unwrap())
            .unwrap()
            .mean(Kind::Double)
            .double_value(&[])
    })
}

fn keep_going(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Fragment 0, with default options.
fn train(
    spec: &RunSpec,
    device: Device,
    theta: &[f32],
    sequences: &[Vec<u16>],
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<TaskResult, TrainError> {
    let task = Task {
        spec,
        fragment: 0,
        theta,
        sequences,
    };
    super::train(&task, device, Options::default(), progress)
}

fn norm(v: impl Iterator<Item = f32>) -> f64 {
    v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// ‖a − b‖ / ‖b‖.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    norm(a.iter().zip(b).map(|(a, b)| a - b)) / norm(b.iter().copied())
}

#[test]
fn subtracting_the_update_should_lower_the_held_out_loss() {
    let spec = spec();
    let theta = init_theta(&spec, &[1; 32]);
    let (training, held_out) = text(&spec);
    let mut reports = Vec::new();
    let result = train(&spec, Device::Cpu, &theta, &training, &mut |p| {
        reports.push(p);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(reports.len(), 24);
    assert_eq!((reports[23].step, reports[23].steps), (24, 24));
    assert!(reports.iter().all(|p| p.tokens_per_second > 0.0));
    assert_eq!(
        (result.loss_first, result.loss_last),
        (reports[0].loss, reports[23].loss)
    );
    assert_eq!(result.tokens, 24 * 6 * 48);
    assert!(
        result.loss_last < result.loss_first - 1.0,
        "{} → {}",
        result.loss_first,
        result.loss_last
    );

    let moved = |theta: &[f32], d: &[f32], factor: f32| -> Vec<f32> {
        theta.iter().zip(d).map(|(t, d)| t - factor * d).collect()
    };
    let first = moved(&theta, &result.d, 1.0);
    let (before, after) = (
        held_out_loss(&spec, &theta, &held_out),
        held_out_loss(&spec, &first, &held_out),
    );
    assert!(after < before - 1.0, "{before} → {after}");

    // The sign, from weights that are not random any more. At the first state a whole step the wrong way helps as
    // well: embedding and head both change their sign, and their product, the token frequencies, is the same.
    let second = train(&spec, Device::Cpu, &first, &training, &mut keep_going).unwrap();
    let losses = [1.0, 0.0, -1.0].map(|factor| held_out_loss(&spec, &moved(&first, &second.d, factor), &held_out));
    assert!(
        losses[0] < losses[1] && losses[1] < losses[2],
        "θ − d, θ, θ + d: {losses:?}"
    );
}

#[test]
fn theta_minus_the_update_should_be_where_training_ended() {
    let spec = spec();
    let theta = init_theta(&spec, &[1; 32]);
    let (training, _) = text(&spec);
    let result = train(&spec, Device::Cpu, &theta, &training, &mut keep_going).unwrap();
    // The same steps once more, without the trainer's loop: θ_end.
    let mut model = Llama::new(&spec, Device::Cpu).unwrap();
    model.load(&theta).unwrap();
    let mut optimizer = AdamW::new(&spec.inner, model.parameters()).unwrap();
    for (step, batch) in (1..).zip(training.chunks(6)) {
        optimizer.zero_grad();
        let losses = model.token_losses(&model.batch(batch).unwrap()).unwrap();
        (losses.mean_dim(1, false, Kind::Float).sum(Kind::Float) / 6.0).backward();
        optimizer.clip().unwrap();
        optimizer.step(learning_rate(&spec.inner, step)).unwrap();
    }
    let end = model.store().unwrap();
    for (i, ((start, d), end)) in theta.iter().zip(&result.d).zip(&end).enumerate() {
        assert!(
            (start - d - end).abs() < 1e-5,
            "coordinate {i}: {start} − {d} is not {end}"
        );
    }
    let moved = result.d.iter().filter(|d| **d != 0.0).count();
    assert!(
        moved > theta.len() * 9 / 10,
        "{moved} of {} coordinates moved",
        theta.len()
    );
}

/// The update of two steps with these options.
fn update(spec: &RunSpec, fragment: u32, options: Options) -> TaskResult {
    let theta = init_theta(spec, &[1; 32]);
    let (training, _) = text(spec);
    let task = Task {
        spec,
        fragment,
        theta: &theta,
        sequences: &training,
    };
    super::train(&task, Device::Cpu, options, &mut keep_going).unwrap()
}

fn two_steps() -> RunSpec {
    let mut spec = spec();
    spec.model.layers = 4;
    spec.task.fragments = 3;
    spec.inner.steps = 2;
    spec
}

#[test]
fn moments_should_be_carried_from_task_to_task() {
    let spec = two_steps();
    let theta = init_theta(&spec, &[1; 32]);
    let (training, _) = text(&spec);
    let run = |fragment, from: Option<&[u8]>| {
        let task = Task {
            spec: &spec,
            fragment,
            theta: &theta,
            sequences: &training,
        };
        let (mut from, mut to) = (from, Vec::new());
        let carry = Carry {
            from: from.as_mut().map(|from| from as &mut dyn Read),
            to: Some(&mut to),
        };
        let go = &mut keep_going;
        (
            train_carrying(&task, Device::Cpu, Options::default(), carry, go).unwrap(),
            to,
        )
    };
    let (first, moments) = run(1, None);
    assert_eq!((&first.moments, &first.moments_lost), (&MomentsFrom::Nothing, &None));
    let (second, later) = run(1, Some(&moments));
    assert_eq!(second.moments, MomentsFrom::Carried { steps: 2 });
    assert_ne!(first.d, second.d);
    assert_eq!(run(1, Some(&later)).0.moments, MomentsFrom::Carried { steps: 4 });
    // Unusable moments are lost, the task is not.
    for (fragment, bytes) in [(0, &moments[..]), (1, &moments[..500])] {
        let (result, _) = run(fragment, Some(bytes));
        assert!(
            matches!(result.moments, MomentsFrom::Refused(_)),
            "{:?}",
            result.moments
        );
        assert_eq!(result.d, run(fragment, None).0.d);
    }
    // No room for what is left.
    let task = Task {
        spec: &spec,
        fragment: 1,
        theta: &theta,
        sequences: &training,
    };
    let mut small = [0u8; 100];
    let carry = Carry {
        from: None,
        to: Some(&mut &mut small[..]),
    };
    let go = &mut keep_going;
    let result = train_carrying(&task, Device::Cpu, Options::default(), carry, go).unwrap();
    assert!(result.moments_lost.is_some());
    assert_eq!(result.d, first.d);
}

#[test]
fn micro_batches_and_checkpoints_should_not_change_the_update() {
    let mut spec = two_steps();
    for (fragments, fragment) in [(1, 0), (3, 1)] {
        spec.task.fragments = fragments;
        let whole = update(&spec, fragment, Options::default());
        assert_eq!(whole.micro_batch, 6);
        for (micro_batch, checkpoint) in [(Some(4), false), (None, true), (Some(1), true)] {
            let options = Options {
                micro_batch,
                checkpoint,
                ..Options::default()
            };
            let parts = update(&spec, fragment, options);
            assert_eq!(parts.micro_batch, micro_batch.unwrap_or(6));
            assert!((parts.loss_first - whole.loss_first).abs() < 1e-5);
            // Where a gradient is near zero, Adam's first steps turn rounding into ±rate: few coordinates, small in
            // norm.
            let difference = apart(&parts.d, &whole.d);
            assert!(difference < 0.02, "{options:?}: {difference}");
        }
    }
}

#[test]
fn a_fragment_should_learn_as_if_the_rest_were_frozen() {
    let spec = two_steps();
    let theta = init_theta(&spec, &[1; 32]);
    let (training, _) = text(&spec);
    for fragment in 0..3 {
        let found = update(&spec, fragment, Options::default());
        assert_eq!(found.d.len() as u64, spec.fragment_parameters(fragment));
        // The whole model's gradients, and a step for the fragment's tensors alone.
        let mut model = Llama::new(&spec, Device::Cpu).unwrap();
        model.load(&theta).unwrap();
        let tensors = spec.fragment_tensors(fragment);
        let mut optimizer = AdamW::new(&spec.inner, &model.parameters()[tensors.clone()]).unwrap();
        for (step, batch) in (1..).zip(training.chunks(6)) {
            model.parameters().iter().for_each(|p| p.shallow_clone().zero_grad());
            let losses = model.token_losses(&model.batch(batch).unwrap()).unwrap();
            losses.mean(Kind::Float).backward();
            optimizer.clip().unwrap();
            optimizer.step(learning_rate(&spec.inner, step)).unwrap();
        }
        let end = model.store().unwrap();
        let lens: Vec<usize> = spec.tensors().iter().map(|t| t.len() as usize).collect();
        let start: usize = lens[..tensors.start].iter().sum();
        let covered = start..start + lens[tensors].iter().sum::<usize>();
        let moved: Vec<f32> = theta.iter().zip(&end).map(|(a, b)| a - b).collect();
        let difference = apart(&found.d, &moved[covered.clone()]);
        assert!(difference < 0.02, "fragment {fragment}: {difference}");
        let others = moved[..covered.start].iter().chain(&moved[covered.end..]);
        assert!(others.copied().all(|d| d == 0.0));
    }
}

#[test]
fn fragments_that_are_not_there_should_be_refused() {
    let spec = two_steps();
    let theta = init_theta(&spec, &[1; 32]);
    let (training, _) = text(&spec);
    let task = Task {
        spec: &spec,
        fragment: 3,
        theta: &theta,
        sequences: &training,
    };
    let error = super::train(&task, Device::Cpu, Options::default(), &mut keep_going).unwrap_err();
    assert!(
        error.to_string().contains("no fragment 3, its fragments are 0 to 2"),
        "{error}"
    );
}

#[test]
fn saving_options_should_train_as_well() {
    let spec = spec();
    let theta = init_theta(&spec, &[1; 32]);
    let (training, held_out) = text(&spec);
    let run = |options| {
        let task = Task {
            spec: &spec,
            fragment: 0,
            theta: &theta,
            sequences: &training,
        };
        let result = super::train(&task, Device::Cpu, options, &mut keep_going).unwrap();
        let end: Vec<f32> = theta.iter().zip(&result.d).map(|(t, d)| t - d).collect();
        (held_out_loss(&spec, &end, &held_out), result.d)
    };
    let (loss, d) = run(Options::default());
    let before = held_out_loss(&spec, &theta, &held_out);
    for (moments, precision) in [
        (Moments::Bits8, Precision::F32),
        (Moments::F32, Precision::Bf16),
        (Moments::Bits8, Precision::Bf16),
    ] {
        let options = Options {
            moments,
            precision,
            checkpoint: true,
            ..Options::default()
        };
        let (found, found_d) = run(options);
        // Of what training gains, at most a fiftieth is lost.
        assert!(
            found < loss + (before - loss) / 50.0,
            "{options:?}: {before} → {found}, f32 {loss}"
        );
        let cosine = d
            .iter()
            .zip(&found_d)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum::<f64>()
            / (norm(d.iter().copied()) * norm(found_d.iter().copied()));
        assert!(cosine > 0.9, "{options:?}: {cosine}");
    }
}

#[test]
fn exhausted_memory_should_say_what_is_left_to_try() {
    let message = |checkpoint, moments, precision| {
        let options = Options {
            checkpoint,
            moments,
            precision,
            ..Options::default()
        };
        advise(ModelError::OutOfMemory("20 GiB".into()).into(), options).to_string()
    };
    assert!(message(false, Moments::F32, Precision::F32).contains("--checkpoint on"));
    assert!(message(true, Moments::F32, Precision::F32).contains("--moments 8bit"));
    assert!(message(true, Moments::Bits8, Precision::F32).contains("--precision bf16"));
    let last = message(true, Moments::Bits8, Precision::Bf16);
    assert!(
        last.contains("with every saving option on") && last.contains("20 GiB"),
        "{last}"
    );
    let other = advise(ModelError::Torch("other".into()).into(), Options::default());
    assert!(matches!(other, TrainError::Model(ModelError::Torch(_))));
}

#[test]
fn a_task_should_be_cancelled_between_steps() {
    let spec = spec();
    let theta = init_theta(&spec, &[1; 32]);
    let (training, _) = text(&spec);
    let mut stop_at_two = |p: Progress| {
        if p.step == 2 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let result = train(&spec, Device::Cpu, &theta, &training, &mut stop_at_two);
    assert!(matches!(result, Err(TrainError::Cancelled { step: 2 })));
}

#[test]
fn what_cannot_be_trained_should_be_refused() {
    let spec = spec();
    let mut theta = init_theta(&spec, &[1; 32]);
    let (training, _) = text(&spec);
    let go = &mut keep_going;
    assert!(matches!(
        train(&spec, Device::Cpu, &theta, &training[1..], go),
        Err(TrainError::Sequences {
            expected: 144,
            found: 143,
            ..
        })
    ));
    let mut ragged = training.clone();
    ragged[3].pop();
    assert!(matches!(
        train(&spec, Device::Cpu, &theta, &ragged, go),
        Err(TrainError::Sequences { .. })
    ));
    let mut unknown = training.clone();
    unknown[3][0] = 300;
    assert!(matches!(
        train(&spec, Device::Cpu, &theta, &unknown, go),
        Err(TrainError::Model(ModelError::Batch(_)))
    ));
    assert!(matches!(
        train(&spec, Device::Cpu, &theta[1..], &training, go),
        Err(TrainError::Model(ModelError::Size { .. }))
    ));
    *theta.last_mut().unwrap() = f32::NAN;
    let message = train(&spec, Device::Cpu, &theta, &training, go)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("the loss is not a finite number after step 1"),
        "{message}"
    );
}

#[test]
fn numbers_that_run_out_of_bounds_should_give_no_update() {
    let mut spec = spec();
    spec.inner.steps = 1;
    let (training, _) = text(&spec);
    let training = &training[..spec.task_sequences() as usize];
    let what = |spec: &RunSpec, theta: &[f32]| match train(spec, Device::Cpu, theta, training, &mut keep_going) {
        Err(TrainError::NotFinite { step: 1, what }) => what,
        other => panic!("{other:?}"),
    };
    // A head this large gives losses that are numbers still, and gradients whose squares are not.
    let mut theta = init_theta(&spec, &[1; 32]);
    let head = spec.tensors().pop().unwrap();
    assert_eq!(head.name, "lm_head.weight");
    let from = theta.len() - head.len() as usize;
    theta[from..].iter_mut().for_each(|v| *v *= 1e24);
    assert_eq!(what(&spec, &theta), "gradient");
    // No run may have such a rate. After the only step nobody looks at the loss.
    spec.inner.learning_rate = 1e39;
    spec.inner.warmup_steps = 0;
    assert_eq!(what(&spec, &init_theta(&spec, &[1; 32])), "update");
}

#[test]
fn the_rate_should_warm_up_and_stay() {
    let mut inner = spec().inner;
    inner.learning_rate = 0.75;
    assert_eq!(
        [1, 2, 3, 4, 24].map(|step| learning_rate(&inner, step)),
        [0.25, 0.5, 0.75, 0.75, 0.75]
    );
    inner.warmup_steps = 0;
    assert_eq!(learning_rate(&inner, 1), 0.75);
}
