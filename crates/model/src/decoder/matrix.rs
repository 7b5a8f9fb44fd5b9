//! Matrices of weights, in f32 or bf16.

use tch::{Device, Kind, TchError, Tensor};

/// Weights `[out, in]` of a linear layer without bias.
#[derive(Debug)]
pub(super) struct Matrix {
    weight: Tensor,
    kind: Kind,
}

impl Matrix {
    pub fn new(weight: Tensor) -> Self {
        let kind = weight.kind();
        Self { weight, kind }
    }

    /// A second handle on the same weights.
    pub fn share(&self) -> Self {
        Self::new(self.weight.shallow_clone())
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn into_tensor(self) -> Tensor {
        self.weight
    }

    /// `[n, in]` of any kind → `[n, out]` of the matrix's kind.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        if self.kind == Kind::Float {
            return x.f_linear::<Tensor>(&self.weight, None);
        }
        let x = x.f_to_kind(self.kind)?;
        match x.size()[..] {
            // On the CPU libtorch's product of a bf16 matrix and a vector reads memory up to twice as fast as its
            // general product with one row.
            [1, _] if x.device() == Device::Cpu => self.weight.f_mv(&x.f_view([-1])?)?.f_unsqueeze(0),
            _ => x.f_linear::<Tensor>(&self.weight, None),
        }
    }
}
