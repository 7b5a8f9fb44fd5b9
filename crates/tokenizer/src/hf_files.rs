//! The vocabulary in the files of Hugging Face's `tokenizers` and `transformers`, and all files of a folder.

use crate::vocabulary::SPACE;
use crate::{Piece, PieceKind, Tokenizer, TokenizerError};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::Path;

/// File of SentencePiece.
pub const TOKENIZER_MODEL_FILE: &str = "tokenizer.model";
/// File of Hugging Face's `tokenizers`.
pub const TOKENIZER_JSON_FILE: &str = "tokenizer.json";
/// Options of `transformers`.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// Names of the special tokens.
pub const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";

impl Tokenizer {
    /// The `tokenizer.json` file: BPE with byte fallback, and the normaliser and decoder of Llama 2.
    pub fn tokenizer_json(&self) -> String {
        let mut normalizers = Vec::new();
        let mut decoders = Vec::new();
        if self.normalizer.dummy_prefix {
            normalizers.push(json!({"type": "Prepend", "prepend": SPACE}));
        }
        if self.normalizer.escape_spaces {
            normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}));
            decoders.push(json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}));
        }
        // Order matters: bytes are joined to characters before the pieces are.
        decoders.push(json!({"type": "ByteFallback"}));
        decoders.push(json!({"type": "Fuse"}));
        if self.normalizer.dummy_prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let normalizer = match normalizers.is_empty() {
            true => Value::Null,
            false => json!({"type": "Sequence", "normalizers": normalizers}),
        };
        let kinds = [PieceKind::Unknown, PieceKind::Control];
        let added = self
            .pieces()
            .iter()
            .enumerate()
            .filter(|(_, p)| kinds.contains(&p.kind));
        let added: Vec<Value> = added.map(|(id, piece)| special(id, piece)).collect();
        // Objects of serde_json are sorted by key; the vocabulary is written in the order of ids, as everybody does.
        let mut out = String::from("{\n");
        out += "  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n";
        out += &format!("  \"added_tokens\": {},\n", Value::from(added));
        out += &format!("  \"normalizer\": {normalizer},\n");
        out += "  \"pre_tokenizer\": null,\n  \"post_processor\": null,\n";
        out += &format!(
            "  \"decoder\": {},\n",
            json!({"type": "Sequence", "decoders": decoders})
        );
        out += "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": \"<unk>\",\n";
        out += "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n    \"fuse_unk\": true,\n";
        out += "    \"byte_fallback\": true,\n    \"ignore_merges\": false,\n    \"vocab\": {\n";
        let lines = |lines: Vec<String>| lines.join(",\n");
        let vocab = self.pieces().iter().enumerate();
        out += &lines(
            vocab
                .map(|(id, p)| format!("      {}: {id}", quoted(&p.text)))
                .collect(),
        );
        out += "\n    },\n    \"merges\": [\n";
        let merges = self.merges().into_iter();
        out += &lines(
            merges
                .map(|(l, r)| format!("      [{}, {}]", quoted(l), quoted(r)))
                .collect(),
        );
        out += "\n    ]\n  }\n}\n";
        out
    }

    /// The `tokenizer_config.json` file. `context` is the model's longest sequence.
    ///
    /// The class is the generic fast tokenizer, which takes `tokenizer.json` as it is: `LlamaTokenizer` of transformers
    /// 5 builds a normaliser of its own, which escapes the spaces of the byte tokenizer and swallows a leading space
    /// if there is a dummy prefix. The special tokens are in `tokenizer.json`; repeated here
    /// (`added_tokens_decoder`), llama.cpp's converter would make the unknown piece a control token.
    pub fn tokenizer_config_json(&self, context: u32) -> String {
        let config = json!({
            "add_bos_token": false,
            "add_eos_token": false,
            "add_prefix_space": self.normalizer.dummy_prefix,
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": false,
            "eos_token": "</s>",
            "legacy": false,
            "model_max_length": context,
            // Text never becomes a control piece, as for SentencePiece. The library has no such field in
            // `tokenizer.json`.
            "split_special_tokens": true,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
        });
        format!("{config:#}\n")
    }

    /// The `special_tokens_map.json` file.
    pub fn special_tokens_json(&self) -> String {
        let map = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"});
        format!("{map:#}\n")
    }

    /// Names and contents of all files. `tokenizer.model` is the last one: a folder that has it is complete.
    pub fn files(&self, context: u32) -> [(&'static str, Vec<u8>); 4] {
        [
            (TOKENIZER_JSON_FILE, self.tokenizer_json().into_bytes()),
            (TOKENIZER_CONFIG_FILE, self.tokenizer_config_json(context).into_bytes()),
            (SPECIAL_TOKENS_FILE, self.special_tokens_json().into_bytes()),
            (TOKENIZER_MODEL_FILE, self.model_bytes()),
        ]
    }

    /// Writes all files into a folder, which is made if it is missing; each through a temporary file that is renamed.
    pub fn write_files(&self, dir: &Path, context: u32) -> Result<(), TokenizerError> {
        std::fs::create_dir_all(dir).map_err(TokenizerError::io("make the folder", dir))?;
        for (name, content) in self.files(context) {
            let path = dir.join(name);
            let mut builder = tempfile::Builder::new();
            builder.prefix(".partial-");
            // Readable by others, as far as the umask allows: temporary files are private by default.
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
            let mut file = builder.tempfile_in(dir).map_err(TokenizerError::io("write in", dir))?;
            file.write_all(&content)
                .and_then(|()| file.as_file().sync_all())
                .map_err(TokenizerError::io("write", &path))?;
            file.persist(&path)
                .map_err(|e| TokenizerError::io("rename to", &path)(e.error))?;
        }
        Ok(())
    }

    /// Reads a `tokenizer.model` file, of at most [`MODEL_BYTES_MAX`](crate::MODEL_BYTES_MAX) bytes.
    ///
    /// # Errors
    /// [`TokenizerError::Io`], or [`TokenizerError::ModelFile`] with the reason.
    pub fn read_model(path: &Path) -> Result<Self, TokenizerError> {
        let file = std::fs::File::open(path).map_err(TokenizerError::io("open", path))?;
        let mut bytes = Vec::new();
        file.take(crate::MODEL_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(TokenizerError::io("read", path))?;
        Self::parse_model(&bytes).map_err(|error| error.in_file(path))
    }
}

/// An entry of `added_tokens`.
fn special(id: usize, piece: &Piece) -> Value {
    json!({
        "content": piece.text, "id": id, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false,
        "special": true,
    })
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
