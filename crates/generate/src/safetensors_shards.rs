//! Tensors in safetensors files: `model.safetensors`, or shards that `model.safetensors.index.json` lists. All headers
//! are read and checked first; a tensor's bytes are read when they are asked for, so one tensor at a time is in memory.
//! <https://github.com/huggingface/safetensors#format>

use crate::GenerateError;
use crate::config::read_json_up_to;
use alice_spec::TensorShape;
use alice_tokenizer::is_lfs_pointer;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// The only file of a small model; if it exists, the index is ignored (as in `transformers`).
pub const SINGLE_FILE: &str = "model.safetensors";
/// File that names the shard of each tensor.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// Maximum size of an index that is read, bytes.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Maximum size of a header that is read, bytes: tens of thousands of tensors.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// Maximum number of shards: each is kept open, and processes often may open 1,024 files.
const SHARDS_MAX: usize = 512;
/// Size of a header's length, bytes.
const LENGTH_BYTES: u64 = 8;
/// Bytes after the length that are read to recognise a Git LFS pointer.
const POINTER_BYTES: u64 = 64;

/// Number format of a tensor in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// f32.
    F32,
    /// bf16.
    Bf16,
    /// f16.
    F16,
}

impl Stored {
    fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::BF16 => Some(Self::Bf16),
            Dtype::F16 => Some(Self::F16),
            _ => None,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }
}

/// Position of one tensor in its shard.
#[derive(Debug)]
struct Place {
    shard: usize,
    stored: Stored,
    shape: Vec<usize>,
    start: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
}

/// The shards of a folder, opened, with the place of every tensor.
#[derive(Debug)]
pub(crate) struct Shards {
    dir: PathBuf,
    shards: Vec<Shard>,
    places: HashMap<String, Place>,
}

impl Shards {
    /// Opens every shard and reads its header. Each header is bounded, and must account for every byte of its file.
    pub fn open(dir: &Path) -> Result<Self, GenerateError> {
        let mut all = Self {
            dir: dir.to_path_buf(),
            shards: Vec::new(),
            places: HashMap::new(),
        };
        for name in file_names(dir)? {
            all.add(dir.join(name))?;
        }
        Ok(all)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), GenerateError> {
        let mut file = File::open(&path).map_err(GenerateError::io("open", &path))?;
        let (data_start, metadata) = read_header(&mut file, &path)?;
        for (name, info) in metadata.tensors() {
            let Some(stored) = Stored::of(info.dtype) else {
                return Err(GenerateError::Unsupported {
                    path,
                    what: format!("tensor {name} in {:?}", info.dtype),
                });
            };
            let (start, end) = info.data_offsets;
            let place = Place {
                shard: self.shards.len(),
                stored,
                shape: info.shape.clone(),
                start: data_start + start as u64,
                // The header was checked: offsets ascend, and shape and kind give their difference.
                bytes: end.saturating_sub(start),
            };
            // Two tensors of one name: whichever was taken, another program might take the other.
            if self.places.insert(name.clone(), place).is_some() {
                return Err(GenerateError::malformed(
                    &path,
                    format!("tensor {name} is in another shard too"),
                ));
            }
        }
        self.shards.push(Shard { path, file });
        Ok(())
    }

    /// Refuses shards that do not hold exactly the expected tensors, but for those that are `ignored`.
    pub fn check(&self, expected: &[TensorShape], ignored: impl Fn(&str) -> bool) -> Result<(), GenerateError> {
        let mut rest: BTreeMap<&str, &Place> = self.places.iter().map(|(name, p)| (name.as_str(), p)).collect();
        for tensor in expected {
            let Some(place) = rest.remove(tensor.name.as_str()) else {
                return Err(GenerateError::MissingTensor {
                    dir: self.dir.clone(),
                    tensor: tensor.name.clone(),
                });
            };
            let shape: Vec<usize> = tensor.shape.iter().map(|n| *n as usize).collect();
            if place.shape != shape {
                return Err(GenerateError::Shape {
                    path: self.path(place),
                    tensor: tensor.name.clone(),
                    found: place.shape.clone(),
                    expected: shape,
                });
            }
        }
        match rest.into_iter().find(|(name, _)| !ignored(name)) {
            Some((name, place)) => Err(GenerateError::ExtraTensor {
                path: self.path(place),
                tensor: name.into(),
            }),
            None => Ok(()),
        }
    }

    /// Number format of a tensor. `None` if no shard has it.
    pub fn stored(&self, name: &str) -> Option<Stored> {
        self.places.get(name).map(|place| place.stored)
    }

    /// Reads one tensor in its stored number format, on the CPU.
    pub fn read(&mut self, name: &str) -> Result<Tensor, GenerateError> {
        let missing = || GenerateError::MissingTensor {
            dir: self.dir.clone(),
            tensor: name.into(),
        };
        let place = self.places.get(name).ok_or_else(missing)?;
        let shard = self.shards.get_mut(place.shard).ok_or_else(missing)?;
        // No more than the file has: its header has been checked against its size.
        let mut bytes = vec![0; place.bytes];
        let found = shard.file.seek(SeekFrom::Start(place.start));
        found
            .and_then(|_| shard.file.read_exact(&mut bytes))
            .map_err(GenerateError::io("read", &shard.path))?;
        let shape: Vec<i64> = place.shape.iter().map(|n| *n as i64).collect();
        let tensor = Tensor::f_from_data_size(&bytes, &shape, place.stored.kind());
        Ok(tensor.map_err(alice_model::ModelError::from)?)
    }

    fn path(&self, place: &Place) -> PathBuf {
        self.shards
            .get(place.shard)
            .map_or_else(|| self.dir.clone(), |s| s.path.clone())
    }
}

/// Names of the files that hold the weights.
fn file_names(dir: &Path) -> Result<BTreeSet<String>, GenerateError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    if dir.join(SINGLE_FILE).exists() {
        return Ok(BTreeSet::from([SINGLE_FILE.into()]));
    }
    let path = dir.join(INDEX_FILE);
    let index: Option<Index> = read_json_up_to(&path, INDEX_BYTES_MAX)?;
    let Some(index) = index else {
        return Err(GenerateError::Missing(path));
    };
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    if names.is_empty() || names.len() > SHARDS_MAX {
        let problem = format!("it names {} shards; 1 to {SHARDS_MAX} are possible", names.len());
        return Err(GenerateError::malformed(&path, problem));
    }
    // The index is not trusted: a name may not lead out of the folder.
    match names
        .iter()
        .find(|name| name.starts_with('.') || name.contains(['/', '\\', ':', '\0']))
    {
        Some(name) => Err(GenerateError::malformed(
            &path,
            format!("'{name}' is no plain file name"),
        )),
        None => Ok(names),
    }
}

/// Position of the data in the file, and the tensors; offsets and sizes have been checked against the file's size.
fn read_header(file: &mut File, path: &Path) -> Result<(u64, Metadata), GenerateError> {
    let bad = |problem: String| GenerateError::malformed(path, problem);
    let size = file
        .metadata()
        .map_err(GenerateError::io("read the size of", path))?
        .len();
    let mut length = [0; LENGTH_BYTES as usize];
    if size < LENGTH_BYTES {
        return Err(bad(format!("{size} bytes are no safetensors file; download it again")));
    }
    file.read_exact(&mut length).map_err(GenerateError::io("read", path))?;
    let json_bytes = u64::from_le_bytes(length);
    if json_bytes > HEADER_BYTES_MAX || json_bytes > size - LENGTH_BYTES {
        // The first bytes of a pointer, taken for a length, are far above every limit.
        let mut start = length.to_vec();
        let read = file.take(POINTER_BYTES).read_to_end(&mut start);
        read.map_err(GenerateError::io("read", path))?;
        if is_lfs_pointer(&start) {
            return Err(GenerateError::LfsPointer(path.to_path_buf()));
        }
        let most = HEADER_BYTES_MAX.min(size - LENGTH_BYTES);
        return Err(bad(format!(
            "its header would have {json_bytes} bytes; at most {most} are possible"
        )));
    }
    let mut json = vec![0; json_bytes as usize];
    file.read_exact(&mut json).map_err(GenerateError::io("read", path))?;
    // Checks that offsets leave no gap, and that kind and shape of every tensor give its bytes.
    let metadata: Metadata = serde_json::from_slice(&json).map_err(|e| bad(format!("its header: {e}")))?;
    let (expected, found) = (metadata.data_len() as u64, size - LENGTH_BYTES - json_bytes);
    if expected != found {
        return Err(GenerateError::ShardSize {
            path: path.to_path_buf(),
            expected,
            found,
        });
    }
    Ok((LENGTH_BYTES + json_bytes, metadata))
}
