//! Uploads and the submissions that they become.

use super::{Db, DbError, from_json, hash, number, to_json};
use alice_api::{Hex32, MinerHistory, Receipt, SubmissionStatus};
use alice_primitives::Hash;
use std::path::PathBuf;

/// Maximum submissions in a history: about 200 KB of JSON.
const HISTORY_MAX: u32 = 100;

/// A declared upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Identifier, also the submission's.
    pub id: Hex32,
    /// Task it answers.
    pub task_id: Hex32,
    /// Epoch of the task.
    pub epoch: u32,
    /// Mining key.
    pub miner: Hex32,
    /// BLAKE3 of the update.
    pub blob: Hex32,
    /// Declared size.
    pub bytes: u64,
    /// Bytes on disk, synced.
    pub received: u64,
}

/// A submission that waits for its verdict.
#[derive(Clone, Debug, PartialEq)]
pub struct Collected {
    /// Its receipt.
    pub receipt: Receipt,
    /// Whether its key has accepted work in an earlier round.
    pub proven: bool,
    /// Slice of its task.
    pub slice: u32,
    /// File with its bytes.
    pub file: PathBuf,
}

type UploadColumns = (Vec<u8>, Vec<u8>, i64, Vec<u8>, Vec<u8>, i64, i64);

fn upload(row: UploadColumns) -> Result<Upload, DbError> {
    let (id, task, epoch, miner, blob, bytes, received) = row;
    Ok(Upload {
        id: Hex32(hash("an upload", id)?),
        task_id: Hex32(hash("an upload's task", task)?),
        epoch: number("an upload's epoch", epoch)?,
        miner: Hex32(hash("an upload's key", miner)?),
        blob: Hex32(hash("an upload's hash", blob)?),
        bytes: bytes.unsigned_abs(),
        received: received.unsigned_abs(),
    })
}

const UPLOAD: &str = "SELECT id, task_id, epoch, miner, blob, bytes, received FROM uploads WHERE id = ?";
const UPLOADS: &str =
    "SELECT id, task_id, epoch, miner, blob, bytes, received FROM uploads WHERE epoch = ? ORDER BY id";
pub(super) const COUNT_UPLOADS: &str = "SELECT COUNT(*) FROM uploads WHERE task_id = ? AND miner = ?";
pub(super) const SUBMISSION: &str = "SELECT receipt, verdict FROM submissions WHERE id = ?";
pub(super) const COUNT_SUBMISSIONS: &str = "SELECT COUNT(*) FROM submissions WHERE epoch = ?";
pub(super) const COLLECTED: &str = "SELECT receipt, (SELECT slice FROM tasks WHERE tasks.task_id = s.task_id),
     EXISTS (SELECT 1 FROM submissions AS old WHERE old.miner = s.miner AND old.epoch < s.epoch AND old.accepted = 1)
     FROM submissions AS s WHERE epoch = ? ORDER BY id";
// A key is a mining key, a payout account, or both; what it mined for itself is counted and listed once. Each half is
// answered by one index in its order, so a long history costs no more than the rows that are returned.
pub(super) const HISTORY_COUNTS: &str = "SELECT COUNT(*), COALESCE(SUM(accepted), 0) FROM (
     SELECT accepted FROM submissions WHERE miner = ?1
     UNION ALL SELECT accepted FROM submissions WHERE payout = ?1 AND miner <> ?1)";
pub(super) const HOLDS_TASK: &str = "SELECT EXISTS (SELECT 1 FROM tasks WHERE miner = ?)";
pub(super) const HISTORY: &str = "SELECT receipt, verdict FROM (
     SELECT * FROM (SELECT epoch, sequence, receipt, verdict FROM submissions WHERE miner = ?1
                    ORDER BY epoch DESC, sequence DESC LIMIT ?2)
     UNION ALL
     SELECT * FROM (SELECT epoch, sequence, receipt, verdict FROM submissions WHERE payout = ?1 AND miner <> ?1
                    ORDER BY epoch DESC, sequence DESC LIMIT ?2))
     ORDER BY epoch DESC, sequence DESC LIMIT ?2";

impl Db {
    /// An upload.
    pub async fn upload(&self, id: &Hex32) -> Result<Option<Upload>, DbError> {
        let row: Option<UploadColumns> = sqlx::query_as(UPLOAD)
            .bind(&id.0[..])
            .fetch_optional(&self.pool)
            .await?;
        row.map(upload).transpose()
    }

    /// All uploads of an epoch.
    pub async fn uploads(&self, epoch: u32) -> Result<Vec<Upload>, DbError> {
        let rows: Vec<UploadColumns> = sqlx::query_as(UPLOADS).bind(epoch).fetch_all(&self.pool).await?;
        rows.into_iter().map(upload).collect()
    }

    /// Number of uploads that a key declared for a task.
    pub async fn count_uploads(&self, task: &Hex32, miner: &Hex32) -> Result<u32, DbError> {
        let count: i64 = sqlx::query_scalar(COUNT_UPLOADS)
            .bind(&task.0[..])
            .bind(&miner.0[..])
            .fetch_one(&self.pool)
            .await?;
        number("a count", count)
    }

    /// Stores a declaration.
    pub async fn store_upload(&self, upload: &Upload) -> Result<(), DbError> {
        sqlx::query(
            "INSERT INTO uploads (id, task_id, epoch, miner, blob, bytes) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(&upload.id.0[..])
        .bind(&upload.task_id.0[..])
        .bind(upload.epoch)
        .bind(&upload.miner.0[..])
        .bind(&upload.blob.0[..])
        // At most the run's update budget, so far below 2^63.
        .bind(upload.bytes as i64)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Stores the number of bytes on disk.
    pub async fn set_received(&self, id: &Hex32, received: u64) -> Result<(), DbError> {
        sqlx::query("UPDATE uploads SET received = ? WHERE id = ?")
            .bind(received as i64)
            .bind(&id.0[..])
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The submission that answered a task.
    pub async fn submission_of(&self, task: &Hex32) -> Result<Option<Hex32>, DbError> {
        let row: Option<Vec<u8>> = sqlx::query_scalar("SELECT id FROM submissions WHERE task_id = ?")
            .bind(&task.0[..])
            .fetch_optional(&self.pool)
            .await?;
        row.map(|id| Ok(Hex32(hash("a submission", id)?))).transpose()
    }

    /// Committed submissions of an epoch; also the position of the next one in the order of commits.
    pub async fn count_submissions(&self, epoch: u32) -> Result<u32, DbError> {
        let count: i64 = sqlx::query_scalar(COUNT_SUBMISSIONS)
            .bind(epoch)
            .fetch_one(&self.pool)
            .await?;
        number("a count", count)
    }

    /// Stores a submission with its receipt.
    pub async fn store_submission(&self, receipt: &Receipt) -> Result<(), DbError> {
        let body = &receipt.body;
        sqlx::query(
            "INSERT INTO submissions (id, task_id, epoch, sequence, miner, payout, receipt) VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&body.id.0[..])
        .bind(&body.task_id.0[..])
        .bind(body.epoch)
        .bind(body.sequence)
        .bind(&body.miner.0[..])
        .bind(&body.payout.0[..])
        .bind(to_json("a receipt", receipt)?)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Receipt and verdict of a submission.
    pub async fn submission(&self, id: &Hex32) -> Result<Option<SubmissionStatus>, DbError> {
        let row: Option<(String, Option<String>)> = sqlx::query_as(SUBMISSION)
            .bind(&id.0[..])
            .fetch_optional(&self.pool)
            .await?;
        row.map(status).transpose()
    }

    /// Submissions of an epoch in ascending order of id.
    pub async fn collected(&self, epoch: u32, file: impl Fn(&Hex32) -> PathBuf) -> Result<Vec<Collected>, DbError> {
        let rows: Vec<(String, i64, bool)> = sqlx::query_as(COLLECTED).bind(epoch).fetch_all(&self.pool).await?;
        rows.into_iter()
            .map(|(receipt, slice, proven)| {
                let receipt: Receipt = from_json("a receipt", &receipt)?;
                let file = file(&receipt.body.id);
                Ok(Collected {
                    receipt,
                    proven,
                    slice: number("a slice", slice)?,
                    file,
                })
            })
            .collect()
    }

    /// History of a mining key or a payout account; `None` if it never held a task and was never paid for one.
    pub async fn history(&self, key: &Hash) -> Result<Option<MinerHistory>, DbError> {
        let (submitted, accepted): (i64, i64) = sqlx::query_as(HISTORY_COUNTS)
            .bind(&key[..])
            .fetch_one(&self.pool)
            .await?;
        let holds_task: bool = sqlx::query_scalar(HOLDS_TASK)
            .bind(&key[..])
            .fetch_one(&self.pool)
            .await?;
        if submitted == 0 && !holds_task {
            return Ok(None);
        }
        let rows: Vec<(String, Option<String>)> = sqlx::query_as(HISTORY)
            .bind(&key[..])
            .bind(HISTORY_MAX)
            .fetch_all(&self.pool)
            .await?;
        let submissions = rows.into_iter().map(status).collect::<Result<_, _>>()?;
        let (submitted, accepted) = (number("a count", submitted)?, number("a count", accepted)?);
        Ok(Some(MinerHistory {
            key: Hex32(*key),
            submitted,
            accepted,
            submissions,
        }))
    }
}

fn status((receipt, verdict): (String, Option<String>)) -> Result<SubmissionStatus, DbError> {
    let verdict = verdict.map(|text| from_json("a verdict", &text)).transpose()?;
    Ok(SubmissionStatus {
        receipt: from_json("a receipt", &receipt)?,
        verdict,
    })
}
