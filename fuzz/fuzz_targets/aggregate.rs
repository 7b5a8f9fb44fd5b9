//! Bytes that a parameter server could publish as an aggregate.
#![no_main]

use alice_update::{Layout, aggregate::decode_published};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let layout = Layout::new(&[10, 256, 0, 1000, 1, 513], 256);
    if let Ok(sparse) = decode_published(&layout, data) {
        assert!(sparse.indices.is_sorted_by(|a, b| a < b));
        assert!(sparse.indices.iter().all(|i| *i < layout.total() as u64));
        assert!(sparse.values.iter().all(|v| v.is_finite()));
    }
});
