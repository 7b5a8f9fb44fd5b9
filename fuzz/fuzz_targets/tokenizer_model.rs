//! A `tokenizer.model` from a parameter server or a stranger. What is accepted must encode, and be written as it was read.
#![no_main]

use alice_tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::parse_model(data) {
        let again = Tokenizer::parse_model(&tokenizer.model_bytes()).unwrap();
        assert_eq!(again, tokenizer);
        let ids = tokenizer.encode(data.get(..1000).unwrap_or(data));
        assert!(ids.iter().all(|id| *id < tokenizer.vocab()));
        tokenizer.decode_bytes(&ids);
    }
});
