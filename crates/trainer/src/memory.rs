//! Measures the memory that training takes of a device, from outside, for comparison with the [plan](crate::plan).

use alice_model::Device;

/// Watches a device's memory from a moment before training. Memory taken by then is not counted.
#[derive(Clone, Copy, Debug)]
pub struct MemoryWatch {
    device: Device,
    base: u64,
}

impl MemoryWatch {
    /// Starts to watch. `None` if there is no way to measure: on a GPU that is not NVIDIA's, and on a CPU without
    /// Linux' `/proc`.
    pub fn start(device: Device) -> Option<Self> {
        let base = match device {
            Device::Cpu => status("RssAnon:")?,
            _ => taken(device)?,
        };
        // The peak so far may be of loading the model: it is not training's.
        let watch = Self { device, base };
        watch.forget_peak();
        Some(watch)
    }

    /// Starts a new peak: on the CPU the next [`peak`](Self::peak) counts from here, if the kernel allows it. A GPU has
    /// nothing to forget, because libtorch's allocator gives nothing back unless the device is full.
    pub fn forget_peak(&self) {
        if self.device == Device::Cpu {
            // "5" sets VmHWM back to VmRSS (proc_pid_clear_refs(5)).
            let _ = std::fs::write("/proc/self/clear_refs", "5");
        }
    }

    /// Peak of the memory taken beyond the start, bytes. `None` if it cannot be read any more.
    ///
    /// On the CPU that is all of this process's memory that is not a mapped file, whether or not its allocator needs it
    /// at this moment. On a GPU it is what libtorch's allocator has taken by now, gaps between its blocks
    /// included, and what other programs have taken since.
    pub fn peak(&self) -> Option<u64> {
        let peak = match self.device {
            // Mapped files count in VmHWM; those that are resident now were so at the peak, or nearly.
            Device::Cpu => status("VmHWM:")?.saturating_sub(status("RssFile:")?),
            _ => taken(self.device)?,
        };
        Some(peak.saturating_sub(self.base))
    }
}

/// Memory taken of a GPU by all processes, bytes.
fn taken(device: Device) -> Option<u64> {
    let memory = alice_model::memory(device)?;
    Some(memory.total.saturating_sub(memory.free))
}

/// Value of a line of `/proc/self/status`, bytes.
fn status(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn what_came_and_went_should_be_the_peak_until_it_is_forgotten() {
        const SIZE: u64 = 256 << 20;
        // Tests of this process run one at a time under nextest; other runners may add to it, not take away.
        let watch = MemoryWatch::start(Device::Cpu).unwrap();
        let before = watch.peak().unwrap();
        let taken = vec![1u8; SIZE as usize];
        assert!(taken.iter().all(|byte| *byte == 1));
        drop(taken);
        let peak = watch.peak().unwrap();
        assert!(peak >= before + SIZE / 2, "{before} {peak}");
        // Some kernels do not let a process do that.
        if std::fs::write("/proc/self/clear_refs", "5").is_ok() {
            watch.forget_peak();
            assert!(watch.peak().unwrap() < peak, "{peak}");
        }
    }
}
