//! Time, memory and tables.

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::fmt;
use std::time::Instant;

/// Processor time of the whole process so far, all threads, seconds.
pub fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Duration of a call: the median of its runs.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    pub cpu_s: f64,
    pub wall_s: f64,
}

/// Runs `call` at least three times and for two seconds in all.
pub fn median<T>(mut call: impl FnMut() -> T) -> Took {
    let (mut cpu, mut wall, begun) = (Vec::new(), Vec::new(), Instant::now());
    // Not timed: the first call faults its pages in and fills the caches.
    std::hint::black_box(call());
    // Two seconds, so that fast calls get a median of many runs; three runs, so that slow ones get one at all.
    while cpu.len() < 3 || begun.elapsed().as_secs_f64() < 2.0 {
        let (before, start) = (cpu_seconds(), Instant::now());
        std::hint::black_box(call());
        cpu.push(cpu_seconds() - before);
        wall.push(start.elapsed().as_secs_f64());
    }
    let middle = |mut times: Vec<f64>| {
        // The median and not the mean: another program on the core makes some runs slow and none fast.
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    Took {
        cpu_s: middle(cpu),
        wall_s: middle(wall),
    }
}

/// Peak of the resident memory, bytes (VmHWM); `None` without /proc.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace()
        .next()?
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}

/// A table of a report.
#[derive(Debug, Serialize)]
pub struct Table {
    pub title: String,
    pub columns: Vec<&'static str>,
    pub rows: Vec<Vec<serde_json::Value>>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Number(number) => match number.as_f64() {
                Some(x) if !number.is_u64() => format!("{x:.3}"),
                _ => number.to_string(),
            },
            other => other.to_string(),
        };
        writeln!(f, "\n{}\n", self.title)?;
        let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
        writeln!(f, "{}", line(self.columns.iter().map(ToString::to_string).collect()))?;
        writeln!(f, "|{}", "---|".repeat(self.columns.len()))?;
        for row in &self.rows {
            writeln!(f, "{}", line(row.iter().map(text).collect()))?;
        }
        Ok(())
    }
}
