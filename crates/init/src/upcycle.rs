//! Sparse upcycling (Komatsuzaki et al. 2023): a trained dense model becomes the first state of a model with experts.

use crate::normal::normal;
use alice_primitives::{Hash, tagged_hash, tags};
use alice_spec::{RunSpec, TensorShape};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

/// Why a dense model cannot become the first state of a run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpcycleError {
    /// The target has no experts.
    #[error("run '{0}' has no experts to make; give a run with a table [model.moe]")]
    NoExperts(String),
    /// The source has experts already.
    #[error("the source model has experts already; give a dense one")]
    NotDense,
    /// Tokens that differ.
    #[error("the dense model's tokens are those of '{dense}', the run's those of '{run}'; they must be the same")]
    Tokenizer {
        /// `data.tokenizer` of the dense model.
        dense: String,
        /// `data.tokenizer` of the run.
        run: String,
    },
    /// Shapes that differ.
    #[error("{field} is {dense} in the dense model and {run} in the run; {hint}")]
    Shape {
        /// Name of the number.
        field: &'static str,
        /// In the dense model.
        dense: u32,
        /// In the run.
        run: u32,
        /// Remedy.
        hint: &'static str,
    },
}

/// Whether a dense model can become the first state of a run: all sizes but the number of experts must be the same, and
/// the experts may be wider.
///
/// # Errors
/// The first size or tokenizer that does not fit.
///
/// ```
/// use alice_init::upcycle::{UpcycleError, check};
/// # let text = include_str!("../../../chain-spec/runs/dev.toml");
/// let dense = alice_spec::RunSpec::parse(text)?;
/// let error = check(&dense, &dense).unwrap_err();
/// assert_eq!(error, UpcycleError::NoExperts("dev".into()));
/// # Ok::<(), alice_spec::SpecError>(())
/// ```
pub fn check(dense: &RunSpec, run: &RunSpec) -> Result<(), UpcycleError> {
    let (d, r) = (&dense.model, &run.model);
    if r.moe.is_none() {
        return Err(UpcycleError::NoExperts(run.name.clone()));
    }
    if d.moe.is_some() {
        return Err(UpcycleError::NotDense);
    }
    if dense.data.tokenizer != run.data.tokenizer {
        return Err(UpcycleError::Tokenizer {
            dense: dense.data.tokenizer.clone(),
            run: run.data.tokenizer.clone(),
        });
    }
    const EQUAL: &str = "they must be equal: use another run specification, or another model";
    let fields = [
        ("model.vocab", d.vocab, r.vocab),
        ("model.hidden", d.hidden, r.hidden),
        ("model.layers", d.layers, r.layers),
        ("model.heads", d.heads, r.heads),
        ("model.kv_heads", d.kv_heads, r.kv_heads),
        ("model.rope_theta", d.rope_theta, r.rope_theta),
    ];
    let different = fields.into_iter().find(|(_, dense, run)| dense != run);
    let different = different.map(|(field, dense, run)| (field, dense, run, EQUAL));
    let narrower = (r.ffn < d.ffn).then_some((
        "model.ffn",
        d.ffn,
        r.ffn,
        "an expert holds the whole dense layer, so it must be as wide or wider",
    ));
    match different.or(narrower) {
        None => Ok(()),
        Some((field, dense, run, hint)) => Err(UpcycleError::Shape {
            field,
            dense,
            run,
            hint,
        }),
    }
}

/// Makes the first state of `run` from a dense model, tensor by tensor in the run's canonical order, with at most two
/// in memory. `read` returns the values of a tensor of the dense model, by its number in the *dense* model's canonical
/// order; `each` takes the result.
///
/// Every expert is a copy of the dense feed-forward layer. If experts are wider, the additional rows of the gate and
/// up projections are drawn, and the additional columns of the down projection are zero. The router is drawn.
/// Everything else is copied. The router's weights of the chosen experts add up to one, so the model computes what the
/// dense one does.
///
/// Experts come to differ because the random router sends them different tokens, so that their first gradients differ;
/// wider ones also because the additional rows are drawn for each expert.
///
/// Draws are normal with the run's `init_std`, by ChaCha20 seeded with `H(UPCYCLE, root of the dense model, sizes)`,
/// one stream for each tensor: whoever has the dense model can make the same state again.
///
/// # Errors
/// The models do not fit ([`check`]), or an error of `read` or `each`.
pub fn upcycle<E: From<UpcycleError>>(
    dense: &RunSpec,
    dense_root: &Hash,
    run: &RunSpec,
    mut read: impl FnMut(usize, &TensorShape) -> Result<Vec<f32>, E>,
    mut each: impl FnMut(&TensorShape, &[f32]) -> Result<(), E>,
) -> Result<(), E> {
    check(dense, run)?;
    let sources = dense.tensors();
    let (seed, std) = (seed(dense_root, run), f64::from(run.model.init_std_millionths) / 1e6);
    for (stream, tensor) in run.tensors().iter().enumerate() {
        let mut rng = ChaCha20Rng::from_seed(seed);
        rng.set_stream(stream as u64);
        let (name, part) = source_of(&tensor.name);
        let values = match (0..).zip(&sources).find(|(_, source)| source.name == name) {
            // Only the router has no source. Zeros would send every token to the same experts for ever: ties do not
            // break.
            None => drawn(&mut rng, tensor.len() as usize, std),
            Some((number, source)) => {
                let mut values = read(number, source)?;
                let missing = (tensor.len() as usize).saturating_sub(values.len());
                match part {
                    // Zero columns of the down projection, so that the drawn rows before them change nothing at first.
                    Part::Columns => values = widen(values, source, tensor),
                    Part::Whole => values.extend(drawn(&mut rng, missing, std)),
                }
                values
            }
        };
        each(tensor, &values)?;
    }
    Ok(())
}

/// The sizes are in the seed, and not the run's hash: that hash contains the root of the state that is drawn here.
fn seed(dense_root: &Hash, run: &RunSpec) -> Hash {
    let m = &run.model;
    let (experts, top_k) = m.moe.as_ref().map_or((0, 0), |moe| (moe.experts, moe.top_k));
    let sizes = [m.vocab, m.hidden, m.layers, m.heads, m.kv_heads, m.ffn, experts, top_k];
    let numbers: Vec<u8> = sizes
        .into_iter()
        .chain([m.init_std_millionths])
        .flat_map(u32::to_le_bytes)
        .collect();
    tagged_hash(tags::UPCYCLE, &[dense_root, &numbers])
}

/// Growth of a tensor with the width of an expert.
enum Part {
    /// By rows, or not at all.
    Whole,
    /// By columns.
    Columns,
}

/// The dense model's tensor that a tensor is made of.
fn source_of(name: &str) -> (String, Part) {
    let expert = name.split_once(".block_sparse_moe.experts.");
    let Some((block, weight)) = expert.and_then(|(block, rest)| Some((block, rest.split_once('.')?.1))) else {
        return (name.to_owned(), Part::Whole);
    };
    let (projection, part) = match weight {
        "w1.weight" => ("gate_proj", Part::Whole),
        "w3.weight" => ("up_proj", Part::Whole),
        _ => ("down_proj", Part::Columns),
    };
    (format!("{block}.mlp.{projection}.weight"), part)
}

fn drawn(rng: &mut ChaCha20Rng, len: usize, std: f64) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    normal(rng, len, std, &mut values);
    values
}

/// Appends zeros to every row of a matrix, from the columns of `from` to those of `to`.
fn widen(values: Vec<f32>, from: &TensorShape, to: &TensorShape) -> Vec<f32> {
    let columns = |t: &TensorShape| t.shape.last().map_or(1, |n| *n as usize).max(1);
    let (old, new) = (columns(from), columns(to));
    if old == new {
        return values;
    }
    let mut wide = Vec::with_capacity(values.len() / old * new);
    for row in values.chunks(old) {
        wide.extend_from_slice(row);
        wide.resize(wide.len() + new.saturating_sub(row.len()), 0.0);
    }
    wide
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init_theta;
    use alice_spec::MoeSpec;

    fn dense() -> RunSpec {
        let mut spec = RunSpec::parse(include_str!("../../../chain-spec/runs/dev.toml")).unwrap();
        spec.model.hidden = 32;
        spec.model.layers = 2;
        spec.model.kv_heads = 2;
        spec.model.ffn = 48;
        spec.model.context = 24;
        spec.validate().unwrap();
        spec
    }

    fn sparse(ffn: u32, top_k: u32) -> RunSpec {
        let mut spec = dense();
        spec.name = "sparse".into();
        spec.model.architecture = "mixtral".into();
        spec.model.ffn = ffn;
        spec.model.moe = Some(MoeSpec {
            experts: 4,
            top_k,
            router_aux_loss: 0.01,
        });
        spec.validate().unwrap();
        spec
    }

    /// Weights of a size at which logits are far from flat.
    fn dense_theta(spec: &RunSpec) -> Vec<f32> {
        let draws = init_theta(spec, &[3; 32]);
        draws.iter().map(|v| if *v == 1.0 { 1.1 } else { v * 8.0 }).collect()
    }

    fn made(run: &RunSpec, root: &Hash) -> Result<Vec<f32>, UpcycleError> {
        let (dense, mut theta) = (dense(), Vec::new());
        let source = dense_theta(&dense);
        let read = |number: usize, tensor: &TensorShape| {
            let start: u64 = dense.tensors()[..number].iter().map(TensorShape::len).sum();
            Ok(source[start as usize..][..tensor.len() as usize].to_vec())
        };
        upcycle(&dense, root, run, read, |_, values| {
            theta.extend_from_slice(values);
            Ok::<_, UpcycleError>(())
        })?;
        assert_eq!(theta.len() as u64, run.parameters());
        Ok(theta)
    }

    #[test]
    fn the_same_model_should_give_the_same_state() {
        let run = sparse(64, 2);
        let first = made(&run, &[1; 32]).unwrap();
        assert_eq!(first, made(&run, &[1; 32]).unwrap());
        let other = made(&run, &[2; 32]).unwrap();
        let mut at = 0;
        for tensor in run.tensors() {
            let range = at..at + tensor.len() as usize;
            at = range.end;
            let same = first[range.clone()] == other[range];
            // The additional rows of w1 and w3 are drawn, as the router is.
            let drawn = [".gate.weight", "w1.weight", "w3.weight"]
                .iter()
                .any(|end| tensor.name.ends_with(end));
            assert_eq!(same, !drawn, "{}", tensor.name);
        }
    }

    #[test]
    fn shapes_that_do_not_fit_should_be_named() {
        type Change = fn(&mut RunSpec);
        let cases: [(&str, Change); 4] = [
            ("model.hidden is 32 in the dense model and 64 in the run", |s| {
                s.model.hidden = 64
            }),
            ("model.layers", |s| s.model.layers = 3),
            ("model.rope_theta", |s| s.model.rope_theta = 5),
            (
                "model.ffn is 48 in the dense model and 40 in the run; an expert holds",
                |s| s.model.ffn = 40,
            ),
        ];
        for (expected, change) in cases {
            let mut run = sparse(48, 2);
            change(&mut run);
            let message = made(&run, &[1; 32]).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        }
        let mut other = sparse(48, 2);
        other.data.tokenizer = "0".repeat(64);
        assert!(matches!(check(&dense(), &other), Err(UpcycleError::Tokenizer { .. })));
        assert_eq!(check(&dense(), &dense()), Err(UpcycleError::NoExperts("dev".into())));
        assert_eq!(check(&sparse(48, 2), &sparse(48, 2)), Err(UpcycleError::NotDense));
    }
}
