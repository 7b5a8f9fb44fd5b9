//! The optimiser's moments between two tasks: a stream that the caller stores where it likes.
//!
//! A task may begin with the moments that the last task of the same fragment ended with. The only visible difference is
//! a lower loss (docs/lab.md). A stream belongs to a run and a fragment and to one choice of [`Moments`]:
//!
//! ```text
//! magic "ALMOMENT", version u32 = 1, H(run_hash, fragment) [32], steps u32, then for each tensor of the optimiser
//! kind u8 (0 f32, 1 u8), len u64, values; after all of them BLAKE3 of everything before [32]
//! ```
//!
//! Numbers are little-endian. Lengths must be those of the model: any other is refused before memory for it is taken.

use crate::adamw::AdamW;
use alice_spec::RunSpec;
use std::io::{self, Read, Write};
use tch::{Device, Kind, TchError, Tensor};

const MAGIC: &[u8; 8] = b"ALMOMENT";
const VERSION: u32 = 1;
/// Values in the host's memory at once: the moments of a large model on a GPU may exceed it.
const PART: usize = 1 << 20;

/// Source and target of moments.
#[derive(Default)]
pub struct Carry<'a> {
    /// Stream that the last task of the fragment has written; `None` to begin with zeros.
    pub from: Option<&'a mut dyn Read>,
    /// Target for the moments after the last step. It is complete only if training succeeds.
    pub to: Option<&'a mut dyn Write>,
}

/// Why moments could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// Of another run, fragment, kind of moments or version; or not moments at all.
    #[error("they are of another {0}")]
    Other(&'static str),
    /// The checksum is wrong.
    #[error("they are damaged: the checksum is another")]
    Damaged,
    /// Reading or writing failed, or the stream ends too early.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The device refused.
    #[error(transparent)]
    Torch(#[from] TchError),
}

/// Label of a stream: hash of run and fragment.
pub fn label(spec: &RunSpec, fragment: u32) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("alice/trainer/moments");
    hasher.update(&spec.run_hash()).update(&fragment.to_le_bytes());
    *hasher.finalize().as_bytes()
}

/// Writes the moments of an optimiser.
pub fn write(optimizer: &AdamW, label: &[u8; 32], to: &mut dyn Write) -> Result<(), CarryError> {
    let mut to = Hashed::new(to);
    to.write_all(MAGIC)?;
    to.write_all(&VERSION.to_le_bytes())?;
    to.write_all(label)?;
    to.write_all(&optimizer.steps().to_le_bytes())?;
    for tensor in optimizer.state() {
        let flat = tensor.f_view([-1])?;
        to.write_all(&[kind_code(tensor)])?;
        to.write_all(&(tensor.numel() as u64).to_le_bytes())?;
        for (start, len) in parts(tensor.numel()) {
            let part = flat
                .f_narrow(0, start as i64, len as i64)?
                .f_to_device(Device::Cpu)?
                .f_contiguous()?;
            match tensor.kind() {
                Kind::Uint8 => {
                    let mut values = vec![0u8; len];
                    part.f_copy_data(&mut values, len)?;
                    to.write_all(&values)?;
                }
                _ => {
                    let mut values = vec![0f32; len];
                    part.f_copy_data(&mut values, len)?;
                    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    to.write_all(&bytes)?;
                }
            }
        }
    }
    // At the end, so that a stream that was cut off anywhere is refused.
    let digest = to.hasher.finalize();
    to.inner.write_all(digest.as_bytes())?;
    Ok(to.inner.flush()?)
}

/// Reads moments into an optimiser. After an error its moments are a mixture of both: make a new one.
pub fn read(optimizer: &mut AdamW, label: &[u8; 32], from: &mut dyn Read) -> Result<(), CarryError> {
    let mut from = Hashed::new(from);
    if &from.array::<8>()? != MAGIC {
        return Err(CarryError::Other("kind of file"));
    }
    if u32::from_le_bytes(from.array()?) != VERSION {
        return Err(CarryError::Other("version"));
    }
    if &from.array::<32>()? != label {
        return Err(CarryError::Other("run or fragment"));
    }
    let steps = u32::from_le_bytes(from.array()?);
    // State, not part of a graph: copies into it must not be recorded.
    tch::no_grad(|| -> Result<(), CarryError> {
        for tensor in optimizer.state() {
            let [kind] = from.array()?;
            let len = u64::from_le_bytes(from.array()?);
            // Before anything of that length is allocated: the stream may be anything.
            if kind != kind_code(tensor) || len != tensor.numel() as u64 {
                return Err(CarryError::Other("kind of moments"));
            }
            let flat = tensor.f_view([-1])?;
            for (start, len) in parts(tensor.numel()) {
                let mut bytes = vec![0u8; len * tensor.kind().elt_size_in_bytes()];
                from.read_exact(&mut bytes)?;
                let values = match tensor.kind() {
                    Kind::Uint8 => Tensor::f_from_slice(&bytes)?,
                    _ => {
                        let words = bytes.as_chunks::<4>().0.iter();
                        Tensor::f_from_slice(&words.map(|w| f32::from_le_bytes(*w)).collect::<Vec<_>>())?
                    }
                };
                flat.f_narrow(0, start as i64, len as i64)?.f_copy_(&values)?;
            }
        }
        Ok(())
    })?;
    // The checksum itself is read around the hasher.
    let expected = from.hasher.finalize();
    let mut digest = [0; 32];
    from.inner.read_exact(&mut digest)?;
    if digest != *expected.as_bytes() {
        return Err(CarryError::Damaged);
    }
    optimizer.set_steps(steps);
    Ok(())
}

fn kind_code(tensor: &Tensor) -> u8 {
    u8::from(tensor.kind() == Kind::Uint8)
}

/// Starts and lengths of parts of `len` values.
fn parts(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(PART).map(move |start| (start, PART.min(len - start)))
}

/// A stream whose bytes are hashed on their way.
struct Hashed<'a, T: ?Sized> {
    inner: &'a mut T,
    hasher: blake3::Hasher,
}

impl<'a, T: ?Sized> Hashed<'a, T> {
    fn new(inner: &'a mut T) -> Self {
        Self {
            inner,
            hasher: blake3::Hasher::new(),
        }
    }
}

impl Hashed<'_, dyn Write + '_> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl Hashed<'_, dyn Read + '_> {
    fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(bytes)?;
        self.hasher.update(bytes);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Moments;
    use alice_spec::InnerSpec;

    const LABEL: [u8; 32] = [7; 32];

    fn inner() -> InnerSpec {
        RunSpec::parse(alice_spec::preset("dev").unwrap()).unwrap().inner
    }

    /// A leaf of several blocks and one that is too small for 8 bits.
    fn leaves() -> Vec<Tensor> {
        [[64i64, 80], [1, 100]]
            .map(|shape| Tensor::ones(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true))
            .into()
    }

    fn step(optimizer: &mut AdamW, leaves: &[Tensor], seed: i64) {
        tch::manual_seed(seed);
        optimizer.zero_grad();
        for leaf in leaves {
            (leaf * leaf.randn_like()).sum(Kind::Float).backward();
        }
        optimizer.step(0.01).unwrap();
    }

    fn written(optimizer: &AdamW) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(optimizer, &LABEL, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_optimiser_should_go_on_as_if_it_had_not_stopped() {
        let inner = inner();
        for moments in [Moments::F32, Moments::Bits8] {
            let whole = leaves();
            let mut optimizer = AdamW::with_moments(&inner, &whole, moments).unwrap();
            (1..=4).for_each(|seed| step(&mut optimizer, &whole, seed));

            let cut = leaves();
            let mut first = AdamW::with_moments(&inner, &cut, moments).unwrap();
            (1..=2).for_each(|seed| step(&mut first, &cut, seed));
            let bytes = written(&first);
            let mut second = AdamW::with_moments(&inner, &cut, moments).unwrap();
            read(&mut second, &LABEL, &mut bytes.as_slice()).unwrap();
            assert_eq!(written(&second), bytes);
            (3..=4).for_each(|seed| step(&mut second, &cut, seed));
            assert_eq!(cut, whole, "{moments:?}");
        }
    }

    #[test]
    fn moments_of_something_else_should_be_refused() {
        let inner = inner();
        let leaves = leaves();
        let mut optimizer = AdamW::new(&inner, &leaves).unwrap();
        step(&mut optimizer, &leaves, 1);
        let bytes = written(&optimizer);
        let problem = |optimizer: &mut AdamW, label: &[u8; 32], bytes: &[u8]| {
            read(optimizer, label, &mut &*bytes).unwrap_err().to_string()
        };
        assert!(problem(&mut optimizer, &[8; 32], &bytes).contains("another run or fragment"));
        assert!(problem(&mut optimizer, &LABEL, b"something else altogether").contains("kind of file"));
        let mut newer = bytes.clone();
        newer[8] = 2;
        assert!(problem(&mut optimizer, &LABEL, &newer).contains("another version"));
        let mut eight = AdamW::with_moments(&inner, &leaves, Moments::Bits8).unwrap();
        assert!(problem(&mut eight, &LABEL, &bytes).contains("kind of moments"));
        let mut fewer = AdamW::new(&inner, &leaves[1..]).unwrap();
        assert!(problem(&mut fewer, &LABEL, &bytes).contains("kind of moments"));
    }

    #[test]
    fn every_damage_should_be_seen() {
        let inner = inner();
        let leaves = leaves();
        let mut optimizer = AdamW::with_moments(&inner, &leaves, Moments::Bits8).unwrap();
        step(&mut optimizer, &leaves, 1);
        let bytes = written(&optimizer);
        for at in (0..bytes.len()).step_by(37) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(
                read(&mut optimizer, &LABEL, &mut damaged.as_slice()).is_err(),
                "byte {at}"
            );
            assert!(read(&mut optimizer, &LABEL, &mut &bytes[..at]).is_err(), "{at} bytes");
        }
        read(&mut optimizer, &LABEL, &mut bytes.as_slice()).unwrap();
    }
}
