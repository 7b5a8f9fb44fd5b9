//! Bytes that a parameter server could publish as an aggregate.
#![no_main]

use alice_update::{
    Entries, Layout,
    aggregate::{EncodedAggregate, decode_aggregate},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let layout = Layout::new(&[10, 256, 0, 1000, 1, 513], 256);
    let decoded = decode_aggregate(&layout, data);
    let published = EncodedAggregate::check(&layout, data.to_vec());
    assert_eq!(decoded.is_ok(), published.is_ok());
    if let (Ok(sparse), Ok(published)) = (decoded, published) {
        assert!(published.entries().eq(sparse.entries()));
        assert!(sparse.indices.is_sorted_by(|a, b| a < b));
        assert!(sparse.indices.iter().all(|i| *i < layout.total() as u64));
        assert!(sparse.values.iter().all(|v| v.is_finite()));
    }
});
