//! What the published aggregate D costs (docs/spec/protocol.md#published-aggregate): its bytes and its error at 2, 4
//! and 8 bits a level, for 1 to 100 accepted updates of two densities.
//!
//! `cargo run --release -p alice-update --example published_deltas -- [parameters]`
//!
//! The updates are synthetic: heavy-tailed values, of which a part is common to all (every miner trains on the same
//! model) and a part is the miner's own. They go through the encoder that miners use, the mean and the publisher that
//! the parameter server uses. The error is ‖decode(D) − mean‖₂ / ‖mean‖₂ against the exact mean in f32.

use alice_spec::UpdateSpec;
use alice_update::{Header, Layout, Sparse, Update, aggregate, encode};

const CHUNK: u32 = 4096;
/// Kept entries of a chunk: 1.56 % and 0.15 %.
const KEPT: [u32; 2] = [64, 6];
const UPDATES: [usize; 4] = [1, 8, 32, 100];
const BITS: [u8; 3] = [2, 4, 8];
/// Size of the common part against the miner's own.
const COMMON: [f32; 2] = [0.0, 1.0];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let parameters: u64 = match std::env::args().nth(1) {
        Some(text) => text.parse()?,
        None => 4 << 20,
    };
    let layout = Layout::new(&[parameters], CHUNK);
    println!("{parameters} parameters, chunks of {CHUNK}, updates with 2-bit values");
    println!(
        "{:>6} {:>7} {:>4} {:>9} {:>11} | {:>27} | {:>26}",
        "common", "density", "R", "update B", "union", "bytes of D at 2, 4, 8 bits", "relative L2 error at same"
    );
    for common in COMMON {
        for kept in KEPT {
            row_of(&layout, common, kept)?;
        }
    }
    Ok(())
}

fn row_of(layout: &Layout, common: f32, kept: u32) -> Result<(), Box<dyn std::error::Error>> {
    let spec = UpdateSpec {
        chunk: CHUNK,
        budget_bytes: u64::MAX >> 8,
        value_bits: 2,
        k_max: kept,
        feedback_decay: 0.0,
        publish_bits: 8,
    };
    let shared = values(layout.total(), 1_000_003);
    let mut updates: Vec<Update> = Vec::new();
    let mut bytes = 0;
    for count in UPDATES {
        while updates.len() < count {
            let mut own = values(layout.total(), updates.len() as u64 + 1);
            own.iter_mut().zip(&shared).for_each(|(v, s)| *v += common * s);
            let encoded = encode(layout, &spec, &Header::default(), &own)?;
            bytes = encoded.bytes.len();
            updates.push(encoded.sent);
        }
        let all: Vec<(&Update, f32)> = updates.iter().map(|u| (u, 1.0)).collect();
        let mean = aggregate::mean(layout, &all, 1);
        let (mut sizes, mut errors) = (String::new(), String::new());
        for bits in BITS {
            let published = aggregate::encode_aggregate(layout, bits, &mean, [bits; 32]);
            let d = aggregate::decode_aggregate(layout, &published)?;
            sizes += &format!(" {:>8}", published.len());
            errors += &format!(" {:>8.4}", relative_error(&d, &mean));
        }
        println!(
            "{common:>6.1} {:>6.2}% {count:>4} {bytes:>9} {:>10.2}% | {sizes} | {errors}",
            100.0 * f64::from(kept) / f64::from(CHUNK),
            100.0 * mean.indices.len() as f64 / layout.total() as f64,
        );
    }
    Ok(())
}

/// ‖a − b‖₂ / ‖b‖₂; every index of `a` is one of `b`.
fn relative_error(a: &Sparse, b: &Sparse) -> f64 {
    let mut published = a.indices.iter().zip(&a.values).peekable();
    let (mut error, mut norm) = (0.0f64, 0.0f64);
    for (index, &exact) in b.indices.iter().zip(&b.values) {
        let value = published
            .next_if(|entry| entry.0 == index)
            .map_or(0.0, |entry| *entry.1);
        error += (f64::from(value) - f64::from(exact)).powi(2);
        norm += f64::from(exact).powi(2);
    }
    (error / norm).sqrt()
}

/// Heavy-tailed values of mean zero: a sum of three uniforms on a scale that is itself the cube of a uniform.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 24) as f32
    };
    (0..len)
        .map(|_| {
            let (bell, tail) = (next() + next() + next() - 1.5, next());
            0.01 * bell * (0.1 + tail * tail * tail)
        })
        .collect()
}
