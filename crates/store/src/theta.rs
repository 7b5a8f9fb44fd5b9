//! The master weights on disk: f32 little endian, tensors in canonical order, nothing between them.

use crate::{StoreError, file::write_atomic};
use std::io::{Read, Write};
use std::path::Path;

/// Coordinates converted at a time: large enough for the hash's SIMD, small enough for the cache.
const BLOCK: usize = 16 * 1024;

/// Calls `each` with the little-endian bytes of `values`, block by block, without a copy of the whole.
pub fn for_each_le_block(values: &[f32], mut each: impl FnMut(&[u8])) {
    let mut buffer = Vec::with_capacity(BLOCK.min(values.len()) * 4);
    for block in values.chunks(BLOCK) {
        buffer.clear();
        buffer.extend(block.iter().flat_map(|v| v.to_le_bytes()));
        each(&buffer);
    }
}

/// The little-endian bytes of `values`.
pub fn to_le_bytes(values: &[f32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() * 4);
    for_each_le_block(values, |bytes| out.extend_from_slice(bytes));
    out
}

/// Appends the values of little-endian bytes; a rest of less than four bytes is ignored.
pub fn extend_from_le_bytes(out: &mut Vec<f32>, bytes: &[u8]) {
    out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
}

/// Writes values to `out`.
pub fn write_values(out: &mut dyn Write, values: &[f32]) -> std::io::Result<()> {
    let mut result = Ok(());
    for_each_le_block(values, |bytes| {
        if result.is_ok() {
            result = out.write_all(bytes);
        }
    });
    result
}

/// Writes weights to a file, atomically and synced.
pub fn write_theta(path: &Path, theta: &[f32]) -> Result<(), StoreError> {
    write_atomic(path, |out| write_values(out, theta))
}

/// Reads weights of a run with `parameters` coordinates. The size is checked before anything is allocated.
pub fn read_theta(path: &Path, parameters: u64) -> Result<Vec<f32>, StoreError> {
    let mut file = std::fs::File::open(path).map_err(StoreError::io("open", path))?;
    let found = file.metadata().map_err(StoreError::io("read", path))?.len();
    let expected = parameters.saturating_mul(4);
    if found != expected {
        return Err(StoreError::ThetaSize {
            path: path.to_path_buf(),
            expected,
            found,
        });
    }
    let mut theta = Vec::with_capacity(parameters as usize);
    let mut buffer = vec![0; BLOCK * 4];
    let mut remaining = parameters as usize;
    while remaining > 0 {
        let take = remaining.min(BLOCK);
        let bytes = buffer.get_mut(..take * 4).unwrap_or_default();
        file.read_exact(bytes).map_err(StoreError::io("read", path))?;
        extend_from_le_bytes(&mut theta, bytes);
        remaining -= take;
    }
    Ok(theta)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn theta_should_survive_the_disk_bit_by_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("theta.f32");
        let theta: Vec<f32> = (0..BLOCK as u32 * 2 + 77)
            .map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)))
            .collect();
        write_theta(&path, &theta).unwrap();
        let back = read_theta(&path, theta.len() as u64).unwrap();
        assert!(theta.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()) && theta.len() == back.len());
        assert!(matches!(read_theta(&path, 3), Err(StoreError::ThetaSize { .. })));
        assert!(matches!(
            read_theta(&dir.path().join("none"), 3),
            Err(StoreError::Io { .. })
        ));
    }
}
