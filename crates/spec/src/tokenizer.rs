//! The run's tokenizer.

use crate::{DataSpec, RunSpec, SpecError, parse_hash};
use alice_primitives::Hash;

/// `data.tokenizer` of a run whose tokens are bytes.
pub const BYTES: &str = "bytes";
/// Maximum learned vocabulary: an id in a shard has 16 bits.
const VOCABULARY_MAX: u32 = 1 << 16;

impl RunSpec {
    /// BLAKE3 of the run's `tokenizer.model`; `None` if tokens are bytes.
    pub fn tokenizer_hash(&self) -> Option<Hash> {
        parse_hash(&self.data.tokenizer)
    }

    /// Why a tokenizer is not the run's, and what to do; `None` if it is the run's. `name` is what `data.tokenizer`
    /// would have to be for it (`bytes` or a hash in hexadecimal), `vocab` the number of its ids.
    pub fn tokenizer_problem(&self, name: &str, vocab: u32) -> Option<String> {
        let expected = &self.data.tokenizer;
        // Hashes are pasted in capitals, too.
        if !name.eq_ignore_ascii_case(expected) {
            return Some(match (name, expected.as_str()) {
                (BYTES, _) => format!(
                    "its tokens are bytes, data.tokenizer of the run is {expected}; use the tokenizer whose tokenizer.model \
                     has this BLAKE3"
                ),
                (_, BYTES) => format!(
                    "its tokenizer.model has BLAKE3 {name}, data.tokenizer of the run is 'bytes'; use no tokenizer, or write \
                     this hash into the run specification before the network starts"
                ),
                _ => format!(
                    "its tokenizer.model has BLAKE3 {name}, data.tokenizer of the run is {expected}; use the run's \
                     tokenizer, or write this hash into the run specification before the network starts"
                ),
            });
        }
        let rows = self.model.vocab;
        (vocab != rows).then(|| {
            format!(
                "it has {vocab} ids, model.vocab of the run is {rows}; they must be equal, so one of the two is wrong"
            )
        })
    }
}

/// Checks `data.tokenizer`.
pub(crate) fn check(data: &DataSpec, vocab: u32) -> Result<(), SpecError> {
    let refuse = |field, problem: String| Err(SpecError::Field { field, problem });
    if data.tokenizer == BYTES {
        return Ok(());
    }
    if parse_hash(&data.tokenizer).is_none() {
        let problem = format!(
            "'{}' is not known; 'bytes', or the BLAKE3 of a tokenizer.model as `alice-ps tokenizer train` prints it \
             (64 hexadecimal digits)",
            data.tokenizer
        );
        return refuse("data.tokenizer", problem);
    }
    // Byte tokens have 259 ids; only a learned vocabulary can be too large.
    if vocab > VOCABULARY_MAX {
        let problem = format!("{vocab}; token shards hold ids of 16 bits, so {VOCABULARY_MAX} is the maximum");
        return refuse("model.vocab", problem);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned() -> RunSpec {
        let mut spec = RunSpec::parse(include_str!("../../../chain-spec/runs/dev.toml")).unwrap();
        spec.data.tokenizer = "ab".repeat(32);
        spec.model.vocab = 4096;
        spec.validate().unwrap();
        spec
    }

    #[test]
    fn a_learned_tokenizer_should_be_named_by_its_hash() {
        let mut spec = learned();
        assert_eq!(spec.tokenizer_hash(), Some([0xab; 32]));
        for (tokenizer, vocab, field) in [
            ("sentencepiece".to_owned(), 4096, "data.tokenizer"),
            ("ab".repeat(31), 4096, "data.tokenizer"),
            ("ab".repeat(32), 65_537, "model.vocab"),
        ] {
            (spec.data.tokenizer, spec.model.vocab) = (tokenizer, vocab);
            let message = spec.validate().unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
        spec.data.tokenizer = BYTES.into();
        assert_eq!(spec.tokenizer_hash(), None);
    }

    #[test]
    fn another_tokenizer_should_be_explained() {
        let spec = learned();
        assert_eq!(spec.tokenizer_problem(&"AB".repeat(32), 4096), None);
        let mut bytes = spec.clone();
        (bytes.data.tokenizer, bytes.model.vocab) = (BYTES.into(), 259);
        assert_eq!(bytes.tokenizer_problem(BYTES, 259), None);
        for (spec, name, vocab, words) in [
            (&spec, BYTES.to_owned(), 259, "its tokens are bytes"),
            (&spec, "cd".repeat(32), 4096, "before the network starts"),
            (&spec, "ab".repeat(32), 4095, "model.vocab of the run is 4096"),
            (&bytes, "ab".repeat(32), 259, "use no tokenizer"),
        ] {
            let problem = spec.tokenizer_problem(&name, vocab).unwrap();
            assert!(problem.contains(words), "{problem}");
        }
    }
}
