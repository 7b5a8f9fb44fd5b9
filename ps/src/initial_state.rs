//! Where the first state of a run comes from: drawn from block 0, or a file with the root that the run names.

use crate::{PsError, run_context::Network};
use alice_api::Hex32;
use alice_store::{Master, theta::write_values};
use std::io::Write;
use std::path::Path;

/// The first state of a run.
#[derive(Debug)]
pub struct Start<'a> {
    net: &'a Network,
    file: Option<&'a Path>,
}

impl<'a> Start<'a> {
    /// Takes the file where the run names a root, and refuses one where it does not.
    pub fn new(net: &'a Network, file: Option<&'a Path>) -> Result<Self, PsError> {
        let problem = match (net.spec.start_root(), file) {
            (None, None) => return Ok(Self { net, file: None }),
            (Some(_), Some(path)) => {
                let found = path.metadata().map_err(|e| PsError::file("read", path, &e))?.len();
                let expected = net.spec.parameters() * 4;
                if found == expected {
                    return Ok(Self { net, file });
                }
                format!(
                    "{} has {found} bytes, the first state of run {} has {expected}; give the file that alice-ps upcycle \
                     wrote for this run",
                    path.display(),
                    net.spec.name
                )
            }
            (Some(root), None) => format!(
                "run {} starts from the model with root {}; give its file with --start FILE (alice-ps upcycle makes it)",
                net.spec.name,
                Hex32(root)
            ),
            (None, Some(_)) => format!(
                "run {} draws its first state from block 0; leave --start out, or write the root of the file into [start] \
                 of the run specification before the network starts",
                net.spec.name
            ),
        };
        Err(PsError::Setting(problem))
    }

    /// Writes the state to `path`, with no more than one tensor in memory, and opens it. Nothing is left where its root is
    /// not the one that the run names.
    pub fn create(&self, path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Master, PsError> {
        let theta = Master::create(path, &self.net.tensors, |out| self.write(out), progress)?;
        let found = theta.root();
        match self.net.spec.start_root() {
            Some(expected) if expected != found => {
                drop(theta);
                alice_store::master::remove(path)?;
                Err(PsError::Mismatch {
                    what: "the model root of the first state",
                    found: Hex32(found).to_string(),
                    expected: Hex32(expected).to_string(),
                    hint: "give the file that alice-ps upcycle wrote for this run, or get it from who started the run",
                })
            }
            _ => Ok(theta),
        }
    }

    /// As f32 little endian.
    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        match self.file {
            Some(path) => std::io::copy(&mut std::fs::File::open(path)?, out).map(|_| ()),
            None => alice_model::init_tensors(&self.net.spec, &self.net.genesis, |values| write_values(out, values)),
        }
    }
}
