//! Headers of safetensors files: eight bytes of length, JSON, then the tensors without gaps.
//! <https://github.com/huggingface/safetensors#format>

use crate::{Dtype, ExportError};
use alice_spec::TensorShape;
use alice_tokenizer::is_lfs_pointer;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

/// Maximum size of a header that is read, bytes: tens of thousands of tensors.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// Size of a header's length, bytes.
const LENGTH_BYTES: u64 = 8;
/// Bytes after the length that are read to recognise a Git LFS pointer.
const POINTER_BYTES: u64 = 64;

/// Length and JSON of a header for tensors in this order, filled with spaces so that the data is aligned to 8 bytes.
pub(crate) fn header<'a>(tensors: impl Iterator<Item = &'a TensorShape>, dtype: Dtype) -> Vec<u8> {
    let mut json = String::from("{\"__metadata__\":{\"format\":\"pt\"}");
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.len() * dtype.bytes();
        // Names are those of `RunSpec::tensors`: nothing in them needs escaping, and quoting keeps it so.
        json += &format!(
            ",{}:{{\"dtype\":\"{}\",\"shape\":{:?},\"data_offsets\":[{start},{end}]}}",
            serde_json::Value::from(tensor.name.as_str()),
            dtype.safetensors(),
            tensor.shape,
        );
        start = end;
    }
    json.push('}');
    // Other programs map the file and read the numbers in place.
    while json.len() % 8 != 0 {
        json.push(' ');
    }
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(json.as_bytes());
    out
}

/// One tensor of a header.
#[derive(Debug, Deserialize)]
pub(crate) struct Entry {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) data_offsets: [u64; 2],
}

/// A header's bytes as they are, and its tensors in the order of their data.
pub(crate) type Header = (Vec<u8>, Vec<(String, Entry)>);

/// Position of a tensor in a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPlace {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its bytes, counted from the end of the header.
    pub data: Range<u64>,
}

/// The tensors of a safetensors file in memory, in the order of their data, which has no gaps. `path` is for the error.
///
/// ```
/// use std::path::Path;
///
/// let json = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
/// let mut file = (json.len() as u64).to_le_bytes().to_vec();
/// file.extend_from_slice(json);
/// file.extend_from_slice(&[0; 8]);
/// let tensors = alice_export::safetensors_layout(&file, Path::new("x.safetensors"))?;
/// assert_eq!((tensors[0].name.as_str(), &tensors[0].data), ("w", &(0..8)));
///
/// file.push(0);
/// assert!(alice_export::safetensors_layout(&file, Path::new("x.safetensors")).is_err());
/// # Ok::<(), alice_export::ExportError>(())
/// ```
///
/// # Errors
/// The file is a Git LFS pointer, its header cannot be read, or its tensors do not fill the file.
pub fn safetensors_layout(file: &[u8], path: &Path) -> Result<Vec<TensorPlace>, ExportError> {
    let (_, entries) = read_header(&mut &*file, path, file.len() as u64)?;
    let places = entries.into_iter().map(|(name, entry)| {
        let [start, end] = entry.data_offsets;
        TensorPlace {
            name,
            shape: entry.shape,
            data: start..end,
        }
    });
    Ok(places.collect())
}

/// Reads a header: its bytes as they are, and the tensors in the order of their data. `file_bytes` is the size of the
/// whole file, which the tensors have to fill exactly.
pub(crate) fn read_header(input: &mut impl Read, path: &Path, file_bytes: u64) -> Result<Header, ExportError> {
    let bad = |problem: String| ExportError::malformed(path, problem);
    let mut length = [0; LENGTH_BYTES as usize];
    let failed = || ExportError::io("read", path);
    if file_bytes < LENGTH_BYTES {
        return Err(bad(format!("{file_bytes} bytes are no safetensors file")));
    }
    input.read_exact(&mut length).map_err(failed())?;
    let json_bytes = u64::from_le_bytes(length);
    if json_bytes > HEADER_BYTES_MAX || json_bytes > file_bytes - LENGTH_BYTES {
        // The first bytes of a pointer, taken for a length, are far above every limit.
        let mut start = length.to_vec();
        input.take(POINTER_BYTES).read_to_end(&mut start).map_err(failed())?;
        if is_lfs_pointer(&start) {
            return Err(ExportError::LfsPointer(path.to_path_buf()));
        }
        return Err(bad(format!("its header would have {json_bytes} bytes")));
    }
    let mut raw = length.to_vec();
    // At most 16 MiB, and not more than the file has.
    raw.resize((LENGTH_BYTES + json_bytes) as usize, 0);
    let json = raw.get_mut(LENGTH_BYTES as usize..).unwrap_or_default();
    input.read_exact(json).map_err(failed())?;
    let all: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(json).map_err(|e| bad(format!("its header is no JSON: {e}")))?;
    let mut entries = Vec::with_capacity(all.len());
    for (name, value) in all {
        // Free text of whoever wrote the file; the tensors do not depend on it.
        if name == "__metadata__" {
            continue;
        }
        let entry: Entry = serde_json::from_value(value).map_err(|e| bad(format!("tensor {name}: {e}")))?;
        entries.push((name, entry));
    }
    // JSON objects have no order; the data has one.
    entries.sort_by_key(|(_, e)| e.data_offsets);
    // A gap or an overlap would be bytes that no hash of a tensor covers, or that two tensors share.
    let mut covered = 0;
    for (name, entry) in &entries {
        let [start, end] = entry.data_offsets;
        if start != covered || end < start {
            return Err(bad(format!(
                "tensor {name} has offsets {start} to {end} after {covered}"
            )));
        }
        covered = end;
    }
    let data_bytes = file_bytes - LENGTH_BYTES - json_bytes;
    if covered != data_bytes {
        return Err(bad(format!(
            "it holds {data_bytes} bytes of tensors, its header lists {covered}"
        )));
    }
    Ok((raw, entries))
}
