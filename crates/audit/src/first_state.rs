//! The first state of a run: drawn from block 0, or a file with the root that the run names.

use crate::{AuditError, RunContext};
use alice_api::Hex32;
use alice_store::{Master, theta::write_values};
use std::io::Write;
use std::path::Path;

/// Source of the first state of a run.
#[derive(Debug)]
pub struct FirstState<'a> {
    context: &'a RunContext,
    /// `None` for a run that draws its first state.
    file: Option<&'a Path>,
}

impl<'a> FirstState<'a> {
    /// Takes the file if the run names a root, and refuses one if it does not.
    ///
    /// # Errors
    /// A file is missing, or given for a run that draws its state, or has not 4 bytes for each parameter.
    pub fn new(context: &'a RunContext, file: Option<&'a Path>) -> Result<Self, AuditError> {
        let spec = &context.spec;
        match (spec.start_root(), file) {
            (None, None) => Ok(Self { context, file: None }),
            (Some(_), Some(path)) => {
                let found = path.metadata().map_err(|e| AuditError::file("read", path, e))?.len();
                // The size is checked first, because the root is known only after gigabytes were copied and hashed.
                let expected = spec.parameters() * 4;
                if found == expected {
                    return Ok(Self { context, file });
                }
                Err(AuditError::FirstStateSize {
                    path: path.to_path_buf(),
                    run: spec.name.clone(),
                    found,
                    expected,
                })
            }
            (Some(root), None) => Err(AuditError::FirstStateMissing {
                run: spec.name.clone(),
                root: Hex32(root),
            }),
            (None, Some(_)) => Err(AuditError::FirstStateDrawn { run: spec.name.clone() }),
        }
    }

    /// Writes the state to `path`, with at most one tensor in memory, and opens it. Removes it again if its root is not
    /// the one that the run names.
    ///
    /// # Errors
    /// The file cannot be written, or is another model.
    pub fn create(&self, path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Master, AuditError> {
        let theta = Master::create(path, &self.context.tensors, |out| self.write(out), progress)?;
        let found = theta.root();
        match self.context.spec.start_root() {
            Some(expected) if expected != found => {
                // The file is mapped while it is open.
                drop(theta);
                alice_store::master::remove(path)?;
                Err(AuditError::FirstStateRoot {
                    found: Hex32(found),
                    expected: Hex32(expected),
                })
            }
            _ => Ok(theta),
        }
    }

    /// Writes f32 in little endian.
    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        match self.file {
            Some(path) => std::io::copy(&mut std::fs::File::open(path)?, out).map(|_| ()),
            None => alice_init::init_tensors(&self.context.spec, &self.context.genesis, |values| {
                write_values(out, values)
            }),
        }
    }
}
