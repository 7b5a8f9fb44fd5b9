//! The memory plan against measured peaks, the smallest cases.
#![cfg(target_os = "linux")]

use std::process::Command;

#[test]
fn planned_memory_should_agree_with_the_measured_peak() {
    for (fragments, checkpoint) in [("1", false), ("1", true), ("4", false), ("4", true)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        command.args(["memory", "--json", "--model", "10m", "--fragments", fragments]);
        if checkpoint {
            command.arg("--checkpoint");
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let number = |key: &str| line[key].as_f64().unwrap();
        let ratio = number("planned") / number("measured");
        assert!(
            (0.9..=1.1).contains(&ratio),
            "{fragments} fragments, checkpoint {checkpoint}: {line}"
        );
    }
}
