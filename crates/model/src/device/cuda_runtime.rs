//! Questions to the CUDA runtime that libtorch's bindings do not offer: memory and compute capability of a GPU.
//!
//! The runtime is not linked. Its functions are looked up among the loaded libraries, because it comes with
//! `libtorch_cuda.so`, which only machines with a GPU have.

use super::{DeviceMemory, cuda};
use tch::Device;

/// Memory of an NVIDIA GPU that [`DeviceChoice::resolve`] has returned. `None` for other devices. Memory that
/// libtorch's allocator keeps for this process counts as taken.
///
/// The source is the CUDA runtime: `nvidia-smi` numbers GPUs in another order and ignores `CUDA_VISIBLE_DEVICES`.
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
    // SAFETY: these are functions of the CUDA runtime with these signatures, the same in all its versions ("CUDA
    // Runtime API", Memory and Device Management). They write to the integers behind the pointers, which outlive the
    // calls. The thread's current device is set back if it was another: setting a device makes a context on it. An
    // error of ours is taken out again, or libtorch would take it for one of its own.
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

/// `None`: this system has no `dlsym`.
#[cfg(not(unix))]
pub fn memory(_: Device) -> Option<DeviceMemory> {
    None
}

/// Address of a function in a loaded library.
#[cfg(unix)]
#[allow(unsafe_code)]
fn symbol(name: &std::ffi::CStr) -> Option<*mut libc::c_void> {
    // SAFETY: `name` is NUL-terminated; the default handle searches what is loaded.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

/// The first number of an NVIDIA GPU's compute capability.
#[cfg(unix)]
#[allow(unsafe_code)]
pub(super) fn compute_capability_major(index: usize) -> Option<libc::c_int> {
    type GetAttribute = unsafe extern "C" fn(*mut libc::c_int, libc::c_int, libc::c_int) -> libc::c_int;
    /// `cudaDevAttrComputeCapabilityMajor`.
    const MAJOR: libc::c_int = 75;
    let device = libc::c_int::try_from(index).ok()?;
    cuda(index).ok()?;
    let address = symbol(c"cudaDeviceGetAttribute")?;
    let mut major = 0;
    // SAFETY: a function of the CUDA runtime with this signature, the same in all its versions ("CUDA Runtime API",
    // Device Management). It writes to the integer behind the pointer, which outlives the call, and asks nothing of a
    // context.
    let status = unsafe {
        let get = std::mem::transmute::<*mut libc::c_void, GetAttribute>(address);
        get(&raw mut major, MAJOR, device)
    };
    (status == 0 && major > 0).then_some(major)
}

/// `None`: this system has no `dlsym`.
#[cfg(not(unix))]
pub(super) fn compute_capability_major(_: usize) -> Option<i32> {
    None
}
