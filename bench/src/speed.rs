//! Speed of encoding and decoding, in values and entries for each second of processor time.

use crate::gradient;
use crate::measure::{Table, median};
use crate::table::{CHUNK, spec};
use alice_update::{Encoder, EncoderOutput, Header, Layout, decode};
use anyhow::{Context, Result};
use pulp::{Arch, Simd, WithSimd};
use serde_json::json;
use std::path::Path;

/// Xor of the bits of all values with the machine's widest vectors: the lower bound for a pass over them.
struct ReadPass<'a>(&'a [f32]);

impl WithSimd for ReadPass<'_> {
    type Output = u32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> u32 {
        // Xor in 64 lanes: integers may be combined in any order, so the compiler fills several vector registers, and
        // memory is the only limit.
        let mut lanes = [0u32; 64];
        for row in self.0.as_chunks::<64>().0 {
            for (lane, value) in lanes.iter_mut().zip(row) {
                *lane ^= value.to_bits();
            }
        }
        let mut all = 0;
        for lane in lanes {
            all ^= lane;
        }
        all
    }
}

fn read_pass(values: &[f32]) -> u32 {
    Arch::new().dispatch(ReadPass(values))
}

fn encode(layout: &Layout, k_max: u32, budget: u64, values: &[f32], threads: usize) -> Result<EncoderOutput> {
    let spec = spec(k_max, budget);
    let mut encoder = Encoder::new(layout, &spec)?.threads(threads);
    encoder.push(values)?;
    Ok(encoder.finish(&Header::default())?)
}

struct Case {
    name: String,
    k_max: u32,
    budget: u64,
}

fn cases(values: usize, k: &[u32]) -> Vec<Case> {
    let bound = |k: &u32| Case {
        name: format!("k = {k}"),
        k_max: *k,
        budget: 1 << 30,
    };
    let mut cases: Vec<Case> = k.iter().map(bound).collect();
    cases.push(Case {
        // The share of the 7B run: 16,000,000 bytes for 6,738,415,616 values.
        name: "k_max = 64, budget of the 7B run".into(),
        k_max: 64,
        // 76 bytes are the header, which does not shrink with the values.
        budget: (values as u64 * 16_000_000).div_ceil(6_738_415_616) + 76,
    });
    cases
}

fn of_values(values: &[f32], k: &[u32]) -> Result<Vec<Table>> {
    let layout = Layout::new(&[values.len() as u64], CHUNK);
    let count = values.len() as f64;
    let read = median(|| read_pass(values));
    let (mut encoding, mut decoding, mut threads) = (Vec::new(), Vec::new(), Vec::new());
    // Once for all cases: a fresh vector would add the cost of its page faults to `decode + apply`.
    let mut theta = vec![0.0f32; values.len()];
    for case in cases(values.len(), k) {
        let encoded = encode(&layout, case.k_max, case.budget, values, 1)?;
        let entries = encoded.sent.indices.len() as f64;
        let one = median(|| encode(&layout, case.k_max, case.budget, values, 1));
        encoding.push(vec![
            json!(case.name),
            json!(100.0 * entries / count),
            json!(count / one.cpu_s / 1e6),
            json!(count / read.cpu_s / 1e6),
            json!(read.cpu_s / one.cpu_s),
        ]);
        let two = median(|| encode(&layout, case.k_max, case.budget, values, 2));
        let same = encode(&layout, case.k_max, case.budget, values, 2)?.bytes == encoded.bytes;
        threads.push(vec![
            json!(case.name),
            json!(one.wall_s * 1e3),
            json!(two.wall_s * 1e3),
            json!(one.wall_s / two.wall_s),
            json!(same),
        ]);
        let spec = spec(case.k_max, case.budget);
        let only = median(|| decode(&layout, &spec, &encoded.bytes));
        let both = median(|| decode(&layout, &spec, &encoded.bytes).map(|update| update.add_scaled(&mut theta, -0.5)));
        decoding.push(vec![
            json!(case.name),
            json!(entries as u64),
            json!(entries / only.cpu_s / 1e6),
            json!(entries / both.cpu_s / 1e6),
        ]);
    }
    Ok(vec![
        Table {
            title: format!(
                "Encoding {} values, millions for each CPU-second, one thread",
                values.len()
            ),
            columns: vec!["what", "density %", "encode", "read pass", "encode / read pass"],
            rows: encoding,
        },
        Table {
            title: "Threads, milliseconds of wall time".into(),
            columns: vec!["what", "1 thread", "2 threads", "speed-up", "same bytes"],
            rows: threads,
        },
        Table {
            title: "Decoding, millions of entries for each CPU-second".into(),
            columns: vec!["what", "entries", "decode", "decode + apply"],
            rows: decoding,
        },
    ])
}

/// The synthetic gradient.
pub fn report(count: usize) -> Result<Vec<Table>> {
    let mut values = vec![0.0; count];
    gradient::fill(0, 1e-3, &mut values, 2);
    of_values(&values, &[6, 64])
}

/// Reads the values of a file.
pub fn of_file(path: &Path, k: &[u32]) -> Result<Vec<Table>> {
    let bytes = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let words = bytes.as_chunks::<4>().0.iter();
    let values: Vec<f32> = words.map(|word| f32::from_le_bytes(*word)).collect();
    drop(bytes);
    of_values(&values, k)
}
