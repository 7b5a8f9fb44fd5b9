-- State of a parameter server. What is large is a blob (alice-store); what is here fits a row.

-- genesis, run_hash, run_text: which network and run this directory belongs to.
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;

-- Every step of the model; step 0 is the first state. `snapshot` is there for the newest two snapshots.
CREATE TABLE steps (
    step INTEGER PRIMARY KEY,
    root BLOB NOT NULL,
    delta TEXT,
    snapshot TEXT
) STRICT;

-- One row for each round that was opened. `seed` holds the finalised blocks of the validation seed.
CREATE TABLE rounds (
    epoch INTEGER PRIMARY KEY,
    stage TEXT NOT NULL CHECK (stage IN ('open', 'sealed', 'scored')),
    base_root BLOB NOT NULL,
    base_step INTEGER NOT NULL,
    opened_block INTEGER NOT NULL,
    seed TEXT
) STRICT;

CREATE TABLE tasks (
    task_id BLOB PRIMARY KEY,
    epoch INTEGER NOT NULL REFERENCES rounds (epoch),
    slice INTEGER NOT NULL,
    miner BLOB NOT NULL,
    lease_block INTEGER NOT NULL,
    lease TEXT NOT NULL,
    UNIQUE (epoch, slice)
) STRICT;
CREATE INDEX tasks_miner ON tasks (epoch, miner);

-- `received` is what is on disk and synced; a part is acknowledged after both.
CREATE TABLE uploads (
    id BLOB PRIMARY KEY,
    task_id BLOB NOT NULL REFERENCES tasks (task_id),
    epoch INTEGER NOT NULL,
    miner BLOB NOT NULL,
    blob BLOB NOT NULL,
    bytes INTEGER NOT NULL,
    received INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX uploads_task ON uploads (task_id);
CREATE INDEX uploads_epoch ON uploads (epoch);

-- A committed upload. One for each task.
CREATE TABLE submissions (
    id BLOB PRIMARY KEY REFERENCES uploads (id),
    task_id BLOB NOT NULL UNIQUE,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    miner BLOB NOT NULL,
    payout BLOB NOT NULL,
    receipt TEXT NOT NULL,
    verdict TEXT,
    accepted INTEGER,
    UNIQUE (epoch, sequence)
) STRICT;

-- What was refused before it became a submission; counted once for each task or upload.
CREATE TABLE refusals (
    epoch INTEGER NOT NULL,
    code TEXT NOT NULL,
    subject BLOB NOT NULL,
    PRIMARY KEY (epoch, code, subject)
) STRICT;

-- Reserve sequences that were drawn, where the run allows each only once.
CREATE TABLE reserve_used (sequence INTEGER PRIMARY KEY, epoch INTEGER NOT NULL) STRICT;

-- One row for each scored epoch with submissions.
CREATE TABLE epochs (
    epoch INTEGER PRIMARY KEY,
    manifest_hash BLOB NOT NULL,
    model_root BLOB NOT NULL,
    median_norms TEXT NOT NULL,
    summary TEXT NOT NULL,
    contributions_root BLOB NOT NULL,
    pages INTEGER NOT NULL,
    entries INTEGER NOT NULL,
    total_score TEXT NOT NULL,
    settlement TEXT NOT NULL,
    settled_block INTEGER
) STRICT;

CREATE TABLE pages (
    epoch INTEGER NOT NULL,
    page INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (epoch, page)
) STRICT;
CREATE TABLE payees (
    epoch INTEGER NOT NULL,
    account BLOB NOT NULL,
    page INTEGER NOT NULL,
    PRIMARY KEY (epoch, account)
) STRICT;

-- Signed commitments, stored before they are sent. The key says it: never two for one epoch and round.
CREATE TABLE attestations (
    epoch INTEGER NOT NULL,
    round INTEGER NOT NULL,
    commitment BLOB NOT NULL,
    signature BLOB NOT NULL,
    PRIMARY KEY (epoch, round)
) STRICT;
