//! Memory that really runs out: tasks in processes whose address space is limited.
#![cfg(target_os = "linux")]

use alice_init::init_theta;
use alice_model::Device;
use alice_spec::RunSpec;
use alice_trainer::{Options, Task, train};
use std::ops::ControlFlow;
use std::process::Command;

const CHILD: &str = "ALICE_TEST_MICRO_BATCH";
const NAME: &str = "a_batch_that_does_not_fit_should_be_halved_until_it_does";

/// Activations of a whole batch are some hundred MiB, weights and moments a few.
fn spec() -> RunSpec {
    let mut spec = RunSpec::parse(alice_spec::preset("dev").unwrap()).unwrap();
    spec.model.context = 512;
    spec.inner.batch_sequences = 32;
    spec.inner.steps = 1;
    spec.inner.warmup_steps = 1;
    spec.validate().unwrap();
    spec
}

/// Trains one step and prints what fitted, the loss and the largest address space so far in KiB; or the error.
fn child(micro_batch: u32) {
    alice_model::set_threads(1);
    let spec = spec();
    let theta = init_theta(&spec, &[1; 32]);
    let sequences: Vec<Vec<u16>> = (0..32u16)
        .map(|s| (0..512u16).map(|t| (s * 83 + t * 31) % 259).collect())
        .collect();
    let task = Task {
        spec: &spec,
        fragment: 0,
        theta: &theta,
        sequences: &sequences,
    };
    let options = Options {
        micro_batch: Some(micro_batch),
        ..Options::default()
    };
    match train(&task, Device::Cpu, options, &mut |_| ControlFlow::Continue(())) {
        Ok(result) => {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let peak = status.lines().find_map(|l| l.strip_prefix("VmPeak:")).unwrap();
            let kib = peak.split_whitespace().next().unwrap();
            println!("RESULT {} {} {kib}", result.micro_batch, result.loss_first);
        }
        Err(error) => println!("RESULT error: {error}"),
    }
}

/// Output of a task in a process with a maximum of `limit_kib` KiB of address space.
fn run(micro_batch: u32, limit_kib: Option<u64>) -> String {
    let limit = limit_kib.map_or("unlimited".into(), |kib| kib.to_string());
    let output = Command::new("sh")
        .args(["-c", "ulimit -v \"$0\" && exec \"$@\"", &limit])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(CHILD, micro_batch.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = text.lines().find_map(|line| line.split("RESULT ").nth(1));
    found
        .unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
        .to_owned()
}

fn numbers(line: &str) -> Vec<f64> {
    let parsed = line.split(' ').map(|word| word.parse().ok());
    parsed.collect::<Option<_>>().unwrap_or_else(|| panic!("{line}"))
}

#[test]
fn a_batch_that_does_not_fit_should_be_halved_until_it_does() {
    if let Ok(micro_batch) = std::env::var(CHILD) {
        return child(micro_batch.parse().unwrap());
    }
    let (one, whole) = (numbers(&run(1, None)), numbers(&run(32, None)));
    assert_eq!((one[0], whole[0]), (1.0, 32.0));
    let between = one[2] + (whole[2] - one[2]) / 2.0;
    let halved = numbers(&run(32, Some(between as u64)));
    assert!((1.0..32.0).contains(&halved[0]), "{halved:?}");
    assert!(
        (halved[1] - whole[1]).abs() < 1e-4,
        "the loss is the same: {halved:?} {whole:?}"
    );
}
