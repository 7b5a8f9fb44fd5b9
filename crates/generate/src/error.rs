//! Errors of reading a folder and generating text.

use alice_model::ModelError;
use alice_tokenizer::{LFS_POINTER_ADVICE, TokenizerError};
use std::path::{Path, PathBuf};

/// Why no text could be generated. Each message is one line: the fault, the file, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// No folder with a model.
    #[error("{} is not a folder with a model: there is no config.json; give the folder that `alice-ps export --format hf` wrote", .0.display())]
    NoModel(PathBuf),
    /// The operating system refused.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The file it was tried on.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A file that breaks its format.
    #[error("{} is not valid: {problem}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The fault and its position.
        problem: String,
    },
    /// A model of a kind that is not computed here.
    #[error("{} asks for {what}, which this program cannot compute; use transformers for this model", .path.display())]
    Unsupported {
        /// The configuration.
        path: PathBuf,
        /// The property that is not supported.
        what: String,
    },
    /// A file that the index names, or the tokenizer's, does not exist.
    #[error("{} is missing; download it again", .0.display())]
    Missing(PathBuf),
    /// A shard of the wrong size.
    #[error("{} holds {found} bytes of tensors, its header lists {expected}; it is cut off or damaged, download it again", .path.display())]
    ShardSize {
        /// The shard.
        path: PathBuf,
        /// Bytes in the header.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A tensor that the configuration needs is in no shard.
    #[error("no shard in {} has tensor {tensor}, which config.json needs; download the folder again", .dir.display())]
    MissingTensor {
        /// The folder.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that the configuration knows nothing of.
    #[error("{} has tensor {tensor}, which config.json has no place for; the weights are of another model", .path.display())]
    ExtraTensor {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of another shape.
    #[error("{} has tensor {tensor} with the shape {found:?}, config.json needs {expected:?}; the weights are of another model", .path.display())]
    Shape {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Shape in the shard.
        found: Vec<usize>,
        /// Shape that the configuration gives.
        expected: Vec<usize>,
    },
    /// A tokenizer of another model.
    #[error("{} has {tokenizer} ids, config.json has a vocabulary of {model}; one of the two is of another model", .path.display())]
    Vocabulary {
        /// The tokenizer's file.
        path: PathBuf,
        /// Ids of the tokenizer.
        tokenizer: u32,
        /// Ids of the model.
        model: i64,
    },
    /// The tokenizer cannot be read. The message names the file.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A clone without `git lfs`: the file is a pointer to the one that is meant.
    #[error("{} is {LFS_POINTER_ADVICE}", .0.display())]
    LfsPointer(PathBuf),
    /// An option outside its bounds.
    #[error("--{option} is {found}; {allowed}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// Its value.
        found: String,
        /// The allowed values.
        allowed: &'static str,
    },
    /// Nothing to continue.
    #[error("the prompt is empty; give at least one character to continue")]
    EmptyPrompt,
    /// A prompt that does not fit.
    #[error("the prompt has {tokens} tokens, the model's context is {context}; shorten the prompt")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Longest text of the model.
        context: usize,
    },
    /// Logits that are no numbers.
    #[error(
        "the model gave no finite logits after {tokens} tokens: its weights are broken; run `alice-ps verify --model` on the folder"
    )]
    NotFinite {
        /// Tokens of the text so far.
        tokens: usize,
    },
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl GenerateError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| match source.kind() {
            std::io::ErrorKind::NotFound => Self::Missing(path),
            _ => Self::Io { what, path, source },
        }
    }

    pub(crate) fn malformed(path: &Path, problem: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }

    /// Whether the request is at fault, rather than the folder or the machine.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NoModel(_) | Self::Option { .. } | Self::EmptyPrompt | Self::PromptTooLong { .. }
        )
    }
}
