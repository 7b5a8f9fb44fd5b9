//! A shard of a downloaded folder. What is accepted must be filled by its tensors without gaps.
#![no_main]

use alice_export::safetensors_layout;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    check(data);
    // The same as a header whose length is right, before 256 bytes of data.
    let mut file = (data.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(data);
    file.resize(file.len() + 256, 0);
    check(&file);
});

fn check(file: &[u8]) {
    if let Ok(tensors) = safetensors_layout(file, Path::new("shard")) {
        let mut at = 0;
        for tensor in &tensors {
            assert_eq!(tensor.data.start, at);
            at = tensor.data.end;
        }
        assert!(at <= file.len() as u64 - 8);
    }
}
