//! Commits: how a complete upload becomes a submission.

use super::{
    Refusal, Service,
    refusal::{bad_signature, not_yours, unknown_upload},
};
use alice_api::{CommitRequest, ErrorCode, Hex32, Receipt, ReceiptBody};

impl Service {
    /// Turns a complete upload into a submission. A repeated commit returns the same receipt, also after the deadline.
    ///
    /// # Errors
    /// Every refusal of the commit endpoint in docs/spec/http-api.md.
    pub async fn commit(&self, id: &Hex32, request: &CommitRequest) -> Result<Receipt, Refusal> {
        if request.id != *id {
            return Err(Refusal::new(
                ErrorCode::BadRequest,
                "the commit names another upload than the path",
                "send it to its own path",
            ));
        }
        if !request.verify(&self.run().genesis) {
            return Err(bad_signature("commit", "genesis hash, upload and key"));
        }
        let _lock = self.upload_lock(id).await;
        let upload = self.db().upload(id).await?.ok_or_else(|| unknown_upload(id))?;
        if upload.miner != request.miner {
            return Err(not_yours(&upload.task_id));
        }
        if let Some(done) = self.db().submission(id).await? {
            return Ok(done.receipt);
        }
        // Hashed before the write lock is taken: hashing 16 MB from a slow disk must not stop other miners' commits.
        self.in_time(upload.epoch, &upload.id).await?;
        self.check_bytes(&upload).await?;

        let _guard = self.db().write().await;
        // Once more, now that the round cannot be sealed: the hash may have taken until after the deadline.
        let block = self.in_time(upload.epoch, &upload.id).await?;
        let lease = self
            .live_lease(&upload.task_id, &upload.miner, block, &upload.id)
            .await?;
        let body = ReceiptBody {
            id: *id,
            task_id: upload.task_id,
            epoch: upload.epoch,
            miner: upload.miner,
            payout: lease.task.payout,
            blob: upload.blob,
            bytes: upload.bytes,
            block,
            sequence: self.db().count_submissions(upload.epoch).await?,
        };
        let receipt = Receipt::new(self.state.key(), &self.run().genesis, body);
        self.db().store_submission(&receipt).await?;
        metrics::counter!("alice_ps_submissions_total").increment(1);
        tracing::info!(epoch = upload.epoch, submission = %id, miner = %upload.miner, bytes = upload.bytes, block, "committed");
        Ok(receipt)
    }
}
