//! Network and run, with everything that follows from them. Fixed for as long as a program works on a run.

use crate::AuditError;
use alice_primitives::Hash;
use alice_spec::{RunSpec, TensorShape};
use alice_update::Layout;
use std::path::Path;

/// Network and run.
#[derive(Debug)]
pub struct RunContext {
    /// Genesis hash of the chain.
    pub genesis: Hash,
    /// The run.
    pub spec: RunSpec,
    /// The run's text, as it is served.
    pub run_text: String,
    /// Hash of the run.
    pub run_hash: Hash,
    /// Tensors of the model in canonical order.
    pub tensors: Vec<TensorShape>,
    /// Layout of the flat vector of parameters.
    pub layout: Layout,
    /// The part of the layout that the tasks of each fragment train.
    pub fragments: Vec<Layout>,
}

impl RunContext {
    /// From a genesis hash and a run.
    pub fn new(genesis: Hash, run_text: String, spec: RunSpec) -> Self {
        let (run_hash, tensors, layout) = (spec.run_hash(), spec.tensors(), Layout::from_spec(&spec));
        let fragments = (0..spec.task.fragments)
            .map(|p| layout.fragment(spec.fragment_tensors(p)))
            .collect();
        Self {
            genesis,
            spec,
            run_text,
            run_hash,
            tensors,
            layout,
            fragments,
        }
    }

    /// Layout of the updates of a slice's task.
    pub fn task_layout(&self, epoch: u32, slice: u32) -> Option<&Layout> {
        self.fragments.get(self.spec.fragment_of(epoch, slice) as usize)
    }

    /// Epoch of a block.
    pub fn epoch(&self, block: u32) -> u32 {
        // A parsed specification has no zero here; one that was built by hand must not panic.
        block / self.spec.round.epoch_blocks.max(1)
    }
}

/// Reads and checks a run specification; returns its text with it.
///
/// # Errors
/// The file cannot be read, or is not a valid specification.
pub fn read_spec(path: &Path) -> Result<(String, RunSpec), AuditError> {
    let text = std::fs::read_to_string(path).map_err(|e| AuditError::file("read", path, e))?;
    let spec = RunSpec::parse(&text).map_err(|source| AuditError::Spec {
        path: path.to_path_buf(),
        source,
    })?;
    Ok((text, spec))
}
