//! Measures a model step on mapped weights, against reading, hashing and writing all of them.
//!
//! `cargo run --release -p alice-store --example master_step -- [parameters] [folder]`
//!
//! Makes a file of that many parameters (500 million if not given) in eight layers of equal tensors and one small norm
//! each, then takes steps that touch 0.1 % of one layer (a fragment) and 0.1 % of everything, and reverts the last one.

use alice_primitives::Hash;
use alice_spec::TensorShape;
use alice_store::{Master, StoreError, model_root, theta::write_values};
use alice_update::Sparse;
use std::path::{Path, PathBuf};
use std::time::Instant;

const LAYERS: u64 = 8;
const TENSORS: u64 = 6;
const HIDDEN: u64 = 2048;
/// One coordinate of this many is touched.
const ONE_IN: u64 = 1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let parameters: u64 = arguments.next().unwrap_or_else(|| "500000000".into()).parse()?;
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(folder)?;
    let (path, tensors) = (folder.path().join("theta.f32"), tensors(parameters));
    let parameters: u64 = tensors.iter().map(TensorShape::len).sum();
    println!(
        "{parameters} parameters in {} tensors, {:.2} GB; {} threads",
        tensors.len(),
        gigabytes(parameters * 4),
        std::thread::available_parallelism()?
    );

    let master = timed("write and hash all", || create(&path, &tensors))?;
    let root = master.root();
    drop(master);
    let master = timed("open as left", || Master::open(&path, &tensors, &mut |_, _| ()))?;
    assert_eq!(master.root(), root);
    report(&master, 0);
    let plain = timed("model_root of all, one thread", || {
        Ok::<_, StoreError>(model_root(&tensors, master.theta()))
    })?;
    assert_eq!(plain, root);

    let layer = parameters / LAYERS;
    let mut hashed = master.bytes_hashed();
    let fragment = touched(layer * 3, layer * 4, 1);
    let master = timed("step, 0.1 % of one eighth", || master.step(&fragment, 0.7))?;
    hashed = report(&master, hashed);
    let again = touched(layer * 3, layer * 4, 2);
    let master = timed("the same again, pages warm", || master.step(&again, 0.7))?;
    hashed = report(&master, hashed);
    let everything = touched(0, parameters, 3);
    // As in scoring: the copy moves, a loss would be measured there, and it is put back or discarded.
    let resting = anonymous();
    let mut scratch = master.scratch()?;
    timed("move a scratch copy, 0.1 % of one eighth", || {
        moved(&mut scratch, &fragment)
    })?;
    held("while it is kept", resting);
    timed("move it, 0.1 % of all", || moved(&mut scratch, &everything))?;
    held("while it is kept", resting);
    drop(scratch);
    held("when it is gone", resting);
    let master = timed("step, 0.1 % of all", || master.step(&everything, 0.7))?;
    hashed = report(&master, hashed);
    let before = master.previous();
    let master = timed("revert it", || master.revert())?;
    report(&master, hashed);
    assert_eq!(Some(master.root()), before);
    assert_eq!(
        model_root(&tensors, master.theta()),
        master.root(),
        "the kept hashes are those of the file"
    );
    drop(master);

    std::fs::remove_file(path.with_extension("f32.tree"))?;
    let master = timed("open without a sidecar", || {
        Master::open(&path, &tensors, &mut |_, _| ())
    })?;
    report(&master, 0);
    drop(master);
    let theta = timed("for comparison: read all to the heap", || {
        alice_store::theta::read_theta(&path, parameters)
    })?;
    println!("{:<40} anonymous memory {:.2} GB", "", gigabytes(anonymous()));
    let copy = folder.path().join("copy.f32");
    timed("for comparison: write all", || {
        alice_store::theta::write_theta(&copy, &theta)
    })?;
    Ok(())
}

fn moved(scratch: &mut [f32], d: &Sparse) -> Result<(), StoreError> {
    alice_update::aggregate::apply(scratch, d, 0.7);
    Ok(())
}

/// Says what memory of the process's own has come since.
fn held(when: &str, before: u64) {
    let more = anonymous().saturating_sub(before);
    println!("{:<40} anonymous memory {:.2} GB more {when}", "", gigabytes(more));
}

fn tensors(parameters: u64) -> Vec<TensorShape> {
    let rows = (parameters / LAYERS / TENSORS / HIDDEN).max(1);
    let tensor = |layer: u64, i: u64| TensorShape {
        name: format!("layers.{layer}.{i}.weight"),
        shape: if i == TENSORS { vec![HIDDEN] } else { vec![rows, HIDDEN] },
    };
    (0..LAYERS)
        .flat_map(|layer| (0..=TENSORS).map(move |i| tensor(layer, i)))
        .collect()
}

/// Writes weights that are never in memory together.
fn create(path: &Path, tensors: &[TensorShape]) -> Result<Master, StoreError> {
    let write = |out: &mut dyn std::io::Write| {
        let mut block = Vec::with_capacity(1 << 16);
        let parameters: u64 = tensors.iter().map(TensorShape::len).sum();
        for start in (0..parameters).step_by(1 << 16) {
            block.clear();
            block.extend((start..parameters.min(start + (1 << 16))).map(|i| mixed(i) as u32 as f32 * 1e-11));
            write_values(out, &block)?;
        }
        Ok(())
    };
    Master::create(path, tensors, write, &mut |_, _| ())
}

fn touched(from: u64, to: u64, seed: u64) -> Sparse {
    let mut sparse = Sparse::default();
    for at in from..to {
        let word = mixed(at ^ (seed << 50));
        if word.is_multiple_of(ONE_IN)
            && let Some(at) = index(at)
        {
            sparse.indices.push(at);
            sparse.values.push((word >> 40) as f32 * 1e-9);
        }
    }
    sparse
}

/// A flat index in the update crate's own width.
fn index<T: TryFrom<u64>>(at: u64) -> Option<T> {
    T::try_from(at).ok()
}

/// Finaliser of SplitMix64.
fn mixed(n: u64) -> u64 {
    let n = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

fn timed<T, E>(what: &str, run: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let start = Instant::now();
    let result = run();
    println!("{what:<40} {:>8.3} s", start.elapsed().as_secs_f64());
    result
}

/// Says what was hashed since `before`, and what memory is the process's own.
fn report(master: &Master, before: u64) -> u64 {
    println!(
        "{:<40} hashed {:.3} GB, undo journal {:.2} MB, anonymous memory {:.1} MB, root {}",
        "",
        gigabytes(master.bytes_hashed() - before),
        master.undo_bytes() as f64 / 1e6,
        anonymous() as f64 / 1e6,
        short(&master.root())
    );
    master.bytes_hashed()
}

/// Anonymous memory of this process in bytes: what is not a mapped file. Zero where the system does not say.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn short(root: &Hash) -> String {
    hex::encode(root).chars().take(12).collect()
}
