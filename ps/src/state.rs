//! What the parts of the server share: the run, its text, everything that is stored, and the key. It decides nothing:
//! requests are decided by [`crate::service`], rounds by [`crate::round`].

use crate::{PsError, corpus::Corpus, db::Db, files::Files, run_context::RunContext};
use alice_api::Key;
use alice_store::BlobStore;
use std::time::Duration;

/// Database connections of the miners' requests; they write one after the other, so more would only wait in a row.
const DECISION_CONNECTIONS: u32 = 8;
/// Database connections of public reads.
const READ_CONNECTIONS: u32 = 8;
/// Longest wait of a request for one of them. A client is better served by "try again" than by a longer wait.
const REQUEST_WAIT: Duration = Duration::from_secs(5);

/// The server's run, text, stored state and key.
pub struct ServerState {
    run: RunContext,
    corpus: Corpus,
    round_db: Db,
    decision_db: Db,
    read_db: Db,
    files: Files,
    blobs: BlobStore,
    shards: BlobStore,
    key: Key,
}

impl ServerState {
    /// Puts the state together from its parts. `shards` is the folder of the corpus.
    ///
    /// # Errors
    /// The folder of the public blobs cannot be opened.
    pub fn new(
        run: RunContext,
        corpus: Corpus,
        db: Db,
        files: Files,
        shards: BlobStore,
        key: Key,
    ) -> Result<Self, PsError> {
        Ok(Self {
            decision_db: db.with_connections(DECISION_CONNECTIONS, REQUEST_WAIT),
            read_db: db.with_connections(READ_CONNECTIONS, REQUEST_WAIT),
            round_db: db,
            blobs: BlobStore::open(&files.blobs())?,
            run,
            corpus,
            files,
            shards,
            key,
        })
    }

    /// Network and run.
    pub fn run(&self) -> &RunContext {
        &self.run
    }

    /// The run's text.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// The database, with the round's own connections.
    pub fn db(&self) -> &Db {
        &self.round_db
    }

    /// The database, with the connections of claims, uploads and commits.
    pub fn decision_db(&self) -> &Db {
        &self.decision_db
    }

    /// The database, with the connections of public reads.
    pub fn read_db(&self) -> &Db {
        &self.read_db
    }

    /// Paths in the data directory.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Blobs that anybody may fetch.
    pub fn blobs(&self) -> &BlobStore {
        &self.blobs
    }

    /// The corpus folder as a blob store. It holds private text too: only the shards of [`Corpus::shards`] may be
    /// served.
    pub fn shards(&self) -> &BlobStore {
        &self.shards
    }

    /// Key that signs leases, receipts, verdicts and attestations.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Closes the database.
    pub async fn close(&self) {
        for db in [&self.read_db, &self.decision_db, &self.round_db] {
            db.close().await;
        }
    }
}
