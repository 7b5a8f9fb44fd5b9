//! Verifies an exported folder without any network: every file and tensor against `ALICE.json`, and configuration and
//! tokenizer against the run.
//!
//! ```sh
//! cargo run -p alice-audit --example verify_folder -- weights/ chain-spec/runs/dev.toml
//! ```
//!
//! That the model root is the one of the network needs a source outside the folder, see `alice verify --help`.

use alice_audit::run_context::read_spec;
use alice_export::{Proof, VerifyOptions, verify};
use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, run] = arguments.as_slice() else {
        eprintln!("usage: verify_folder FOLDER RUN_SPECIFICATION");
        return ExitCode::from(2);
    };
    match check(Path::new(folder), Path::new(run)) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check(folder: &Path, run: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let (_, spec) = read_spec(run)?;
    let options = VerifyOptions {
        spec: Some(&spec),
        ..VerifyOptions::default()
    };
    let report = verify(folder, options, &mut |_| ())?;
    let numbers = match report.proof {
        Proof::Root => "the shards hold the f32 weights of the model root",
        Proof::Rounding => "the shards hold the rounding of the weights of the model root",
        Proof::Listed => "the shards are those that ALICE.json lists",
    };
    let root: String = report
        .alice
        .model_root
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(format!(
        "run {}, epoch {}: {} bytes as listed; {numbers}; model root {root}",
        report.alice.run.name, report.alice.epoch, report.bytes
    ))
}
