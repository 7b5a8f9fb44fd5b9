//! Chooses training options that fit device memory: the user's flags first, the plan for the rest.
//!
//! The arithmetic of the plan is [`alice_trainer::plan`]; here are the user's side of it (flags, sizes, words) and the
//! comparison of the plan with the memory that a task really took ([`MemoryMonitor`]).

use crate::settings::SettingError;
use alice_model::{Bf16, Device};
use alice_spec::RunSpec;
use alice_trainer::{
    MemoryWatch, Moments, Options, Precision,
    plan::{self, CPU_SHARE, Need},
};
use serde_json::{Value, json};

/// Memory of common devices, GiB: 6 (RTX 2060) to 141 (H200). Only for the advice when nothing fits.
const COMMON_GIB: [u64; 12] = [6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 141];
const GIB: f64 = (1u64 << 30) as f64;

/// Flags and settings that fit tasks to the device. The plan chooses those that are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct FitArgs {
    /// f32 or bf16 [default: bf16 on a GPU that has it, else f32 where it fits]
    #[arg(long, value_name = "KIND", value_parser = ["auto", "f32", "bf16"])]
    pub precision: Option<String>,
    /// Optimiser's moments: f32 or 8bit [default: f32 where it fits]
    #[arg(long, value_name = "KIND", value_parser = ["auto", "f32", "8bit"])]
    pub moments: Option<String>,
    /// Compute activations a second time instead of keeping them: on or off [default: off where it fits]
    #[arg(long, value_name = "WHEN", value_parser = ["auto", "on", "off"])]
    pub checkpoint: Option<String>,
    /// Sequences that go through the model at once [default: the most that fit]
    #[arg(long, value_name = "N")]
    pub micro_batch: Option<u32>,
    /// Memory of the device with its unit, for example 24GiB [default: its free memory]
    #[arg(long, env = "ALICE_DEVICE_MEMORY", value_name = "SIZE")]
    pub device_memory: Option<String>,
}

/// Validated [`FitArgs`], with what was measured of the device.
#[derive(Clone, Debug, Default)]
pub struct Fit {
    precision: Option<Precision>,
    moments: Option<Moments>,
    checkpoint: Option<bool>,
    micro_batch: Option<u32>,
    memory: Option<u64>,
    /// Free memory of a GPU before the first task, bytes.
    free_at_start: Option<u64>,
    /// Whether the GPU computes in bf16, and how fast.
    bf16: Bf16,
}

/// Memory needs of a run's tasks on a device, for each combination of options.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// Fragment that it is for; `None` for the largest of the run's.
    pub fragment: Option<u32>,
    /// Bytes that a task may take; `None` if the device's memory is unknown.
    pub usable: Option<u64>,
    /// On the CPU, the update's share of the same memory, bytes; `None` on a GPU.
    kept_for_host: Option<u64>,
    /// Combinations of options, in order of preference.
    pub rows: Vec<Row>,
}

/// One combination of options.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Options; the micro-batch is the largest that fits, or 1 if none does.
    pub options: Options,
    /// Memory that they need.
    pub need: Need,
    /// Whether that fits the device.
    pub fits: bool,
}

impl FitArgs {
    /// Fills the settings that are missing here from others.
    pub fn or(self, others: Self) -> Self {
        Self {
            precision: self.precision.or(others.precision),
            moments: self.moments.or(others.moments),
            checkpoint: self.checkpoint.or(others.checkpoint),
            micro_batch: self.micro_batch.or(others.micro_batch),
            device_memory: self.device_memory.or(others.device_memory),
        }
    }
}

impl Fit {
    /// Checks the user's flags.
    ///
    /// # Errors
    /// A flag has a value that it does not know.
    pub fn new(args: &FitArgs) -> Result<Self, SettingError> {
        let unknown = |name, value: &str, choices| SettingError::Choice {
            name,
            value: value.into(),
            choices,
        };
        let precision = match args.precision.as_deref() {
            None | Some("auto") => None,
            Some("f32") => Some(Precision::F32),
            Some("bf16") => Some(Precision::Bf16),
            Some(other) => return Err(unknown("precision", other, "auto, f32 or bf16")),
        };
        let moments = match args.moments.as_deref() {
            None | Some("auto") => None,
            Some("f32") => Some(Moments::F32),
            Some("8bit") => Some(Moments::Bits8),
            Some(other) => return Err(unknown("moments", other, "auto, f32 or 8bit")),
        };
        let checkpoint = match args.checkpoint.as_deref() {
            None | Some("auto") => None,
            Some("on") => Some(true),
            Some("off") => Some(false),
            Some(other) => return Err(unknown("checkpoint", other, "auto, on or off")),
        };
        if args.micro_batch == Some(0) {
            return Err(SettingError::Zero("micro_batch"));
        }
        Ok(Self {
            precision,
            moments,
            checkpoint,
            micro_batch: args.micro_batch,
            memory: args.device_memory.as_deref().map(parse_size).transpose()?,
            free_at_start: None,
            bf16: Bf16::default(),
        })
    }

    /// Measures a GPU once, for every plan from here on: libtorch keeps the memory that a task has taken, so a later
    /// measurement would seem to leave too little for the next task.
    pub fn measure(&mut self, device: Device) {
        if device != Device::Cpu {
            self.free_at_start = free_memory(device);
            self.bf16 = alice_model::bf16(device);
        }
    }

    /// Plans tasks of a fragment; `None` for the largest of the run's.
    pub fn plan(&self, spec: &RunSpec, fragment: Option<u32>, device: Device) -> MemoryPlan {
        // On the CPU device and host are the same memory.
        let host = host_bytes(spec, fragment);
        let usable = match device {
            Device::Cpu => (self.memory.or_else(|| free_memory(device)))
                .map(|bytes| bytes.saturating_sub(host) / CPU_SHARE.1 * CPU_SHARE.0),
            _ => match self.memory {
                Some(bytes) => Some(plan::usable_on_gpu(bytes)),
                None => (self.free_at_start.or_else(|| free_memory(device))).map(plan::usable_of_free),
            },
        };
        let rows = self.candidates(device).map(|options| {
            let micro_batch = usable.map_or(
                Some(options.micro_batch.unwrap_or(spec.inner.batch_sequences)),
                |bytes| plan::micro_batch(spec, fragment, options, device, bytes),
            );
            let options = Options {
                micro_batch: Some(micro_batch.unwrap_or(1)),
                ..options
            };
            let need = match fragment {
                Some(p) => plan::need(spec, p, options, device),
                None => plan::worst(spec, options, device).1,
            };
            Row {
                options,
                need,
                fits: micro_batch.is_some(),
            }
        });
        MemoryPlan {
            fragment,
            usable,
            kept_for_host: (device == Device::Cpu).then_some(host),
            rows: rows.collect(),
        }
    }

    /// Combinations that the user's flags leave, the one that changes training least first.
    fn candidates(&self, device: Device) -> impl Iterator<Item = Options> {
        let bf16 = if device == Device::Cpu { Bf16::Slow } else { self.bf16 };
        let precisions = match (self.precision, bf16) {
            (Some(precision), _) => vec![precision],
            (None, Bf16::Fast) => vec![Precision::Bf16, Precision::F32],
            // bf16 as the second choice: slow, but a task that fits only so is better than none.
            (None, Bf16::Slow) => vec![Precision::F32, Precision::Bf16],
            (None, Bf16::Missing) => vec![Precision::F32],
        };
        let all = precisions.into_iter().flat_map(plan::combinations);
        all.filter(|o| self.moments.is_none_or(|m| m == o.moments) && self.checkpoint.is_none_or(|c| c == o.checkpoint))
            .map(|options| Options {
                micro_batch: self.micro_batch,
                ..options
            })
    }
}

impl MemoryPlan {
    /// The first combination that fits.
    pub fn chosen(&self) -> Option<&Row> {
        self.rows.iter().find(|row| row.fits)
    }

    /// The combination that needs least.
    pub fn smallest(&self) -> Option<&Row> {
        self.rows.iter().min_by_key(|row| row.need.total())
    }

    /// The chosen combination with its need, or the least need and a device that would do; one line.
    pub fn summary(&self) -> String {
        let room = self
            .usable
            .map_or("memory unknown: give --device-memory".into(), |bytes| {
                format!("{} usable", gib(bytes))
            });
        match (self.chosen(), self.smallest()) {
            (Some(row), _) => format!("{}: {} of memory ({room})", words(&row.options), gib(row.need.total())),
            (None, Some(row)) => {
                let total = row.need.total();
                let sufficient = match self.kept_for_host {
                    Some(host) => {
                        let bytes = host.saturating_add(total.div_ceil(CPU_SHARE.0).saturating_mul(CPU_SHARE.1));
                        format!("{} GiB of free memory", bytes.div_ceil(1 << 30))
                    }
                    None => (COMMON_GIB.iter())
                        .find(|size| plan::usable_on_gpu(**size << 30) >= total)
                        .map_or("no common device".into(), |size| format!("a device of {size} GiB")),
                };
                format!(
                    "nothing fits: the least, {}, needs {} ({room}); {sufficient} would do",
                    words(&row.options),
                    gib(total)
                )
            }
            (None, None) => "no combination of options is left".into(),
        }
    }

    /// The plan as JSON, for programs.
    pub fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "precision": precision_word(row.options.precision), "moments": moments_word(row.options.moments),
                "checkpoint": row.options.checkpoint, "micro_batch": row.options.micro_batch,
                "need": row.need, "total": row.need.total(), "fits": row.fits,
            })
        };
        json!({
            "fragment": self.fragment, "usable": self.usable, "chosen": self.chosen().map(row),
            "options": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

/// Options in words, for people.
pub fn words(options: &Options) -> String {
    let batch = options
        .micro_batch
        .map_or(String::new(), |n| format!(", micro-batch {n}"));
    let checkpoint = if options.checkpoint { ", checkpointing" } else { "" };
    format!(
        "{}, {} moments{checkpoint}{batch}",
        precision_word(options.precision),
        moments_word(options.moments)
    )
}

/// Options as flags of `run`.
pub fn flags(options: &Options) -> String {
    let checkpoint = if options.checkpoint { "on" } else { "off" };
    let batch = options
        .micro_batch
        .map_or(String::new(), |n| format!(" --micro-batch {n}"));
    format!(
        "--precision {} --moments {} --checkpoint {checkpoint}{batch}",
        precision_word(options.precision),
        moments_word(options.moments)
    )
}

/// Name of a precision, as the flag takes it.
pub fn precision_word(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    }
}

/// Name of a kind of moments, as the flag takes it.
pub fn moments_word(moments: Moments) -> &'static str {
    match moments {
        Moments::F32 => "f32",
        Moments::Bits8 => "8bit",
    }
}

/// Bytes as GiB, for people.
pub fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / GIB)
}

/// Compares the memory that tasks take with their plans.
#[derive(Debug)]
pub struct MemoryMonitor {
    watch: MemoryWatch,
    /// Planned bytes to compare with. On a GPU libtorch gives nothing back, so the largest plan so far counts.
    planned: u64,
    warned: bool,
}

impl MemoryMonitor {
    /// Starts to watch; `None` if the device's memory cannot be measured.
    pub fn start(device: Device) -> Option<Self> {
        MemoryWatch::start(device).map(|watch| Self {
            watch,
            planned: 0,
            warned: false,
        })
    }

    /// Call before a task.
    pub fn begin_task(&self) {
        self.watch.forget_peak();
    }

    /// Call after a task that was planned to take `planned` bytes. Returns the peak, bytes, and a warning if that is
    /// above the plan, the first time only.
    pub fn end_task(&mut self, device: Device, planned: u64) -> Option<(u64, Option<String>)> {
        let peak = self.watch.peak()?;
        self.planned = match device {
            // The C library returns memory, so each task is compared with its own plan.
            Device::Cpu => planned,
            _ => self.planned.max(planned),
        };
        let warning = over_plan(device, peak, self.planned).filter(|_| !self.warned);
        self.warned |= warning.is_some();
        Some((peak, warning))
    }
}

/// Peak and plan of a task, for the end of a line.
pub fn peak_and_plan(peak: u64, planned: u64) -> String {
    format!(", {} MiB of memory (plan {})", peak >> 20, planned >> 20)
}

/// Warning that a task took more of the device than its plan allows for; `None` if it did not.
fn over_plan(device: Device, peak: u64, planned: u64) -> Option<String> {
    let most = plan::taken_at_most(device, planned);
    (peak > most).then(|| {
        format!(
            "the task took {} of the device, the plan expects at most {}; if memory runs short, give a smaller \
             --device-memory, and please report it with the output of `alice-miner plan`",
            gib(peak),
            gib(most)
        )
    })
}

/// Memory of the host that a task needs besides the device's, bytes; on the CPU both are the same memory. The weights
/// are not in it: they are mapped from their file.
pub fn host_bytes(spec: &RunSpec, fragment: Option<u32>) -> u64 {
    // The largest of all fragments, because the server chooses which one a task trains.
    let fragments = fragment.map_or(0..spec.task.fragments.max(1), |p| p..p.saturating_add(1));
    let needs = fragments.map(|p| plan::host_need(spec, p));
    needs.map(|need| need.total()).max().unwrap_or(0)
}

/// Free memory of a device, bytes; `None` if it cannot be measured.
fn free_memory(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => {
            let text = std::fs::read_to_string("/proc/meminfo").ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
            Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
        }
        _ => alice_model::memory(device).map(|memory| memory.free),
    }
}

/// Bytes from `24GiB`, `24GB`, `800MiB` or `800000000B`.
///
/// # Errors
/// The text is no size, or has no unit: `24` means 24 GiB to most people and 24 bytes to none.
pub fn parse_size(text: &str) -> Result<u64, SettingError> {
    const UNITS: [(&str, u64); 8] = [
        ("KIB", 1 << 10),
        ("MIB", 1 << 20),
        ("GIB", 1 << 30),
        ("TIB", 1 << 40),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    // Units are read in any case: nobody means millibytes by `mb`.
    let upper = text.trim().to_ascii_uppercase();
    // "B" is the last, because every other unit ends with it.
    let unit = UNITS
        .iter()
        .find_map(|(unit, size)| Some((upper.strip_suffix(unit)?, *size)));
    let Some((number, size)) = unit else {
        return Err(
            match upper
                .parse::<f64>()
                .is_ok_and(|number| number >= 1.0 && number.is_finite())
            {
                true => SettingError::SizeWithoutUnit(text.trim().into()),
                false => SettingError::Size(text.into()),
            },
        );
    };
    let bytes = number.trim().parse::<f64>().ok().map(|n| n * size as f64);
    // Up to 2^60, where an f64 still counts whole bytes to within 128.
    match bytes {
        Some(bytes) if bytes >= 1.0 && bytes < (1u64 << 60) as f64 => Ok(bytes as u64),
        _ => Err(SettingError::Size(text.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MinerError;

    fn spec(name: &str) -> RunSpec {
        RunSpec::parse(alice_spec::preset(name).unwrap()).unwrap()
    }

    fn fit(memory: &str, change: impl FnOnce(&mut FitArgs)) -> Fit {
        let mut args = FitArgs {
            device_memory: Some(memory.into()),
            ..FitArgs::default()
        };
        change(&mut args);
        Fit::new(&args).unwrap()
    }

    #[test]
    fn sizes_should_be_read_with_their_units() {
        assert_eq!(parse_size("24GiB").unwrap(), 24 << 30);
        assert_eq!(parse_size(" 1.5 gib").unwrap(), 3 << 29);
        assert_eq!(parse_size("800MB").unwrap(), 800_000_000);
        assert_eq!(parse_size("123B").unwrap(), 123);
        for text in ["", "GiB", "-1GiB", "24 G", "nan", "inf", "1e30TiB", "0"] {
            let error = MinerError::from(parse_size(text).unwrap_err());
            assert_eq!(error.exit_code(), alice_program::exit::USAGE, "{text}");
        }
    }

    #[test]
    fn a_size_without_a_unit_should_be_refused_with_the_unit_that_is_meant() {
        for text in ["24", " 24 ", "123456789", "1.5"] {
            let error = parse_size(text).unwrap_err().to_string();
            assert!(
                error.contains("has no unit") && error.contains(&format!("{}GiB", text.trim())),
                "{error}"
            );
        }
    }

    #[test]
    fn the_first_combination_that_fits_should_be_chosen() {
        let spec = spec("genesis-7b");
        let of = |memory: &str, device| fit(memory, |_| ()).plan(&spec, None, device);
        let chosen = |memory| of(memory, Device::Cuda(0)).chosen().map(|row| row.options);
        let frugal = chosen("24GiB").unwrap();
        assert_eq!(
            (frugal.precision, frugal.moments, frugal.checkpoint),
            (Precision::Bf16, Moments::Bits8, true)
        );
        let roomy = chosen("80GiB").unwrap();
        assert_eq!(
            (roomy.precision, roomy.moments, roomy.checkpoint),
            (Precision::Bf16, Moments::F32, false)
        );
        assert!(roomy.micro_batch >= Some(1));
        assert_eq!(chosen("12GiB"), None);
        let summary = of("12GiB", Device::Cuda(0)).summary();
        assert!(
            summary.contains("nothing fits") && summary.contains("24 GiB would do"),
            "{summary}"
        );
        // The size that would do does, and a GiB less does not: on the CPU the update is in the same memory.
        let cpu = of("24GiB", Device::Cpu).summary();
        let (_, enough) = cpu.rsplit_once("; ").unwrap();
        let size: u64 = enough.split_once(" GiB of free memory").unwrap().0.parse().unwrap();
        let at = |gib: u64| of(&format!("{gib}GiB"), Device::Cpu).chosen().is_some();
        assert!(size > 24 && at(size) && !at(size - 1), "{cpu}");
        // The CPU keeps f32 if that fits.
        let cpu = of("200GiB", Device::Cpu).chosen().unwrap().options;
        assert_eq!(cpu.precision, Precision::F32);
    }

    #[test]
    fn bf16_should_be_chosen_if_the_device_has_it() {
        let precision = |run: &str, gib: u64, bf16| {
            let fit = Fit {
                memory: Some(gib << 30),
                bf16,
                ..Fit::default()
            };
            let plan = fit.plan(&spec(run), None, Device::Cuda(0));
            plan.chosen().map(|row| row.options.precision)
        };
        let (f32, bf16) = (Some(Precision::F32), Some(Precision::Bf16));
        for (kind, roomy, tight) in [
            (Bf16::Fast, bf16, bf16),
            (Bf16::Slow, f32, bf16),
            (Bf16::Missing, f32, None),
        ] {
            // In 24 GiB the 7B run fits in bf16 only.
            assert_eq!(
                (precision("small", 80, kind), precision("genesis-7b", 24, kind)),
                (roomy, tight)
            );
        }
        assert_eq!(alice_model::bf16(Device::Cpu), Bf16::Slow);
    }

    #[test]
    fn the_users_flags_should_hold() {
        let spec = spec("small");
        let fixed = fit("8GiB", |args| {
            args.precision = Some("bf16".into());
            args.moments = Some("8bit".into());
            args.checkpoint = Some("on".into());
            args.micro_batch = Some(3);
        });
        let plan = fixed.plan(&spec, Some(0), Device::Cpu);
        assert_eq!(plan.rows.len(), 1);
        let options = plan.chosen().unwrap().options;
        assert_eq!(
            flags(&options),
            "--precision bf16 --moments 8bit --checkpoint on --micro-batch 3"
        );
        for (key, change) in [
            (
                "precision",
                &(|a: &mut FitArgs| a.precision = Some("f16".into())) as &dyn Fn(&mut FitArgs),
            ),
            ("moments", &|a| a.moments = Some("4bit".into())),
            ("checkpoint", &|a| a.checkpoint = Some("yes".into())),
            ("micro_batch", &|a| a.micro_batch = Some(0)),
        ] {
            let mut args = FitArgs::default();
            change(&mut args);
            let error = Fit::new(&args).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn a_task_should_be_reported_when_it_takes_more_than_its_plan_allows() {
        const GIB: u64 = 1 << 30;
        assert_eq!(peak_and_plan(3 << 20, 2 << 20), ", 3 MiB of memory (plan 2)");
        // A plan that uses all usable memory takes no more than the device has.
        let spec = spec("genesis-7b");
        for (device, free) in [(Device::Cpu, 200 * GIB), (Device::Cuda(0), 23 * GIB + GIB / 2)] {
            let plan = Fit {
                memory: (device == Device::Cpu).then_some(free),
                free_at_start: Some(free),
                ..Fit::default()
            }
            .plan(&spec, None, device);
            let planned = plan.chosen().unwrap().need.total();
            let most = plan::taken_at_most(device, planned);
            assert!(planned < most && most <= free, "{planned} {most} {free}");
            assert_eq!(over_plan(device, most, planned), None);
            let warning = over_plan(device, most + GIB, planned).unwrap();
            assert!(
                warning.contains("--device-memory") && warning.contains(&gib(most)),
                "{warning}"
            );
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn on_a_gpu_the_largest_plan_so_far_should_count() {
        let mut memory = MemoryMonitor::start(Device::Cpu).unwrap();
        for (device, planned, counts) in [
            (Device::Cuda(0), 3 << 30, 3 << 30),
            (Device::Cuda(0), 1 << 30, 3 << 30),
            (Device::Cpu, 1 << 30, 1 << 30),
        ] {
            memory.begin_task();
            let (_, warning) = memory.end_task(device, planned).unwrap();
            assert_eq!((memory.planned, warning), (counts, None));
        }
    }

    #[test]
    fn what_a_gpu_had_free_at_the_start_should_count_for_every_task() {
        let spec = spec("genesis-7b");
        let mut fit = Fit::new(&FitArgs::default()).unwrap();
        // No GPU here: what would have been measured.
        fit.free_at_start = Some(47 << 29);
        let plan = fit.plan(&spec, None, Device::Cuda(0));
        assert_eq!(plan.usable, Some(plan::usable_of_free(47 << 29)));
        assert!(plan.chosen().is_some());
        // The context is part of what a whole card has, and no part of what is free beside it.
        let whole = |size: u64| plan::usable_on_gpu(size << 29);
        assert!(whole(47) < plan::usable_of_free(47 << 29) && whole(48) == plan::usable_of_free(47 << 29));
        // The user's size wins; the CPU is measured for each plan.
        fit.memory = Some(48 << 30);
        assert_eq!(fit.plan(&spec, None, Device::Cuda(0)).usable, Some(whole(96)));
        let mut cpu = Fit::new(&FitArgs::default()).unwrap();
        cpu.measure(Device::Cpu);
        assert_eq!(cpu.free_at_start, None);
    }

    #[test]
    fn the_cpu_should_know_its_memory() {
        if cfg!(target_os = "linux") {
            assert!(free_memory(Device::Cpu).unwrap() > 1 << 20);
        }
        assert_eq!(free_memory(Device::Vulkan), None);
    }
}
