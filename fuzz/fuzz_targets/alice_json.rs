//! The `ALICE.json` of a downloaded folder.
#![no_main]

use alice_export::{ALICE_FILE, AliceFile};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    if let Ok(alice) = AliceFile::parse(data, Path::new(ALICE_FILE)) {
        alice.listed_root();
        let again = serde_json::to_vec(&alice).unwrap();
        assert_eq!(AliceFile::parse(&again, Path::new(ALICE_FILE)).unwrap(), alice);
    }
});
