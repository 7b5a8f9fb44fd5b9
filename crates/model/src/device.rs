//! Where the model runs: CPU, CUDA or Metal.
//!
//! Programs link the CPU part of libtorch only. For CUDA, `libtorch_cuda.so` of a full install of the same version is
//! loaded when a CUDA device is first asked for, so one binary serves both kinds of machine.
//!
//! CUDA has run on one GPU, with an older libtorch (docs/measurements.md says what was checked there). **Metal has never
//! run**: what was tried is every error that a machine without a GPU can give.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

/// Version of libtorch that this crate's bindings are for.
pub const LIBTORCH_VERSION: &str = "2.13.0";
/// Environment variable with the path of `libtorch_cuda.so`, of its folder, or of a virtual environment with torch.
pub const LIBTORCH_CUDA_VARIABLE: &str = "ALICE_LIBTORCH_CUDA";
const CUDA_LIBRARY: &str = "libtorch_cuda.so";
/// Virtual environment below the cache directory that is searched without being activated.
const CACHED_ENVIRONMENT: &str = "torch";
/// How to install the full libtorch. In a virtual environment, because Debian 12 and its descendants refuse
/// `pip install` outside of one (PEP 668).
const INSTALL: &str =
    "python3 -m venv ~/.cache/alice/torch && ~/.cache/alice/torch/bin/pip install torch==2.13.0";

/// What the user asks for.
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

/// Why a device cannot be used. Each message says what to install or set.
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
        /// What the linker says.
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
    /// The device that is meant, after checking that it works.
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
    /// What to ask for.
    pub choice: DeviceChoice,
    /// Why it cannot be used; none where it can.
    pub problem: Option<DeviceError>,
    /// For people: threads of the CPU, what the device is.
    pub detail: String,
}

/// What this machine has, usable or not, with the reason.
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
    /// What nobody has taken.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// Memory of an NVIDIA GPU that [`DeviceChoice::resolve`] has given; none for other devices. What libtorch's allocator
/// keeps for this process counts as taken.
///
/// Asked of the CUDA runtime: `nvidia-smi` numbers GPUs in another order, and knows nothing of `CUDA_VISIBLE_DEVICES`.
#[cfg(unix)]
#[allow(unsafe_code)]
pub fn memory(device: Device) -> Option<DeviceMemory> {
    type Get = unsafe extern "C" fn(*mut usize, *mut usize) -> libc::c_int;
    type SetDevice = unsafe extern "C" fn(libc::c_int) -> libc::c_int;
    type GetDevice = unsafe extern "C" fn(*mut libc::c_int) -> libc::c_int;
    type LastError = unsafe extern "C" fn() -> libc::c_int;
    let Device::Cuda(index) = device else { return None };
    let index = libc::c_int::try_from(index).ok()?;
    cuda(usize::try_from(index).ok()?).ok()?;
    let (get, set_device, get_device, last_error) = (
        symbol(c"cudaMemGetInfo")?,
        symbol(c"cudaSetDevice")?,
        symbol(c"cudaGetDevice")?,
        symbol(c"cudaGetLastError")?,
    );
    let (mut free, mut total, mut before) = (0usize, 0usize, 0);
    // SAFETY: these are functions of the CUDA runtime with these signatures, the same in all its versions ("CUDA Runtime
    // API", Memory and Device Management). They write to the integers behind the pointers, which outlive the calls. The
    // thread's current device is set back if it was another: setting a device makes a context on it. An error of ours is
    // taken out again, or libtorch would take it for one of its own.
    let status = unsafe {
        let get = std::mem::transmute::<*mut libc::c_void, Get>(get);
        let set_device = std::mem::transmute::<*mut libc::c_void, SetDevice>(set_device);
        let get_device = std::mem::transmute::<*mut libc::c_void, GetDevice>(get_device);
        let last_error = std::mem::transmute::<*mut libc::c_void, LastError>(last_error);
        let mut status = get_device(&raw mut before);
        let other = before != index;
        if status == 0 && other {
            status = set_device(index);
        }
        if status == 0 {
            status = get(&raw mut free, &raw mut total);
        }
        if other {
            status = status.max(set_device(before));
        }
        if status != 0 {
            last_error();
        }
        status
    };
    (status == 0).then_some(DeviceMemory {
        free: free as u64,
        total: total as u64,
    })
}

/// Memory of an NVIDIA GPU; none where libraries cannot be searched.
#[cfg(not(unix))]
pub fn memory(_: Device) -> Option<DeviceMemory> {
    None
}

/// Address of a function of a library that is loaded.
#[cfg(unix)]
#[allow(unsafe_code)]
fn symbol(name: &std::ffi::CStr) -> Option<*mut libc::c_void> {
    // SAFETY: `name` is NUL-terminated; the default handle searches what is loaded.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

/// What a device makes of products in bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bf16 {
    /// It has them. Assumed where nobody knows.
    #[default]
    Fast,
    /// It does them, and f32 is faster.
    Slow,
    /// It does none.
    Missing,
}

/// What a device that [`DeviceChoice::resolve`] has given makes of products in bf16. NVIDIA GPUs have them from compute
/// capability 8.0 on; CPUs seldom do; of others it is whether libtorch does one.
pub fn bf16(device: Device) -> Bf16 {
    match device {
        Device::Cpu => Bf16::Slow,
        Device::Cuda(index) => match compute_capability_major(index) {
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

/// The first number of an NVIDIA GPU's compute capability.
#[cfg(unix)]
#[allow(unsafe_code)]
fn compute_capability_major(index: usize) -> Option<libc::c_int> {
    type GetAttribute = unsafe extern "C" fn(*mut libc::c_int, libc::c_int, libc::c_int) -> libc::c_int;
    /// cudaDevAttrComputeCapabilityMajor.
    const MAJOR: libc::c_int = 75;
    let device = libc::c_int::try_from(index).ok()?;
    cuda(index).ok()?;
    let address = symbol(c"cudaDeviceGetAttribute")?;
    let mut major = 0;
    // SAFETY: a function of the CUDA runtime with this signature, the same in all its versions ("CUDA Runtime API", Device
    // Management). It writes to the integer behind the pointer, which outlives the call, and asks nothing of a context.
    let status = unsafe {
        let get = std::mem::transmute::<*mut libc::c_void, GetAttribute>(address);
        get(&raw mut major, MAJOR, device)
    };
    (status == 0 && major > 0).then_some(major)
}

/// None where libraries cannot be searched.
#[cfg(not(unix))]
fn compute_capability_major(_: usize) -> Option<i32> {
    None
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
    LOADED.get_or_init(load_cuda).clone()?;
    if !tch::Cuda::is_available() {
        return Err(DeviceError::CudaUnavailable);
    }
    let count = tch::Cuda::device_count();
    if index as i64 >= count {
        return Err(DeviceError::CudaIndex { index, count });
    }
    Ok(Device::Cuda(index))
}

fn load_cuda() -> Result<(), DeviceError> {
    let path = find_cuda(&|name| std::env::var_os(name))?;
    open_global(&path).map_err(|reason| DeviceError::CudaLoad { path, reason })
}

/// Loads a library for good, its symbols visible to all: the backend registers itself while it is loaded.
#[cfg(unix)]
#[allow(unsafe_code)]
fn open_global(path: &Path) -> Result<(), String> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call. Loading runs the library's constructors: it is
    // libtorch's own library, of the version that is linked (`check_version`), at a path the user chose or installed.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: `dlerror` returns null or a NUL-terminated string that stays valid until this thread's next dl call; it
    // is copied before that.
    let reason = unsafe {
        let text = libc::dlerror();
        (!text.is_null()).then(|| std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    Err(reason.unwrap_or_else(|| "unknown reason".into()))
}

#[cfg(not(unix))]
fn open_global(_: &Path) -> Result<(), String> {
    Err("this system has no dlopen".into())
}

/// Path of the CUDA library: where the variable says, else in the places where pip puts torch.
fn find_cuda(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf, DeviceError> {
    if let Some(value) = variable(LIBTORCH_CUDA_VARIABLE).filter(|value| !value.is_empty()) {
        let named = PathBuf::from(value);
        let mut places = vec![named.clone(), named.join(CUDA_LIBRARY)];
        places.extend(in_prefix(&named));
        let path = places.into_iter().find(|path| path.is_file());
        let path = path.ok_or(DeviceError::CudaPathWrong(named))?;
        check_version(&path)?;
        return Ok(path);
    }
    let mut other_version = None;
    for path in candidates(variable).into_iter().filter(|path| path.is_file()) {
        match check_version(&path) {
            Ok(()) => return Ok(path),
            Err(error) => other_version = other_version.or(Some(error)),
        }
    }
    Err(other_version.unwrap_or(DeviceError::CudaLibraryMissing))
}

fn candidates(variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Some(libtorch) = variable("LIBTORCH") {
        found.push(Path::new(&libtorch).join("lib").join(CUDA_LIBRARY));
    }
    let prefixes = [variable("VIRTUAL_ENV"), variable("CONDA_PREFIX")]
        .into_iter()
        .flatten()
        .map(PathBuf::from);
    let home = variable("HOME").map(PathBuf::from);
    let cache = variable("ALICE_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(home.as_ref()?.join(".cache/alice")));
    let cached = cache.map(|cache| cache.join(CACHED_ENVIRONMENT));
    let local = home.map(|home| home.join(".local"));
    let system = ["/usr/local", "/usr"].map(PathBuf::from);
    // An activated environment is the user's choice of today, so it comes before the one in the cache.
    for prefix in prefixes.chain(cached).chain(local).chain(system) {
        found.extend(in_prefix(&prefix));
    }
    found
}

/// Where pip puts the CUDA library below a prefix, for each Python 3 of that prefix.
fn in_prefix(prefix: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(prefix.join("lib")) else {
        return Vec::new();
    };
    let mut pythons: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    pythons.retain(|path| {
        path.file_name()
            .and_then(OsStr::to_str)
            .is_some_and(|n| n.starts_with("python3"))
    });
    pythons.sort_unstable();
    let packages = |python: &PathBuf| ["site-packages", "dist-packages"].map(|name| python.join(name));
    let packages = pythons.iter().flat_map(packages);
    packages.map(|packages| packages.join("torch/lib").join(CUDA_LIBRARY)).collect()
}

/// Another version's library would crash or, worse, not: refuse it where `torch/version.py` tells.
fn check_version(path: &Path) -> Result<(), DeviceError> {
    let Some(torch) = path.parent().and_then(Path::parent) else {
        return Ok(());
    };
    let Ok(text) = std::fs::read_to_string(torch.join("version.py")) else {
        return Ok(());
    };
    let quoted = text.lines().find_map(|line| line.strip_prefix("__version__ = "));
    let Some(found) = quoted.map(|version| version.trim_matches(['\'', '"'])) else {
        return Ok(());
    };
    // "2.13.0+cu130": what is behind the plus names the build.
    if found.split('+').next() == Some(LIBTORCH_VERSION) {
        return Ok(());
    }
    Err(DeviceError::CudaVersion {
        path: path.to_path_buf(),
        found: found.to_string(),
    })
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

    #[test]
    fn an_environment_in_the_cache_should_be_found_without_activating_it() {
        let home = tempfile::tempdir().unwrap();
        let lib = |cache: &str| home.path().join(cache).join("torch/lib/python3.11/site-packages/torch/lib");
        for (variable, cache) in [("HOME", ".cache/alice"), ("ALICE_CACHE", "")] {
            std::fs::create_dir_all(lib(cache)).unwrap();
            let library = lib(cache).join(CUDA_LIBRARY);
            std::fs::write(&library, b"not a library").unwrap();
            let root = home.path().as_os_str().to_owned();
            let found = find_cuda(&|name: &str| (name == variable).then(|| root.clone()));
            assert_eq!(found.unwrap(), library, "{variable}");
        }
    }

    #[test]
    fn the_cuda_library_should_be_searched_and_its_version_checked() {
        let dir = tempfile::tempdir().unwrap();
        let torch = dir.path().join("lib/python3.11/site-packages/torch");
        std::fs::create_dir_all(torch.join("lib")).unwrap();
        let library = torch.join("lib").join(CUDA_LIBRARY);
        let root = dir.path().as_os_str().to_owned();
        let in_venv = |name: &str| (name == "VIRTUAL_ENV").then(|| root.clone());
        let by_name =
            |value: PathBuf| move |name: &str| (name == LIBTORCH_CUDA_VARIABLE).then(|| value.clone().into_os_string());

        assert!(matches!(
            find_cuda(&by_name(torch.join("lib"))),
            Err(DeviceError::CudaPathWrong(_))
        ));
        std::fs::write(&library, b"not a library").unwrap();
        assert_eq!(find_cuda(&in_venv).unwrap(), library);
        assert_eq!(find_cuda(&by_name(torch.join("lib"))).unwrap(), library);
        assert_eq!(find_cuda(&by_name(library.clone())).unwrap(), library);
        assert_eq!(find_cuda(&by_name(dir.path().to_owned())).unwrap(), library);
        std::fs::write(
            torch.join("version.py"),
            "__version__ = '2.13.0+cu130'\ndebug = False\n",
        )
        .unwrap();
        assert_eq!(find_cuda(&in_venv).unwrap(), library);
        std::fs::write(torch.join("version.py"), "__version__ = '2.12.1'\n").unwrap();
        let message = find_cuda(&by_name(library.clone())).unwrap_err().to_string();
        assert!(
            message.contains("is of torch 2.12.1") && message.contains("pip install torch==2.13.0"),
            "{message}"
        );
        assert!(matches!(find_cuda(&in_venv), Err(DeviceError::CudaVersion { .. })));

        let missing = DeviceError::CudaLibraryMissing.to_string();
        assert!(missing.contains("-m venv") && missing.contains(LIBTORCH_CUDA_VARIABLE), "{missing}");
        assert!(INSTALL.ends_with(&format!("pip install torch=={LIBTORCH_VERSION}")));

        let reason = open_global(&library).unwrap_err();
        assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
    }
}
