//! The command `plan`: memory needs of a run's tasks, and the options with which they fit.

use crate::{
    MinerError,
    commands::print,
    memory::device,
    memory::fit::{Fit, FitArgs, MemoryPlan, flags, gib, host_bytes, moments_word, precision_word},
    settings::SettingError,
};
use alice_model::{Device, DeviceChoice};
use alice_spec::RunSpec;
use serde_json::{Value, json};
use std::{fmt::Write, path::Path};

/// Flags of `plan`.
#[derive(Clone, Debug, clap::Args)]
pub struct PlanArgs {
    /// A built-in run (dev, dev-fragments, small, genesis-7b, …) or the file of a run specification
    #[arg(long, value_name = "NAME_OR_FILE")]
    pub run: String,
    /// auto: the largest task of the run; full: all parameters learn; or the number of a fragment
    #[arg(long, default_value = "auto", value_name = "auto|full|N")]
    pub fragment: String,
    /// Kind of device: cuda, metal or cpu; it need not be in this machine if --device-memory is given
    #[arg(long, env = "ALICE_DEVICE", default_value = "auto")]
    pub device: String,
    /// Options that are fixed; the plan chooses the others.
    #[command(flatten)]
    pub fit: FitArgs,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints the plan.
///
/// # Errors
/// [`MinerError::DoesNotFit`] if no combination of options fits; others for wrong flags.
pub fn execute(args: &PlanArgs) -> Result<(), MinerError> {
    let mut spec = read_run(&args.run)?;
    let fragment = match args.fragment.as_str() {
        "auto" => None,
        "full" => {
            // A run of one fragment is a run whose tasks train everything.
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
        let of_run = json!({
            "run": spec.name, "parameters": spec.parameters(), "learning": learning(&spec, fragment),
            "fragments": spec.task.fragments,
            "host": { "update": host_bytes(&spec, fragment), "mapped_theta": spec.parameters() * 4 },
        });
        if let (Value::Object(to), Value::Object(from)) = (&mut value, of_run) {
            to.extend(from);
        }
        print(&format!("{value}\n"))?;
    } else {
        print(&table(&spec, &plan, device))?;
    }
    match plan.chosen() {
        Some(_) => Ok(()),
        None => Err(MinerError::DoesNotFit(plan.summary())),
    }
}

fn fragment_number(text: &str, fragments: u32) -> Result<u32, SettingError> {
    let known = text.parse().ok().filter(|p| *p < fragments);
    known.ok_or_else(|| SettingError::Fragment {
        text: text.into(),
        last: fragments.saturating_sub(1),
    })
}

/// Specification of a built-in run, or of a file.
fn read_run(name: &str) -> Result<RunSpec, MinerError> {
    let text = match alice_spec::preset(name) {
        Some(text) => text.to_owned(),
        None => {
            let bytes = crate::files::read_optional(Path::new(name), alice_spec::SPEC_BYTES_MAX as u64)?;
            let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
            text.ok_or_else(|| SettingError::UnknownRun {
                name: name.into(),
                known: alice_spec::preset_names().collect::<Vec<_>>().join(", "),
            })?
        }
    };
    Ok(RunSpec::parse(&text).map_err(|source| SettingError::Run {
        name: name.into(),
        source,
    })?)
}

/// The device to plan for. If its memory is given, only its kind matters, and it need not be in this machine.
fn device_of(args: &PlanArgs) -> Result<Device, MinerError> {
    if args.fit.device_memory.is_none() {
        return device::resolve(&args.device);
    }
    let choice: DeviceChoice = args.device.parse()?;
    Ok(match choice {
        DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Metal => Device::Mps,
        DeviceChoice::Cuda(index) => Device::Cuda(index),
        // People who give a device's memory plan for a GPU that they do not have yet.
        DeviceChoice::Auto => Device::Cuda(0),
    })
}

/// Parameters that learn in a task of a fragment; `None` for the largest fragment.
fn learning(spec: &RunSpec, fragment: Option<u32>) -> u64 {
    let all = (0..spec.task.fragments).map(|p| spec.fragment_parameters(p));
    fragment.map_or(all.max().unwrap_or(0), |p| spec.fragment_parameters(p))
}

/// The plan for people.
fn table(spec: &RunSpec, plan: &MemoryPlan, device: Device) -> String {
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
            // Nothing is known to be too large for an unknown memory.
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
    fn the_plan_should_succeed_if_something_fits() {
        execute(&args("genesis-7b", "auto", "24GiB")).unwrap();
        execute(&args("genesis-7b", "7", "24GiB")).unwrap();
        execute(&args("dev", "full", "2GiB")).unwrap();
        execute(&args("dev-fragments", "1", "2GiB")).unwrap();
        let error = execute(&args("genesis-7b", "full", "24GiB")).unwrap_err();
        assert!(matches!(error, MinerError::DoesNotFit(_)));
        assert_eq!(error.exit_code(), alice_program::exit::FAILURE);
        assert!(error.to_string().contains("80 GiB would do"), "{error}");
    }

    #[test]
    fn mistakes_should_be_usage_errors() {
        for (args, expected) in [
            (args("nowhere", "auto", "24GiB"), "genesis-7b"),
            (args("genesis-7b", "8", "24GiB"), "0 to 7"),
            (args("genesis-7b", "half", "24GiB"), "full"),
            (args("genesis-7b", "auto", "much"), "24GiB"),
            (args("genesis-7b", "auto", "24"), "has no unit"),
        ] {
            let error = execute(&args).unwrap_err();
            assert_eq!(error.exit_code(), alice_program::exit::USAGE, "{error}");
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
