//! Moments of the optimiser in 8 bits, by blocks (Dettmers et al. 2022, "8-bit optimizers via block-wise
//! quantization"): each block of 256 values has its largest magnitude as scale, and each value the nearest number of a
//! dynamic map, whose numbers are dense near 1 and reach down to 10⁻⁷.

use tch::{Device, Kind, TchError, Tensor};

/// Number format of the moments between steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moments {
    /// 8 bytes for each parameter.
    #[default]
    F32,
    /// 2 bytes for each parameter and 2 · 4 bytes for each block of 256. Tensors of fewer than 4,096 parameters keep
    /// f32.
    Bits8,
}

/// Number of values that share a scale.
pub const BLOCK: i64 = 256;
/// Minimum size of a tensor with moments of 8 bits, parameters. Smaller ones are little of the memory, and norms are
/// sensitive (as in the paper).
pub const QUANTIZED_MIN: u64 = 4096;
/// Divisor of a block of zeros, which would otherwise be 0 / 0.
const SCALE_MIN: f64 = 1e-38;

/// Values in 8 bits.
#[derive(Debug)]
pub struct Quantized {
    /// `[blocks · 256]` u8.
    codes: Tensor,
    /// `[blocks, 1]`: the largest magnitude of each block.
    scales: Tensor,
    /// 256 ascending numbers, and the 255 middles between them.
    map: Tensor,
    middles: Tensor,
}

impl Quantized {
    /// `len` zeros. Without `signed`, for values that are never negative, the map has twice as many numbers, and none
    /// of them is zero: a second moment rounded to zero would divide a first moment that was not.
    pub fn zeros(len: i64, signed: bool, device: Device) -> Result<Self, TchError> {
        let blocks = (len + BLOCK - 1) / BLOCK;
        let map = dynamic_map(signed);
        let middles: Vec<f32> = map.iter().zip(map.iter().skip(1)).map(|(a, b)| (a + b) / 2.0).collect();
        Ok(Self {
            codes: Tensor::f_zeros([blocks * BLOCK], (Kind::Uint8, device))?,
            scales: Tensor::f_zeros([blocks, 1], (Kind::Float, device))?,
            map: Tensor::f_from_slice(&map)?.f_to_device(device)?,
            middles: Tensor::f_from_slice(&middles)?.f_to_device(device)?,
        })
    }

    /// The tensors that hold the values.
    pub fn stored(&self) -> [&Tensor; 2] {
        [&self.codes, &self.scales]
    }

    /// `len` values from `start`, a multiple of 256, on.
    pub fn read(&self, start: i64, len: i64) -> Result<Tensor, TchError> {
        let (first, blocks) = (start / BLOCK, (len + BLOCK - 1) / BLOCK);
        // Codes are indices into the map, and libtorch indexes with 32 bits at least.
        let codes = self
            .codes
            .f_narrow(0, first * BLOCK, blocks * BLOCK)?
            .f_to_kind(Kind::Int)?;
        let mut values = self.map.f_index_select(0, &codes)?.f_view([blocks, BLOCK])?;
        let _ = values.f_mul_(&self.scales.f_narrow(0, first, blocks)?)?;
        values.f_view([-1])?.f_narrow(0, 0, len)
    }

    /// Keeps `values` from `start`, a multiple of 256, on.
    pub fn write(&mut self, start: i64, values: &Tensor) -> Result<(), TchError> {
        let len = values.size1()?;
        let (first, blocks) = (start / BLOCK, (len + BLOCK - 1) / BLOCK);
        let padding = blocks * BLOCK - len;
        let padded = match padding {
            0 => values.shallow_clone(),
            // Zeros never raise the scale of the block that they fill up.
            _ => values.f_constant_pad_nd([0, padding])?,
        };
        let rows = padded.f_view([blocks, BLOCK])?;
        let scales = rows.f_abs()?.f_amax([1], true)?;
        let mut shares = rows.f_div(&scales.f_clamp_min(SCALE_MIN)?)?;
        // The nearest number of the map: as many middles are below the value as numbers before it.
        let codes = shares.f_clamp_(-1.0, 1.0)?.f_bucketize(&self.middles, true, false)?;
        self.codes
            .f_narrow(0, first * BLOCK, blocks * BLOCK)?
            .f_copy_(&codes.f_view([-1])?)?;
        self.scales.f_narrow(0, first, blocks)?.f_copy_(&scales)
    }
}

/// The dynamic map of 8 bits (Dettmers et al. 2022, section 2.2): seven decades, the i-th with 2^i (signed) or 2^(i+1)
/// numbers that are the middles of equal parts of its upper nine tenths; and 1.
fn dynamic_map(signed: bool) -> Vec<f32> {
    const DECADES: i32 = 7;
    let mut map = Vec::with_capacity(256);
    for decade in 0..DECADES {
        let parts = 1 << if signed { decade } else { decade + 1 };
        let scale = 10f64.powi(decade + 1 - DECADES);
        for part in 0..parts {
            let number = scale * (0.1 + 0.9 * (f64::from(part) + 0.5) / f64::from(parts));
            map.push(number as f32);
            if signed {
                map.push(-number as f32);
            }
        }
    }
    map.push(1.0);
    // Zero where there are signs; otherwise the number below the smallest, so that nothing becomes zero.
    map.push(if signed { 0.0 } else { 1e-7 });
    map.sort_by(f32::total_cmp);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(len: i64) -> Tensor {
        tch::manual_seed(7);
        Tensor::randn([len], (Kind::Float, Device::Cpu))
    }

    #[test]
    fn maps_should_have_256_ascending_numbers_to_one() {
        for signed in [true, false] {
            let map = dynamic_map(signed);
            assert_eq!(map.len(), 256);
            assert!(map.is_sorted_by(|a, b| a < b));
            assert_eq!(map[255], 1.0);
            assert_eq!(map.contains(&0.0), signed);
            assert_eq!(map[0] < 0.0, signed);
        }
    }

    #[test]
    fn values_should_come_back_within_a_step_of_the_map() {
        // Not a multiple of the block; a part that begins in the middle.
        let values = normal(256 * 5 + 77) * 3.0;
        for (values, signed) in [(values.shallow_clone(), true), (values.square(), false)] {
            let mut quantized = Quantized::zeros(values.size1().unwrap(), signed, Device::Cpu).unwrap();
            assert_eq!(quantized.read(0, 1357).unwrap().abs().max().double_value(&[]), 0.0);
            quantized.write(0, &values.narrow(0, 0, 512)).unwrap();
            quantized.write(512, &values.narrow(0, 512, 845)).unwrap();
            let error = (quantized.read(0, 1357).unwrap() - &values).abs();
            let blocks = values.abs().constant_pad_nd([0, 179]).view([-1, BLOCK]).amax([1], true);
            // Half of the map's widest step: 0.9 / 64 signed, 0.9 / 128 not; and the step to 1 itself.
            let bound = if signed { 0.9 / 128.0 } else { 0.9 / 256.0 } * 1.01;
            let share = (error.constant_pad_nd([0, 179]).view([-1, BLOCK]) / blocks)
                .max()
                .double_value(&[]);
            assert!(share <= bound, "{share}");
            assert_eq!(
                quantized.read(256, 300).unwrap(),
                quantized.read(0, 1357).unwrap().narrow(0, 256, 300)
            );
        }
    }

    #[test]
    fn a_small_second_moment_should_not_vanish() {
        let mut quantized = Quantized::zeros(256, false, Device::Cpu).unwrap();
        let mut values = [1e-30f32; 256];
        values[3] = 1.0;
        quantized.write(0, &Tensor::from_slice(&values)).unwrap();
        let found = Vec::<f32>::try_from(quantized.read(0, 256).unwrap()).unwrap();
        assert_eq!(found[3], 1.0);
        assert!(found.iter().all(|v| *v > 0.0));
    }
}
