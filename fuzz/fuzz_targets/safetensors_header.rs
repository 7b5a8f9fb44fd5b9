//! A shard of a downloaded folder. What is accepted must be filled by its tensors without gaps.
#![no_main]

use alice_export::safetensors_layout;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    if let Ok(tensors) = safetensors_layout(data, Path::new("shard")) {
        let mut at = 0;
        for tensor in &tensors {
            assert_eq!(tensor.data.start, at);
            at = tensor.data.end;
        }
        assert!(at <= data.len() as u64 - 8);
    }
});
