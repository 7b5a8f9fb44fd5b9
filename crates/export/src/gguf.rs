//! Writes a GGUF file, version 3: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Keys, tensor names and
//! order of rows are those that llama.cpp's own converter writes for `LlamaForCausalLM` and `MixtralForCausalLM`: the
//! latter is its architecture `llama` with the experts of a block stacked in one tensor.

use crate::about::checked;
use crate::float::{Q8_0_BYTES, Q8_0_VALUES, bf16_bits, q8_0_block};
use crate::target::{HashedFile, TargetFile};
use crate::weights::read_checked;
use crate::{About, ExportError, Progress, Weights};
use alice_primitives::Hash;
use alice_spec::{RMS_NORM_EPSILON, RunSpec, TensorShape};
use alice_store::root_of;
use alice_tokenizer::{BEGIN, END, FIRST_LEARNED, PieceKind, Tokenizer, UNKNOWN};
use std::path::Path;

/// Version of the format.
const VERSION: u32 = 3;
/// Every tensor starts at a multiple of this, bytes: `general.alignment`'s default.
const ALIGNMENT: u64 = 32;

/// Numbers of the matrices. Norms are always f32, as llama.cpp wants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufType {
    /// f32.
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// Blocks of 32 with one scale. Matrices whose rows are no multiple of 32 are stored as bfloat16.
    Q8_0,
}

impl GgufType {
    /// `general.file_type` of llama.cpp (`LLAMA_FTYPE_*`).
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::Bf16 => 32,
            Self::Q8_0 => 7,
        }
    }

    /// `GGML_TYPE_*`.
    fn ggml(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::Bf16 => 30,
            Self::Q8_0 => 8,
        }
    }

    fn bytes(self, values: u64) -> u64 {
        match self {
            Self::F32 => values * 4,
            Self::Bf16 => values * 2,
            Self::Q8_0 => values / Q8_0_VALUES as u64 * Q8_0_BYTES as u64,
        }
    }
}

/// Options of [`export_gguf`].
#[derive(Clone, Debug)]
pub struct GgufOptions {
    /// Numbers of the matrices.
    pub kind: GgufType,
    /// Origin of the weights.
    pub about: About,
    /// Root that the weights must have. It is in the file's head, and the file is written in one pass, so it is needed
    /// beforehand.
    pub model_root: Hash,
}

/// Summary of a written file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufExport {
    /// Size of the file.
    pub bytes: u64,
    /// BLAKE3 of the file.
    pub blake3: Hash,
}

/// Writes a file with the weights of a run. The target must not exist; it is there when this returns, and not before.
///
/// # Errors
/// The target is taken, the tokenizer or the weights are not the run's, a weight is not finite, or the disk refuses.
/// Nothing is left at the target then.
pub fn export_gguf(
    target: &Path,
    spec: &RunSpec,
    tokenizer: &Tokenizer,
    weights: &mut dyn Weights,
    options: &GgufOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<GgufExport, ExportError> {
    let all = checked(spec, tokenizer, &options.about)?;
    let stored = plan(&all);
    let mut target = TargetFile::start(target)?;
    write_header(
        &mut target.file,
        &metadata(spec, tokenizer, options),
        &stored,
        options.kind,
    )?;
    let mut done = Progress {
        done_bytes: 0,
        total_bytes: spec.parameters() * 4,
    };
    let mut leaves = vec![Hash::default(); all.len()];
    for tensor in &stored {
        write_tensor(
            &mut target.file,
            spec,
            tensor,
            options.kind,
            weights,
            &mut leaves,
            &mut |values| {
                done.done_bytes += values * 4;
                progress(done);
            },
        )?;
    }
    let found = root_of(all.iter().zip(leaves).map(|(t, leaf)| (&t.name, &t.shape, leaf)));
    // Only now is the root known; the temporary file is removed when it is dropped.
    if found != options.model_root {
        return Err(ExportError::Root {
            expected: options.model_root,
            found,
        });
    }
    let (bytes, blake3) = target.finish()?;
    Ok(GgufExport { bytes, blake3 })
}

/// Everything before the tensors' data: magic, counts, keys, and the description of each tensor.
fn write_header(
    out: &mut HashedFile,
    keys: &Metadata,
    stored: &[Stored<'_>],
    kind: GgufType,
) -> Result<(), ExportError> {
    out.write(b"GGUF")?;
    out.write(&VERSION.to_le_bytes())?;
    out.write(&(stored.len() as u64).to_le_bytes())?;
    out.write(&keys.count.to_le_bytes())?;
    out.write(&keys.bytes)?;
    let mut offset = 0u64;
    for Stored { tensor, .. } in stored {
        let kind = stored_type(tensor, kind);
        let mut info = Vec::new();
        put_string(&mut info, tensor.name.as_bytes());
        info.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
        // GGUF lists sizes from the innermost dimension to the outermost.
        for size in tensor.shape.iter().rev() {
            info.extend_from_slice(&size.to_le_bytes());
        }
        info.extend_from_slice(&kind.ggml().to_le_bytes());
        info.extend_from_slice(&offset.to_le_bytes());
        out.write(&info)?;
        // Offsets count from the start of the data, and each tensor is padded to the alignment.
        offset += kind.bytes(tensor.len()).next_multiple_of(ALIGNMENT);
    }
    pad(out)
}

/// Data of one tensor. `leaves` gets the BLAKE3 of the f32 bytes of each of the run's tensors in it, for the model
/// root; `written` the number of values of each block.
fn write_tensor(
    out: &mut HashedFile,
    spec: &RunSpec,
    Stored { tensor, parts }: &Stored<'_>,
    kind: GgufType,
    weights: &mut dyn Weights,
    leaves: &mut [Hash],
    written: &mut dyn FnMut(u64),
) -> Result<(), ExportError> {
    // Every part is converted by itself: heads and blocks end where it ends.
    for (number, part) in parts {
        let mut writer = TensorWriter::new(spec, part, stored_type(tensor, kind));
        let mut exact = blake3::Hasher::new();
        let mut bytes = Vec::new();
        read_checked(weights, *number, part, &mut |values| {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            exact.update(&bytes);
            writer.push(values, out)?;
            written(values.len() as u64);
            Ok(())
        })?;
        if let Some(leaf) = leaves.get_mut(*number) {
            *leaf = *exact.finalize().as_bytes();
        }
    }
    pad(out)
}

fn pad(out: &mut HashedFile) -> Result<(), ExportError> {
    let missing = out.position().next_multiple_of(ALIGNMENT) - out.position();
    out.write([0; ALIGNMENT as usize].get(..missing as usize).unwrap_or_default())
}

/// One tensor of the file.
struct Stored<'a> {
    /// Name and shape in the file.
    tensor: TensorShape,
    /// The run's tensors whose values follow each other in it, with their numbers: one, or all experts of a block.
    parts: Vec<(usize, &'a TensorShape)>,
}

/// The file's tensors: the run's in their order, those of all experts of a block where the first expert's stands.
fn plan(all: &[TensorShape]) -> Vec<Stored<'_>> {
    let mut stored: Vec<Stored> = Vec::new();
    let mut place_of: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    for (number, part) in all.iter().enumerate() {
        let name = gguf_name(&part.name);
        let place = *place_of.entry(name.clone()).or_insert(stored.len());
        match stored.get_mut(place) {
            Some(found) => found.parts.push((number, part)),
            None => stored.push(Stored {
                tensor: TensorShape {
                    name,
                    shape: part.shape.clone(),
                },
                parts: vec![(number, part)],
            }),
        }
    }
    // Only now the number of experts is known: the stacked tensor gets it as its outermost size.
    for Stored { tensor, parts } in &mut stored {
        if tensor.name.ends_with("_exps.weight") {
            tensor.shape.insert(0, parts.len() as u64);
        }
    }
    stored
}

fn stored_type(tensor: &TensorShape, kind: GgufType) -> GgufType {
    match (&tensor.shape[..], kind) {
        // llama.cpp keeps the router exact.
        _ if tensor.name.ends_with("ffn_gate_inp.weight") => GgufType::F32,
        ([.., _, columns], GgufType::Q8_0) if !columns.is_multiple_of(Q8_0_VALUES as u64) => GgufType::Bf16,
        ([.., _, _], kind) => kind,
        _ => GgufType::F32,
    }
}

/// llama.cpp's name of a tensor; the same for all experts of a block.
fn gguf_name(name: &str) -> String {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let block = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let expert = block.and_then(|(_, part)| part.strip_prefix("block_sparse_moe.experts."));
    let expert = expert.and_then(|rest| rest.split_once('.'));
    let part = expert.or(block).map_or(name, |(_, part)| part);
    let short = match part {
        "model.embed_tokens" => "token_embd",
        "model.norm" => "output_norm",
        "lm_head" => "output",
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "block_sparse_moe.gate" => "ffn_gate_inp",
        "w1" => "ffn_gate_exps",
        "w2" => "ffn_down_exps",
        "w3" => "ffn_up_exps",
        other => other,
    };
    match block {
        Some((layer, _)) => format!("blk.{layer}.{short}.weight"),
        None => format!("{short}.weight"),
    }
}

/// Converts one tensor while it streams by. Rows of queries and keys are gathered head by head and permuted: Hugging
/// Face rotates coordinate i of a head together with i + dim/2, llama.cpp 2i together with 2i + 1.
struct TensorWriter {
    kind: GgufType,
    /// Values of one head and of one row, where rows are permuted.
    head: Option<(usize, usize)>,
    /// Values that wait for the rest of their head or block.
    waiting: Vec<f32>,
    bytes: Vec<u8>,
}

impl TensorWriter {
    fn new(spec: &RunSpec, tensor: &TensorShape, kind: GgufType) -> Self {
        let m = &spec.model;
        let permuted = tensor.name.ends_with("q_proj.weight") || tensor.name.ends_with("k_proj.weight");
        let row = m.hidden as usize;
        let head = permuted.then(|| ((m.hidden / m.heads.max(1)) as usize * row, row));
        Self {
            kind,
            head,
            waiting: Vec::new(),
            bytes: Vec::new(),
        }
    }

    fn push(&mut self, values: &[f32], out: &mut HashedFile) -> Result<(), ExportError> {
        // Values that are converted together: a head, a block, or any number.
        // Blocks come in any length, and heads and q8_0 blocks end inside them.
        let unit = match (self.head, self.kind) {
            (Some((head, _)), _) => head,
            (None, GgufType::Q8_0) => Q8_0_VALUES,
            _ => 1,
        };
        // The usual case, without a copy.
        if self.waiting.is_empty() && values.len().is_multiple_of(unit) {
            return self.convert(values, unit, out);
        }
        self.waiting.extend_from_slice(values);
        let whole = self.waiting.len() / unit * unit;
        let waiting = std::mem::take(&mut self.waiting);
        let (ready, rest) = waiting.split_at_checked(whole).unwrap_or((&waiting, &[]));
        self.convert(ready, unit, out)?;
        self.waiting.extend_from_slice(rest);
        Ok(())
    }

    fn convert(&mut self, values: &[f32], unit: usize, out: &mut HashedFile) -> Result<(), ExportError> {
        let Some((head, row)) = self.head else {
            return self.store(values, out);
        };
        // Row i of the first half goes before row i of the second: pairs become neighbours.
        let half = head / 2;
        let mut permuted = Vec::with_capacity(unit.min(values.len()));
        for head in values.chunks_exact(head) {
            permuted.clear();
            let (first, second) = head.split_at(half);
            for (a, b) in first.chunks_exact(row).zip(second.chunks_exact(row)) {
                permuted.extend_from_slice(a);
                permuted.extend_from_slice(b);
            }
            self.store(&permuted, out)?;
        }
        Ok(())
    }

    fn store(&mut self, values: &[f32], out: &mut HashedFile) -> Result<(), ExportError> {
        self.bytes.clear();
        match self.kind {
            GgufType::F32 => self.bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            GgufType::Bf16 => self
                .bytes
                .extend(values.iter().flat_map(|v| bf16_bits(*v).to_le_bytes())),
            GgufType::Q8_0 => {
                let blocks = values.as_chunks::<Q8_0_VALUES>().0;
                self.bytes.extend(blocks.iter().flat_map(q8_0_block));
            }
        }
        out.write(&self.bytes)
    }
}

/// Keys and values in GGUF's coding.
#[derive(Default)]
struct Metadata {
    count: u64,
    bytes: Vec<u8>,
}

fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text);
}

// Types of values.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

impl Metadata {
    fn key(&mut self, key: &str, kind: u32) {
        self.count += 1;
        put_string(&mut self.bytes, key.as_bytes());
        self.bytes.extend_from_slice(&kind.to_le_bytes());
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.key(key, U32);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.key(key, F32);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn bool(&mut self, key: &str, value: bool) {
        self.key(key, BOOL);
        self.bytes.push(value.into());
    }

    fn string(&mut self, key: &str, value: &str) {
        self.key(key, STRING);
        put_string(&mut self.bytes, value.as_bytes());
    }

    fn array(&mut self, key: &str, kind: u32, len: usize) {
        self.key(key, ARRAY);
        self.bytes.extend_from_slice(&kind.to_le_bytes());
        self.bytes.extend_from_slice(&(len as u64).to_le_bytes());
    }

    fn strings(&mut self, key: &str, values: &[String]) {
        self.array(key, STRING, values.len());
        for value in values {
            put_string(&mut self.bytes, value.as_bytes());
        }
    }
}

fn metadata(spec: &RunSpec, tokenizer: &Tokenizer, options: &GgufOptions) -> Metadata {
    let (m, about) = (&spec.model, &options.about);
    let mut out = Metadata::default();
    out.string("general.architecture", "llama");
    out.string("general.type", "model");
    out.string("general.name", &format!("alice {} {}", spec.name, about.model_name()));
    out.string("general.license", &about.license);
    out.u32("general.file_type", options.kind.file_type());
    // `GGML_QNT_VERSION` of ggml: the version of q8_0's layout.
    out.u32("general.quantization_version", 2);
    out.u32("llama.vocab_size", m.vocab);
    out.u32("llama.context_length", m.context);
    out.u32("llama.embedding_length", m.hidden);
    out.u32("llama.block_count", m.layers);
    out.u32("llama.feed_forward_length", m.ffn);
    if let Some(moe) = &m.moe {
        out.u32("llama.expert_count", moe.experts);
        out.u32("llama.expert_used_count", moe.top_k);
    }
    out.u32("llama.attention.head_count", m.heads);
    out.u32("llama.attention.head_count_kv", m.kv_heads);
    out.u32("llama.rope.dimension_count", m.hidden / m.heads.max(1));
    out.f32("llama.rope.freq_base", m.rope_theta as f32);
    out.f32("llama.attention.layer_norm_rms_epsilon", RMS_NORM_EPSILON as f32);
    put_tokenizer(&mut out, tokenizer);
    out.string("alice.run", &spec.name);
    out.string("alice.run_hash", &hex::encode(spec.run_hash()));
    out.u32("alice.epoch", about.epoch);
    out.string("alice.model_root", &hex::encode(options.model_root));
    if let Some(genesis) = &about.genesis_hash {
        out.string("alice.genesis_hash", &hex::encode(genesis));
    }
    if let Some(manifest) = &about.manifest_hash {
        out.string("alice.manifest_hash", &hex::encode(manifest));
    }
    out
}

/// llama.cpp has no vocabulary of bytes alone: its SentencePiece kind writes a space as U+2581 before it looks for
/// pieces, which are three bytes then. GPT-2's kind gives every byte a character of its own; without merges each byte
/// is one token, with the same ids as in training.
fn put_tokenizer(out: &mut Metadata, tokenizer: &Tokenizer) {
    let pieces = tokenizer.pieces();
    if tokenizer.is_bytes() {
        out.string("tokenizer.ggml.model", "gpt2");
        out.string("tokenizer.ggml.pre", "gpt-2");
        // Names of the first three, then GPT-2's characters of the bytes.
        let special = pieces.iter().take(alice_tokenizer::BYTE_FIRST as usize);
        let tokens: Vec<String> = special
            .map(|p| p.text.clone())
            .chain((0..=255).map(|b| gpt2_character(b).to_string()))
            .collect();
        out.strings("tokenizer.ggml.tokens", &tokens);
        out.array("tokenizer.ggml.token_type", I32, pieces.len());
        for piece in pieces {
            let kind = match piece.kind {
                // GPT-2's kind has no byte pieces: here they are its characters.
                PieceKind::Byte => PieceKind::Normal,
                other => other,
            };
            out.bytes.extend_from_slice(&i32::from(kind as u8).to_le_bytes());
        }
        out.strings("tokenizer.ggml.merges", &[]);
    } else {
        out.string("tokenizer.ggml.model", "llama");
        out.string("tokenizer.ggml.pre", "default");
        let tokens: Vec<String> = pieces.iter().map(|p| p.text.clone()).collect();
        out.strings("tokenizer.ggml.tokens", &tokens);
        out.array("tokenizer.ggml.scores", F32, pieces.len());
        for piece in pieces {
            out.bytes.extend_from_slice(&piece.score.to_le_bytes());
        }
        out.array("tokenizer.ggml.token_type", I32, pieces.len());
        for piece in pieces {
            out.bytes.extend_from_slice(&i32::from(piece.kind as u8).to_le_bytes());
        }
    }
    out.u32("tokenizer.ggml.unknown_token_id", UNKNOWN);
    out.u32("tokenizer.ggml.bos_token_id", BEGIN);
    out.u32("tokenizer.ggml.eos_token_id", END);
    out.bool("tokenizer.ggml.add_bos_token", false);
    out.bool("tokenizer.ggml.add_eos_token", false);
    out.bool("tokenizer.ggml.add_space_prefix", tokenizer.dummy_prefix());
    debug_assert!(tokenizer.vocab() >= FIRST_LEARNED);
}

/// GPT-2's character for a byte (`bytes_to_unicode`): printable Latin-1 stands for itself, the rest for 256 and on.
fn gpt2_character(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let place = (0..byte).filter(|b| !printable(*b)).count() as u32;
    // 256 to 323: all are characters.
    char::from_u32(256 + place).unwrap_or(char::REPLACEMENT_CHARACTER)
}
