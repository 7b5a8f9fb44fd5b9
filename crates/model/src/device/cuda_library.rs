//! Finds and loads the CUDA part of libtorch, when a CUDA device is first asked for.
//!
//! Programs link the CPU part only, so that one binary of tens of megabytes serves machines with and without a GPU; the
//! CUDA part has gigabytes and comes from pip. It must be of the same version, because the parts call each other.

use super::{CUDA_LIBRARY, DeviceError, LIBTORCH_CUDA_VARIABLE, LIBTORCH_VERSION};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// Virtual environment below the cache directory that is searched without being activated.
const CACHED_ENVIRONMENT: &str = "torch";

/// Finds the CUDA part of libtorch and loads it.
///
/// # Errors
/// There is none, it is of another version, or the linker refuses it.
pub(super) fn load_cuda() -> Result<(), DeviceError> {
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

/// Path of the CUDA library: from the variable, else in the places where pip puts torch.
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

/// Paths where the library may be, in the order of preference.
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

/// Paths below a prefix at which pip puts the CUDA library, for each Python 3 of that prefix.
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
    // Directories are listed in any order; the choice must not depend on it.
    pythons.sort_unstable();
    let packages = |python: &PathBuf| ["site-packages", "dist-packages"].map(|name| python.join(name));
    let packages = pythons.iter().flat_map(packages);
    packages
        .map(|packages| packages.join("torch/lib").join(CUDA_LIBRARY))
        .collect()
}

/// Refuses the library of another version, if `torch/version.py` names one: its functions have other signatures, and it
/// would crash or, worse, compute something else.
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
    use super::super::INSTALL;
    use super::*;

    #[test]
    fn an_environment_in_the_cache_should_be_found_without_activating_it() {
        let home = tempfile::tempdir().unwrap();
        let lib = |cache: &str| {
            home.path()
                .join(cache)
                .join("torch/lib/python3.11/site-packages/torch/lib")
        };
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
        assert!(
            missing.contains("-m venv") && missing.contains(LIBTORCH_CUDA_VARIABLE),
            "{missing}"
        );
        assert!(INSTALL.ends_with(&format!("pip install torch=={LIBTORCH_VERSION}")));

        let reason = open_global(&library).unwrap_err();
        assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
    }
}
