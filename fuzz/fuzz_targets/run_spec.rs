//! A run specification from a parameter server: text that is parsed before its hash can be compared.
#![no_main]

use alice_spec::RunSpec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(spec) = RunSpec::parse(text) {
        // Whatever passes can be priced and hashed without overflow.
        let _ = (spec.run_hash(), spec.cost(), spec.tensors().len(), spec.parameters());
    }
});
