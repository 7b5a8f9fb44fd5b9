//! Reads the weights of a folder that [`crate::export_hf`] wrote, block by block, so that a model of any size fits.

use crate::{AliceFile, Dtype, ExportError, Weights, safetensors};
use alice_spec::TensorShape;
use alice_store::theta::extend_from_le_bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes read at a time.
const BLOCK_BYTES: u64 = 1 << 18;

/// Weights in the shards of a folder, found by their names: f32, or bf16 brought to f32. [`crate::verify`] compares
/// them with `ALICE.json`; this only reads them.
#[derive(Debug)]
pub struct FolderWeights {
    dtype: Dtype,
    /// Position of each tensor: file, first byte, shape.
    places: BTreeMap<String, (PathBuf, u64, Vec<u64>)>,
}

impl FolderWeights {
    /// Reads the headers of the shards that `alice`, the folder's `ALICE.json`, lists.
    pub fn open(dir: &Path, alice: &AliceFile) -> Result<Self, ExportError> {
        // Each shard once, however many tensors it has.
        let shards: BTreeSet<&String> = alice.tensors.iter().map(|t| &t.file).collect();
        let mut places = BTreeMap::new();
        for shard in shards {
            let path = dir.join(shard);
            let mut file = File::open(&path).map_err(ExportError::io("open", &path))?;
            let bytes = file.metadata().map_err(ExportError::io("read", &path))?.len();
            let (header, entries) = safetensors::read_header(&mut file, &path, bytes)?;
            for (name, entry) in entries {
                let problem = |problem: String| ExportError::malformed(&path, format!("tensor {name}: {problem}"));
                if entry.dtype != alice.dtype.safetensors() {
                    return Err(problem(format!("type {}, ALICE.json names another", entry.dtype)));
                }
                let [start, end] = entry.data_offsets;
                // The shape comes from the file: its product may overflow.
                let values = entry.shape.iter().try_fold(1u64, |all, n| all.checked_mul(*n));
                if values.and_then(|n| n.checked_mul(alice.dtype.bytes())) != Some(end - start) {
                    return Err(problem(format!("{} bytes for shape {:?}", end - start, entry.shape)));
                }
                let place = (path.clone(), header.len() as u64 + start, entry.shape);
                places.insert(name, place);
            }
        }
        Ok(Self {
            dtype: alice.dtype,
            places,
        })
    }
}

impl Weights for FolderWeights {
    fn read(
        &mut self,
        _number: usize,
        tensor: &TensorShape,
        each: &mut dyn FnMut(&[f32]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let found = self
            .places
            .get(&tensor.name)
            .filter(|(_, _, shape)| *shape == tensor.shape);
        let Some((path, start, _)) = found else {
            return Err(ExportError::TensorSize {
                tensor: tensor.name.clone(),
                expected: tensor.len(),
                found: self
                    .places
                    .get(&tensor.name)
                    .map_or(0, |(_, _, shape)| shape.iter().product()),
            });
        };
        let failed = || ExportError::io("read", path);
        let mut file = File::open(path).map_err(failed())?;
        file.seek(SeekFrom::Start(*start)).map_err(failed())?;
        let mut remaining = tensor.len().saturating_mul(self.dtype.bytes());
        let mut bytes = vec![0; remaining.min(BLOCK_BYTES) as usize];
        let mut values = Vec::new();
        while remaining > 0 {
            let block = bytes.get_mut(..remaining.min(BLOCK_BYTES) as usize).unwrap_or_default();
            file.read_exact(block).map_err(failed())?;
            remaining -= block.len() as u64;
            values.clear();
            match self.dtype {
                Dtype::F32 => extend_from_le_bytes(&mut values, block),
                Dtype::Bf16 => {
                    // A bf16 is the upper half of the f32 of the same value.
                    let halves = block.as_chunks::<2>().0.iter();
                    values.extend(halves.map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)));
                }
            }
            each(&values)?;
        }
        Ok(())
    }
}
