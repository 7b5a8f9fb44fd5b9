//! The memory plan against measured peaks, the smallest cases.
#![cfg(target_os = "linux")]

use std::process::Command;

#[test]
fn planned_memory_should_agree_with_the_measured_peak() {
    let cases: [(&str, &[&str]); 6] = [
        ("1", &[]),
        ("1", &["--checkpoint"]),
        ("4", &[]),
        ("4", &["--checkpoint"]),
        ("1", &["--moments-8bit"]),
        ("4", &["--checkpoint", "--moments-8bit"]),
    ];
    for (fragments, options) in cases {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        command.args(["memory", "--json", "--model", "10m", "--fragments", fragments]);
        let output = command.args(options).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let number = |key: &str| line[key].as_f64().unwrap();
        let ratio = number("planned") / number("measured");
        assert!(
            (0.9..=1.1).contains(&ratio),
            "{fragments} fragments, {options:?}: {line}"
        );
    }
}
