//! The server's state in SQLite: WAL, and every transaction synced before it is acknowledged.
//!
//! **Decisions.** Whatever decides something (claims, commits, sealing, results) holds [`Db::write`], so that a
//! decision and the state it rests on cannot change under each other. Reads take no lock.
//!
//! **Connections.** The round, the miners' requests and the public reads have [`Db`] handles of their own, each with
//! its own connections to the same file ([`Db::with_connections`]). A flood of reads can delay other reads only; it can
//! neither stop a commit nor keep the driver from sealing a round.
//!
//! **Schema.** Tables are fixed by [`SCHEMA_VERSION`]; indexes are not part of it. They are made at every start if they
//! are missing, so a database of an earlier build gets those that this build's queries need (`indexes.sql`).

mod attestations;
mod epochs;
mod model;
mod rounds;
mod uploads;

pub use attestations::Attestation;
pub use epochs::{EpochRow, PageRow, Results};
pub use model::Step;
pub use rounds::RoundRow;
pub use uploads::{Collected, Upload};

use alice_primitives::Hash;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    AssertSqlSafe, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::{Mutex, MutexGuard};

/// Version of the schema, in SQLite's `user_version`.
const SCHEMA_VERSION: i64 = 2;
const SCHEMA: &str = include_str!("schema.sql");
const INDEXES: &str = include_str!("indexes.sql");
/// Connections of the round: the driver, scoring and settlement run one query each at a time.
const ROUND_CONNECTIONS: u32 = 4;
/// Longest wait of the round for one of its connections. Only the round's own work is before it.
const ROUND_WAIT: Duration = Duration::from_secs(30);
/// Longest wait for another connection's write, or for another process that holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// SQLite's result code for a database that stayed locked for [`BUSY_TIMEOUT`].
const SQLITE_BUSY: &str = "5";

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// Every connection was in use, or another writer held the file, for longer than the caller may wait. Nothing is
    /// wrong with the data, and the same call may succeed later.
    #[error("the server's database is busy; try again later")]
    Busy,
    /// SQLite's own.
    #[error("the server's database failed: {0}; check the disk that holds data_dir")]
    Sql(#[source] sqlx::Error),
    /// A stored value that this version cannot read.
    #[error("the server's database holds {what} that cannot be read ({problem}); restore data_dir from a backup")]
    Damaged {
        /// Which value.
        what: &'static str,
        /// The problem with it.
        problem: String,
    },
    /// The database was made by another version.
    #[error(
        "the server's database has schema version {found}, this program knows {SCHEMA_VERSION}; use the version of alice-ps that made it, or a newer one"
    )]
    Version {
        /// Version found.
        found: i64,
    },
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::PoolTimedOut => Self::Busy,
            sqlx::Error::Database(cause) if cause.code().as_deref() == Some(SQLITE_BUSY) => Self::Busy,
            _ => Self::Sql(error),
        }
    }
}

/// A handle of the database with connections of its own; all handles share one write lock.
pub struct Db {
    pool: SqlitePool,
    options: SqliteConnectOptions,
    write: Arc<Mutex<()>>,
}

impl Db {
    /// Opens the database of a data directory and makes it if there is none. The handle is the round's.
    pub async fn open(file: &Path) -> Result<Self, DbError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // Receipts are signed after a commit, so a commit must survive a power failure.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = pool(&options, ROUND_CONNECTIONS, ROUND_WAIT);
        let mut tx = pool.begin().await?;
        let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *tx).await?;
        match found {
            0 => {
                sqlx::raw_sql(SCHEMA).execute(&mut *tx).await?;
                // A pragma takes no bound parameters; the number is a constant of this file.
                let version = AssertSqlSafe(format!("PRAGMA user_version = {SCHEMA_VERSION}"));
                sqlx::raw_sql(version).execute(&mut *tx).await?;
            }
            SCHEMA_VERSION => {}
            found => return Err(DbError::Version { found }),
        }
        // In the same transaction as the version: a crash leaves a database that the next start completes.
        sqlx::raw_sql(INDEXES).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(Self {
            pool,
            options,
            write: Arc::default(),
        })
    }

    /// Another handle of the same database with at most `connections` of its own. A call that gets none of them within
    /// `wait` fails with [`DbError::Busy`].
    pub fn with_connections(&self, connections: u32, wait: Duration) -> Self {
        Self {
            pool: pool(&self.options, connections, wait),
            options: self.options.clone(),
            write: self.write.clone(),
        }
    }

    /// Lock that every decision holds, see the module.
    pub async fn write(&self) -> MutexGuard<'_, ()> {
        self.write.lock().await
    }

    /// A fact about this data directory; `None` if it is not stored.
    pub async fn meta(&self, key: &'static str) -> Result<Option<Vec<u8>>, DbError> {
        Ok(sqlx::query_scalar("SELECT value FROM meta WHERE key = ?")
            .bind(key)
            .fetch_optional(&self.pool)
            .await?)
    }

    /// Stores a fact unless it is known, and returns the stored value.
    pub async fn bind(&self, key: &'static str, value: &[u8]) -> Result<Vec<u8>, DbError> {
        let _guard = self.write().await;
        sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(key)
            .bind(value)
            .execute(&self.pool)
            .await?;
        self.meta(key).await.map(Option::unwrap_or_default)
    }

    /// Stores a fact, in place of an earlier value.
    pub async fn set_meta(&self, key: &'static str, value: &[u8]) -> Result<(), DbError> {
        let _guard = self.write().await;
        sqlx::query(
            "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )
        .bind(key)
        .bind(value)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Closes this handle's connections; whatever was acknowledged is on disk with or without it.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// Connections are made when they are first needed.
fn pool(options: &SqliteConnectOptions, connections: u32, wait: Duration) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(wait)
        .connect_lazy_with(options.clone())
}

/// 32 bytes of a row.
fn hash(what: &'static str, bytes: Vec<u8>) -> Result<Hash, DbError> {
    let len = bytes.len();
    Hash::try_from(bytes).map_err(|_| DbError::Damaged {
        what,
        problem: format!("{len} bytes instead of 32"),
    })
}

/// A block or epoch number of a row.
fn number(what: &'static str, value: i64) -> Result<u32, DbError> {
    u32::try_from(value).map_err(|_| DbError::Damaged {
        what,
        problem: format!("{value} is not a u32"),
    })
}

fn from_json<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, DbError> {
    serde_json::from_str(text).map_err(|e| DbError::Damaged {
        what,
        problem: e.to_string(),
    })
}

fn to_json<T: Serialize>(what: &'static str, value: &T) -> Result<String, DbError> {
    serde_json::to_string(value).map_err(|e| DbError::Damaged {
        what,
        problem: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::Row;

    /// Every query that a stranger's request can start, or that runs under the write lock.
    const HOT: [&str; 15] = [
        rounds::NEWEST_ROUND,
        rounds::ROUND,
        rounds::OPEN_LEASE,
        rounds::NEXT_SLICE,
        rounds::EXPIRED_SLICE,
        rounds::REFUSALS,
        uploads::SUBMISSION,
        uploads::COUNT_UPLOADS,
        uploads::COUNT_SUBMISSIONS,
        uploads::COLLECTED,
        uploads::HISTORY_COUNTS,
        uploads::HOLDS_TASK,
        uploads::HISTORY,
        model::NEWEST_SNAPSHOT,
        epochs::EPOCHS_BEFORE,
    ];

    /// Steps of SQLite's plan for a query.
    async fn plan(db: &Db, sql: &'static str) -> Vec<String> {
        let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let rows = sqlx::query(explain).fetch_all(&db.pool).await.unwrap();
        rows.iter().map(|row| row.get::<String, _>("detail")).collect()
    }

    async fn assert_indexed(db: &Db) {
        // In the order of the key and ended by LIMIT: they read no more rows than they return.
        let limited = [rounds::NEWEST_ROUND, model::NEWEST_SNAPSHOT];
        for sql in HOT {
            for step in plan(db, sql).await {
                let scanned = step.strip_prefix("SCAN ");
                let of_rows = scanned.is_some_and(|what| !what.starts_with('(') && what != "CONSTANT ROW");
                assert!(!of_rows || limited.contains(&sql), "{step}\n{sql}");
                assert!(!step.contains("LIST SUBQUERY"), "rebuilt for every row: {step}\n{sql}");
            }
        }
    }

    #[tokio::test]
    async fn hot_queries_should_never_scan_a_table() {
        let dir = tempfile::tempdir().unwrap();
        assert_indexed(&Db::open(&dir.path().join("db")).await.unwrap()).await;
    }

    #[tokio::test]
    async fn indexes_should_be_added_when_a_database_of_an_earlier_build_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("db");
        let old = Db::open(&file).await.unwrap();
        // As the first builds with schema version 2 left it.
        sqlx::raw_sql(
            "DROP INDEX tasks_of_miner; DROP INDEX submissions_of_miner; DROP INDEX submissions_of_payout;
             DROP INDEX steps_with_snapshot;
             CREATE INDEX submissions_miner ON submissions (miner, epoch);
             CREATE INDEX submissions_payout ON submissions (payout, epoch);",
        )
        .execute(&old.pool)
        .await
        .unwrap();
        old.bind("genesis", b"kept").await.unwrap();
        old.close().await;
        let db = Db::open(&file).await.unwrap();
        assert_eq!(db.meta("genesis").await.unwrap().as_deref(), Some(&b"kept"[..]));
        assert_indexed(&db).await;
    }

    #[tokio::test]
    async fn the_round_should_go_on_when_reads_hold_all_their_connections() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("db")).await.unwrap();
        let reads = db.with_connections(2, Duration::from_millis(50));
        let held = (reads.pool.acquire().await.unwrap(), reads.pool.acquire().await.unwrap());
        assert!(matches!(reads.model_step().await, Err(DbError::Busy)));
        db.seal_round(3).await.unwrap();
        drop(held);
        assert_eq!(reads.model_step().await.unwrap(), None);
    }
}
