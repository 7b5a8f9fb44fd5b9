//! The generation loop: the prompt in one pass, then one token at a time until a reason to stop.

use crate::{Folder, GenerateError, Sampler, Sampling, TextStream};
use alice_model::Decoder;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// A text to continue, and how.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Text to continue, most often UTF-8.
    pub prompt: &'a [u8],
    /// Maximum number of tokens to add; at least 1.
    pub max_tokens: usize,
    /// Sampling options.
    pub sampling: Sampling,
    /// Seed of the sampler.
    pub seed: u64,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended it.
    End,
    /// The maximum number of tokens is reached.
    MaxTokens,
    /// The text fills the model's context.
    Context,
    /// The caller stopped it.
    Asked,
}

impl StopReason {
    /// One word, for JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::MaxTokens => "max_tokens",
            Self::Context => "context",
            Self::Asked => "asked",
        }
    }
}

/// A generated text, with the times it took.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens that were added, the end token included.
    pub tokens: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why it ended.
    pub stop: StopReason,
    /// Logits after the prompt, `[vocab]`.
    pub prompt_logits: Vec<f32>,
    /// Time until the first token was chosen.
    pub prefill: Duration,
    /// Time from there to the last one.
    pub decode: Duration,
}

impl Generated {
    /// Speed after the first token, tokens per second. `None` for a single token.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let more = self.tokens.len().checked_sub(1).filter(|n| *n > 0)?;
        Some(more as f64 / self.decode.as_secs_f64().max(f64::MIN_POSITIVE))
    }
}

impl Request<'_> {
    /// The prompt's tokens, if this folder's model can serve the request. Needs no weights, so that a wrong request is
    /// refused before minutes of loading.
    ///
    /// # Errors
    /// Options without meaning, or a prompt that is empty or longer than the context.
    pub fn check(&self, folder: &Folder) -> Result<Vec<u32>, GenerateError> {
        self.sampling.check()?;
        if self.max_tokens == 0 {
            return Err(GenerateError::Option {
                option: "max-tokens",
                found: "0".into(),
                allowed: "at least 1 is possible",
            });
        }
        let (prompt, context) = (folder.encode(self.prompt)?, folder.model().context as usize);
        match prompt.len() > context {
            true => Err(GenerateError::PromptTooLong {
                tokens: prompt.len(),
                context,
            }),
            false => Ok(prompt),
        }
    }
}

/// Continues a text. `on_text` gets the text of each token, empty while a character is not complete, and may stop the
/// generation.
///
/// ```no_run
/// use alice_generate::{Folder, Request, generate};
/// use std::ops::ControlFlow;
/// use std::path::Path;
///
/// let mut folder = Folder::open(Path::new("alice/"))?;
/// let decoder = folder.load(folder.precision(), alice_model::Device::Cpu)?;
/// let request = Request { prompt: b"The", max_tokens: 40, sampling: folder.sampling(), seed: 1 };
/// let generated = generate(&folder, &decoder, &request, &mut |text| {
///     print!("{text}");
///     ControlFlow::Continue(())
/// })?;
/// eprintln!("{} tokens: {}", generated.tokens.len(), generated.stop.name());
/// # Ok::<(), alice_generate::GenerateError>(())
/// ```
///
/// # Errors
/// A prompt that is empty or longer than the context, options without meaning, logits that are no numbers.
pub fn generate(
    folder: &Folder,
    decoder: &Decoder,
    request: &Request<'_>,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, GenerateError> {
    let context = decoder.config().context as usize;
    let prompt = request.check(folder)?;
    let mut sampler = Sampler::new(request.sampling, request.seed, decoder.config().vocab as usize)?;
    let started = Instant::now();
    // The last token is chosen from logits and need not be in the cache.
    let room = prompt.len().saturating_add(request.max_tokens - 1).min(context);
    let mut cache = decoder.cache(room)?;
    let prompt_logits = decoder.forward(&prompt, &mut cache)?;
    // The penalty is for the whole text, as in `transformers`.
    sampler.record(&prompt);
    let mut logits = None;
    let mut prefill = None;
    let (mut tokens, mut text, mut stream) = (Vec::new(), String::new(), TextStream::default());
    let stop = loop {
        let not_finite = || GenerateError::NotFinite {
            tokens: prompt.len() + tokens.len(),
        };
        let chosen = sampler.choose(logits.as_deref().unwrap_or(&prompt_logits));
        let token = chosen.ok_or_else(not_finite)?;
        prefill.get_or_insert_with(|| started.elapsed());
        tokens.push(token);
        sampler.record(&[token]);
        // The end token is counted, and it has no text.
        if folder.end().contains(&token) {
            break StopReason::End;
        }
        let shown = stream.push(&folder.tokenizer().token_bytes(token));
        text.push_str(&shown);
        if on_text(&shown).is_break() {
            break StopReason::Asked;
        }
        if tokens.len() >= request.max_tokens {
            break StopReason::MaxTokens;
        }
        if cache.len() >= context {
            break StopReason::Context;
        }
        logits = Some(decoder.forward(&[token], &mut cache)?);
    };
    let prefill = prefill.unwrap_or_default();
    let decode = started.elapsed().saturating_sub(prefill);
    let rest = stream.finish();
    text.push_str(&rest);
    if stop != StopReason::Asked && !rest.is_empty() {
        // The answer no longer matters: the text is over.
        let _ = on_text(&rest);
    }
    Ok(Generated {
        prompt_tokens: prompt.len(),
        tokens,
        text,
        stop,
        prompt_logits,
        prefill,
        decode,
    })
}
