//! Which network and run the directory belongs to, and the steps of the model.

use super::{Db, DbError, from_json, hash, number, to_json};
use alice_api::{Delta, Earlier, Hex32, ModelManifest, Snapshot};
use alice_primitives::Hash;
use sqlx::{Sqlite, Transaction};
use std::collections::VecDeque;

/// Maximum steps before a snapshot that are offered to those who are behind; bounds the answer.
const EARLIER_MAX: u32 = 256;

pub(super) const NEWEST_SNAPSHOT: &str =
    "SELECT step, snapshot FROM steps WHERE snapshot IS NOT NULL ORDER BY step DESC LIMIT 1";

/// The newest step of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Steps taken.
    pub step: u32,
    /// Root of the weights.
    pub root: Hash,
}

impl Db {
    /// Stores network, run and first state, all at once.
    pub async fn init(&self, genesis: &Hash, run_hash: &Hash, run_text: &str, first: &Snapshot) -> Result<(), DbError> {
        let _guard = self.write().await;
        let mut tx = self.pool.begin().await?;
        let facts: [(&str, &[u8]); 3] = [
            ("genesis", genesis),
            ("run_hash", run_hash),
            ("run_text", run_text.as_bytes()),
        ];
        for (key, value) in facts {
            sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?)")
                .bind(key)
                .bind(value)
                .execute(&mut *tx)
                .await?;
        }
        sqlx::query("INSERT INTO steps (step, root, snapshot) VALUES (0, ?, ?)")
            .bind(&first.model_root.0[..])
            .bind(to_json("a snapshot", first)?)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// Newest step; `None` before `init`.
    pub async fn model_step(&self) -> Result<Option<Step>, DbError> {
        let row: Option<(i64, Vec<u8>)> = sqlx::query_as("SELECT step, root FROM steps ORDER BY step DESC LIMIT 1")
            .fetch_optional(&self.pool)
            .await?;
        row.map(|(step, root)| {
            Ok(Step {
                step: number("a step", step)?,
                root: hash("a model root", root)?,
            })
        })
        .transpose()
    }

    /// How to get the current model.
    pub async fn model_manifest(&self) -> Result<Option<ModelManifest>, DbError> {
        // One transaction, so that a step that is stored meanwhile cannot put a gap between snapshot and deltas.
        let mut tx = self.pool.begin().await?;
        let row: Option<(i64, String)> = sqlx::query_as(NEWEST_SNAPSHOT).fetch_optional(&mut *tx).await?;
        let Some((from, snapshot)) = row else { return Ok(None) };
        let rows: Vec<(i64, Vec<u8>, Option<String>)> =
            sqlx::query_as("SELECT step, root, delta FROM steps WHERE step >= ? ORDER BY step")
                .bind(from.saturating_sub(EARLIER_MAX.into()))
                .fetch_all(&mut *tx)
                .await?;
        let snapshot: Snapshot = from_json("a snapshot", &snapshot)?;
        let (mut root, mut step, mut deltas) = (snapshot.model_root, snapshot.step, Vec::new());
        // Each delta before the snapshot, with the root of the model that it changes.
        let mut before: VecDeque<(Hex32, Delta)> = VecDeque::new();
        for (row, (at, at_root, delta)) in rows.into_iter().enumerate() {
            let base = std::mem::replace(&mut root, Hex32(hash("a model root", at_root)?));
            step = number("a step", at)?;
            if row == 0 {
                continue;
            }
            let delta = delta.ok_or(DbError::Damaged {
                what: "a step",
                problem: format!("step {at} has no delta"),
            });
            match delta.and_then(|delta| from_json::<Delta>("a delta", &delta)) {
                Ok(delta) if at > from => deltas.push(delta),
                Ok(delta) => before.push_back((base, delta)),
                Err(error) if at > from => return Err(error),
                // Steps before the snapshot only save bytes, so a damaged one shortens the list.
                Err(_) => before.clear(),
            }
        }
        // As far back as the deltas together have fewer bytes than the snapshot.
        let mut bytes: u64 = before.iter().map(|(_, delta)| delta.bytes).sum();
        while bytes >= snapshot.bytes {
            let Some((_, delta)) = before.pop_front() else { break };
            bytes -= delta.bytes;
        }
        let earlier = before.front().map(|(base, _)| *base).map(|model_root| Earlier {
            model_root,
            deltas: before.into_iter().map(|(_, delta)| delta).collect(),
        });
        Ok(Some(ModelManifest {
            model_root: root,
            model_step: step,
            snapshot,
            deltas,
            earlier,
        }))
    }

    /// Snapshots that were published, oldest first.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, DbError> {
        let rows: Vec<String> =
            sqlx::query_scalar("SELECT snapshot FROM steps WHERE snapshot IS NOT NULL ORDER BY step")
                .fetch_all(&self.pool)
                .await?;
        rows.iter().map(|text| from_json("a snapshot", text)).collect()
    }

    /// Forgets an old snapshot; its chunks may be removed afterwards.
    pub async fn forget_snapshot(&self, step: u32) -> Result<(), DbError> {
        let _guard = self.write().await;
        sqlx::query("UPDATE steps SET snapshot = NULL WHERE step = ?")
            .bind(step)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// Adds a step as part of an epoch's results.
pub(super) async fn insert_step(
    tx: &mut Transaction<'_, Sqlite>,
    step: u32,
    delta: &Delta,
    snapshot: Option<&Snapshot>,
) -> Result<(), DbError> {
    let snapshot = snapshot.map(|s| to_json("a snapshot", s)).transpose()?;
    sqlx::query("INSERT INTO steps (step, root, delta, snapshot) VALUES (?, ?, ?, ?)")
        .bind(step)
        .bind(&delta.model_root.0[..])
        .bind(to_json("a delta", delta)?)
        .bind(snapshot)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(n: u32) -> Hex32 {
        let mut root = [0; 32];
        root[..4].copy_from_slice(&n.to_le_bytes());
        Hex32(root)
    }

    fn snapshot(step: u32) -> Snapshot {
        Snapshot {
            model_root: root(step),
            step,
            bytes: 100,
            chunk_bytes: 100,
            chunks: vec![],
        }
    }

    /// A run of `steps` steps of `bytes` bytes each, with a snapshot of 100 bytes at the last but one.
    async fn steps(dir: &std::path::Path, steps: u32, bytes: u64) -> Db {
        let db = Db::open(&dir.join("db")).await.unwrap();
        db.init(&[1; 32], &[2; 32], "", &snapshot(0)).await.unwrap();
        let mut tx = db.pool.begin().await.unwrap();
        for step in 1..=steps {
            let delta = Delta {
                epoch: step,
                model_root: root(step),
                blob: root(100 + step),
                bytes,
                alpha_bits: 0,
            };
            let at = (step == steps - 1).then(|| snapshot(step));
            insert_step(&mut tx, step, &delta, at.as_ref()).await.unwrap();
        }
        tx.commit().await.unwrap();
        db
    }

    /// (root before, roots after) of the steps offered to those who are behind the snapshot.
    async fn earlier(db: &Db) -> Option<(Hex32, Vec<Hex32>)> {
        let manifest = db.model_manifest().await.unwrap().unwrap();
        assert_eq!(manifest.deltas.len(), 1, "behind the snapshot");
        let roots = |deltas: &[Delta]| deltas.iter().map(|delta| delta.model_root).collect();
        manifest
            .earlier
            .map(|earlier| (earlier.model_root, roots(&earlier.deltas)))
    }

    async fn damage(db: &Db, step: i64) {
        let damaged = sqlx::query("UPDATE steps SET delta = 'x' WHERE step = ?").bind(step);
        damaged.execute(&db.pool).await.unwrap();
    }

    #[tokio::test]
    async fn steps_before_a_snapshot_should_be_offered_while_they_are_smaller_than_it() {
        let dir = tempfile::tempdir().unwrap();
        let db = steps(dir.path(), 5, 30).await;
        // Four would have 120 bytes.
        assert_eq!(earlier(&db).await, Some((root(1), vec![root(2), root(3), root(4)])));
        db.forget_snapshot(0).await.unwrap();
        assert_eq!(earlier(&db).await, Some((root(1), vec![root(2), root(3), root(4)])));
        // A delta before the snapshot that cannot be read is left out; one after it is an error.
        damage(&db, 2).await;
        assert_eq!(earlier(&db).await, Some((root(2), vec![root(3), root(4)])));
        damage(&db, 4).await;
        assert_eq!(earlier(&db).await, None);
        damage(&db, 5).await;
        assert!(matches!(db.model_manifest().await, Err(DbError::Damaged { .. })));
    }

    #[tokio::test]
    async fn at_most_256_steps_before_a_snapshot_should_be_offered() {
        let dir = tempfile::tempdir().unwrap();
        let db = steps(dir.path(), EARLIER_MAX + 3, 0).await;
        let (before, after) = earlier(&db).await.unwrap();
        // The snapshot is at step 258.
        assert_eq!((before, after.len()), (root(2), 256));
        assert_eq!(after.last(), Some(&root(EARLIER_MAX + 2)));
    }
}
