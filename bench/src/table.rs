//! Bits of an entry at four densities, compared with other encodings of positions.

use crate::gradient;
use crate::measure::Table;
use alice_spec::UpdateSpec;
use alice_update::{EncoderOutput, Header, Layout, encode};
use anyhow::{Context, Result};
use serde_json::json;

const VALUES: usize = 1 << 24;
pub const CHUNK: u32 = 4096;

pub fn spec(k_max: u32, budget_bytes: u64) -> UpdateSpec {
    UpdateSpec {
        chunk: CHUNK,
        budget_bytes,
        value_bits: 2,
        k_max,
        feedback_decay: 1.0,
        publish_bits: 8,
    }
}

/// log2 of the number of ways to choose `count` of `len`.
fn log2_choose(len: usize, count: usize) -> f64 {
    // As a sum of logarithms: the factorial of 4,096 is far beyond an f64.
    (0..count).map(|i| ((len - i) as f64 / (count - i) as f64).log2()).sum()
}

/// The update of the largest density that does not exceed the goal, found by its budget.
fn at_density(layout: &Layout, values: &[f32], goal: f64) -> Result<(u64, EncoderOutput)> {
    let (mut low, mut high) = (VALUES as u64 / 4096, VALUES as u64);
    let mut best = None;
    // To 0.05 % of the budget; closer steps move the density by less than the table prints.
    while high - low > low / 2000 + 1 {
        let middle = low + (high - low) / 2;
        // An eighth of a chunk is far above every density of the table: the budget alone decides.
        let encoded = encode(layout, &spec(CHUNK / 8, middle), &Header::default(), values)?;
        if encoded.sent.indices.len() as f64 <= goal * VALUES as f64 {
            low = middle;
            best = Some((middle, encoded));
        } else {
            high = middle;
        }
    }
    best.context("no budget gives this density")
}

pub fn report() -> Result<Vec<Table>> {
    let layout = Layout::new(&[VALUES as u64], CHUNK);
    let mut values = vec![0.0; VALUES];
    gradient::fill(0, 1e-3, &mut values, 2);
    let mut rows = Vec::new();
    for percent in [0.1, 0.14, 0.5, 1.56] {
        let (budget, encoded) = at_density(&layout, &values, percent / 100.0)?;
        let entries = encoded.sent.indices.len() as f64;
        let mut bound = 0.0;
        let mut rest = &encoded.sent.indices[..];
        // Given the counts of the chunks, because their bits have a column of their own.
        for range in layout.chunks() {
            let count = rest.partition_point(|index| *index < range.end as u64);
            bound += log2_choose(range.len(), count);
            rest = &rest[count..];
        }
        let bits = encoded.bits;
        let rice = bits.positions as f64 / entries;
        let total = encoded.bytes.len() as f64 * 8.0 / entries;
        rows.push(vec![
            json!(format!("{:.3} %", 100.0 * entries / VALUES as f64)),
            json!(rice),
            json!(bound / entries),
            json!(format!("{:+.1} %", 100.0 * (rice * entries / bound - 1.0))),
            json!(f64::from(CHUNK.ilog2())),
            json!(bits.values as f64 / entries),
            json!(bits.scales as f64 / entries),
            json!(bits.counts as f64 / entries),
            json!(total),
            json!(total - rice + bound / entries),
            json!(total - rice + f64::from(CHUNK.ilog2())),
            json!(format!("{:.3} %", 100.0 * encoded.bytes.len() as f64 / budget as f64)),
        ]);
    }
    Ok(vec![Table {
        title: format!("Bits of an entry, {VALUES} values, chunks of {CHUNK}, values of 2 bits"),
        columns: vec![
            "density",
            "position (Rice)",
            "bound log2 C(len,k)/k",
            "above the bound",
            "fixed width",
            "value",
            "scale",
            "count",
            "all",
            "all, enumerative",
            "all, fixed width",
            "of the budget",
        ],
        rows,
    }])
}
