//! Rounds, their tasks, and the refusals in them.

use super::{Db, DbError, epochs::store_verdicts, from_json, hash, number, to_json};
use alice_api::{ErrorCode, Hex32, Lease, SeedBlock, Task, Verdict};
use alice_primitives::Hash;
use alice_round::Stage;
use std::collections::BTreeMap;

pub(super) const NEWEST_ROUND: &str =
    "SELECT epoch, stage, base_root, base_step FROM rounds ORDER BY epoch DESC LIMIT 1";
pub(super) const ROUND: &str = "SELECT epoch, stage, base_root, base_step FROM rounds WHERE epoch = ?";
// NOT EXISTS looks one task up in the unique index on submissions.task_id. NOT IN would build the list of the epoch's
// submissions again for every task of the key: 2.9 s instead of 2 ms for 256 tasks among 4,096 submissions.
pub(super) const OPEN_LEASE: &str = "SELECT lease FROM tasks WHERE epoch = ? AND miner = ? AND lease_block >= ?
     AND NOT EXISTS (SELECT 1 FROM submissions AS s WHERE s.task_id = tasks.task_id) ORDER BY slice LIMIT 1";
pub(super) const NEXT_SLICE: &str = "SELECT COALESCE(MAX(slice) + 1, 0) FROM tasks WHERE epoch = ?";
pub(super) const EXPIRED_SLICE: &str = "SELECT slice FROM tasks WHERE epoch = ? AND lease_block < ?
     AND NOT EXISTS (SELECT 1 FROM submissions AS s WHERE s.task_id = tasks.task_id) ORDER BY slice LIMIT 1";
pub(super) const REFUSALS: &str = "SELECT code, COUNT(*) FROM refusals WHERE epoch = ? GROUP BY code";

type RoundColumns = (i64, String, Vec<u8>, i64);

/// A round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundRow {
    /// Epoch.
    pub epoch: u32,
    /// Stage. `Scoring` is never stored: after a restart scoring begins again from `Sealed`.
    pub stage: Stage,
    /// Model it trains on.
    pub base_root: Hash,
    /// Steps that model has taken.
    pub base_step: u32,
}

impl Db {
    /// Opens a round on the current model. Opening it again changes nothing.
    pub async fn open_round(&self, epoch: u32, block: u32) -> Result<(), DbError> {
        let _guard = self.write().await;
        // The model is read in the same statement: a round can only be opened on the newest stored step.
        sqlx::query(
            "INSERT INTO rounds (epoch, stage, base_root, base_step, opened_block)
             SELECT ?, 'open', root, step, ? FROM steps ORDER BY step DESC LIMIT 1 ON CONFLICT DO NOTHING",
        )
        .bind(epoch)
        .bind(block)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Seals a round: no commit to it is accepted any more.
    pub async fn seal_round(&self, epoch: u32) -> Result<(), DbError> {
        let _guard = self.write().await;
        sqlx::query("UPDATE rounds SET stage = 'sealed' WHERE epoch = ? AND stage = 'open'")
            .bind(epoch)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Ends a round without results: nothing was submitted, or it is voided with these verdicts.
    pub async fn close_round(&self, epoch: u32, verdicts: &[Verdict]) -> Result<(), DbError> {
        let _guard = self.write().await;
        let mut tx = self.pool.begin().await?;
        // One transaction: a round without results must not end up with verdicts of half its submissions.
        store_verdicts(&mut tx, verdicts).await?;
        sqlx::query("UPDATE rounds SET stage = 'scored' WHERE epoch = ?")
            .bind(epoch)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// The newest round.
    pub async fn newest_round(&self) -> Result<Option<RoundRow>, DbError> {
        let row: Option<RoundColumns> = sqlx::query_as(NEWEST_ROUND).fetch_optional(&self.pool).await?;
        row.map(round_row).transpose()
    }

    /// The round of an epoch.
    pub async fn round(&self, epoch: u32) -> Result<Option<RoundRow>, DbError> {
        let row: Option<RoundColumns> = sqlx::query_as(ROUND).bind(epoch).fetch_optional(&self.pool).await?;
        row.map(round_row).transpose()
    }

    /// Stores the blocks of the validation seed. Blocks that are stored stay: a seed is never drawn twice.
    pub async fn store_seed(&self, epoch: u32, blocks: &[SeedBlock]) -> Result<(), DbError> {
        let _guard = self.write().await;
        sqlx::query("UPDATE rounds SET seed = ? WHERE epoch = ? AND seed IS NULL")
            .bind(to_json("seed blocks", &blocks)?)
            .bind(epoch)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The blocks of the validation seed.
    pub async fn seed(&self, epoch: u32) -> Result<Option<Vec<SeedBlock>>, DbError> {
        let text: Option<Option<String>> = sqlx::query_scalar("SELECT seed FROM rounds WHERE epoch = ?")
            .bind(epoch)
            .fetch_optional(&self.pool)
            .await?;
        text.flatten().map(|text| from_json("seed blocks", &text)).transpose()
    }

    /// A task's lease.
    pub async fn lease(&self, task: &Hex32) -> Result<Option<Lease>, DbError> {
        let text: Option<String> = sqlx::query_scalar("SELECT lease FROM tasks WHERE task_id = ?")
            .bind(&task.0[..])
            .fetch_optional(&self.pool)
            .await?;
        text.map(|text| from_json("a lease", &text)).transpose()
    }

    /// Lease of the task that a key holds and has not answered, if it lasts to `block` at least.
    pub async fn open_lease(&self, epoch: u32, miner: &Hex32, block: u32) -> Result<Option<Lease>, DbError> {
        let text: Option<String> = sqlx::query_scalar(OPEN_LEASE)
            .bind(epoch)
            .bind(&miner.0[..])
            .bind(block)
            .fetch_optional(&self.pool)
            .await?;
        text.map(|text| from_json("a lease", &text)).transpose()
    }

    /// The next slice of a round: the first that was never leased, or, if all `slices_max` were, one whose lease
    /// expired before `block` without an answer. `None` if there is neither.
    pub async fn next_slice(&self, epoch: u32, slices_max: u32, block: u32) -> Result<Option<u32>, DbError> {
        let next: i64 = sqlx::query_scalar(NEXT_SLICE).bind(epoch).fetch_one(&self.pool).await?;
        let next = number("a slice", next)?;
        if next < slices_max {
            return Ok(Some(next));
        }
        let expired: Option<i64> = sqlx::query_scalar(EXPIRED_SLICE)
            .bind(epoch)
            .bind(block)
            .fetch_optional(&self.pool)
            .await?;
        expired.map(|slice| number("a slice", slice)).transpose()
    }

    /// Stores a lease; it replaces an expired one of the same task.
    pub async fn store_lease(&self, lease: &Lease) -> Result<(), DbError> {
        let task = &lease.task;
        sqlx::query(
            "INSERT INTO tasks (task_id, epoch, slice, miner, lease_block, lease) VALUES (?, ?, ?, ?, ?, ?)
             ON CONFLICT (task_id) DO UPDATE SET miner = excluded.miner, lease_block = excluded.lease_block,
             lease = excluded.lease",
        )
        .bind(&task.task_id.0[..])
        .bind(task.epoch)
        .bind(task.slice)
        .bind(&task.miner.0[..])
        .bind(task.lease_block)
        .bind(to_json("a lease", lease)?)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// All tasks of a round in order of their slices.
    pub async fn tasks(&self, epoch: u32) -> Result<Vec<Task>, DbError> {
        let rows: Vec<String> = sqlx::query_scalar("SELECT lease FROM tasks WHERE epoch = ? ORDER BY slice")
            .bind(epoch)
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|text| Ok(from_json::<Lease>("a lease", text)?.task))
            .collect()
    }

    /// Counts a refusal, once for each subject.
    pub async fn count_refusal(&self, epoch: u32, code: ErrorCode, subject: &Hex32) -> Result<(), DbError> {
        // A client that repeats a refused request must not inflate the counts of the manifest.
        sqlx::query("INSERT INTO refusals (epoch, code, subject) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(epoch)
            .bind(code.code())
            .bind(&subject.0[..])
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Refusals of a round by code.
    pub async fn refusals(&self, epoch: u32) -> Result<BTreeMap<String, u32>, DbError> {
        let rows: Vec<(String, i64)> = sqlx::query_as(REFUSALS).bind(epoch).fetch_all(&self.pool).await?;
        rows.into_iter()
            .map(|(code, count)| Ok((code, number("a count", count)?)))
            .collect()
    }

    /// Reserve sequences that were drawn in other epochs.
    pub async fn reserve_used(&self, except_epoch: u32) -> Result<std::collections::BTreeSet<u32>, DbError> {
        let rows: Vec<i64> = sqlx::query_scalar("SELECT sequence FROM reserve_used WHERE epoch <> ?")
            .bind(except_epoch)
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter().map(|s| number("a reserve sequence", s)).collect()
    }
}

fn round_row((epoch, stage, base_root, base_step): RoundColumns) -> Result<RoundRow, DbError> {
    let stage = match stage.as_str() {
        "open" => Stage::Open,
        "sealed" => Stage::Sealed,
        "scored" => Stage::Scored,
        other => {
            return Err(DbError::Damaged {
                what: "a round's stage",
                problem: format!("'{other}'"),
            });
        }
    };
    Ok(RoundRow {
        epoch: number("an epoch", epoch)?,
        stage,
        base_root: hash("a base root", base_root)?,
        base_step: number("a step", base_step)?,
    })
}
