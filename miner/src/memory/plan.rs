//! The command `plan`: what the run's tasks need of memory, and which options make them fit.

use crate::{
    MinerError,
    memory::device,
    memory::fit::{Fit, FitArgs, Plan, flags, gib, host_bytes, moments_word, precision_word},
};
use alice_model::{Device, DeviceChoice};
use alice_spec::RunSpec;
use serde_json::json;
use std::{fmt::Write, path::Path};

/// Flags of `plan`.
#[derive(Clone, Debug, clap::Args)]
pub struct PlanArgs {
    /// A built-in run (dev, small, genesis-7b, …) or the file of a run specification
    #[arg(long, value_name = "NAME_OR_FILE")]
    pub run: String,
    /// auto: a task of the run, whichever fragment it has; full: all parameters learn; or the number of a fragment
    #[arg(long, default_value = "auto", value_name = "auto|full|N")]
    pub fragment: String,
    /// Kind of device: cuda, metal or cpu; it need not be in this machine if --device-memory is given
    #[arg(long, env = "ALICE_DEVICE", default_value = "auto")]
    pub device: String,
    /// Options that are fixed; the others are chosen.
    #[command(flatten)]
    pub fit: FitArgs,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints the plan; an error where nothing fits.
pub fn execute(args: &PlanArgs) -> Result<(), MinerError> {
    let mut spec = read_run(&args.run)?;
    let fragment = match args.fragment.as_str() {
        "auto" => None,
        "full" => {
            spec.task.fragments = 1;
            Some(0)
        }
        number => Some(fragment_number(number, spec.task.fragments)?),
    };
    let device = device_of(args)?;
    let mut fit = Fit::new(&args.fit)?;
    if args.fit.device_memory.is_none() {
        fit.measure(device);
    }
    let plan = fit.plan(&spec, fragment, device);
    if args.json {
        let mut value = plan.json();
        value["run"] = json!(spec.name);
        value["parameters"] = json!(spec.parameters());
        value["learning"] = json!(learning(&spec, fragment));
        value["fragments"] = json!(spec.task.fragments);
        value["host"] = json!({ "update": host_bytes(&spec, fragment), "mapped_theta": spec.parameters() * 4 });
        println!("{value}");
    } else {
        print!("{}", table(&spec, &plan, device));
    }
    match plan.chosen() {
        Some(_) => Ok(()),
        None => Err(MinerError::DoesNotFit(plan.summary())),
    }
}

fn fragment_number(text: &str, fragments: u32) -> Result<u32, MinerError> {
    let known = text.parse().ok().filter(|p| *p < fragments);
    known.ok_or_else(|| {
        MinerError::Setting(format!(
            "fragment '{text}' is not one of the run's; it may be auto, full or 0 to {}",
            fragments - 1
        ))
    })
}

/// A built-in run, or the file of one.
fn read_run(name: &str) -> Result<RunSpec, MinerError> {
    let text = match alice_spec::preset(name) {
        Some(text) => text.to_owned(),
        None => {
            let bytes = crate::files::read_optional(Path::new(name), alice_spec::SPEC_BYTES_MAX as u64)?;
            let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
            text.ok_or_else(|| {
                let known: Vec<_> = alice_spec::preset_names().collect();
                MinerError::Setting(format!(
                    "run '{name}' is neither built in ({}) nor a text file",
                    known.join(", ")
                ))
            })?
        }
    };
    RunSpec::parse(&text).map_err(|e| MinerError::Setting(format!("run '{name}': {e}")))
}

/// The device that is meant. With its memory given, only its kind matters.
fn device_of(args: &PlanArgs) -> Result<Device, MinerError> {
    if args.fit.device_memory.is_none() {
        return device::resolve(&args.device);
    }
    let choice: DeviceChoice = args.device.parse().map_err(|e| MinerError::Device(format!("{e}")))?;
    Ok(match choice {
        DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Metal => Device::Mps,
        DeviceChoice::Cuda(index) => Device::Cuda(index),
        DeviceChoice::Auto => Device::Cuda(0),
    })
}

fn learning(spec: &RunSpec, fragment: Option<u32>) -> u64 {
    let all = (0..spec.task.fragments).map(|p| spec.fragment_parameters(p));
    fragment.map_or(all.max().unwrap_or(0), |p| spec.fragment_parameters(p))
}

/// The plan for people.
fn table(spec: &RunSpec, plan: &Plan, device: Device) -> String {
    let mut text = String::new();
    let which = match plan.fragment {
        Some(_) if spec.task.fragments == 1 => "all of them learn".into(),
        Some(p) => format!(
            "fragment {p} of {} learns, {}",
            spec.task.fragments,
            learning(spec, Some(p))
        ),
        None if spec.task.fragments == 1 => "all of them learn".into(),
        None => format!(
            "one of {} fragments learns, up to {}",
            spec.task.fragments,
            learning(spec, None)
        ),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "run {}: {} parameters, {which}", spec.name, spec.parameters());
    let _ = writeln!(
        text,
        "{} sequences of {} tokens in a batch; device {}\n",
        spec.inner.batch_sequences,
        spec.model.context,
        device::name(device)
    );
    let heads = ["weights", "gradients", "moments", "copies", "activations", "working"];
    let _ = write!(
        text,
        "{:<9} {:<7} {:<10} {:>5}",
        "precision", "moments", "checkpoint", "micro"
    );
    heads.iter().for_each(|head| {
        let _ = write!(text, " {head:>11}");
    });
    let _ = writeln!(text, " {:>9}   GiB", "total");
    for row in &plan.rows {
        let o = &row.options;
        let _ = write!(
            text,
            "{:<9} {:<7} {:<10} {:>5}",
            precision_word(o.precision),
            moments_word(o.moments),
            if o.checkpoint { "on" } else { "off" },
            o.micro_batch.unwrap_or(1),
        );
        let n = &row.need;
        for bytes in [n.weights, n.gradients, n.moments, n.copies, n.activations, n.working] {
            let _ = write!(text, " {:>11.2}", in_gib(bytes));
        }
        let fits = match (row.fits, plan.usable) {
            (_, None) => "?",
            (true, _) => "fits",
            (false, _) => "too large",
        };
        let _ = writeln!(text, " {:>9.2}   {fits}", in_gib(row.need.total()));
    }
    let _ = writeln!(
        text,
        "\nhost: {} for the update; the weights, {}, stay in their file\n",
        gib(host_bytes(spec, plan.fragment)),
        gib(spec.parameters() * 4)
    );
    let _ = writeln!(text, "{}", plan.summary());
    if let Some(row) = plan.chosen() {
        let _ = writeln!(text, "chosen: {}", flags(&row.options));
    }
    text
}

fn in_gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(run: &str, fragment: &str, memory: &str) -> PlanArgs {
        PlanArgs {
            run: run.into(),
            fragment: fragment.into(),
            device: "cuda".into(),
            fit: FitArgs {
                device_memory: Some(memory.into()),
                ..FitArgs::default()
            },
            json: false,
        }
    }

    #[test]
    fn the_plan_should_succeed_where_something_fits() {
        execute(&args("genesis-7b", "auto", "24GiB")).unwrap();
        execute(&args("genesis-7b", "7", "24GiB")).unwrap();
        execute(&args("dev", "full", "2GiB")).unwrap();
        let error = execute(&args("genesis-7b", "full", "24GiB")).unwrap_err();
        assert!(matches!(error, MinerError::DoesNotFit(_)));
        assert_eq!(error.exit_code(), crate::error::EXIT_FAILURE);
        assert!(error.to_string().contains("80 GiB would do"), "{error}");
    }

    #[test]
    fn mistakes_should_be_usage_errors() {
        for (args, expected) in [
            (args("nowhere", "auto", "24GiB"), "genesis-7b"),
            (args("genesis-7b", "8", "24GiB"), "0 to 7"),
            (args("genesis-7b", "half", "24GiB"), "full"),
            (args("genesis-7b", "auto", "much"), "24GiB"),
        ] {
            let error = execute(&args).unwrap_err();
            assert_eq!(error.exit_code(), crate::error::EXIT_USAGE, "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run.toml");
        std::fs::write(&file, "name = 3").unwrap();
        let error = execute(&args(file.to_str().unwrap(), "auto", "24GiB")).unwrap_err();
        assert!(error.to_string().contains("run.toml"), "{error}");
    }

    #[test]
    fn the_table_should_say_what_fits_and_what_is_chosen() {
        let spec = read_run("genesis-7b").unwrap();
        let fit = |memory: &str| Fit::new(&args("genesis-7b", "auto", memory).fit).unwrap();
        let text = table(&spec, &fit("24GiB").plan(&spec, None, Device::Cuda(0)), Device::Cuda(0));
        assert!(
            text.contains("6738415616 parameters, one of 8 fragments learns"),
            "{text}"
        );
        assert_eq!(text.matches(" fits").count(), 1, "{text}");
        assert_eq!(text.matches("too large").count(), 7, "{text}");
        assert!(
            text.contains("chosen: --precision bf16 --moments 8bit --checkpoint on --micro-batch"),
            "{text}"
        );
        let unknown = Fit::new(&FitArgs::default()).unwrap().plan(&spec, None, Device::Mps);
        let text = table(&spec, &unknown, Device::Mps);
        assert!(text.contains("give --device-memory"), "{text}");
    }
}
