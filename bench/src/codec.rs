//! Cost and results of the update codec: bits of an entry against the entropy bound, speed against a plain read of the
//! same memory, threads, and one update of the 7-billion-parameter run. `bench/codec_torch.py` compares it with torch.
#![forbid(unsafe_code)]

mod gradient;
mod measure;
mod seven_b;
mod speed;
mod table;

use anyhow::Result;
use clap::Parser;
use std::path::PathBuf;

/// Benchmarks of the update codec.
#[derive(Parser)]
struct Args {
    /// Prints JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Encodes one update of this run's real shapes, decodes it again and compares.
    #[arg(long)]
    seven_b: bool,
    /// Fragment of the run that --seven-b encodes, as its tasks do; all parameters if none.
    #[arg(long)]
    fragment: Option<u32>,
    /// With --seven-b: a round of this many miners instead of one update, up to the published aggregate.
    #[arg(long, requires = "seven_b", value_parser = clap::value_parser!(u64).range(1..))]
    round: Option<u64>,
    /// Run specification for --seven-b.
    #[arg(long, default_value = "chain-spec/runs/genesis-7b.toml")]
    run: PathBuf,
    /// Measures encoding of the f32 values (little-endian) in this file only.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Entries of each chunk of 4,096 for --file.
    // 0.15 % and 1.56 % of the coordinates: about the density of the 7B run over all its parameters, and that of the
    // lab.
    #[arg(long, value_delimiter = ',', default_values_t = [6, 64])]
    k: Vec<u32>,
    /// Values of the synthetic gradient for the speed table.
    #[arg(long, default_value_t = 1 << 26)]
    values: usize,
    /// Threads for --seven-b.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let report = if let Some(miners) = args.round {
        seven_b::round(&args.run, args.fragment, miners, args.threads)?
    } else if args.seven_b {
        seven_b::report(&args.run, args.fragment, args.threads)?
    } else if let Some(path) = &args.file {
        speed::of_file(path, &args.k)?
    } else {
        let mut report = table::report()?;
        report.extend(speed::report(args.values)?);
        report
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        for table in report {
            println!("{table}");
        }
    }
    Ok(())
}
