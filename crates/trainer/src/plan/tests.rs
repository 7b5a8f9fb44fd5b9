use super::*;

fn spec(name: &str) -> RunSpec {
    RunSpec::parse(alice_spec::preset(name).unwrap()).unwrap()
}

const GIB: u64 = 1 << 30;
const GPU: Device = Device::Cuda(0);

fn options(precision: Precision, moments: Moments, checkpoint: bool) -> Options {
    Options {
        micro_batch: Some(1),
        precision,
        moments,
        checkpoint,
    }
}

#[test]
fn the_state_should_be_counted_by_parameter() {
    let spec = spec("genesis-7b");
    assert_eq!((spec.parameters(), spec.task.fragments), (6_738_415_616, 8));
    let plain = need(&spec, 3, options(Precision::F32, Moments::F32, false), GPU);
    let learning = spec.fragment_parameters(3);
    assert_eq!(learning, 4 * 202_383_360);
    assert_eq!(plain.weights, 4 * spec.parameters());
    assert_eq!(
        (plain.gradients, plain.moments, plain.copies),
        (4 * learning, 8 * learning, 0)
    );
    let small = need(&spec, 3, options(Precision::Bf16, Moments::Bits8, true), GPU);
    assert_eq!(small.weights, 4 * learning + 2 * (spec.parameters() - learning));
    assert_eq!(small.moments, 2 * learning + learning / 32);
    // The price in the specification and the plan are the same.
    let priced = spec.cost().memory;
    let largest = (0..8).max_by_key(|p| spec.fragment_parameters(*p)).unwrap();
    for (way, precision, moments) in [
        (2, Precision::F32, Moments::F32),
        (3, Precision::Bf16, Moments::F32),
        (4, Precision::Bf16, Moments::Bits8),
    ] {
        let need = need(&spec, largest, options(precision, moments, true), GPU);
        assert_eq!(
            need.weights + need.gradients + need.moments,
            priced[way].state_bytes,
            "{}",
            priced[way].way
        );
    }
}

#[test]
fn every_saving_option_should_save() {
    for name in ["dev", "small", "genesis-7b"] {
        let mut spec = spec(name);
        for fragments in [1, 2] {
            spec.task.fragments = fragments;
            for fragment in 0..fragments {
                let total = |options| need(&spec, fragment, options, Device::Cpu).total();
                let plain = options(Precision::F32, Moments::F32, false);
                let two = Options {
                    micro_batch: Some(2),
                    ..plain
                };
                assert!(total(plain) < total(two));
                assert!(total(options(Precision::F32, Moments::F32, true)) < total(plain));
                assert!(total(options(Precision::F32, Moments::Bits8, false)) < total(plain));
                assert!(
                    total(options(Precision::Bf16, Moments::F32, true))
                        < total(options(Precision::F32, Moments::F32, true))
                );
            }
        }
    }
}

#[test]
fn a_fragment_should_need_less_than_everything() {
    let mut spec = spec("genesis-7b");
    let cut = worst(&spec, options(Precision::Bf16, Moments::Bits8, true), GPU);
    spec.task.fragments = 1;
    let whole = worst(&spec, options(Precision::Bf16, Moments::Bits8, true), GPU);
    assert_eq!(whole.0, 0);
    assert!(cut.1.total() < whole.1.total() / 2, "{cut:?} {whole:?}");
    // The first fragment: every block behind it must pass the gradient on.
    assert_eq!(cut.0, 0);
}

#[test]
fn genesis_should_fit_24_gib_as_fragments_only() {
    let mut spec = spec("genesis-7b");
    let bytes = usable_on_gpu(24 * GIB);
    let fits = |spec: &RunSpec| -> Vec<Options> {
        let all = [Precision::F32, Precision::Bf16].into_iter().flat_map(combinations);
        all.filter(|o| micro_batch(spec, None, *o, GPU, bytes).is_some())
            .collect()
    };
    assert_eq!(
        fits(&spec),
        [Options {
            micro_batch: None,
            ..options(Precision::Bf16, Moments::Bits8, true)
        }]
    );
    spec.task.fragments = 1;
    assert_eq!(fits(&spec), []);
}

#[test]
fn the_update_should_be_counted_by_what_fits_its_budget() {
    let spec = spec("genesis-7b");
    // Made of random values (docs/measurements.md): 13.0 million entries in fragment 0, 13.5 in fragment 3.
    for (fragment, seen) in [(0, 12_999_608), (3, 13_450_994)] {
        let entries = host_need(&spec, fragment).sent / 36;
        assert!(entries >= seen && entries < seen * 3 / 2, "{fragment}: {entries}");
    }
    // The smaller of both bounds holds.
    let mut tight = spec.clone();
    tight.update.k_max = 8;
    assert_eq!(host_need(&tight, 0).sent / 36, tight.fragment_parameters(0) * 8 / 4096);
}

#[test]
fn the_optimiser_should_take_larger_parts_on_a_gpu() {
    let mut spec = spec("genesis-7b");
    // So little text that the optimiser's step is the peak.
    spec.model.context = 16;
    let frugal = options(Precision::F32, Moments::Bits8, true);
    let working = |device| need(&spec, 3, frugal, device).working;
    let part = |device| adamw::part_of(device) as u64;
    assert_eq!(working(GPU), 4 * 7 * part(GPU));
    assert!(working(Device::Cpu) < working(GPU));
    assert!(taken_at_most(GPU, 20 * GIB) < taken_at_most(Device::Cpu, 20 * GIB));
}

#[test]
fn the_micro_batch_should_be_the_largest_that_fits() {
    let spec = spec("small");
    let options = options(Precision::F32, Moments::F32, false);
    let bytes_of = |size| {
        need(
            &spec,
            0,
            Options {
                micro_batch: Some(size),
                ..options
            },
            Device::Cpu,
        )
        .total()
    };
    let any = Options {
        micro_batch: None,
        ..options
    };
    assert_eq!(micro_batch(&spec, Some(0), any, Device::Cpu, bytes_of(16)), Some(16));
    assert_eq!(micro_batch(&spec, Some(0), any, Device::Cpu, bytes_of(16) - 1), Some(8));
    assert_eq!(micro_batch(&spec, None, any, Device::Cpu, bytes_of(1)), Some(1));
    assert_eq!(micro_batch(&spec, None, any, Device::Cpu, bytes_of(1) - 1), None);
    assert_eq!(
        micro_batch(
            &spec,
            Some(0),
            Options {
                micro_batch: Some(3),
                ..options
            },
            Device::Cpu,
            u64::MAX
        ),
        Some(3)
    );
}
