//! How tasks are made to fit the device: what the user said, and what the plan says for the rest.

use crate::MinerError;
use alice_model::{Bf16, Device};
use alice_spec::RunSpec;
use alice_trainer::{
    MemoryWatch, Moments, Options, Precision,
    plan::{self, CPU_SHARE, Need},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Sizes of devices that people have, GiB.
const COMMON_GIB: [u64; 12] = [6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 141];
const GIB: f64 = (1u64 << 30) as f64;

/// Flags and settings that fit tasks to the device. What is left out is chosen by the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct FitArgs {
    /// f32 or bf16 [default: bf16 on a GPU that has it, else f32 where it fits]
    #[arg(long, value_name = "KIND", value_parser = ["auto", "f32", "bf16"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Optimiser's moments: f32 or 8bit [default: f32 where it fits]
    #[arg(long, value_name = "KIND", value_parser = ["auto", "f32", "8bit"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moments: Option<String>,
    /// Compute activations a second time instead of keeping them: on or off [default: off where it fits]
    #[arg(long, value_name = "WHEN", value_parser = ["auto", "on", "off"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// Sequences that go through the model at once [default: as many as fit]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<u32>,
    /// Memory of the device, for example 24GiB [default: what it has free]
    #[arg(long, env = "ALICE_DEVICE_MEMORY", value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_memory: Option<String>,
}

/// The same, checked.
#[derive(Clone, Debug, Default)]
pub struct Fit {
    precision: Option<Precision>,
    moments: Option<Moments>,
    checkpoint: Option<bool>,
    micro_batch: Option<u32>,
    memory: Option<u64>,
    /// What a GPU had free before the first task.
    free_at_start: Option<u64>,
    /// What a GPU makes of bf16.
    bf16: Bf16,
}

/// What the plan comes to for a run on a device.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Fragment that it is for; none: any of the run's.
    pub fragment: Option<u32>,
    /// Bytes that a task may take; none where nobody knows.
    pub usable: Option<u64>,
    /// On the CPU, what the update takes of the same memory; none on a GPU.
    kept_for_host: Option<u64>,
    /// Each combination that was looked at, in order of preference.
    pub rows: Vec<Row>,
}

/// One combination of options.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Options; the micro-batch is the largest that fits, or 1 where none does.
    pub options: Options,
    /// What they need.
    pub need: Need,
    /// Whether that fits.
    pub fits: bool,
}

impl Fit {
    /// Checks what the user said.
    pub fn new(args: &FitArgs) -> Result<Self, MinerError> {
        let unknown = |name: &str, value: &str, known: &str| {
            MinerError::Setting(format!("{name} is '{value}'; it may be {known}"))
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
            return Err(MinerError::Setting("micro_batch is 0; it must be at least 1".into()));
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

    /// Looks once at what a GPU that is there can do and has free, for every plan from here on: libtorch keeps what a task has
    /// taken, so that later there would seem to be too little for the next one.
    pub fn measure(&mut self, device: Device) {
        if device != Device::Cpu {
            self.free_at_start = free_memory(device);
            self.bf16 = alice_model::bf16(device);
        }
    }

    /// Plans tasks of a fragment (none: of any of the run's).
    pub fn plan(&self, spec: &RunSpec, fragment: Option<u32>, device: Device) -> Plan {
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
        Plan {
            fragment,
            usable,
            kept_for_host: (device == Device::Cpu).then_some(host),
            rows: rows.collect(),
        }
    }

    /// Combinations that the user's words leave, the one that changes least first.
    fn candidates(&self, device: Device) -> impl Iterator<Item = Options> {
        let bf16 = if device == Device::Cpu { Bf16::Slow } else { self.bf16 };
        let precisions = match (self.precision, bf16) {
            (Some(precision), _) => vec![precision],
            (None, Bf16::Fast) => vec![Precision::Bf16, Precision::F32],
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

impl Plan {
    /// The first that fits.
    pub fn chosen(&self) -> Option<&Row> {
        self.rows.iter().find(|row| row.fits)
    }

    /// The one that needs least.
    pub fn smallest(&self) -> Option<&Row> {
        self.rows.iter().min_by_key(|row| row.need.total())
    }

    /// What is chosen and how much room it leaves, or why nothing is and what would fit; one line.
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
                let would_do = match self.kept_for_host {
                    Some(host) => {
                        let bytes = host.saturating_add(total.div_ceil(CPU_SHARE.0).saturating_mul(CPU_SHARE.1));
                        format!("{} GiB of free memory", bytes.div_ceil(1 << 30))
                    }
                    None => (COMMON_GIB.iter())
                        .find(|size| plan::usable_on_gpu(**size << 30) >= total)
                        .map_or("no common device".into(), |size| format!("a device of {size} GiB")),
                };
                format!(
                    "nothing fits: the least, {}, needs {} ({room}); {would_do} would do",
                    words(&row.options),
                    gib(total)
                )
            }
            (None, None) => "no combination of options is left".into(),
        }
    }

    /// For programs.
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

/// Options as words.
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

/// Options as flags.
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

/// The word for a precision.
pub fn precision_word(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    }
}

/// The word for moments.
pub fn moments_word(moments: Moments) -> &'static str {
    match moments {
        Moments::F32 => "f32",
        Moments::Bits8 => "8bit",
    }
}

/// Bytes as GiB.
pub fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / GIB)
}

/// Memory of the device beside the plans.
#[derive(Debug)]
pub struct MemoryBesidePlan {
    watch: MemoryWatch,
    /// On a GPU nothing that was taken is given back: the largest plan so far counts.
    planned: u64,
    said: bool,
}

impl MemoryBesidePlan {
    /// Starts to watch; none where there is no way to tell.
    pub fn start(device: Device) -> Option<Self> {
        MemoryWatch::start(device).map(|watch| Self {
            watch,
            planned: 0,
            said: false,
        })
    }

    /// Before a task.
    pub fn task_begins(&self) {
        self.watch.forget_peak();
    }

    /// After a task that was planned with so many bytes: what was taken at most, and once what to do where that is more than the
    /// plan allows for.
    pub fn task_ended(&mut self, device: Device, planned: u64) -> Option<(u64, Option<String>)> {
        let peak = self.watch.peak()?;
        self.planned = match device {
            Device::Cpu => planned,
            _ => self.planned.max(planned),
        };
        let warning = above_plan(device, peak, self.planned).filter(|_| !self.said);
        self.said |= warning.is_some();
        Some((peak, warning))
    }
}

/// What a task took of the device, beside its plan, for the end of a line.
pub fn beside_plan(peak: u64, planned: u64) -> String {
    format!(", {} MiB of memory (plan {})", peak >> 20, planned >> 20)
}

/// What to do where a task took more of the device than is kept for it; none where it did not.
fn above_plan(device: Device, peak: u64, planned: u64) -> Option<String> {
    let most = plan::taken_at_most(device, planned);
    (peak > most).then(|| {
        format!(
            "the task took {} of the device where the plan expects at most {}; if memory runs short, say less with \
             --device-memory, and please report it with the output of `alice-miner plan`",
            gib(peak),
            gib(most)
        )
    })
}

/// What the host needs beside the device; on the CPU both are the same memory. θ is not in it: it is mapped from its file.
pub fn host_bytes(spec: &RunSpec, fragment: Option<u32>) -> u64 {
    let fragments = fragment.map_or(0..spec.task.fragments.max(1), |p| p..p.saturating_add(1));
    let needs = fragments.map(|p| plan::host_need(spec, p));
    needs.map(|need| need.total()).max().unwrap_or(0)
}

/// Memory that is free on a device; none where there is no way to tell.
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

/// Bytes from `24GiB`, `24GB`, `800MiB` or a plain number.
pub fn parse_size(text: &str) -> Result<u64, MinerError> {
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
    let upper = text.trim().to_ascii_uppercase();
    let unit = UNITS
        .iter()
        .find_map(|(unit, size)| Some((upper.strip_suffix(unit)?, *size)));
    let (number, size) = unit.unwrap_or((upper.as_str(), 1));
    let bytes = number.trim().parse::<f64>().ok().map(|n| n * size as f64);
    match bytes {
        Some(bytes) if bytes >= 1.0 && bytes < (1u64 << 60) as f64 => Ok(bytes as u64),
        _ => Err(MinerError::Setting(format!(
            "'{text}' is not a size of memory; write for example 24GiB"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(parse_size("123").unwrap(), 123);
        for text in ["", "GiB", "-1GiB", "24 G", "nan", "inf", "1e30TiB", "0"] {
            let error = parse_size(text).unwrap_err();
            assert_eq!(error.exit_code(), crate::error::EXIT_USAGE, "{text}");
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
        // What is said to be enough is enough, and a GiB less is not: on the CPU the update is in the same memory.
        let cpu = of("24GiB", Device::Cpu).summary();
        let (_, enough) = cpu.rsplit_once("; ").unwrap();
        let size: u64 = enough.split_once(" GiB of free memory").unwrap().0.parse().unwrap();
        let at = |gib: u64| of(&format!("{gib}GiB"), Device::Cpu).chosen().is_some();
        assert!(size > 24 && at(size) && !at(size - 1), "{cpu}");
        // The CPU keeps f32 where it can.
        let cpu = of("200GiB", Device::Cpu).chosen().unwrap().options;
        assert_eq!(cpu.precision, Precision::F32);
    }

    #[test]
    fn bf16_should_be_chosen_where_the_device_has_it() {
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
    fn what_the_user_said_should_hold() {
        let spec = spec("small");
        let said = fit("8GiB", |args| {
            args.precision = Some("bf16".into());
            args.moments = Some("8bit".into());
            args.checkpoint = Some("on".into());
            args.micro_batch = Some(3);
        });
        let plan = said.plan(&spec, Some(0), Device::Cpu);
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
    fn a_task_should_be_reported_where_it_takes_more_than_is_kept_for_it() {
        const GIB: u64 = 1 << 30;
        assert_eq!(beside_plan(3 << 20, 2 << 20), ", 3 MiB of memory (plan 2)");
        // What a plan chose for all that may be used takes no more than there is.
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
            assert_eq!(above_plan(device, most, planned), None);
            let warning = above_plan(device, most + GIB, planned).unwrap();
            assert!(
                warning.contains("--device-memory") && warning.contains(&gib(most)),
                "{warning}"
            );
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn on_a_gpu_the_largest_plan_so_far_should_count() {
        let mut memory = MemoryBesidePlan::start(Device::Cpu).unwrap();
        for (device, planned, counts) in [
            (Device::Cuda(0), 3 << 30, 3 << 30),
            (Device::Cuda(0), 1 << 30, 3 << 30),
            (Device::Cpu, 1 << 30, 1 << 30),
        ] {
            memory.task_begins();
            let (_, warning) = memory.task_ended(device, planned).unwrap();
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
        // What the user says wins; the CPU is asked again each time.
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
