//! Trains one task of run `dev` on the CPU, from the run's first state, as a miner does; then compresses the update as
//! a miner sends it. A few seconds.
//!
//! ```text
//! cargo run -p alice-trainer --example train_one_task [TEXT_FILE]
//! ```
//!
//! Without a file the text is this repository's licence. It is repeated until it fills the task.

use alice_init::init_theta;
use alice_model::Device;
use alice_program::output::print;
use alice_spec::{RunSpec, TensorShape};
use alice_tokenizer::Tokenizer;
use alice_trainer::{Options, Progress, Task, train};
use alice_update::{Header, Layout, encode};
use std::error::Error;
use std::ops::ControlFlow;

const LICENSE: &str = include_str!("../../../LICENSE");

fn main() -> Result<(), Box<dyn Error>> {
    let text = match std::env::args().nth(1) {
        Some(path) => std::fs::read(path)?,
        None => LICENSE.into(),
    };
    let spec = RunSpec::parse(alice_spec::preset("dev").ok_or("there is no run dev")?)?;
    let sequences = sequences(&spec, &text)?;

    // A network draws its first state from its genesis hash; here any 32 bytes do.
    let theta = init_theta(&spec, &[0; 32]);
    let task = Task {
        spec: &spec,
        fragment: 0,
        theta: &theta,
        sequences: &sequences,
    };
    let mut printed = Ok(());
    let mut report = |p: Progress| {
        let Progress { step, steps, loss, .. } = p;
        printed = print(&format!(
            "step {step:2} of {steps}  loss {loss:.4}  {:.0} tokens/s\n",
            p.tokens_per_second
        ));
        match printed {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let result = train(&task, Device::Cpu, Options::default(), &mut report);
    printed?;
    let result = result?;

    // The most important entries, quantized, within the run's budget. The remainder is for the next update.
    let lens: Vec<u64> = spec.tensors().iter().map(TensorShape::len).collect();
    let layout = Layout::new(&lens, spec.update.chunk);
    let update = encode(&layout, &spec.update, &Header::default(), &result.d)?;
    let norm = result.d.iter().map(|d| f64::from(*d).powi(2)).sum::<f64>().sqrt();
    print(&format!(
        "loss {:.4} → {:.4}\npseudo-gradient: {} values, norm {norm:.3}\nupdate: {} bytes of at most {}\n",
        result.loss_first,
        result.loss_last,
        result.d.len(),
        update.bytes.len(),
        spec.update.budget_bytes,
    ))?;
    if result.loss_last >= result.loss_first {
        return Err("training did not lower the loss".into());
    }
    Ok(())
}

/// The task's sequences of byte tokens, the text repeated as often as needed.
fn sequences(spec: &RunSpec, text: &[u8]) -> Result<Vec<Vec<u16>>, Box<dyn Error>> {
    if text.is_empty() {
        return Err("the text is empty".into());
    }
    let tokens = Tokenizer::bytes().encode(text);
    let tokens: Vec<u16> = tokens.into_iter().map(u16::try_from).collect::<Result<_, _>>()?;
    let mut stream = tokens.iter().copied().cycle();
    let sequence = |_| stream.by_ref().take(spec.model.context as usize).collect();
    Ok((0..spec.task_sequences()).map(sequence).collect())
}
