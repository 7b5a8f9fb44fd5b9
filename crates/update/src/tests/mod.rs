//! Tests over the whole crate, by subject.

mod aggregate;
mod codec;
mod feedback;
mod hostile;

use crate::{Header, Layout};
use alice_spec::UpdateSpec;
use std::path::PathBuf;

/// A small specification.
pub(crate) fn spec(value_bits: u8, k_max: u32, budget_bytes: u64) -> UpdateSpec {
    UpdateSpec {
        chunk: 256,
        budget_bytes,
        value_bits,
        k_max,
        feedback_decay: 0.95,
        publish_bits: 8,
    }
}

/// Tensors of awkward lengths, an empty one among them.
pub(crate) fn layout() -> Layout {
    Layout::new(&[10, 256, 0, 1000, 1, 513], 256)
}

pub(crate) fn header() -> Header {
    Header {
        run_hash: [1; 32],
        epoch: 7,
        base_root: [2; 32],
    }
}

/// Deterministic heavy-tailed values of about `size`, from a xorshift generator and exact arithmetic only.
pub(crate) fn values(len: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 24) as f32
    };
    (0..len)
        .map(|_| {
            let (a, b) = (next() - 0.5, next());
            size * a * (0.1 + b * b * b)
        })
        .collect()
}

/// Entries as text, one `index bits` (hexadecimal bits of the f32) a line, for implementers in other languages.
pub(crate) fn listing(indices: &[u64], values: &[f32]) -> String {
    indices
        .iter()
        .zip(values)
        .map(|(index, value)| format!("{index} {:08x}\n", value.to_bits()))
        .collect()
}

/// Compares with a golden file; `ALICE_BLESS=1` writes it.
pub(crate) fn golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var_os("ALICE_BLESS").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let expected = std::fs::read(&path).unwrap_or_default();
    assert!(
        expected == bytes,
        "{} differs: the wire format or the arithmetic changed",
        path.display()
    );
}
