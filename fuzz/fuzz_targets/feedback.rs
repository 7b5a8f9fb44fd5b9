//! A stored residual and its ledger after a crash, or from a stranger. The checksums are made to match, so that the
//! fuzzer gets past them.
#![no_main]

use alice_update::{FeedbackError, PendingUpdates, ResidualDtype, ResidualReader, ResidualWriter};
use libfuzzer_sys::fuzz_target;

const PARAMETERS: usize = 16;

fuzz_target!(|data: &[u8]| {
    let _ = PendingUpdates::from_bytes(data, 0..PARAMETERS);
    let mut whole = data.to_vec();
    whole.extend(alice_primitives::tagged_hash("alice/feedback/v2", &[data]));
    if let Ok(mut ledger) = PendingUpdates::from_bytes(&whole, 0..PARAMETERS) {
        assert_eq!(ledger.to_bytes(), whole, "what reads back must be what was written");
        for id in ledger.pending() {
            ledger.refused(id);
        }
        let read = ledger.combine(None::<&[u8]>, |_, _| Ok(()), |_, _| Ok::<_, FeedbackError>(()));
        assert_eq!(
            read.is_ok(),
            ledger.generation() == 0,
            "only the first residual may be missing"
        );
    }
    // A residual of one block: the head, its values, their checksum.
    for dtype in [ResidualDtype::F32, ResidualDtype::Bf16] {
        let mut residual = ResidualWriter::create(Vec::new(), 0..PARAMETERS as u64, 1, dtype).unwrap();
        residual.push(&[0.0; PARAMETERS]).unwrap();
        let mut bytes = residual.finish().unwrap();
        let head = bytes.len() - 32 - PARAMETERS * dtype.bytes();
        bytes.truncate(head);
        bytes.extend_from_slice(data);
        let checksum = alice_primitives::tagged_hash("alice/residual/v1", &[&bytes[..head], &0u64.to_le_bytes(), data]);
        bytes.extend(checksum);
        let mut values = Vec::new();
        if let Ok(mut reader) = ResidualReader::open(Some(bytes.as_slice()), 0..PARAMETERS as u64, 1) {
            if let Ok(start) = reader.next_block(&mut values) {
                assert_eq!((start, values.len()), (Some(0), PARAMETERS));
                assert!(values.iter().all(|value| value.is_finite()));
            }
        }
    }
});
