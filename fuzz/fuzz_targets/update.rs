//! Bytes that a miner could send. What decodes must be within the layout.
#![no_main]

use alice_spec::UpdateSpec;
use alice_update::{EncodedUpdate, Entries, Layout, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let layout = Layout::new(&[10, 256, 0, 1000, 1, 513], 256);
    // The first byte chooses the width of the values, so that all four are tried.
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    let spec = UpdateSpec {
        chunk: 256,
        budget_bytes: 1 << 16,
        value_bits: [1, 2, 4, 8][usize::from(choice % 4)],
        k_max: 64,
        feedback_decay: 0.95,
        publish_bits: 8,
    };
    let decoded = decode(&layout, &spec, bytes);
    let received = EncodedUpdate::check(&layout, &spec, bytes.to_vec());
    // Both readers agree on every error.
    assert_eq!(received.as_ref().err(), decoded.as_ref().err());
    if let (Ok(update), Ok(received)) = (decoded, received) {
        assert_eq!(*received.header(), update.header);
        assert!(received.entries().eq(update.entries()));
        assert_eq!(update.indices.len(), update.values.len());
        assert!(update.indices.is_sorted_by(|a, b| a < b));
        assert!(update.indices.iter().all(|i| *i < layout.total() as u64));
        assert!(update.values.iter().all(|v| v.is_finite() && *v != 0.0));
    }
});
