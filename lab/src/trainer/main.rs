//! Measurements of the trainer: a device against the CPU, memory against its plan, and speed (`bench/trainer.py`
//! compares it with PyTorch).
#![forbid(unsafe_code)]

mod agree;
mod case;
mod memory;
mod speed;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Agreement, memory and speed of the trainer.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Trains the same tasks on a device and on the CPU, and fails if the results are too far apart
    Agree(agree::Args),
    /// Measures the peak memory of tasks, each in a process of its own, against the plan
    Memory(memory::Args),
    /// Trains a task from files and prints speed and losses as JSON
    Speed(speed::Args),
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Agree(args) => agree::run(&args),
        Command::Memory(args) => memory::run(&args),
        Command::Speed(args) => speed::run(&args),
    }
}
