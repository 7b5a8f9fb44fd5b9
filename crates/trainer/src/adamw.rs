//! AdamW with decoupled weight decay (Loshchilov and Hutter 2019) and clipping by the global norm.

use alice_spec::InnerSpec;
use tch::{TchError, Tensor};

/// Added to the norm before dividing by it, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_EPSILON: f64 = 1e-6;

/// Optimiser over leaf tensors, with moments in f32 on their device.
pub struct AdamW<'a> {
    spec: &'a InnerSpec,
    parameters: Vec<Tensor>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    steps: i32,
}

impl<'a> AdamW<'a> {
    /// An optimiser of these leaves, with moments of zero.
    pub fn new(spec: &'a InnerSpec, parameters: &[Tensor]) -> Result<Self, TchError> {
        // The clones share their storage with the model's tensors.
        let parameters: Vec<Tensor> = parameters.iter().map(Tensor::shallow_clone).collect();
        let zeros = || {
            parameters
                .iter()
                .map(|p| p.f_detach()?.f_zeros_like())
                .collect::<Result<Vec<_>, _>>()
        };
        let (first, second) = (zeros()?, zeros()?);
        Ok(Self {
            spec,
            parameters,
            first,
            second,
            steps: 0,
        })
    }

    /// Forgets all gradients.
    pub fn zero_grad(&mut self) {
        self.parameters.iter_mut().for_each(Tensor::zero_grad);
    }

    /// Scales the gradients so that their global norm is at most `clip_norm`, and returns the norm before.
    pub fn clip(&mut self) -> Result<f64, TchError> {
        tch::no_grad(|| {
            let gradients = self
                .parameters
                .iter()
                .map(Tensor::f_grad)
                .collect::<Result<Vec<_>, _>>()?;
            let norms = gradients.iter().map(Tensor::f_norm).collect::<Result<Vec<_>, _>>()?;
            let norm = Tensor::f_stack(&norms, 0)?.f_norm()?.f_double_value(&[])?;
            let factor = self.spec.clip_norm / (norm + CLIP_EPSILON);
            if factor < 1.0 {
                for mut gradient in gradients {
                    let _ = gradient.f_mul_scalar_(factor)?;
                }
            }
            Ok(norm)
        })
    }

    /// One step with this learning rate. Vectors (the norms' weights) do not decay.
    pub fn step(&mut self, learning_rate: f64) -> Result<(), TchError> {
        self.steps += 1;
        let InnerSpec {
            beta1,
            beta2,
            epsilon,
            weight_decay,
            ..
        } = *self.spec;
        let correction1 = 1.0 - beta1.powi(self.steps);
        let correction2 = 1.0 - beta2.powi(self.steps);
        tch::no_grad(|| {
            for ((parameter, first), second) in self.parameters.iter_mut().zip(&mut self.first).zip(&mut self.second) {
                let gradient = parameter.f_grad()?;
                // m ← m + (1 − β₁)(g − m); v ← β₂ v + (1 − β₂) g²
                let _ = first.f_lerp_(&gradient, 1.0 - beta1)?;
                let square = gradient.f_square()?;
                let _ = second.f_lerp_(&square, 1.0 - beta2)?;
                let mut denominator = second.f_sqrt()?;
                let _ = denominator.f_div_scalar_(correction2.sqrt())?.f_add_scalar_(epsilon)?;
                let mut change = first.f_div(&denominator)?;
                let _ = change.f_mul_scalar_(learning_rate / correction1)?;
                if parameter.dim() > 1 {
                    let _ = parameter.f_mul_scalar_(1.0 - learning_rate * weight_decay)?;
                }
                let _ = parameter.f_sub_(&change)?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alice_spec::RunSpec;
    use tch::Kind;

    fn spec() -> InnerSpec {
        let mut spec = RunSpec::parse(include_str!("../../../chain-spec/runs/dev.toml"))
            .unwrap()
            .inner;
        spec.weight_decay = 0.1;
        spec.clip_norm = 1.0;
        spec
    }

    fn leaf(values: &[f32], shape: &[i64]) -> Tensor {
        Tensor::from_slice(values).view(shape).set_requires_grad(true)
    }

    #[test]
    fn steps_should_agree_with_the_formulas_in_f64() {
        let spec = spec();
        let (start, target) = ([0.5f32, -1.0, 2.0, 0.1], [1.0f32, 1.0, -1.0, 0.0]);
        for shape in [&[2i64, 2][..], &[4]] {
            let parameter = leaf(&start, shape);
            let mut optimizer = AdamW::new(&spec, &[parameter.shallow_clone()]).unwrap();
            let mut expected = start.map(f64::from);
            let (mut m, mut v) = ([0f64; 4], [0f64; 4]);
            for step in 1..=5 {
                optimizer.zero_grad();
                ((&parameter - Tensor::from_slice(&target).view(shape))
                    .square()
                    .sum(Kind::Float)
                    * 0.05)
                    .backward();
                optimizer.step(0.01).unwrap();
                for i in 0..4 {
                    let g = 0.1 * (expected[i] - f64::from(target[i]));
                    m[i] = spec.beta1 * m[i] + (1.0 - spec.beta1) * g;
                    v[i] = spec.beta2 * v[i] + (1.0 - spec.beta2) * g * g;
                    let corrected = (v[i] / (1.0 - spec.beta2.powi(step))).sqrt() + spec.epsilon;
                    // Only the matrix decays.
                    let decay = if shape.len() > 1 {
                        0.01 * spec.weight_decay * expected[i]
                    } else {
                        0.0
                    };
                    expected[i] -= decay + 0.01 * m[i] / (1.0 - spec.beta1.powi(step)) / corrected;
                }
            }
            let found = Vec::<f32>::try_from(parameter.detach().reshape([-1])).unwrap();
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} and {expected}");
            }
        }
    }

    #[test]
    fn clipping_should_bound_the_norm_over_all_tensors() {
        let spec = spec();
        let (a, b) = (leaf(&[0.0, 0.0], &[2]), leaf(&[0.0], &[1]));
        let mut optimizer = AdamW::new(&spec, &[a.shallow_clone(), b.shallow_clone()]).unwrap();
        let loss = (&a * Tensor::from_slice(&[2.0f32, 3.0])).sum(Kind::Float) + (&b * 6.0).sum(Kind::Float);
        loss.backward();
        assert!((optimizer.clip().unwrap() - 7.0).abs() < 1e-5);
        let clipped = a.grad().square().sum(Kind::Float) + b.grad().square().sum(Kind::Float);
        assert!((clipped.double_value(&[]) - 1.0).abs() < 1e-4);
        // Within the bound nothing changes.
        let before = a.grad().double_value(&[0]);
        optimizer.clip().unwrap();
        assert!((a.grad().double_value(&[0]) - before).abs() < 1e-5);
        optimizer.zero_grad();
        assert_eq!(optimizer.clip().unwrap(), 0.0);
    }
}
