//! A residual file that a crash or a stranger left. The checksum is made right, so that the fuzzer gets behind it.
#![no_main]

use alice_update::ErrorFeedback;
use libfuzzer_sys::fuzz_target;

const PARAMETERS: usize = 16;

fuzz_target!(|data: &[u8]| {
    let _ = ErrorFeedback::from_bytes(data, PARAMETERS);
    let mut whole = data.to_vec();
    whole.extend(alice_primitives::tagged_hash("alice/feedback/v1", &[data]));
    if let Ok(feedback) = ErrorFeedback::from_bytes(&whole, PARAMETERS) {
        assert_eq!(feedback.residual().len(), PARAMETERS);
        assert_eq!(feedback.to_bytes(), whole, "what reads back must be what was written");
    }
});
