//! Devices by the names that the user gives them.

use crate::MinerError;
use alice_model::{Device, DeviceChoice};

/// A line of the list of devices.
pub struct Shown {
    /// Its name for `--device`.
    pub name: String,
    /// Kind and memory, for people.
    pub description: String,
    /// Why it cannot be used, and what to do about it; `None` if it can.
    pub problem: Option<String>,
}

/// The device of a name, after checking that it works.
///
/// # Errors
/// [`MinerError::Device`] if nothing has this name or the device cannot be used.
pub fn resolve(text: &str) -> Result<Device, MinerError> {
    Ok(text.parse::<DeviceChoice>().and_then(DeviceChoice::resolve)?)
}

/// Why no GPU is used although the user left the choice, in one line; `None` if one is, or the user chose the CPU.
pub fn why_not_faster(asked: &str, chosen: Device) -> Option<String> {
    if chosen != Device::Cpu || asked.parse() != Ok(DeviceChoice::Auto) {
        return None;
    }
    // The device that `auto` would have preferred on this system.
    let wanted = if cfg!(target_os = "macos") { "metal" } else { "cuda:0" };
    let problem = list().into_iter().find(|d| d.name == wanted)?.problem?;
    Some(format!("training on the CPU, {wanted} cannot be used: {problem}"))
}

/// Every device of this machine, usable or not.
pub fn list() -> Vec<Shown> {
    let shown = |d: alice_model::DeviceInfo| Shown {
        name: d.choice.to_string(),
        description: d.detail,
        problem: d.problem.map(|p| p.to_string()),
    };
    alice_model::devices().into_iter().map(shown).collect()
}

/// Name of a device, as `--device` takes it.
pub fn name(device: Device) -> String {
    match device {
        Device::Cpu => DeviceChoice::Cpu.to_string(),
        Device::Cuda(index) => DeviceChoice::Cuda(index).to_string(),
        Device::Mps => DeviceChoice::Metal.to_string(),
        Device::Vulkan => "vulkan".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_devices_should_be_usage_errors() {
        let error = resolve("tpu").unwrap_err();
        assert_eq!(error.exit_code(), alice_program::exit::USAGE);
        assert!(error.to_string().contains("cuda:1"), "{error}");
    }

    #[test]
    fn auto_should_say_why_it_came_to_the_cpu() {
        assert_eq!(why_not_faster("cpu", Device::Cpu), None);
        assert_eq!(why_not_faster("auto", Device::Cuda(0)), None);
        if resolve("auto").unwrap() == Device::Cpu {
            let text = why_not_faster("auto", Device::Cpu).unwrap();
            assert!(
                text.starts_with("training on the CPU, ") && !text.contains('\n'),
                "{text}"
            );
        }
    }

    #[test]
    fn the_cpu_should_be_listed_and_usable() {
        assert_eq!(name(resolve("cpu").unwrap()), "cpu");
        assert!(list().iter().any(|d| d.name == "cpu" && d.problem.is_none()));
    }
}
