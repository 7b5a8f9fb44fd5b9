//! `alice-ps spec check`: the costs of a run.

use crate::{PsError, cli::to_json, run_context::read_spec};
use alice_api::Hex32;
use serde::Serialize;
use std::path::Path;

/// Result for programs.
#[derive(Serialize)]
struct Checked {
    name: String,
    run_hash: Hex32,
    epoch_blocks: u32,
    corpus_root: Hex32,
    reserve_root: Hex32,
    /// Root of the first state; `None` if the run draws it from block 0.
    start_root: Option<Hex32>,
    #[serde(flatten)]
    cost: alice_spec::Cost,
}

/// Validates a run specification and returns the costs of the run.
///
/// # Errors
/// The file cannot be read, or is not a valid specification.
pub fn check(file: &Path, json: bool) -> Result<String, PsError> {
    let (_, spec) = read_spec(file)?;
    let checked = Checked {
        name: spec.name.clone(),
        run_hash: Hex32(spec.run_hash()),
        epoch_blocks: spec.round.epoch_blocks,
        corpus_root: Hex32(spec.corpus_root()),
        reserve_root: Hex32(spec.reserve_root()),
        start_root: spec.start_root().map(Hex32),
        cost: spec.cost(),
    };
    if json {
        return to_json(&checked);
    }
    Ok(describe(&checked))
}

fn describe(checked: &Checked) -> String {
    let mut text = format!("run {} is valid\n", checked.name);
    for (name, value) in rows(checked) {
        text += &format!("  {name:<16}{value}\n");
    }
    text + &memory_table(&checked.cost)
}

/// The costs that do not depend on a device: name and value.
fn rows(checked: &Checked) -> Vec<(&'static str, String)> {
    let cost = &checked.cost;
    let active = match cost.active_parameters {
        all if all == cost.parameters => "all".into(),
        active => active.to_string(),
    };
    let (snapshot, bf16) = (size(cost.snapshot_bytes), size(cost.bf16_bytes));
    let (update, bits) = (size(cost.update_bytes_max), cost.update_bits_per_parameter);
    let (activations, checkpointed) = (size(cost.device.activation_bytes), size(cost.device.checkpointed_bytes));
    let reserve = match cost.reserve_epochs {
        Some(epochs) => format!("{epochs} epochs"),
        None => "no limit, sequences are drawn again".into(),
    };
    let mut rows = vec![
        ("run hash", checked.run_hash.to_string()),
        ("parameters", format!("{} ({active} for each token)", cost.parameters)),
        ("weights", format!("{snapshot} in f32 (snapshot), {bf16} in bf16")),
        (
            "fragments",
            format!(
                "{}, the largest of {} parameters",
                cost.fragments, cost.fragment_parameters_max
            ),
        ),
        (
            "update at most",
            format!("{update} ({bits:.2} bits a parameter of the largest fragment)"),
        ),
        (
            "task",
            format!(
                "{} tokens, {:.3e} floating point operations",
                cost.task_tokens, cost.task_flops
            ),
        ),
        (
            "tokens",
            format!(
                "{} in an epoch at most, {} in the text",
                cost.epoch_tokens_max, cost.corpus_tokens
            ),
        ),
        ("scoring", format!("{} tokens a submission", cost.score_tokens)),
        ("reserve", reserve),
        (
            "activations",
            format!("{activations} for one sequence, {checkpointed} with checkpointing"),
        ),
    ];
    if let Some(root) = checked.start_root {
        rows.push(("first state", format!("the model with root {root}")));
    }
    rows
}

/// Memory of a task for each way to train, and the device classes in which it fits.
fn memory_table(cost: &alice_spec::Cost) -> String {
    let mut text = format!(
        "\n  {:<60}{:>12}  fits, with checkpointed activations\n",
        "memory of a task", "bytes"
    );
    for option in &cost.memory {
        let fits = match option.fits.is_empty() {
            true => "none of the classes".into(),
            false => option.fits.join(", "),
        };
        text += &format!("  {:<60}{:>12}  {fits}\n", option.way, size(option.state_bytes));
    }
    let classes = alice_spec::DEVICE_CLASSES.map(|c| format!("{} ({} % usable)", c.name, c.usable_percent));
    text + &format!("  classes: {}\n", classes.join(", "))
}

/// MiB below one GiB, GiB above.
fn size(bytes: u64) -> String {
    match bytes {
        0..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64),
        _ => format!("{:.1} GiB", bytes as f64 / (1 << 30) as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checked_spec_should_show_its_costs() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../chain-spec/runs/dev.toml");
        let json: serde_json::Value = serde_json::from_str(&check(&file, true).unwrap()).unwrap();
        assert_eq!(json["epoch_blocks"], 30);
        assert!(json["parameters"].as_u64().unwrap() > 100_000);
        assert_eq!(json["run_hash"].as_str().unwrap().len(), 64);
        assert!(check(&file, false).unwrap().starts_with("run dev is valid"));
        let moe = file.with_file_name("phase2-56b.toml");
        let json: serde_json::Value = serde_json::from_str(&check(&moe, true).unwrap()).unwrap();
        assert!(json["active_parameters"].as_u64().unwrap() * 3 < json["parameters"].as_u64().unwrap());
        assert_eq!(json["memory"].as_array().unwrap().len(), 6);
        let text = check(&moe, false).unwrap();
        assert!(
            text.contains("for each token") && text.contains("block by block"),
            "{text}"
        );
        let missing = check(Path::new("/nowhere.toml"), true).unwrap_err();
        assert!(missing.to_string().contains("/nowhere.toml"));
    }
}
