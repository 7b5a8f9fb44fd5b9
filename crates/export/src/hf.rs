//! Writes a Hugging Face folder.

use crate::about::{card, checked, config_json, generation_config_json};
use crate::float::bf16_bits;
use crate::target::TargetFolder;
use crate::weights::read_checked;
use crate::{
    ALICE_FILE, About, AliceFile, Dtype, ExportError, FORMAT, FileEntry, Progress, RunRef, TensorEntry, Weights,
    safetensors,
};
use alice_primitives::Hash;
use alice_spec::{RunSpec, TensorShape};
use alice_store::root_of;
use alice_tokenizer::Tokenizer;
use std::collections::BTreeMap;
use std::path::Path;

/// Default maximum size of a shard, bytes.
pub const SHARD_BYTES: u64 = 4 << 30;
/// File that names the shard of each tensor.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The model card.
const CARD_FILE: &str = "README.md";

/// Options of [`export_hf`].
#[derive(Clone, Debug)]
pub struct HfOptions {
    /// Numbers in the shards.
    pub dtype: Dtype,
    /// A shard is closed before it would exceed this; a tensor is never cut, so one that is larger has its own shard.
    pub shard_bytes: u64,
    /// Origin of the weights.
    pub about: About,
    /// Root that the weights must have. `None`: any; the root found is in the result.
    pub model_root: Option<Hash>,
}

/// Summary of a written folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HfExport {
    /// Root of the weights.
    pub model_root: Hash,
    /// Number of shards.
    pub shards: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// BLAKE3 of `ALICE.json`, which lists all other files: one hash for the whole folder.
    pub alice_hash: Hash,
}

/// Writes a folder with the weights of a run. The target must not exist, or be an empty folder; it is there when this
/// returns, and not before.
///
/// # Errors
/// The target is taken, the tokenizer or the weights are not the run's, a weight is not finite, or the disk refuses.
/// Nothing is left at the target then.
pub fn export_hf(
    target: &Path,
    spec: &RunSpec,
    tokenizer: &Tokenizer,
    weights: &mut dyn Weights,
    options: &HfOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<HfExport, ExportError> {
    let all = checked(spec, tokenizer, &options.about)?;
    if options.shard_bytes == 0 {
        return Err(ExportError::Option {
            option: "shard_bytes",
            problem: "must be at least 1".into(),
        });
    }
    // After all checks, so that a wrong option leaves no temporary folder.
    let folder = TargetFolder::start(target)?;
    let shards = plan(&all, options.dtype, options.shard_bytes);
    let mut files = BTreeMap::new();
    for (name, content) in derived_files(spec, tokenizer, options.dtype, &shards) {
        files.insert(name.clone(), add(&folder, &name, &content)?);
    }
    let mut done = Progress {
        done_bytes: 0,
        total_bytes: spec.parameters() * 4,
    };
    let mut tensors = Vec::with_capacity(all.len());
    for (name, range) in &shards {
        let members: Vec<_> = range.clone().zip(all.get(range.clone()).unwrap_or_default()).collect();
        let mut written = |values| {
            done.done_bytes += values * 4;
            progress(done);
        };
        let file = write_shard(
            &folder,
            name,
            &members,
            weights,
            options.dtype,
            &mut tensors,
            &mut written,
        )?;
        files.insert(name.clone(), file);
    }
    let model_root = root_of(tensors.iter().map(|t| (&t.name, &t.shape, t.f32_blake3)));
    if let Some(expected) = options.model_root.filter(|expected| *expected != model_root) {
        return Err(ExportError::Root {
            expected,
            found: model_root,
        });
    }
    let card = card(spec, &options.about, options.dtype, &model_root);
    files.insert(CARD_FILE.to_owned(), add(&folder, CARD_FILE, card.as_bytes())?);
    let alice = alice_file(spec, options, model_root, tensors, files);
    // Last: the list has the hashes of all other files.
    let json = serde_json::to_string_pretty(&alice).map_err(|e| ExportError::malformed(target, e.to_string()))?;
    let listed = add(&folder, ALICE_FILE, format!("{json}\n").as_bytes())?;
    folder.finish()?;
    Ok(HfExport {
        model_root,
        shards: shards.len(),
        bytes: listed.bytes + alice.files.values().map(|f| f.bytes).sum::<u64>(),
        alice_hash: listed.blake3,
    })
}

/// Writes one file of the folder.
fn add(folder: &TargetFolder, name: &str, content: &[u8]) -> Result<FileEntry, ExportError> {
    let mut file = folder.file(name)?;
    file.write(content)?;
    let (bytes, blake3) = file.finish()?;
    Ok(FileEntry { bytes, blake3 })
}

/// Writes one shard with these tensors, given with their numbers, and appends their entries to `tensors`. `written`
/// gets the number of values of each block.
fn write_shard(
    folder: &TargetFolder,
    name: &str,
    members: &[(usize, &TensorShape)],
    weights: &mut dyn Weights,
    dtype: Dtype,
    tensors: &mut Vec<TensorEntry>,
    written: &mut dyn FnMut(u64),
) -> Result<FileEntry, ExportError> {
    let shapes = members.iter().map(|(_, tensor)| *tensor);
    let mut file = folder.file(name)?;
    file.write(&safetensors::header(shapes, dtype))?;
    for (number, tensor) in members {
        let mut hashes = TensorHasher::new(dtype);
        read_checked(weights, *number, tensor, &mut |values| {
            file.write(hashes.update(values))?;
            written(values.len() as u64);
            Ok(())
        })?;
        let (f32_blake3, stored_blake3) = hashes.finish();
        tensors.push(TensorEntry {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            file: name.to_owned(),
            f32_blake3,
            stored_blake3,
        });
    }
    let (bytes, blake3) = file.finish()?;
    Ok(FileEntry { bytes, blake3 })
}

fn alice_file(
    spec: &RunSpec,
    options: &HfOptions,
    model_root: Hash,
    tensors: Vec<TensorEntry>,
    files: BTreeMap<String, FileEntry>,
) -> AliceFile {
    let about = &options.about;
    AliceFile {
        format: FORMAT.into(),
        architecture: spec.model.architecture.clone(),
        dtype: options.dtype,
        run: RunRef {
            name: spec.name.clone(),
            hash: spec.run_hash(),
        },
        epoch: about.epoch,
        tokens_trained: about.tokens_trained,
        genesis_hash: about.genesis_hash,
        manifest_hash: about.manifest_hash,
        chain_proof: about.chain_proof.clone(),
        model_root,
        tensors,
        files,
    }
}

/// Names of the shards and the tensors in each.
pub(crate) type Shards = Vec<(String, std::ops::Range<usize>)>;

/// Packs tensors into shards in canonical order.
fn plan(all: &[TensorShape], dtype: Dtype, shard_bytes: u64) -> Shards {
    // Canonical order and no sorting by size: the same run must always give the same shards.
    let mut starts = vec![0];
    let mut open = 0u64;
    for (number, tensor) in all.iter().enumerate() {
        let bytes = tensor.len().saturating_mul(dtype.bytes());
        // A shard has at least one tensor, however large.
        if open > 0 && open.saturating_add(bytes) > shard_bytes {
            starts.push(number);
            open = 0;
        }
        open = open.saturating_add(bytes);
    }
    let count = starts.len();
    let ends = starts.iter().skip(1).copied().chain([all.len()]);
    let ranges = starts.iter().zip(ends).zip(1..);
    ranges
        .map(|((start, end), number)| (format!("model-{number:05}-of-{count:05}.safetensors"), *start..end))
        .collect()
}

/// All files that follow from the run, its tokenizer and the packing alone.
pub(crate) fn derived_files(
    spec: &RunSpec,
    tokenizer: &Tokenizer,
    dtype: Dtype,
    shards: &Shards,
) -> Vec<(String, Vec<u8>)> {
    let all = spec.tensors();
    let mut map = BTreeMap::new();
    for (name, range) in shards {
        for tensor in all.get(range.clone()).unwrap_or_default() {
            map.insert(tensor.name.clone(), name.clone());
        }
    }
    let index = serde_json::json!({
        "metadata": {"total_parameters": spec.parameters(), "total_size": spec.parameters() * dtype.bytes()},
        "weight_map": map,
    });
    let mut files = vec![
        ("config.json".to_owned(), config_json(spec, dtype).into_bytes()),
        (
            "generation_config.json".to_owned(),
            generation_config_json().into_bytes(),
        ),
        (INDEX_FILE.to_owned(), format!("{index:#}\n").into_bytes()),
    ];
    let tokenizer_files = tokenizer.files(spec.model.context).into_iter();
    files.extend(tokenizer_files.map(|(name, content)| (name.to_owned(), content)));
    files
}

/// Stored bytes of f32 values, and both hashes of a tensor.
pub(crate) struct TensorHasher {
    dtype: Dtype,
    exact: blake3::Hasher,
    stored: blake3::Hasher,
    exact_bytes: Vec<u8>,
    stored_bytes: Vec<u8>,
}

impl TensorHasher {
    pub(crate) fn new(dtype: Dtype) -> Self {
        Self {
            dtype,
            exact: blake3::Hasher::new(),
            stored: blake3::Hasher::new(),
            exact_bytes: Vec::new(),
            stored_bytes: Vec::new(),
        }
    }

    /// Takes the next values and returns their stored bytes. Both hashes are computed in the one pass that writes,
    /// because the weights may be larger than memory.
    pub(crate) fn update(&mut self, values: &[f32]) -> &[u8] {
        self.exact_bytes.clear();
        self.exact_bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        self.exact.update(&self.exact_bytes);
        match self.dtype {
            Dtype::F32 => &self.exact_bytes,
            Dtype::Bf16 => {
                self.stored_bytes.clear();
                self.stored_bytes
                    .extend(values.iter().flat_map(|v| bf16_bits(*v).to_le_bytes()));
                self.stored.update(&self.stored_bytes);
                &self.stored_bytes
            }
        }
    }

    /// BLAKE3 of the f32 bytes and of the stored bytes.
    pub(crate) fn finish(&self) -> (Hash, Hash) {
        let exact = *self.exact.finalize().as_bytes();
        match self.dtype {
            // Stored and exact bytes are the same, and so are their hashes.
            Dtype::F32 => (exact, exact),
            Dtype::Bf16 => (exact, *self.stored.finalize().as_bytes()),
        }
    }
}
