//! A corpus manifest. What is accepted has its root, and any sequences can be looked for in it.
#![no_main]

use alice_data::Manifest;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    if let Ok(manifest) = Manifest::parse(data, Path::new("corpus.json")) {
        manifest.verify(&manifest.root).unwrap();
        manifest.tokens();
        manifest.shards_for(128, &[0, 1, 1 << 40, u64::MAX]);
    }
});
