//! Checks a downloaded folder.
//!
//! Order matters: claims are compared before files are read, so that the folder of another run is refused at once and
//! not after gigabytes; sizes before hashes, so that an interrupted download is called that; a file's own hash before
//! its tensors', because a damaged file is the simpler explanation.

use crate::about::check_tokenizer;
use crate::hf::{Shards, TensorHasher, derived_files};
use crate::weights::read_checked;
use crate::{ALICE_FILE, AliceFile, Dtype, ExportError, Progress, Weights, safetensors};
use alice_primitives::Hash;
use alice_spec::{RunSpec, TensorShape};
use alice_store::root_of;
use alice_tokenizer::{TOKENIZER_MODEL_FILE, Tokenizer, is_lfs_pointer, is_lfs_pointer_file};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// Maximum size of an `ALICE.json` that is read, bytes.
const ALICE_BYTES_MAX: u64 = 16 << 20;
/// Bytes read at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// Facts from outside that a folder is compared with. With none of them it is only shown to be consistent in itself.
#[derive(Default)]
pub struct VerifyOptions<'a> {
    /// The run that it must be of.
    pub spec: Option<&'a RunSpec>,
    /// The model root that it must have: from the chain, or from an epoch's manifest that the chain commits to.
    pub model_root: Option<Hash>,
    /// The chain that it must be of.
    pub genesis_hash: Option<Hash>,
    /// The f32 weights (a snapshot), from which everything in the shards can be computed again. Needs `spec`.
    pub weights: Option<&'a mut dyn Weights>,
}

/// Strength of the proof that the numbers in the shards belong to the model root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The shards hold f32 weights, and they have the model root.
    Root,
    /// The shards hold the rounding of f32 weights that were given and have the model root.
    Rounding,
    /// The f32 hashes in `ALICE.json` have the model root, and the shards are the ones that `ALICE.json` lists. That
    /// they are the rounding of those weights was not computed: it needs the f32 snapshot.
    Listed,
}

/// Result for a folder that passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// Its `ALICE.json`.
    pub alice: AliceFile,
    /// Strength of the proof for the numbers.
    pub proof: Proof,
    /// Whether the model root was compared with one from outside. If not, the folder is only consistent in itself.
    pub root_from_outside: bool,
    /// Whether configuration, index and tokenizer files were compared with those that the run gives.
    pub derived_from_run: bool,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Checks a folder: every listed file's size and BLAKE3, no other files, every tensor's name, shape and hash, the
/// model root over the tensors' f32 hashes, and whatever the options add. The first fault found is the error.
///
/// ```no_run
/// use alice_export::{Proof, VerifyOptions, verify};
/// use std::path::Path;
///
/// // A root from the chain, or from `alice audit`: without one, the folder could be anything consistent.
/// let options = VerifyOptions {
///     model_root: Some([0x2a; 32]),
///     ..VerifyOptions::default()
/// };
/// let report = verify(Path::new("alice/"), options, &mut |p| eprintln!("{} bytes", p.done_bytes))?;
/// if report.proof == Proof::Listed {
///     println!("the bf16 shards are the listed ones; their rounding was not computed");
/// }
/// # Ok::<(), alice_export::ExportError>(())
/// ```
///
/// # Errors
/// An [`ExportError`] that names the file or tensor at fault, and what to do.
pub fn verify(
    dir: &Path,
    options: VerifyOptions<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<VerifyReport, ExportError> {
    let alice = read_alice_file(dir)?;
    check_claims(&alice, &options)?;
    // Existence and sizes of all files, before the first is read.
    check_listing(dir, &alice)?;
    let mut done = Progress {
        done_bytes: 0,
        total_bytes: alice.files.values().fold(0, |sum, f| sum.saturating_add(f.bytes)),
    };
    for name in alice.files.keys() {
        let holds_tensors = alice.tensors.iter().any(|t| t.file == *name);
        check_file(dir, name, &alice, holds_tensors, &mut |bytes| {
            done.done_bytes += bytes;
            progress(done);
        })?;
    }
    if let Some(spec) = options.spec {
        check_derived(dir, spec, &alice)?;
    }
    let mut proof = match alice.dtype {
        Dtype::F32 => Proof::Root,
        Dtype::Bf16 => Proof::Listed,
    };
    if let Some(weights) = options.weights {
        let spec = options.spec.ok_or_else(|| ExportError::Option {
            option: "weights",
            problem: "the run specification is needed to read them; give it too".into(),
        })?;
        check_weights(spec, &alice, weights)?;
        if proof == Proof::Listed {
            proof = Proof::Rounding;
        }
    }
    Ok(VerifyReport {
        proof,
        root_from_outside: options.model_root.is_some(),
        derived_from_run: options.spec.is_some(),
        bytes: done.total_bytes,
        alice,
    })
}

/// The folder's `ALICE.json`, not compared with anything.
pub fn read_alice_file(dir: &Path) -> Result<AliceFile, ExportError> {
    let path = dir.join(ALICE_FILE);
    let file = match File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(ExportError::NoAliceFile(path)),
        other => other.map_err(ExportError::io("open", &path))?,
    };
    let mut bytes = Vec::new();
    let limit = file.take(ALICE_BYTES_MAX + 1).read_to_end(&mut bytes);
    limit.map_err(ExportError::io("read", &path))?;
    if bytes.len() as u64 > ALICE_BYTES_MAX {
        return Err(ExportError::malformed(
            &path,
            format!("it is larger than {ALICE_BYTES_MAX} bytes"),
        ));
    }
    if is_lfs_pointer(&bytes) {
        return Err(ExportError::LfsPointer(path));
    }
    AliceFile::parse(&bytes, &path)
}

/// Compares the claims of `ALICE.json` with one another and with the caller's facts.
fn check_claims(alice: &AliceFile, options: &VerifyOptions<'_>) -> Result<(), ExportError> {
    if let Some(spec) = options.spec {
        if alice.run.hash != spec.run_hash() {
            return Err(ExportError::OtherRun {
                expected_name: spec.name.clone(),
                expected: spec.run_hash(),
                found_name: alice.run.name.clone(),
                found: alice.run.hash,
            });
        }
        // Order too: the root is over the tensors in canonical order.
        let listed = alice.tensors.iter().map(|t| (&t.name, &t.shape));
        let expected = spec.tensors();
        if !listed.eq(expected.iter().map(|t| (&t.name, &t.shape))) {
            let problem = "its tensors are not those of the run";
            return Err(ExportError::malformed(Path::new(ALICE_FILE), problem));
        }
    }
    if let Some(expected) = options.genesis_hash
        && alice.genesis_hash != Some(expected)
    {
        return Err(ExportError::OtherChain {
            expected,
            found: alice.genesis_hash.map_or("none".into(), hex::encode),
        });
    }
    let found = alice.listed_root();
    // First against the folder's own claim: a list that contradicts itself is damaged, whatever was expected.
    for expected in [Some(alice.model_root), options.model_root].into_iter().flatten() {
        if found != expected {
            return Err(ExportError::Root { expected, found });
        }
    }
    Ok(())
}

/// Whether a name is a plain file name: nothing that leads out of the folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0'])
}

/// All listed files are there, with their sizes, and nothing else is. Hidden files and folders (`.git`, `.cache`) are
/// left alone: no loader reads them.
fn check_listing(dir: &Path, alice: &AliceFile) -> Result<(), ExportError> {
    for (name, entry) in &alice.files {
        if !is_plain(name) {
            return Err(ExportError::malformed(
                &dir.join(ALICE_FILE),
                format!("'{name}' is no plain file name"),
            ));
        }
        let path = dir.join(name);
        let found = match std::fs::metadata(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(ExportError::Missing(path)),
            other => other.map_err(ExportError::io("read the size of", &path))?,
        };
        // Pointers are a few lines long: the size is what tells them apart first.
        if found.is_file() && found.len() != entry.bytes && is_lfs_pointer_file(&path) {
            return Err(ExportError::LfsPointer(path));
        }
        if !found.is_file() || found.len() != entry.bytes {
            return Err(ExportError::FileSize {
                path,
                expected: entry.bytes,
                found: found.len(),
            });
        }
    }
    for tensor in &alice.tensors {
        if !alice.files.contains_key(&tensor.file) {
            return Err(ExportError::malformed(
                &dir.join(ALICE_FILE),
                format!("tensor {} is in '{}', which is not listed", tensor.name, tensor.file),
            ));
        }
    }
    for entry in std::fs::read_dir(dir).map_err(ExportError::io("read the folder", dir))? {
        let entry = entry.map_err(ExportError::io("read the folder", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name != ALICE_FILE && !name.starts_with('.') && !alice.files.contains_key(name.as_ref()) {
            return Err(ExportError::Unlisted(entry.path()));
        }
    }
    Ok(())
}

/// Reads one file once: its hash, and for a shard every tensor's.
fn check_file(
    dir: &Path,
    name: &str,
    alice: &AliceFile,
    shard: bool,
    read: &mut dyn FnMut(u64),
) -> Result<(), ExportError> {
    let path = dir.join(name);
    let Some(listed) = alice.files.get(name) else {
        return Err(ExportError::Missing(path));
    };
    let file = File::open(&path).map_err(ExportError::io("open", &path))?;
    let mut input = BufReader::with_capacity(BLOCK_BYTES, file);
    let mut hasher = blake3::Hasher::new();
    // A tensor's mismatch is reported after the file's own hash: a damaged file is the simpler explanation.
    let mut wrong = None;
    if shard {
        let (header, entries) = safetensors::read_header(&mut input, &path, listed.bytes)?;
        hasher.update(&header);
        read(header.len() as u64);
        wrong = check_tensors(&path, name, alice, entries, &mut input, &mut hasher, read)?;
    }
    copy_hashed(&mut input, u64::MAX, &path, &mut [&mut hasher], read)?;
    let found = *hasher.finalize().as_bytes();
    if found != listed.blake3 {
        return Err(ExportError::FileHash {
            path,
            expected: listed.blake3,
            found,
        });
    }
    wrong.map_or(Ok(()), Err)
}

fn check_tensors(
    path: &Path,
    name: &str,
    alice: &AliceFile,
    entries: Vec<(String, safetensors::Entry)>,
    input: &mut impl Read,
    hasher: &mut blake3::Hasher,
    read: &mut dyn FnMut(u64),
) -> Result<Option<ExportError>, ExportError> {
    // Names are removed as they are found: what remains is missing.
    let mut listed: BTreeMap<&str, _> = alice.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    listed.retain(|_, t| t.file == name);
    let mut wrong = None;
    let dtype = alice.dtype;
    for (tensor_name, entry) in entries {
        let bad = |problem: String| ExportError::malformed(path, format!("tensor {tensor_name}: {problem}"));
        let Some(tensor) = listed.remove(tensor_name.as_str()) else {
            return Err(bad("it is not listed for this file".into()));
        };
        if entry.dtype != dtype.safetensors() || entry.shape != tensor.shape {
            return Err(bad(format!(
                "it is {} {:?}, {} {:?} is listed",
                entry.dtype,
                entry.shape,
                dtype.safetensors(),
                tensor.shape
            )));
        }
        let [start, end] = entry.data_offsets;
        let values = tensor.shape.iter().try_fold(1u64, |n, size| n.checked_mul(*size));
        if values.and_then(|n| n.checked_mul(dtype.bytes())) != Some(end - start) {
            return Err(bad(format!("it has {} bytes, which is not its shape", end - start)));
        }
        let mut own = blake3::Hasher::new();
        copy_hashed(input, end - start, path, &mut [&mut *hasher, &mut own], read)?;
        let found = *own.finalize().as_bytes();
        let mut compare = |what, expected| {
            if found != expected && wrong.is_none() {
                wrong = Some(ExportError::TensorHash {
                    tensor: tensor_name.clone(),
                    what,
                    expected,
                    found,
                });
            }
        };
        compare("BLAKE3 of the stored bytes", tensor.stored_blake3);
        if dtype == Dtype::F32 {
            compare("BLAKE3 of the f32 bytes", tensor.f32_blake3);
        }
    }
    match listed.into_keys().next() {
        Some(missing) => Err(ExportError::malformed(path, format!("tensor {missing} is missing"))),
        None => Ok(wrong),
    }
}

/// Reads up to `limit` bytes into hashers.
fn copy_hashed(
    input: &mut impl Read,
    limit: u64,
    path: &Path,
    hashers: &mut [&mut blake3::Hasher],
    read: &mut dyn FnMut(u64),
) -> Result<(), ExportError> {
    // No larger than the tensor: models have thousands of small ones.
    let mut buffer = vec![0; BLOCK_BYTES.min(usize::try_from(limit).unwrap_or(BLOCK_BYTES))];
    let mut remaining = limit;
    while remaining > 0 {
        let take = remaining.min(buffer.len() as u64) as usize;
        let place = buffer.get_mut(..take).unwrap_or_default();
        let got = match input.read(place) {
            Ok(0) => break,
            Ok(got) => got,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(ExportError::io("read", path)(e)),
        };
        for hasher in hashers.iter_mut() {
            hasher.update(place.get(..got).unwrap_or_default());
        }
        read(got as u64);
        remaining -= got as u64;
    }
    Ok(())
}

/// Configuration, index and tokenizer files are those that the run and its tokenizer give: a hash in `ALICE.json` alone
/// would let whoever wrote it change the rotary base or a token.
fn check_derived(dir: &Path, spec: &RunSpec, alice: &AliceFile) -> Result<(), ExportError> {
    let path = dir.join(TOKENIZER_MODEL_FILE);
    let tokenizer = Tokenizer::read_model(&path)?;
    check_tokenizer(spec, &tokenizer)?;
    let mut shards: Shards = Vec::new();
    for (number, tensor) in alice.tensors.iter().enumerate() {
        match shards.last_mut() {
            Some((name, range)) if *name == tensor.file => range.end = number + 1,
            _ => shards.push((tensor.file.clone(), number..number + 1)),
        }
    }
    for (name, content) in derived_files(spec, &tokenizer, alice.dtype, &shards) {
        let path = dir.join(&name);
        // Its bytes have the listed hash: comparing hashes compares bytes.
        match alice.files.get(&name) {
            None => return Err(ExportError::Missing(path)),
            Some(entry) if entry.blake3 != *blake3::hash(&content).as_bytes() => {
                return Err(ExportError::NotDerived(path));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Computes both hashes of every tensor again from f32 weights.
fn check_weights(spec: &RunSpec, alice: &AliceFile, weights: &mut dyn Weights) -> Result<(), ExportError> {
    let all: Vec<TensorShape> = spec.tensors();
    let mut exact: Vec<Hash> = Vec::with_capacity(all.len());
    for ((number, tensor), listed) in all.iter().enumerate().zip(&alice.tensors) {
        let mut hashes = TensorHasher::new(alice.dtype);
        read_checked(weights, number, tensor, &mut |values| {
            hashes.update(values);
            Ok(())
        })?;
        let (f32_blake3, stored_blake3) = hashes.finish();
        for (what, found, expected) in [
            ("BLAKE3 of the f32 bytes", f32_blake3, listed.f32_blake3),
            ("BLAKE3 of the rounded bytes", stored_blake3, listed.stored_blake3),
        ] {
            if found != expected {
                return Err(ExportError::TensorHash {
                    tensor: tensor.name.clone(),
                    what,
                    expected,
                    found,
                });
            }
        }
        exact.push(f32_blake3);
    }
    let found = root_of(all.iter().zip(exact).map(|(t, hash)| (&t.name, &t.shape, hash)));
    match found == alice.model_root {
        true => Ok(()),
        false => Err(ExportError::Root {
            expected: alice.model_root,
            found,
        }),
    }
}
