//! Sources of weights: one tensor after the other, in blocks.

use crate::ExportError;
use alice_spec::TensorShape;
use alice_store::theta::extend_from_le_bytes;
use alice_tokenizer::is_lfs_pointer_file;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Values in a block read from a file: large enough for the disk, small enough for the processor's cache.
const BLOCK_VALUES: usize = 64 * 1024;

/// A source of f32 weights. Exporters ask for every tensor of the run once, with its number in canonical order; not
/// always in that order.
pub trait Weights {
    /// Calls `each` with the tensor's values in row-major order, in blocks of any size, and stops at its first error.
    fn read(
        &mut self,
        number: usize,
        tensor: &TensorShape,
        each: &mut dyn FnMut(&[f32]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError>;
}

/// Progress of an export or a check, in bytes of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// Weights in memory: all tensors in canonical order, nothing between them.
#[derive(Debug)]
pub struct ThetaSlice<'a> {
    theta: &'a [f32],
    starts: Vec<u64>,
}

impl<'a> ThetaSlice<'a> {
    /// Weights of a run with these tensors.
    pub fn new(tensors: &[TensorShape], theta: &'a [f32]) -> Result<Self, ExportError> {
        let (starts, total) = starts(tensors);
        if theta.len() as u64 != total {
            return Err(ExportError::TensorSize {
                tensor: "(all)".into(),
                expected: total,
                found: theta.len() as u64,
            });
        }
        Ok(Self { theta, starts })
    }
}

impl Weights for ThetaSlice<'_> {
    fn read(
        &mut self,
        number: usize,
        tensor: &TensorShape,
        each: &mut dyn FnMut(&[f32]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        // Both fit: `new` has compared the sum with a slice's length.
        let start = self.starts.get(number).copied().unwrap_or(u64::MAX) as usize;
        let values = self.theta.get(start..).unwrap_or_default();
        let values = values.get(..tensor.len() as usize).unwrap_or_default();
        values.chunks(BLOCK_VALUES).try_for_each(each)
    }
}

/// Weights in a file of f32 little endian: the parameter server's θ, or a snapshot's chunks one after the other.
#[derive(Debug)]
pub struct ThetaFile {
    file: File,
    path: PathBuf,
    starts: Vec<u64>,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl ThetaFile {
    /// Opens a file and checks its size against the run's tensors.
    pub fn open(tensors: &[TensorShape], path: &Path) -> Result<Self, ExportError> {
        let file = File::open(path).map_err(ExportError::io("open", path))?;
        let found = file.metadata().map_err(ExportError::io("read", path))?.len();
        let (starts, total) = starts(tensors);
        let expected = total.saturating_mul(4);
        if found != expected && is_lfs_pointer_file(path) {
            return Err(ExportError::LfsPointer(path.to_path_buf()));
        }
        if found != expected {
            return Err(ExportError::WeightsSize {
                path: path.to_path_buf(),
                expected,
                found,
            });
        }
        Ok(Self {
            file,
            path: path.to_path_buf(),
            starts,
            bytes: vec![0; BLOCK_VALUES * 4],
            values: Vec::with_capacity(BLOCK_VALUES),
        })
    }
}

impl Weights for ThetaFile {
    fn read(
        &mut self,
        number: usize,
        tensor: &TensorShape,
        each: &mut dyn FnMut(&[f32]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let start = self.starts.get(number).copied().unwrap_or(u64::MAX);
        let failed = || ExportError::io("read", &self.path);
        self.file
            .seek(SeekFrom::Start(start.saturating_mul(4)))
            .map_err(failed())?;
        let mut remaining = tensor.len();
        while remaining > 0 {
            let take = remaining.min(BLOCK_VALUES as u64);
            // `take` is at most the buffer's length.
            let bytes = self.bytes.get_mut(..take as usize * 4).unwrap_or_default();
            self.file.read_exact(bytes).map_err(failed())?;
            self.values.clear();
            extend_from_le_bytes(&mut self.values, bytes);
            each(&self.values)?;
            remaining -= take;
        }
        Ok(())
    }
}

/// Weights from a function that returns one whole tensor at a time.
pub struct TensorFn<F>(pub F);

impl<F: FnMut(usize, &TensorShape) -> Result<Vec<f32>, ExportError>> Weights for TensorFn<F> {
    fn read(
        &mut self,
        number: usize,
        tensor: &TensorShape,
        each: &mut dyn FnMut(&[f32]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let values = (self.0)(number, tensor)?;
        values.chunks(BLOCK_VALUES).try_for_each(each)
    }
}

/// Reads one tensor and refuses a wrong number of values and values that are not finite.
pub(crate) fn read_checked(
    weights: &mut dyn Weights,
    number: usize,
    tensor: &TensorShape,
    each: &mut dyn FnMut(&[f32]) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let mut found = 0u64;
    let size = |found| ExportError::TensorSize {
        tensor: tensor.name.clone(),
        expected: tensor.len(),
        found,
    };
    weights.read(number, tensor, &mut |values| {
        if let Some((position, value)) = (0u64..).zip(values).find(|(_, v)| !v.is_finite()) {
            return Err(ExportError::NotFinite {
                tensor: tensor.name.clone(),
                coordinate: found + position,
                value: *value,
            });
        }
        found = found.saturating_add(values.len() as u64);
        if found > tensor.len() {
            return Err(size(found));
        }
        each(values)
    })?;
    if found != tensor.len() {
        return Err(size(found));
    }
    Ok(())
}

/// Position of each tensor's first value, and the number of all values.
fn starts(tensors: &[TensorShape]) -> (Vec<u64>, u64) {
    let mut total = 0u64;
    // Saturating: sizes come from a specification that may be anybody's.
    let starts = tensors.iter().map(|tensor| {
        let start = total;
        total = total.saturating_add(tensor.len());
        start
    });
    (starts.collect(), total)
}
