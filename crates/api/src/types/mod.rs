//! Types of the HTTP API, as JSON (`docs/spec/http-api.md`). Signed parts are signed over SCALE, see [`crate::sign`].

mod corpus;
mod epochs;
mod model;
mod refusal;
mod status;
mod tasks;
mod uploads;
mod verdicts;

pub use alice_round::Phase;
pub use corpus::{CorpusManifest, Shard, TextSource};
pub use epochs::{EpochManifest, EpochSummary, PayoutEntry, PayoutPage, SeedBlock, SubmissionRecord};
pub use model::{Delta, Earlier, ModelManifest, Snapshot};
pub use refusal::{ApiError, ErrorCode};
pub use status::{PROTOCOL_VERSION, Status};
pub use tasks::{ClaimRequest, Lease, Task};
pub use uploads::{CommitRequest, DeclareRequest, Receipt, ReceiptBody, UploadState};
pub use verdicts::{MinerHistory, Outcome, SubmissionStatus, Verdict, VerdictBody};
