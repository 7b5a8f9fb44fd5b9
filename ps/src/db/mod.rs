//! The server's state in SQLite: WAL, and every transaction synced before it is acknowledged.
//!
//! Reads go to the pool as they come. Whatever decides something (claims, commits, sealing, results) holds
//! [`Db::write`], so that a decision and the state it rests on cannot change under each other.

mod attestations;
mod epochs;
mod model;
mod rounds;
mod uploads;

pub use attestations::Attestation;
pub use epochs::{EpochRow, PageRow, Results};
pub use model::Step;
pub use rounds::{RoundRow, StoredStage};
pub use uploads::{Collected, Upload};

use alice_primitives::Hash;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{path::Path, time::Duration};
use tokio::sync::{Mutex, MutexGuard};

/// Version of the schema, in SQLite's `user_version`.
const SCHEMA_VERSION: i64 = 2;
const SCHEMA: &str = include_str!("schema.sql");
/// Connections that read at the same time.
const CONNECTIONS_MAX: u32 = 8;
/// Longest wait for another process that holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// SQLite's own.
    #[error("the server's database failed: {0}; check the disk that holds data_dir")]
    Sql(#[from] sqlx::Error),
    /// A stored value that this version cannot read.
    #[error("the server's database holds {what} that cannot be read ({problem}); restore data_dir from a backup")]
    Damaged {
        /// Which value.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Made by another version.
    #[error(
        "the server's database has schema version {found}, this program knows {SCHEMA_VERSION}; use the version of alice-ps that made it, or a newer one"
    )]
    Version {
        /// Version found.
        found: i64,
    },
}

/// The database.
pub struct Db {
    pool: SqlitePool,
    write: Mutex<()>,
}

impl Db {
    /// Opens the database of a data directory; makes it where there is none.
    pub async fn open(file: &Path) -> Result<Self, DbError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .connect_with(options)
            .await?;
        let mut tx = pool.begin().await?;
        let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *tx).await?;
        match found {
            0 => {
                sqlx::raw_sql(SCHEMA).execute(&mut *tx).await?;
                let version = format!("PRAGMA user_version = {SCHEMA_VERSION}");
                sqlx::raw_sql(&version).execute(&mut *tx).await?;
            }
            SCHEMA_VERSION => {}
            found => return Err(DbError::Version { found }),
        }
        tx.commit().await?;
        Ok(Self {
            pool,
            write: Mutex::new(()),
        })
    }

    /// Held while something is decided; see the module.
    pub async fn write(&self) -> MutexGuard<'_, ()> {
        self.write.lock().await
    }

    /// A fact about this data directory.
    pub async fn meta(&self, key: &'static str) -> Result<Option<Vec<u8>>, DbError> {
        Ok(sqlx::query_scalar("SELECT value FROM meta WHERE key = ?")
            .bind(key)
            .fetch_optional(&self.pool)
            .await?)
    }

    /// Stores a fact unless it is known, and returns what is stored.
    pub async fn bind(&self, key: &'static str, value: &[u8]) -> Result<Vec<u8>, DbError> {
        let _guard = self.write().await;
        sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(key)
            .bind(value)
            .execute(&self.pool)
            .await?;
        self.meta(key).await.map(Option::unwrap_or_default)
    }

    /// Stores a fact, whatever was known before.
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

    /// Closes all connections; what was acknowledged is on disk with or without it.
    pub async fn close(&self) {
        self.pool.close().await;
    }
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
