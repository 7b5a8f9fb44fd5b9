//! `alice-miner generate`: continues a text with the weights of a Hugging Face folder.

use crate::{
    MinerError,
    cli::{GenerateArgs, PrecisionArg},
    commands::print,
    memory::device,
    settings::{self, SettingError},
    shutdown,
};
use alice_generate::{Folder, Generated, Request, Sampling, StopReason, generate};
use alice_model::Precision;
use serde_json::json;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;

/// Maximum length of a prompt on standard input, bytes: more than the longest contexts.
const PROMPT_BYTES_MAX: u64 = 16 << 20;

/// Reason for the end of the text, for people.
const fn why(stop: StopReason) -> &'static str {
    match stop {
        StopReason::End => "the model ended the text",
        StopReason::MaxTokens => "the number of tokens asked for is reached (--max-tokens)",
        StopReason::Context => "the context is full",
        StopReason::Asked => "stopped",
    }
}

/// Generates a text, and prints it piece by piece, or as one JSON object at the end.
///
/// # Errors
/// The folder, the device, an option or the prompt cannot be used.
pub async fn run(args: &GenerateArgs) -> Result<(), MinerError> {
    let device = device::resolve(&args.device)?;
    // Before weights are read, so that loading uses them, too.
    if let Some(threads) = settings::threads(args.threads)? {
        alice_model::set_threads(threads.into());
    }
    let mut folder = Folder::open(&args.model)?;
    let sampling = sampling(args, folder.sampling());
    let prompt = prompt(&args.prompt)?;
    let request = Request {
        prompt: &prompt,
        max_tokens: args.max_tokens,
        sampling,
        // 32 bits, so that every reader of JSON keeps all of it.
        seed: args.seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32),
    };
    // Before the weights are read: what cannot be should not take minutes to be refused.
    request.check(&folder)?;
    let precision = match args.precision {
        PrecisionArg::Auto => folder.precision(),
        PrecisionArg::F32 => Precision::F32,
        PrecisionArg::Bf16 => Precision::Bf16,
    };
    let decoder = folder.load(precision, device)?;
    // Until here Ctrl-C ends the process at once: nothing has been shown. From here on it ends the text.
    let shutdown = shutdown::on_signals()?;
    let mut shown = Ok(());
    let mut on_text = |text: &str| {
        if !args.json {
            shown = show(text);
        }
        match shown.is_err() || shutdown.requested() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let done = tokio::task::block_in_place(|| generate(&folder, &decoder, &request, &mut on_text))?;
    match shown {
        // The reader of the pipe has what it wanted (`| head`).
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        other => other.map_err(MinerError::Output)?,
    }
    if args.json {
        let mut summary = json!({
            "text": done.text, "tokens": done.tokens, "prompt_tokens": done.prompt_tokens, "stop": done.stop.name(),
            "seed": request.seed, "device": device::name(device), "threads": alice_model::threads(),
            "precision": precision_name(precision), "prefill_seconds": done.prefill.as_secs_f64(),
            "decode_seconds": done.decode.as_secs_f64(), "tokens_per_second": done.tokens_per_second(),
        });
        if let (true, Some(object)) = (args.logits, summary.as_object_mut()) {
            object.insert("logits".into(), json!(done.prompt_logits));
        }
        return print(&format!("{summary}\n"));
    }
    if !done.text.ends_with('\n') {
        print("\n")?;
    }
    // Standard error, so that standard output is the continuation and nothing else.
    eprintln!("{}", line(&done, request.seed, sampling));
    Ok(())
}

/// The folder's sampling options, with those that the user set over them.
fn sampling(args: &GenerateArgs, folder: Sampling) -> Sampling {
    Sampling {
        temperature: args.temperature.unwrap_or(folder.temperature),
        top_k: args.top_k.unwrap_or(folder.top_k),
        top_p: args.top_p.unwrap_or(folder.top_p),
        repetition_penalty: args.repetition_penalty.unwrap_or(folder.repetition_penalty),
    }
}

/// The prompt, from standard input if it is `-`.
fn prompt(text: &str) -> Result<Vec<u8>, SettingError> {
    if text != "-" {
        return Ok(text.into());
    }
    let mut bytes = Vec::new();
    let read = io::stdin().lock().take(PROMPT_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(SettingError::Prompt)?;
    if bytes.len() as u64 > PROMPT_BYTES_MAX {
        return Err(SettingError::PromptTooLong {
            bytes_max: PROMPT_BYTES_MAX,
        });
    }
    Ok(bytes)
}

fn show(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    }
}

/// Summary of a finished text, one line for people.
fn line(done: &Generated, seed: u64, sampling: Sampling) -> String {
    let speed = match done.tokens_per_second() {
        Some(speed) => format!(", {speed:.1} tokens/s"),
        None => String::new(),
    };
    let chance = match sampling.temperature {
        0.0 => String::new(),
        _ => format!(" (--seed {seed} gives it again)"),
    };
    format!(
        "prompt of {} tokens in {:.2} s, {} tokens{speed}: {}{chance}",
        done.prompt_tokens,
        done.prefill.as_secs_f64(),
        done.tokens.len(),
        why(done.stop)
    )
}
