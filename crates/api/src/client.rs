//! Typed client of the parameter server's API (`docs/spec/http-api.md`).
//!
//! Every answer is bounded in size before it is kept, and every blob is checked against the hash it was asked for.
//! Requests that could not be delivered, and those answered 502, 503 or 504, are sent again after a jittered back-off:
//! all requests of the protocol may be repeated safely (a repeated commit returns the same receipt).
//!
//! ```no_run
//! # async fn example() -> Result<(), alice_api::ClientError> {
//! let client = alice_api::Client::new("https://ps.example.org")?;
//! let status = client.status().await?;
//! println!("{} is at step {}", status.run, status.model_step);
//! for epoch in client.epochs().await? {
//!     println!("epoch {}: loss {:.3} -> {:.3}", epoch.epoch, epoch.loss_before, epoch.loss_after);
//! }
//! # Ok(())
//! # }
//! ```

mod error;
mod transport;

pub use error::ClientError;
pub use transport::Retry;

use crate::{
    ClaimRequest, CommitRequest, CorpusManifest, DeclareRequest, EpochManifest, EpochSummary, ErrorCode, Hex32, Lease,
    MinerHistory, ModelManifest, PayoutPage, Receipt, Status, SubmissionStatus, UploadState,
};
use bytes::Bytes;
use reqwest::Method;
use serde::de::DeserializeOwned;
use transport::Transport;

/// Maximum JSON answer, bytes.
pub const JSON_BYTES_MAX: u64 = 16 << 20;
/// Maximum epoch manifest, bytes: 100,000 submissions of about 1 KiB.
pub const MANIFEST_BYTES_MAX: u64 = 128 << 20;
/// Maximum list of shards, bytes: a million shards, which are 10^12 tokens, have about 95 MB.
pub const CORPUS_BYTES_MAX: u64 = 128 << 20;
/// Maximum run specification, bytes: as much as `alice-spec` reads.
pub const RUN_BYTES_MAX: u64 = 64 << 10;
/// Maximum part of an upload sent in one request, bytes, even if the server would take more: a broken connection costs
/// at most that much.
pub const PART_BYTES_MAX: u64 = 4 << 20;
/// Maximum times that an upload asks the server for its offset without progress before it gives up.
const RESYNCS_MAX: u32 = 8;

/// A parameter server.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
}

impl Client {
    /// A client of the server at `url` (`http://host:port`, `https://host/path`). Connects with the first request.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        Self::with_retry(url, Retry::default())
    }

    /// The same with another back-off.
    pub fn with_retry(url: &str, retry: Retry) -> Result<Self, ClientError> {
        Ok(Self {
            transport: Transport::new(url, retry)?,
        })
    }

    /// Address of the server, without a slash at the end.
    pub fn url(&self) -> &str {
        self.transport.url()
    }

    /// State of the server.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// Text of the run specification. The caller parses it and checks its hash.
    pub async fn run(&self) -> Result<String, ClientError> {
        // As text: its hash is of the parsed fields, and the caller stores the file as the operator wrote it.
        let path = "/v1/run";
        let bytes = self.transport.fetch(Method::GET, path, None, RUN_BYTES_MAX).await?;
        String::from_utf8(bytes.to_vec()).map_err(|e| self.transport.decode_error(path, &e))
    }

    /// Snapshot and deltas of the current model.
    pub async fn model(&self) -> Result<ModelManifest, ClientError> {
        self.get("/v1/model").await
    }

    /// The training shards.
    pub async fn corpus(&self) -> Result<CorpusManifest, ClientError> {
        self.json(Method::GET, "/v1/corpus", None, CORPUS_BYTES_MAX).await
    }

    /// The shards of the yardstick (public evaluation set); refused with `not_found` if the run has none.
    pub async fn yardstick(&self) -> Result<CorpusManifest, ClientError> {
        self.json(Method::GET, "/v1/yardstick", None, CORPUS_BYTES_MAX).await
    }

    /// A blob of at most `bytes_max` bytes, checked against its hash.
    pub async fn blob(&self, hash: &Hex32, bytes_max: u64) -> Result<Vec<u8>, ClientError> {
        self.blob_with(hash, bytes_max, &mut |_| ()).await
    }

    /// The same, calling `progress` with the number of bytes received so far. A broken transfer resumes at the byte
    /// where it stopped (`Range`).
    pub async fn blob_with(
        &self,
        hash: &Hex32,
        bytes_max: u64,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Vec<u8>, ClientError> {
        let path = format!("/v1/blobs/{hash}");
        let bytes = self.transport.fetch_resumed(&path, bytes_max, progress).await?;
        // At the end: a part cannot be checked against the hash of the whole.
        let found = Hex32(*blake3::hash(&bytes).as_bytes());
        if found != *hash {
            return Err(ClientError::BlobHash {
                url: self.url().into(),
                expected: *hash,
                found,
            });
        }
        Ok(bytes)
    }

    /// Asks for a task.
    pub async fn claim(&self, request: &ClaimRequest) -> Result<Lease, ClientError> {
        self.post("/v1/tasks", request).await
    }

    /// Declares an upload; for a known one this is its state.
    pub async fn declare(&self, request: &DeclareRequest) -> Result<UploadState, ClientError> {
        self.post("/v1/uploads", request).await
    }

    /// State of an upload.
    pub async fn upload_state(&self, id: &Hex32) -> Result<UploadState, ClientError> {
        self.get(&format!("/v1/uploads/{id}")).await
    }

    /// Sends the bytes from `offset` on.
    pub async fn upload_part(&self, id: &Hex32, offset: u64, part: Bytes) -> Result<UploadState, ClientError> {
        let path = format!("/v1/uploads/{id}?offset={offset}");
        self.json(
            Method::PATCH,
            &path,
            Some(("application/octet-stream", part)),
            JSON_BYTES_MAX,
        )
        .await
    }

    /// Declares an upload and sends what the server does not have yet. `progress` is called with the bytes that the
    /// server has. Commit it afterwards.
    pub async fn upload(
        &self,
        request: &DeclareRequest,
        bytes: &Bytes,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<UploadState, ClientError> {
        let mut state = self.declare(request).await?;
        let (id, total) = (request.id(), bytes.len() as u64);
        let mut resyncs = 0;
        loop {
            progress(state.offset);
            if state.committed || state.offset == total {
                return Ok(state);
            }
            // At least one byte: a server that allows none would keep the loop from ending.
            let size = state.part_bytes_max.clamp(1, PART_BYTES_MAX);
            let end = state.offset.saturating_add(size).min(total);
            // A server that counts more bytes than there are: the slice below would panic.
            if state.offset > total {
                return Err(ClientError::UploadDesync {
                    id,
                    offset: state.offset,
                    total,
                });
            }
            // Both ends are at most `total`, which came from a usize.
            let part = bytes.slice(state.offset as usize..end as usize);
            let before = state.offset;
            let answer = match self.upload_part(&id, before, part).await {
                // An earlier part arrived although its answer was lost: continue at the server's offset.
                Err(e) if e.code() == Some(ErrorCode::WrongOffset) => self.upload_state(&id).await,
                other => other,
            };
            state = answer?;
            if state.offset <= before {
                resyncs += 1;
                if resyncs > RESYNCS_MAX {
                    return Err(ClientError::UploadDesync {
                        id,
                        offset: state.offset,
                        total,
                    });
                }
            }
        }
    }

    /// Commits an upload: the answer is the receipt. Committing again returns the same receipt.
    pub async fn commit(&self, request: &CommitRequest) -> Result<Receipt, ClientError> {
        self.post(&format!("/v1/uploads/{}/commit", request.id), request).await
    }

    /// Receipt and, once scored, verdict of a submission.
    pub async fn submission(&self, id: &Hex32) -> Result<SubmissionStatus, ClientError> {
        self.get(&format!("/v1/submissions/{id}")).await
    }

    /// Summaries of the newest epochs, newest first.
    pub async fn epochs(&self) -> Result<Vec<EpochSummary>, ClientError> {
        self.get("/v1/epochs").await
    }

    /// Summaries of up to 1000 epochs before `before` (`None`: the newest), newest first.
    pub async fn epochs_before(&self, before: Option<u32>) -> Result<Vec<EpochSummary>, ClientError> {
        match before {
            Some(before) => self.get(&format!("/v1/epochs?limit=1000&before={before}")).await,
            None => self.get("/v1/epochs?limit=1000").await,
        }
    }

    /// Summary of an epoch.
    pub async fn epoch(&self, epoch: u32) -> Result<EpochSummary, ClientError> {
        self.get(&format!("/v1/epochs/{epoch}")).await
    }

    /// The bytes of an epoch's manifest: their BLAKE3 is the commitment's `manifest_hash`.
    pub async fn manifest_bytes(&self, epoch: u32) -> Result<Bytes, ClientError> {
        self.transport
            .fetch(
                Method::GET,
                &format!("/v1/epochs/{epoch}/manifest"),
                None,
                MANIFEST_BYTES_MAX,
            )
            .await
    }

    /// An epoch's manifest.
    pub async fn manifest(&self, epoch: u32) -> Result<EpochManifest, ClientError> {
        self.json(
            Method::GET,
            &format!("/v1/epochs/{epoch}/manifest"),
            None,
            MANIFEST_BYTES_MAX,
        )
        .await
    }

    /// Payout page `index` of an epoch with its proof.
    pub async fn page(&self, epoch: u32, index: u32) -> Result<PayoutPage, ClientError> {
        self.get(&format!("/v1/epochs/{epoch}/pages/{index}")).await
    }

    /// The payout page of an epoch that has `account`, with its proof.
    pub async fn page_of(&self, epoch: u32, account: &Hex32) -> Result<PayoutPage, ClientError> {
        self.get(&format!("/v1/epochs/{epoch}/pages?account={account}")).await
    }

    /// History of a mining key or a payout account.
    pub async fn miner(&self, key: &Hex32) -> Result<MinerHistory, ClientError> {
        self.get(&format!("/v1/miners/{key}")).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Method::GET, path, None, JSON_BYTES_MAX).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl serde::Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| self.transport.decode_error(path, &e))?;
        self.json(
            Method::POST,
            path,
            Some(("application/json", body.into())),
            JSON_BYTES_MAX,
        )
        .await
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
        bytes_max: u64,
    ) -> Result<T, ClientError> {
        let bytes = self.transport.fetch(method, path, body, bytes_max).await?;
        serde_json::from_slice(&bytes).map_err(|e| self.transport.decode_error(path, &e))
    }
}
