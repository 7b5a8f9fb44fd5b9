//! Decodes an update file and prints its header and statistics.
//!
//! ```text
//! cargo run -p alice-update --example decode_update -- UPDATE [RUN.toml]
//! ```
//!
//! Without a run specification the file is taken to be one of the golden files of this crate (`golden/update-2bit.alu`
//! if there is no argument at all), whose layout and constants are those of the tests.

use alice_spec::{RunSpec, UpdateSpec};
use alice_update::{Entries, HEADER_BYTES, Layout, decode};
use std::path::{Path, PathBuf};

/// Tensor lengths of the golden files.
const GOLDEN_TENSORS: [u64; 6] = [10, 256, 0, 1000, 1, 513];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let golden = || Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/update-2bit.alu");
    let file = arguments.next().map_or_else(golden, PathBuf::from);
    let (layouts, spec) = match arguments.next() {
        Some(run) => {
            let spec = RunSpec::parse(&std::fs::read_to_string(run)?)?;
            let whole = Layout::from_spec(&spec);
            let fragments = (0..spec.task.fragments).map(|p| whole.fragment(spec.fragment_tensors(p)));
            (fragments.collect(), spec.update)
        }
        None => (vec![Layout::new(&GOLDEN_TENSORS, 256)], golden_spec(&file)?),
    };
    let bytes = std::fs::read(&file)?;
    // The file does not name its fragment. Another fragment's layout almost always finds a defect.
    let decoded = layouts.iter().map(|layout| (layout, decode(layout, &spec, &bytes)));
    let mut refused = None;
    for (fragment, (layout, result)) in decoded.enumerate() {
        match result {
            Ok(update) => {
                println!("file         {}", file.display());
                println!("run          {}", hex(&update.header.run_hash));
                println!("epoch        {}", update.header.epoch);
                println!("base root    {}", hex(&update.header.base_root));
                println!("fragment     {fragment} of {}", layouts.len());
                let (count, covered) = (update.indices.len(), layout.covered().len());
                println!(
                    "entries      {count} of {covered} ({:.2} %)",
                    100.0 * count as f64 / covered as f64
                );
                println!("norm         {:.6}", update.norm());
                let largest = update.values.iter().fold(0.0f32, |max, value| max.max(value.abs()));
                println!("largest      {largest}");
                let body = bytes.len().saturating_sub(HEADER_BYTES);
                println!(
                    "bytes        {} ({:.2} bits an entry)",
                    bytes.len(),
                    8.0 * body as f64 / count.max(1) as f64
                );
                return Ok(());
            }
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.map_or("the run has no fragments".into(), |error| {
        format!("{}: {error}", file.display()).into()
    }))
}

/// Constants of a golden file, whose name has the width of its values.
fn golden_spec(file: &Path) -> Result<UpdateSpec, Box<dyn std::error::Error>> {
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let value_bits = name
        .strip_prefix("update-")
        .and_then(|rest| rest.strip_suffix("bit"))
        .and_then(|bits| bits.parse().ok())
        .ok_or("not a golden update; add the run specification: decode_update UPDATE RUN.toml")?;
    Ok(UpdateSpec {
        chunk: 256,
        budget_bytes: 700,
        value_bits,
        k_max: 64,
        feedback_decay: 0.95,
        publish_bits: 8,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
