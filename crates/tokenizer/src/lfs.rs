//! Pointers of Git Large File Storage: what a clone without `git lfs` has in place of the weights.
//!
//! The check is here because this is the lowest crate that reads files of downloaded model folders. Without it a
//! pointer would be reported as a damaged file, and downloading it again would not help.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// First bytes of every pointer (<https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>).
const POINTER_START: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Name of the fault, and its remedy.
pub const LFS_POINTER_ADVICE: &str = "a Git LFS pointer: run git lfs pull";

/// Whether a file that begins with these bytes is a Git LFS pointer in place of the file itself.
///
/// ```
/// let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
/// assert!(alice_tokenizer::is_lfs_pointer(pointer));
/// assert!(!alice_tokenizer::is_lfs_pointer(b"{\"model_type\": \"llama\"}"));
/// ```
pub fn is_lfs_pointer(start: &[u8]) -> bool {
    start.starts_with(POINTER_START)
}

/// Whether a file is a Git LFS pointer. `false` if it cannot be read: the caller has an error of its own to report
/// then.
pub fn is_lfs_pointer_file(path: &Path) -> bool {
    let mut start = Vec::with_capacity(POINTER_START.len());
    let read = File::open(path).and_then(|file| file.take(POINTER_START.len() as u64).read_to_end(&mut start));
    read.is_ok() && is_lfs_pointer(&start)
}
