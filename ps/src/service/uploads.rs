//! Uploads: declared before a byte is sent, received in parts that are synced before they are acknowledged, resumable.

use super::{
    Refusal, Service,
    refusal::{bad_signature, unknown_upload},
};
use crate::{PsError, db::Upload};
use alice_api::{DeclareRequest, ErrorCode, Hex32, UploadState};
use bytes::Bytes;
use std::{
    fs::OpenOptions,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

/// Largest part in one request, bytes: small enough to be sent again after a broken connection, large enough that the
/// two syncs of a part are not what limits a fast line.
pub const PART_BYTES_MAX: u64 = 1 << 20;
/// Uploads that a key may declare for one task: a miner that is restarted may train to another update.
const UPLOADS_PER_TASK_MAX: u32 = 4;

impl Service {
    /// Takes a declaration; for a known upload this is its state.
    pub async fn declare(&self, request: &DeclareRequest) -> Result<UploadState, Refusal> {
        if !request.verify(&self.run().genesis) {
            return Err(bad_signature("declaration", "genesis hash, task, key, hash and size"));
        }
        let budget = self.run().spec.update.budget_bytes;
        if request.bytes > budget {
            return Err(Refusal::new(
                ErrorCode::TooLarge,
                format!("the update has {} bytes, the run allows {budget}", request.bytes),
                "encode it within update.budget_bytes of the run specification",
            ));
        }
        if request.bytes == 0 {
            return Err(Refusal::new(
                ErrorCode::BadRequest,
                "the update has no bytes",
                "declare the size of the encoded update",
            ));
        }
        let id = request.id();
        let _lock = self.upload_lock(&id).await;
        if let Some(known) = self.db().upload(&id).await? {
            return self.upload_answer(known).await;
        }
        let _guard = self.db().write().await;
        let block = self.best()?;
        let lease = self.db().lease(&request.task_id).await?;
        if let Some(lease) = &lease
            && lease.task.miner == request.miner
        {
            self.in_time(lease.task.epoch, &request.task_id).await?;
        }
        let lease = self.live_lease(&request.task_id, &request.miner, block, &id).await?;
        // Each may take the run's update budget on disk, and keys are free.
        if self.db().count_uploads(&request.task_id, &request.miner).await? >= UPLOADS_PER_TASK_MAX {
            return Err(Refusal::new(
                ErrorCode::NoTask,
                format!(
                    "{UPLOADS_PER_TASK_MAX} uploads were already declared for task {}",
                    request.task_id
                ),
                "finish one of them, or claim another task",
            ));
        }
        let upload = Upload {
            id,
            task_id: request.task_id,
            epoch: lease.task.epoch,
            miner: request.miner,
            blob: request.blob,
            bytes: request.bytes,
            received: 0,
        };
        self.db().store_upload(&upload).await?;
        tracing::debug!(upload = %id, bytes = request.bytes, "declared");
        self.upload_answer(upload).await
    }

    /// State of an upload.
    pub async fn upload_state(&self, id: &Hex32) -> Result<UploadState, Refusal> {
        let upload = self.db().upload(id).await?.ok_or_else(|| unknown_upload(id))?;
        self.upload_answer(upload).await
    }

    /// Appends a part. It is on disk and synced before this returns.
    pub async fn receive(&self, id: &Hex32, offset: u64, part: Bytes) -> Result<UploadState, Refusal> {
        let lock = self.upload_lock(id).await;
        let mut upload = self.db().upload(id).await?.ok_or_else(|| unknown_upload(id))?;
        if self.db().submission(id).await?.is_some() {
            return self.upload_answer(upload).await;
        }
        self.in_time(upload.epoch, id).await?;
        if offset != upload.received {
            return Err(Refusal::new(
                ErrorCode::WrongOffset,
                format!("the part starts at byte {offset}, the server has {}", upload.received),
                format!("resume at ?offset={}", upload.received),
            ));
        }
        let end = offset.saturating_add(part.len() as u64);
        if end > upload.bytes {
            return Err(Refusal::new(
                ErrorCode::TooLarge,
                format!("the part ends at byte {end}, {} were declared", upload.bytes),
                "declare the update again with its real size",
            ));
        }
        let path = self.state.files().upload(id);
        // The lock moves into the write: if the client goes away the request is dropped and the write is still running;
        // it must not truncate what a later request has written by then.
        let write = move || {
            append(&path, offset, &part).map_err(|e| PsError::file("write", &path, &e))?;
            Ok(lock)
        };
        let _lock = blocking(write).await?;
        self.db().set_received(id, end).await?;
        upload.received = end;
        self.upload_answer(upload).await
    }

    /// Checks that all bytes have arrived and have the declared hash. Bytes with another hash are discarded, so that
    /// the miner can send them again.
    pub(super) async fn check_bytes(&self, upload: &Upload) -> Result<(), Refusal> {
        if upload.received < upload.bytes {
            return Err(Refusal::new(
                ErrorCode::Incomplete,
                format!("{} of {} bytes are there", upload.received, upload.bytes),
                format!("send the rest from ?offset={}, then commit again", upload.received),
            ));
        }
        let path = self.state.files().upload(&upload.id);
        let bytes_max = upload.bytes.saturating_add(1);
        let found = blocking(move || hash(&path, bytes_max).map_err(|e| PsError::file("read", &path, &e))).await?;
        if found == upload.blob.0 {
            return Ok(());
        }
        self.db().set_received(&upload.id, 0).await?;
        self.db()
            .count_refusal(upload.epoch, ErrorCode::HashMismatch, &upload.id)
            .await?;
        Err(Refusal::new(
            ErrorCode::HashMismatch,
            format!("the bytes hash to {}, {} was declared", Hex32(found), upload.blob),
            "send all bytes again from ?offset=0, or declare what you have",
        ))
    }

    async fn upload_answer(&self, upload: Upload) -> Result<UploadState, Refusal> {
        Ok(UploadState {
            id: upload.id,
            offset: upload.received,
            bytes: upload.bytes,
            part_bytes_max: PART_BYTES_MAX,
            committed: self.db().submission(&upload.id).await?.is_some(),
        })
    }
}

/// Writes at `offset`, and syncs. After a crash between this and the acknowledgement the client sends the same bytes
/// again, so whatever is beyond the offset is cut off first.
fn append(path: &Path, offset: u64, part: &[u8]) -> io::Result<()> {
    let created = !path.exists();
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    file.set_len(offset)?;
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(part)?;
    file.sync_all()?;
    if created && let Some(dir) = path.parent() {
        // A new file's name is an entry of its folder, which is synced separately.
        std::fs::File::open(dir)?.sync_all()?;
    }
    Ok(())
}

fn hash(path: &Path, bytes_max: u64) -> io::Result<[u8; 32]> {
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file.take(bytes_max),
        // Lost with the disk: the hash of no bytes differs from the declared one, so the miner sends the update again.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(*blake3::hash(&[]).as_bytes()),
        Err(e) => return Err(e),
    };
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut file, &mut hasher)?;
    Ok(*hasher.finalize().as_bytes())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, PsError> + Send + 'static) -> Result<T, PsError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
