//! A `tokenizer.model` from a parameter server or a stranger. What is accepted must encode, and be written as it was
//! read.
#![no_main]

use alice_tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check(data, data);
    // Behind a good model: protocol buffers' messages that follow each other are one, so that the fuzzer gets past the
    // first 259 pieces.
    let mut more = Tokenizer::bytes().model_bytes();
    more.extend_from_slice(data);
    check(&more, data);
});

fn check(model: &[u8], text: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::parse_model(model) {
        assert_eq!(Tokenizer::parse_model(&tokenizer.model_bytes()).unwrap(), tokenizer);
        let ids = tokenizer.encode(text.get(..1000).unwrap_or(text));
        assert!(ids.iter().all(|id| *id < tokenizer.vocab()));
        tokenizer.decode_bytes(&ids);
    }
}
