//! A file of f32 in the address space: the one place of this crate with `unsafe`.
#![allow(unsafe_code)]

use crate::StoreError;
use memmap2::{MmapMut, MmapOptions};
use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

/// A file of little-endian f32, mapped shared and writable, under an exclusive lock for as long as it lives. Pages are
/// loaded when they are touched and belong to the file: none of it is on the heap.
///
/// Writes reach the file in any order and at any time, at the latest with [`FloatMap::flush`]. On a
/// file system that has to find room when a page is first written to (one that copies on write, or a file with holes),
/// a full disk ends the process by SIGBUS, as for every mapped file; whoever writes must survive being killed anyway.
#[derive(Debug)]
pub(crate) struct FloatMap {
    map: MmapMut,
    file: File,
    path: PathBuf,
}

impl FloatMap {
    /// Opens and maps a file of exactly `len` values.
    pub fn open(path: &Path, len: u64) -> Result<Self, StoreError> {
        if cfg!(target_endian = "big") {
            // The file is little endian, so here its bytes are not the machine's floats.
            return Err(StoreError::BigEndian);
        }
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(StoreError::io("open", path))?;
        // The lock goes with the file's last handle, also when the process is killed.
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(StoreError::Busy(path.to_path_buf())),
            Err(std::fs::TryLockError::Error(source)) => return Err(StoreError::io("lock", path)(source)),
        }
        let found = file.metadata().map_err(StoreError::io("read", path))?.len();
        let expected = len.saturating_mul(4);
        if found != expected || usize::try_from(expected).is_err() {
            return Err(StoreError::ThetaSize {
                path: path.to_path_buf(),
                expected,
                found,
            });
        }
        // SAFETY: a mapping is sound as long as nobody else changes or shortens the file while slices of it are alive.
        // In this process only this value maps the file, and it hands slices out under the borrow rules. Other
        // processes of Alice are kept out by the lock above. A program that ignores the lock could be refused by no
        // check here, with or without a mapping; values of any bits are valid f32.
        let map = unsafe { MmapMut::map_mut(&file) }.map_err(StoreError::io("map", path))?;
        Ok(Self {
            map,
            file,
            path: path.to_path_buf(),
        })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The values.
    pub fn values(&self) -> &[f32] {
        let bytes: &[u8] = &self.map;
        // SAFETY: the mapping starts at a page, so it is aligned for f32, its length is a multiple of 4 (checked in
        // `open`), every bit pattern is an f32, and the borrow of `self` keeps it alive and unchanged.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / 4) }
    }

    /// The values, to be changed in place.
    pub fn values_mut(&mut self) -> &mut [f32] {
        let bytes: &mut [u8] = &mut self.map;
        // SAFETY: as in `values`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / 4) }
    }

    /// The values as they are now, to be changed without changing the file: a second mapping whose pages become this
    /// process's own when they are written to. It is gone when it is dropped.
    pub fn scratch(&self) -> Result<Scratch<'_>, StoreError> {
        // Linux would otherwise count all of it against memory, of which most is never written to. SAFETY: as in
        // `open`; that the file does not change under it is what the borrow of `self` is for, since only a `&mut self`
        // writes to the file.
        let map = unsafe { MmapOptions::new().no_reserve_swap().map_copy(&self.file) }
            .map_err(StoreError::io("map", &self.path))?;
        Ok(Scratch { map, _of: self })
    }

    /// Writes what was changed to the disk, and waits for it.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.map.flush().map_err(StoreError::io("sync", &self.path))?;
        self.file.sync_all().map_err(StoreError::io("sync", &self.path))
    }

    /// Time of the file's last change, nanoseconds since 1970; zero if the system has none.
    pub fn changed_at(&self) -> Result<u64, StoreError> {
        let time = self
            .file
            .metadata()
            .and_then(|m| m.modified())
            .map_err(StoreError::io("read", &self.path))?;
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Ok(u64::try_from(since.as_nanos()).unwrap_or(0))
    }

    /// Renames the file over another; the mapping goes with it.
    pub fn rename(&mut self, to: &Path) -> Result<(), StoreError> {
        crate::file::rename(&self.path, to)?;
        self.path = to.to_path_buf();
        Ok(())
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Values that can be changed and thrown away ([`FloatMap::scratch`]). Only the pages that were written to take memory.
#[derive(Debug)]
pub struct Scratch<'a> {
    map: MmapMut,
    _of: &'a FloatMap,
}

impl Deref for Scratch<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        let bytes: &[u8] = &self.map;
        // SAFETY: as in `FloatMap::values`: a mapping of the same file, whose length was checked when that was opened
        // and cannot change while it is borrowed.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / 4) }
    }
}

impl DerefMut for Scratch<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        let bytes: &mut [u8] = &mut self.map;
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / 4) }
    }
}
