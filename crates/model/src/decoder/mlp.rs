//! The feed-forward layer of a block.

use super::matrix::Matrix;
use tch::{TchError, Tensor};

/// SwiGLU (Shazeer 2020): down(silu(gate(x)) · up(x)).
#[derive(Debug)]
pub(super) struct Mlp {
    /// Rows of gate, then of up.
    gate_up: Matrix,
    down: Matrix,
}

impl Mlp {
    pub fn new(gate_up: Matrix, down: Matrix) -> Self {
        Self { gate_up, down }
    }

    /// `[n, hidden]` → `[n, hidden]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let both = self.gate_up.apply(x)?.f_chunk(2, -1)?;
        let [gate, up] = &both[..] else {
            return Err(TchError::Shape("gate and up cannot be told apart".into()));
        };
        self.down.apply(&gate.f_silu()?.f_mul(up)?)
    }
}
