//! Results of scored epochs: all of one epoch are stored in one transaction.

use super::{Db, DbError, from_json, hash, model::insert_step, number, to_json};
use alice_api::{Delta, EpochSummary, Hex32, Outcome, PayoutPage, Snapshot, Verdict};
use alice_primitives::{Hash, SettlementStatus};

/// A scored epoch as it is stored, apart from its manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct EpochRow {
    /// Summary.
    pub summary: EpochSummary,
    /// Median norm ν_p of each fragment after the round; `None` if no update of it was ever accepted.
    pub median_norms: Vec<Option<f32>>,
    /// Root over the payout pages.
    pub contributions_root: Hash,
    /// Payout pages.
    pub pages: u32,
    /// Payout entries.
    pub entries: u32,
    /// Sum of the scores.
    pub total_score: u128,
}

/// A payout page with the accounts on it.
pub type PageRow = PayoutPage;

/// Everything that the scoring of an epoch decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    /// The epoch.
    pub row: EpochRow,
    /// Verdicts, one for each submission.
    pub verdicts: Vec<Verdict>,
    /// Payout pages.
    pub pages: Vec<PageRow>,
    /// Number and delta of the model's step, and the snapshot if one is due; `None` if no step was taken.
    pub step: Option<(u32, Delta, Option<Snapshot>)>,
    /// Reserve sequences that must not be drawn again, in a run that allows each once.
    pub reserve_used: Vec<u32>,
}

type Columns = (String, String, Option<i64>, String, Vec<u8>, i64, i64, String);
const EPOCH: &str = "SELECT summary, settlement, settled_block, median_norms, contributions_root, pages, entries,
     total_score FROM epochs WHERE epoch = ?";
pub(super) const EPOCHS_BEFORE: &str =
    "SELECT summary, settlement, settled_block, median_norms, contributions_root, pages,
     entries, total_score FROM epochs WHERE epoch < ? ORDER BY epoch DESC LIMIT ?";

impl Db {
    /// Stores an epoch's results. Storing them again changes nothing: the first decision stays.
    pub async fn store_results(&self, results: &Results) -> Result<(), DbError> {
        let _guard = self.write().await;
        let (row, summary) = (&results.row, &results.row.summary);
        let epoch = summary.epoch;
        let mut tx = self.pool.begin().await?;
        let inserted = sqlx::query(
            "INSERT INTO epochs (epoch, manifest_hash, model_root, median_norms, summary, contributions_root, pages,
             entries, total_score, settlement) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(epoch)
        .bind(&summary.manifest_hash.0[..])
        .bind(&summary.model_root.0[..])
        .bind(to_json("norms", &row.median_norms)?)
        .bind(to_json("a summary", summary)?)
        .bind(&row.contributions_root[..])
        .bind(row.pages)
        .bind(row.entries)
        .bind(row.total_score.to_string())
        .bind(summary.settlement.as_str())
        .execute(&mut *tx)
        .await?;
        if inserted.rows_affected() == 0 {
            // Scored before a crash. The first decision may be signed already, so it is never replaced.
            return Ok(());
        }
        store_verdicts(&mut tx, &results.verdicts).await?;
        for page in &results.pages {
            sqlx::query("INSERT INTO pages (epoch, page, body) VALUES (?, ?, ?)")
                .bind(epoch)
                .bind(page.index)
                .bind(to_json("a payout page", page)?)
                .execute(&mut *tx)
                .await?;
            for entry in &page.entries {
                sqlx::query("INSERT INTO payees (epoch, account, page) VALUES (?, ?, ?)")
                    .bind(epoch)
                    .bind(&entry.account.0[..])
                    .bind(page.index)
                    .execute(&mut *tx)
                    .await?;
            }
        }
        if let Some((step, delta, snapshot)) = &results.step {
            insert_step(&mut tx, *step, delta, snapshot.as_ref()).await?;
        }
        for sequence in &results.reserve_used {
            sqlx::query("INSERT INTO reserve_used (sequence, epoch) VALUES (?, ?) ON CONFLICT DO NOTHING")
                .bind(*sequence)
                .bind(epoch)
                .execute(&mut *tx)
                .await?;
        }
        sqlx::query("UPDATE rounds SET stage = 'scored' WHERE epoch = ?")
            .bind(epoch)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// An epoch.
    pub async fn epoch(&self, epoch: u32) -> Result<Option<EpochRow>, DbError> {
        let row: Option<Columns> = sqlx::query_as(EPOCH).bind(epoch).fetch_optional(&self.pool).await?;
        match row {
            Some(row) => Ok(Some(self.with_late(epoch_row(row)?).await?)),
            None => Ok(None),
        }
    }

    /// The newest epochs before one, newest first.
    pub async fn epochs(&self, before: u32, limit: u32) -> Result<Vec<EpochSummary>, DbError> {
        let rows: Vec<Columns> = sqlx::query_as(EPOCHS_BEFORE)
            .bind(before)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            all.push(self.with_late(epoch_row(row)?).await?.summary);
        }
        Ok(all)
    }

    /// Late commits arrive even after the epoch is scored, so they are counted when the summary is read.
    async fn with_late(&self, mut row: EpochRow) -> Result<EpochRow, DbError> {
        let counts = self.refusals(row.summary.epoch).await?;
        row.summary.late = counts.get("late").copied().unwrap_or(0);
        Ok(row)
    }

    /// Median norm ν_p of each fragment after the newest scored epoch; empty before the first.
    pub async fn median_norms(&self) -> Result<Vec<Option<f32>>, DbError> {
        let norms: Option<String> = sqlx::query_scalar("SELECT median_norms FROM epochs ORDER BY epoch DESC LIMIT 1")
            .fetch_optional(&self.pool)
            .await?;
        norms.map_or(Ok(Vec::new()), |norms| from_json("norms", &norms))
    }

    /// Epochs that the chain has not settled.
    pub async fn unsettled(&self) -> Result<Vec<u32>, DbError> {
        let rows: Vec<i64> = sqlx::query_scalar(
            "SELECT epoch FROM epochs WHERE settlement NOT IN ('settled', 'forfeited') ORDER BY epoch",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(|epoch| number("an epoch", epoch)).collect()
    }

    /// Stores how far the settlement of an epoch has come.
    pub async fn set_settlement(
        &self,
        epoch: u32,
        settlement: SettlementStatus,
        block: Option<u32>,
    ) -> Result<(), DbError> {
        let _guard = self.write().await;
        sqlx::query("UPDATE epochs SET settlement = ?, settled_block = ? WHERE epoch = ?")
            .bind(settlement.as_str())
            .bind(block)
            .bind(epoch)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// A payout page.
    pub async fn page(&self, epoch: u32, index: u32) -> Result<Option<PageRow>, DbError> {
        let body: Option<String> = sqlx::query_scalar("SELECT body FROM pages WHERE epoch = ? AND page = ?")
            .bind(epoch)
            .bind(index)
            .fetch_optional(&self.pool)
            .await?;
        body.map(|body| from_json("a payout page", &body)).transpose()
    }

    /// The payout page of an epoch with an account's entry.
    pub async fn page_of(&self, epoch: u32, account: &Hex32) -> Result<Option<PageRow>, DbError> {
        let index: Option<i64> = sqlx::query_scalar("SELECT page FROM payees WHERE epoch = ? AND account = ?")
            .bind(epoch)
            .bind(&account.0[..])
            .fetch_optional(&self.pool)
            .await?;
        match index {
            Some(index) => self.page(epoch, number("a page", index)?).await,
            None => Ok(None),
        }
    }
}

pub(super) async fn store_verdicts(tx: &mut sqlx::SqliteConnection, verdicts: &[Verdict]) -> Result<(), DbError> {
    for verdict in verdicts {
        sqlx::query("UPDATE submissions SET verdict = ?, accepted = ? WHERE id = ?")
            .bind(to_json("a verdict", verdict)?)
            .bind(i64::from(verdict.body.outcome == Outcome::Accepted))
            .bind(&verdict.body.id.0[..])
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

fn epoch_row(row: Columns) -> Result<EpochRow, DbError> {
    let (summary, settlement, block, norms, root, pages, entries, total) = row;
    let mut summary: EpochSummary = from_json("a summary", &summary)?;
    summary.settlement = settlement.parse().map_err(|_| DbError::Damaged {
        what: "a settlement status",
        problem: format!("'{settlement}'"),
    })?;
    summary.settled_block = block.map(|b| number("a block", b)).transpose()?;
    Ok(EpochRow {
        summary,
        median_norms: from_json("norms", &norms)?,
        contributions_root: hash("a contributions root", root)?,
        pages: number("a number of pages", pages)?,
        entries: number("a number of entries", entries)?,
        total_score: total.parse().map_err(|_| DbError::Damaged {
            what: "a total score",
            problem: total.clone(),
        })?,
    })
}
