//! Devices that the model runs on: CPU, CUDA or Metal.
//!
//! Programs link the CPU part of libtorch only. For CUDA, `libtorch_cuda.so` of a full installation of the same version
//! is loaded when a CUDA device is first asked for, so one binary serves both kinds of machine.
//!
//! CUDA has run on one GPU, with an older libtorch (checks: docs/measurements.md). **Metal has
//! never run**: tried were the errors that a machine without a GPU can give.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

mod cuda_library;
mod cuda_runtime;

pub use cuda_runtime::memory;

/// Version of libtorch that this crate's bindings are for.
pub const LIBTORCH_VERSION: &str = "2.13.0";
/// Environment variable with the path of `libtorch_cuda.so`, of its folder, or of a virtual environment with torch.
pub const LIBTORCH_CUDA_VARIABLE: &str = "ALICE_LIBTORCH_CUDA";
/// File name of libtorch's CUDA part.
const CUDA_LIBRARY: &str = "libtorch_cuda.so";
/// Command that installs the full libtorch. In a virtual environment, because Debian 12 and its descendants refuse
/// `pip install` outside of one (PEP 668).
const INSTALL: &str = "python3 -m venv ~/.cache/alice/torch && ~/.cache/alice/torch/bin/pip install torch==2.13.0";

/// A device as the user names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA or Metal where it works, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU by its number.
    Cuda(usize),
    /// The GPU of a Mac with Apple silicon.
    Metal,
}

/// Why a device cannot be used. Each message ends with what to install or set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not the name of a device.
    #[error("'{0}' is not a device; use auto, cpu, cuda, cuda:1 (the second GPU) or metal")]
    Unknown(String),
    /// No library for CUDA was found.
    #[error(
        "CUDA needs the full libtorch, which was not found; run '{INSTALL}', or set {LIBTORCH_CUDA_VARIABLE} to the virtual environment that has torch {LIBTORCH_VERSION} or to the folder of {CUDA_LIBRARY}"
    )]
    CudaLibraryMissing,
    /// The variable names no library.
    #[error("{LIBTORCH_CUDA_VARIABLE} is {}, where there is no {CUDA_LIBRARY}; set it to a virtual environment with torch or to <site-packages>/torch/lib", .0.display())]
    CudaPathWrong(PathBuf),
    /// A library of another version.
    #[error("{} is of torch {found}, this program needs {LIBTORCH_VERSION}; run '{INSTALL}'", .path.display())]
    CudaVersion {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// The dynamic linker refused.
    #[error("cannot load {}: {reason}; install torch again with its dependencies: '{INSTALL}'", .path.display())]
    CudaLoad {
        /// The library.
        path: PathBuf,
        /// Message of the linker.
        reason: String,
    },
    /// The library is there, a GPU is not.
    #[error("no usable NVIDIA GPU; check that 'nvidia-smi' lists one and that its driver is recent enough for CUDA 13")]
    CudaUnavailable,
    /// A number beyond the last GPU.
    #[error("there is no GPU {index}; this machine has {count}, numbered from 0")]
    CudaIndex {
        /// Number asked for.
        index: usize,
        /// GPUs of the machine.
        count: i64,
    },
    /// Not a Mac with Apple silicon, or a libtorch without Metal.
    #[error("Metal needs a Mac with Apple silicon and macOS 14 or later; use cpu")]
    MetalUnavailable,
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_string());
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" | "gpu" => Ok(Self::Cuda(0)),
            "metal" | "mps" => Ok(Self::Metal),
            lower => {
                let index = lower.strip_prefix("cuda:").ok_or_else(unknown)?;
                index.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl DeviceChoice {
    /// The device of this choice, after checking that it works.
    ///
    /// # Errors
    /// It does not, with the reason and what to install or set.
    pub fn resolve(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(index) => cuda(index),
            Self::Metal => metal(),
            Self::Auto => Ok(cuda(0).or_else(|_| metal()).unwrap_or(Device::Cpu)),
        }
    }
}

/// One line of a list of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name to ask for it.
    pub choice: DeviceChoice,
    /// Why it cannot be used. `None` if it can.
    pub problem: Option<DeviceError>,
    /// Description for people.
    pub detail: String,
}

/// Devices of this machine, usable or not, with the reason.
pub fn devices() -> Vec<DeviceInfo> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut list = vec![DeviceInfo {
        choice: DeviceChoice::Cpu,
        problem: None,
        detail: format!("{threads} hardware threads"),
    }];
    let gpus = if cuda(0).is_ok() {
        tch::Cuda::device_count().max(1) as usize
    } else {
        1
    };
    list.extend((0..gpus).map(|index| DeviceInfo {
        choice: DeviceChoice::Cuda(index),
        problem: cuda(index).err(),
        detail: cuda_detail(index),
    }));
    list.push(DeviceInfo {
        choice: DeviceChoice::Metal,
        problem: metal().err(),
        detail: "Apple GPU".into(),
    });
    list
}

/// Memory of a device, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Memory that no process has taken.
    pub free: u64,
    /// Memory in all.
    pub total: u64,
}

/// Support of a device for products in bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bf16 {
    /// Faster than f32. Assumed if it cannot be known.
    #[default]
    Fast,
    /// Possible, but f32 is faster.
    Slow,
    /// Not possible.
    Missing,
}

/// Support for products in bf16 of a device that [`DeviceChoice::resolve`] has returned. NVIDIA GPUs have units for
/// them from compute capability 8.0 on, CPUs seldom; on other devices libtorch is asked to compute one.
pub fn bf16(device: Device) -> Bf16 {
    match device {
        Device::Cpu => Bf16::Slow,
        Device::Cuda(index) => match cuda_runtime::compute_capability_major(index) {
            Some(major) if major < 8 => Bf16::Slow,
            _ => Bf16::Fast,
        },
        _ => {
            let ones = Tensor::f_ones([2, 2], (Kind::BFloat16, device));
            let sum = ones.and_then(|ones| ones.f_matmul(&ones)?.f_sum(Kind::Float)?.f_double_value(&[]));
            match sum {
                Ok(8.0) => Bf16::Fast,
                _ => Bf16::Missing,
            }
        }
    }
}

fn cuda_detail(index: usize) -> String {
    const GIB: f64 = (1u64 << 30) as f64;
    memory(Device::Cuda(index)).map_or("NVIDIA GPU".into(), |memory| {
        let (free, total) = (memory.free as f64 / GIB, memory.total as f64 / GIB);
        format!("NVIDIA GPU, {free:.1} of {total:.1} GiB free")
    })
}

/// Sets how many threads an operation on the CPU uses. For repeatable losses across machines keep to 1, 2, 4, 8 …:
/// other numbers split sums differently.
pub fn set_threads(threads: usize) {
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
}

/// CPU threads that one operation uses.
pub fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

fn metal() -> Result<Device, DeviceError> {
    if cfg!(target_os = "macos") && tch::utils::has_mps() {
        Ok(Device::Mps)
    } else {
        Err(DeviceError::MetalUnavailable)
    }
}

fn cuda(index: usize) -> Result<Device, DeviceError> {
    // Once per process: libtorch remembers at its first CUDA call whether there is a backend.
    static LOADED: OnceLock<Result<(), DeviceError>> = OnceLock::new();
    LOADED.get_or_init(cuda_library::load_cuda).clone()?;
    if !tch::Cuda::is_available() {
        return Err(DeviceError::CudaUnavailable);
    }
    let count = tch::Cuda::device_count();
    if index as i64 >= count {
        return Err(DeviceError::CudaIndex { index, count });
    }
    Ok(Device::Cuda(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_should_be_parsed_and_printed() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("CPU", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
            ("metal", DeviceChoice::Metal),
            ("mps", DeviceChoice::Metal),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
        }
        for text in ["", "tpu", "cuda:", "cuda:-1", "cuda:x"] {
            assert!(
                text.parse::<DeviceChoice>()
                    .unwrap_err()
                    .to_string()
                    .contains("is not a device")
            );
        }
    }

    #[test]
    fn the_cpu_should_always_be_there() {
        assert_eq!(DeviceChoice::Cpu.resolve().unwrap(), Device::Cpu);
        DeviceChoice::Auto.resolve().unwrap();
        let list = devices();
        assert_eq!((list[0].choice, &list[0].problem), (DeviceChoice::Cpu, &None));
        assert!(list.iter().any(|d| matches!(d.choice, DeviceChoice::Cuda(_))));
    }
}
