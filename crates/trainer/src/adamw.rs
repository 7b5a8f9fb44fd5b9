//! AdamW with decoupled weight decay (Loshchilov and Hutter 2019) and clipping by the global norm.

use crate::moments::{Moments, QUANTIZED_MIN, Quantized};
use alice_spec::InnerSpec;
use tch::{Device, TchError, Tensor};

/// Added to the norm before dividing by it, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_EPSILON: f64 = 1e-6;
/// Coordinates in one part of a step on the CPU: their temporaries stay in its caches.
const PART_CPU: i64 = 1 << 17;
/// Coordinates in one part of a step on other devices: enough to keep a GPU busy, 64 MiB for each temporary.
const PART_DEVICE: i64 = 1 << 24;

/// Optimiser over leaf tensors in f32, with moments on their device.
pub struct AdamW<'a> {
    spec: &'a InnerSpec,
    parameters: Vec<Tensor>,
    moments: Vec<State>,
    steps: u32,
}

/// First and second moment of a tensor, flat.
enum State {
    F32(Tensor, Tensor),
    Bits8(Quantized, Quantized),
}

impl State {
    fn zeros(parameter: &Tensor, moments: Moments) -> Result<Self, TchError> {
        let len = parameter.numel() as i64;
        match moments {
            Moments::Bits8 if len as u64 >= QUANTIZED_MIN => Ok(Self::Bits8(
                // The first moment has signs, the second has none.
                Quantized::zeros(len, true, parameter.device())?,
                Quantized::zeros(len, false, parameter.device())?,
            )),
            _ => {
                let zeros = || Tensor::f_zeros([len], (parameter.kind(), parameter.device()));
                Ok(Self::F32(zeros()?, zeros()?))
            }
        }
    }

    /// Both moments of the coordinates from `start` on, `[len]`: views of f32, copies of 8 bits.
    fn read(&self, start: i64, len: i64) -> Result<(Tensor, Tensor), TchError> {
        match self {
            Self::F32(first, second) => Ok((first.f_narrow(0, start, len)?, second.f_narrow(0, start, len)?)),
            Self::Bits8(first, second) => Ok((first.read(start, len)?, second.read(start, len)?)),
        }
    }

    /// Stores moments from [`State::read`] after they were changed. Views have changed the state itself.
    fn write(&mut self, start: i64, first: &Tensor, second: &Tensor) -> Result<(), TchError> {
        if let Self::Bits8(kept_first, kept_second) = self {
            kept_first.write(start, first)?;
            kept_second.write(start, second)?;
        }
        Ok(())
    }
}

impl<'a> AdamW<'a> {
    /// An optimiser of these leaves, with zero moments in f32.
    pub fn new(spec: &'a InnerSpec, parameters: &[Tensor]) -> Result<Self, TchError> {
        Self::with_moments(spec, parameters, Moments::F32)
    }

    /// [`AdamW::new`] with a choice of the moments' number format.
    pub fn with_moments(spec: &'a InnerSpec, parameters: &[Tensor], moments: Moments) -> Result<Self, TchError> {
        // The clones share their storage with the model's tensors.
        let parameters: Vec<Tensor> = parameters.iter().map(Tensor::shallow_clone).collect();
        let moments = parameters
            .iter()
            .map(|p| State::zeros(p, moments))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            spec,
            parameters,
            moments,
            steps: 0,
        })
    }

    /// Steps so far, those before a restart included.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    pub(crate) fn set_steps(&mut self, steps: u32) {
        self.steps = steps;
    }

    /// Tensors with the state between two steps, in a fixed order: changing a tensor changes the optimiser.
    pub(crate) fn state(&self) -> impl Iterator<Item = &Tensor> {
        self.moments.iter().flat_map(|state| match state {
            State::F32(first, second) => vec![first, second],
            State::Bits8(first, second) => first.stored().into_iter().chain(second.stored()).collect(),
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
            // The norm of the norms is the global one, and it takes one transfer to the host for all tensors.
            let norms = gradients.iter().map(Tensor::f_norm).collect::<Result<Vec<_>, _>>()?;
            let norm = Tensor::f_stack(&norms, 0)?.f_norm()?.f_double_value(&[])?;
            let factor = self.spec.clip_norm / (norm + CLIP_EPSILON);
            // Only ever smaller: gradients within the bound keep their size.
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
        self.steps = self.steps.saturating_add(1);
        let rule = Rule::new(self.spec, self.steps, learning_rate);
        tch::no_grad(|| {
            for (parameter, moments) in self.parameters.iter().zip(&mut self.moments) {
                let rule = Rule {
                    // Norms' weights are scales near 1, and decay would pull them to 0.
                    decay: if parameter.dim() > 1 { rule.decay } else { 0.0 },
                    ..rule
                };
                let gradient = parameter.f_grad()?.f_reshape([-1])?;
                let parameter = parameter.f_view([-1])?;
                // In parts, so that temporaries do not grow with the largest tensor.
                let (total, part) = (parameter.size1()?, part_of(parameter.device()));
                let mut start = 0;
                while start < total {
                    let len = part.min(total - start);
                    let (mut first, mut second) = moments.read(start, len)?;
                    let (gradient, mut parameter) =
                        (gradient.f_narrow(0, start, len)?, parameter.f_narrow(0, start, len)?);
                    rule.apply(&mut parameter, &gradient, &mut first, &mut second)?;
                    moments.write(start, &first, &second)?;
                    start += len;
                }
            }
            Ok(())
        })
    }
}

pub(crate) fn part_of(device: Device) -> i64 {
    match device {
        Device::Cpu => PART_CPU,
        _ => PART_DEVICE,
    }
}

/// One step's constants.
#[derive(Clone, Copy)]
struct Rule {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    /// Rate over 1 − β₁^t.
    rate: f64,
    /// √(1 − β₂^t).
    correction: f64,
    /// Rate times weight decay.
    decay: f64,
}

impl Rule {
    fn new(spec: &InnerSpec, step: u32, learning_rate: f64) -> Self {
        // Saturation is harmless: long before, β^t is zero and nothing is left to correct.
        let step = i32::try_from(step).unwrap_or(i32::MAX);
        Self {
            beta1: spec.beta1,
            beta2: spec.beta2,
            epsilon: spec.epsilon,
            rate: learning_rate / (1.0 - spec.beta1.powi(step)),
            correction: (1.0 - spec.beta2.powi(step)).sqrt(),
            decay: learning_rate * spec.weight_decay,
        }
    }

    /// The step of AdamW (Loshchilov and Hutter 2019, algorithm 2):
    ///
    /// m ← m + (1 − β₁)(g − m); v ← v + (1 − β₂)(g² − v); θ ← θ(1 − ηλ) − η m̂ / (√v̂ + ε).
    fn apply(&self, theta: &mut Tensor, g: &Tensor, m: &mut Tensor, v: &mut Tensor) -> Result<(), TchError> {
        // All in place, in the fewest passes over memory: on a CPU the step is bound by it.
        let _ = m.f_lerp_(g, 1.0 - self.beta1)?;
        let _ = v.f_lerp_(&g.f_square()?, 1.0 - self.beta2)?;
        let mut denominator = v.f_sqrt()?;
        let _ = denominator
            .f_div_scalar_(self.correction)?
            .f_add_scalar_(self.epsilon)?
            .f_div_scalar_(-self.rate)?;
        if self.decay != 0.0 {
            let _ = theta.f_mul_scalar_(1.0 - self.decay)?;
        }
        let _ = theta.f_addcdiv_(m, &denominator)?;
        Ok(())
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

    /// Minimises Σ (w − t)² · c over many coordinates of very different curvature; the last distance to t.
    fn descend(moments: Moments, steps: usize) -> (f64, Tensor) {
        let spec = spec();
        tch::manual_seed(3);
        let options = (Kind::Float, Device::Cpu);
        // More than one part, and a tail that fills no block.
        let shape = [600i64, 257];
        let target = Tensor::randn(shape, options);
        let curvature = Tensor::randn(shape, options).exp();
        let leaf = Tensor::zeros(shape, options).set_requires_grad(true);
        let mut optimizer = AdamW::with_moments(&spec, &[leaf.shallow_clone()], moments).unwrap();
        for _ in 0..steps {
            optimizer.zero_grad();
            ((&leaf - &target).square() * &curvature).sum(Kind::Float).backward();
            optimizer.step(0.02).unwrap();
        }
        let left = (&leaf - &target).norm() / target.norm();
        (left.double_value(&[]), leaf.detach())
    }

    #[test]
    fn moments_of_8_bits_should_follow_those_of_f32() {
        let (left, end) = descend(Moments::F32, 60);
        let (left_8, end_8) = descend(Moments::Bits8, 60);
        assert!(left < 0.6, "{left}");
        assert!((left_8 - left).abs() < 0.01, "{left_8} and {left}");
        let apart = ((&end_8 - &end).norm() / end.norm()).double_value(&[]);
        // A coordinate far below its block's largest has few of the 256 numbers: seen, 0.05.
        assert!(apart < 0.1, "{apart}");
        assert!(apart > 0.0, "8 bits are not f32");
    }

    #[test]
    fn parts_should_not_show() {
        // The same coordinates as one tensor of several parts, and as tensors of one part each.
        let spec = spec();
        tch::manual_seed(5);
        let len = PART_CPU * 2 + 1000;
        let gradient = Tensor::randn([len], (Kind::Float, Device::Cpu));
        let run = |lens: &[i64]| {
            let mut start = 0;
            let ends = lens.iter().map(|len| {
                let part = gradient.narrow(0, start, *len);
                start += len;
                let leaf = Tensor::ones([*len], (Kind::Float, Device::Cpu)).set_requires_grad(true);
                let mut optimizer = AdamW::new(&spec, &[leaf.shallow_clone()]).unwrap();
                for _ in 0..3 {
                    optimizer.zero_grad();
                    (&leaf * &part).sum(Kind::Float).backward();
                    optimizer.step(0.1).unwrap();
                }
                leaf.detach()
            });
            Tensor::cat(&ends.collect::<Vec<_>>(), 0)
        };
        assert_eq!(run(&[len]), run(&[PART_CPU, PART_CPU, 1000]));
    }
}
