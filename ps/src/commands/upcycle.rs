//! `alice-ps upcycle`: the first state of a run with experts, made of a dense model.

use crate::{PsError, cli::to_json, error::FlagsError, run_context::read_spec};
use alice_api::Hex32;
use alice_audit::commands::percent;
use alice_export::{ExportError, FolderWeights, ThetaFile, VerifyOptions, Weights};
use alice_init::upcycle::{UpcycleError, upcycle};
use alice_primitives::Hash;
use alice_spec::{RunSpec, TensorShape};
use alice_store::{
    Master, StoreError,
    file::write_atomic,
    root_of,
    theta::{for_each_le_block, write_values},
};
use alice_tokenizer::{TOKENIZER_MODEL_FILE, Tokenizer};
use clap::Args;
use serde::Serialize;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Flags of `upcycle`.
#[derive(Debug, Args)]
pub struct UpcycleArgs {
    /// Dense model: a Hugging Face folder that `alice-ps export --type f32` wrote (bf16 is possible and less exact)
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "snapshot",
        required_unless_present = "snapshot"
    )]
    pub model: Option<PathBuf>,
    /// Dense model: f32 weights in canonical order, as in a parameter server's data directory; needs --dense
    #[arg(long, value_name = "FILE", requires = "dense")]
    pub snapshot: Option<PathBuf>,
    /// Run specification of the snapshot
    #[arg(long, value_name = "FILE", requires = "snapshot")]
    pub dense: Option<PathBuf>,
    /// Run specification with experts whose first state is made
    #[arg(long, value_name = "FILE")]
    pub run: PathBuf,
    /// File for the first state (f32, 4 bytes a parameter); it must not exist
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// The dense model.
struct Dense {
    spec: RunSpec,
    root: Hash,
    weights: Box<dyn Weights>,
    /// Keeps a parameter server out of its own file meanwhile.
    _lock: Option<File>,
}

#[derive(Serialize)]
struct Upcycled {
    out: String,
    run: String,
    dense_root: Hex32,
    dense_parameters: u64,
    parameters: u64,
    active_parameters: u64,
    /// Root of the first state: `[start] model_root` of the run specification.
    model_root: Hex32,
    bytes: u64,
}

/// Why writing stopped. `write_atomic` and `upcycle` each pass on one type of error, so the three are joined here.
enum Stop {
    Refused(UpcycleError),
    Export(ExportError),
    Io(std::io::Error),
}

impl From<UpcycleError> for Stop {
    fn from(error: UpcycleError) -> Self {
        Self::Refused(error)
    }
}

/// Writes the first state and returns what is printed.
///
/// # Errors
/// The dense model does not fit the run, or cannot be read, or the file cannot be written.
pub fn run(args: &UpcycleArgs) -> Result<String, PsError> {
    if args.out.exists() {
        return Err(ExportError::TargetExists(args.out.clone()).into());
    }
    let (_, spec) = read_spec(&args.run)?;
    let mut dense = open(args, &spec)?;
    // Refused before gigabytes are written.
    alice_init::upcycle::check(&dense.spec, &spec).map_err(PsError::Upcycle)?;
    let root = write(&args.out, &spec, &mut dense)?;
    let done = Upcycled {
        out: args.out.display().to_string(),
        run: spec.name.clone(),
        dense_root: Hex32(dense.root),
        dense_parameters: dense.spec.parameters(),
        parameters: spec.parameters(),
        active_parameters: spec.active_parameters(),
        model_root: Hex32(root),
        bytes: spec.parameters() * 4,
    };
    if args.json {
        return to_json(&done);
    }
    let hint = match spec.start_root() {
        Some(expected) if expected == root => "the run specification names this root already\n".to_owned(),
        _ => format!(
            "for the run specification:\n\n[start]\nmodel_root = \"{}\"\n",
            done.model_root
        ),
    };
    Ok(format!(
        "run {}: {} of {} parameters from a dense model of {}\n  dense root  {}\n  model root  {}\n{hint}",
        done.run, done.out, done.parameters, done.dense_parameters, done.dense_root, done.model_root
    ))
}

fn open(args: &UpcycleArgs, run: &RunSpec) -> Result<Dense, PsError> {
    match (&args.model, &args.snapshot, &args.dense) {
        (Some(dir), _, _) => from_folder(dir, run),
        (None, Some(file), Some(spec)) => from_snapshot(file, spec),
        _ => Err(FlagsError::NoDenseModel.into()),
    }
}

/// Opens a Hugging Face folder. Its width is its own, everything else must be the run's.
fn from_folder(dir: &Path, run: &RunSpec) -> Result<Dense, PsError> {
    let alice = alice_export::verify(dir, VerifyOptions::default(), &mut percent("checked"))?.alice;
    if alice.architecture != "llama" {
        return Err(PsError::Upcycle(UpcycleError::NotDense));
    }
    let mut spec = run.clone();
    spec.name = alice.run.name.clone();
    (spec.model.architecture, spec.model.moe, spec.task.fragments) = ("llama".into(), None, 1);
    let gate = alice
        .tensors
        .iter()
        .find(|t| t.name == "model.layers.0.mlp.gate_proj.weight");
    let width = gate.and_then(|t| t.shape.first()).and_then(|n| u32::try_from(*n).ok());
    spec.model.ffn = width.unwrap_or(spec.model.ffn);
    let expected = spec.tensors();
    let found = alice.tensors.iter().map(|t| (&t.name, &t.shape));
    if let Some((expected, found)) = first_difference(&expected, found) {
        return Err(PsError::OtherShape {
            dir: dir.to_path_buf(),
            run: run.name.clone(),
            found,
            expected,
        });
    }
    spec.data.tokenizer = tokenizer_of(dir)?;
    // The shapes do not say how the rows of a projection are cut into heads, nor the base of the rotary embedding.
    compare_config(dir, run)?;
    Ok(Dense {
        spec,
        root: alice.model_root,
        weights: Box::new(FolderWeights::open(dir, &alice)?),
        _lock: None,
    })
}

fn first_difference<'a>(
    expected: &[TensorShape],
    found: impl Iterator<Item = (&'a String, &'a Vec<u64>)>,
) -> Option<(String, String)> {
    let name = |tensor: Option<(&String, &Vec<u64>)>| match tensor {
        Some((name, shape)) => format!("{name} {shape:?}"),
        None => "no more tensors".into(),
    };
    let mut found = found.fuse();
    for tensor in expected {
        let other = found.next();
        if other != Some((&tensor.name, &tensor.shape)) {
            return Some((name(Some((&tensor.name, &tensor.shape))), name(other)));
        }
    }
    let more = found.next();
    more.map(|tensor| (name(None), name(Some(tensor))))
}

/// `data.tokenizer` of the run that the folder is of.
fn tokenizer_of(dir: &Path) -> Result<String, PsError> {
    let path = dir.join(TOKENIZER_MODEL_FILE);
    if Tokenizer::read_model(&path)?.is_bytes() {
        return Ok(alice_spec::BYTES.into());
    }
    let bytes = std::fs::read(&path).map_err(|e| PsError::io("read", &path, &e))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

/// Compares what `config.json` adds to the shapes. The file itself was checked with the folder.
fn compare_config(dir: &Path, run: &RunSpec) -> Result<(), PsError> {
    let path = dir.join("config.json");
    let text = std::fs::read(&path).map_err(|e| PsError::io("read", &path, &e))?;
    let config: serde_json::Value = serde_json::from_slice(&text).map_err(|e| PsError::file("read", &path, &e))?;
    let m = &run.model;
    for (key, field, expected) in [
        ("num_attention_heads", "model.heads", m.heads),
        ("num_key_value_heads", "model.kv_heads", m.kv_heads),
        ("rope_theta", "model.rope_theta", m.rope_theta),
    ] {
        let found = config.get(key).and_then(serde_json::Value::as_f64).unwrap_or_default();
        if found != f64::from(expected) {
            return Err(PsError::Upcycle(UpcycleError::Shape {
                field,
                dense: found as u32,
                run: expected,
                hint: "they must be equal: use another run specification, or another model",
            }));
        }
    }
    Ok(())
}

/// Opens a file of plain weights. It has no header: shapes come from the specification, the root is computed.
fn from_snapshot(file: &Path, spec: &Path) -> Result<Dense, PsError> {
    let (_, spec) = read_spec(spec)?;
    let tensors = spec.tensors();
    if alice_store::master::is_kept(file) {
        // A parameter server's own file: a step in which it was killed is rolled back before the weights are read.
        Master::open(file, &tensors, &mut |_, _| ())?;
    }
    let lock = File::open(file).map_err(|e| PsError::io("open", file, &e))?;
    // Shared: two readers do no harm, a server that steps its weights meanwhile would.
    if lock.try_lock_shared().is_err() {
        return Err(StoreError::Busy(file.to_path_buf()).into());
    }
    let mut weights = ThetaFile::open(&tensors, file)?;
    let mut leaves = Vec::with_capacity(tensors.len());
    for (number, tensor) in tensors.iter().enumerate() {
        let mut hasher = blake3::Hasher::new();
        weights.read(number, tensor, &mut |values| {
            for_each_le_block(values, |bytes| {
                hasher.update(bytes);
            });
            Ok(())
        })?;
        leaves.push(*hasher.finalize().as_bytes());
    }
    let root = root_of(tensors.iter().zip(leaves).map(|(t, leaf)| (&t.name, &t.shape, leaf)));
    Ok(Dense {
        spec,
        root,
        weights: Box::new(weights),
        _lock: Some(lock),
    })
}

/// Writes the file and returns its root. Leaves no file if it fails.
fn write(out: &Path, spec: &RunSpec, dense: &mut Dense) -> Result<Hash, PsError> {
    let tensors = spec.tensors();
    let mut leaves = Vec::with_capacity(tensors.len());
    let mut stopped = None;
    let mut progress = percent("written");
    let (mut done_bytes, total_bytes) = (0, spec.parameters() * 4);
    let weights = &mut dense.weights;
    let written = write_atomic(out, |file| {
        let read = |number: usize, tensor: &TensorShape| {
            let mut values = Vec::new();
            let whole = weights.read(number, tensor, &mut |block| {
                // A NaN in the first state would stay in the model for ever.
                if block.iter().any(|v| !v.is_finite()) {
                    return Err(ExportError::NotFinite {
                        tensor: tensor.name.clone(),
                        coordinate: values.len() as u64,
                        value: block.iter().copied().find(|v| !v.is_finite()).unwrap_or(f32::NAN),
                    });
                }
                values.extend_from_slice(block);
                Ok(())
            });
            whole.map_err(Stop::Export).map(|()| values)
        };
        let result = upcycle(&dense.spec, &dense.root, spec, read, |_, values| {
            let mut hasher = blake3::Hasher::new();
            for_each_le_block(values, |bytes| {
                hasher.update(bytes);
            });
            leaves.push(*hasher.finalize().as_bytes());
            done_bytes += values.len() as u64 * 4;
            progress(alice_export::Progress {
                done_bytes,
                total_bytes,
            });
            write_values(file, values).map_err(Stop::Io)
        });
        match result {
            Ok(()) => Ok(()),
            Err(Stop::Io(error)) => Err(error),
            Err(other) => {
                stopped = Some(other);
                Err(std::io::Error::other("stopped"))
            }
        }
    });
    match stopped {
        Some(Stop::Refused(error)) => return Err(PsError::Upcycle(error)),
        Some(Stop::Export(error)) => return Err(error.into()),
        Some(Stop::Io(_)) | None => written?,
    }
    Ok(root_of(
        tensors.iter().zip(leaves).map(|(t, leaf)| (&t.name, &t.shape, leaf)),
    ))
}
