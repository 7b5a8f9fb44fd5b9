-- Indexes beyond those of schema.sql, made at every start if they are missing. They change no table, so they need no new
-- schema version, and a database with them is still read by builds that do not know them.

-- Whether a key ever held a task (GET /v1/miners/{key}). tasks_miner begins with the epoch and cannot answer that.
CREATE INDEX IF NOT EXISTS tasks_of_miner ON tasks (miner);

-- History of a key, newest first, and its counts, without a sort and without reading rows that are not returned.
CREATE INDEX IF NOT EXISTS submissions_of_miner ON submissions (miner, epoch, sequence, accepted);
-- The key's own submissions are counted by the index above, so this one needs the miner too.
CREATE INDEX IF NOT EXISTS submissions_of_payout ON submissions (payout, epoch, sequence, miner, accepted);
-- Prefixes of the two above: every commit would pay for them and no query would use them.
DROP INDEX IF EXISTS submissions_miner;
DROP INDEX IF EXISTS submissions_payout;

-- The newest snapshots, two of thousands of steps.
CREATE INDEX IF NOT EXISTS steps_with_snapshot ON steps (step) WHERE snapshot IS NOT NULL;
