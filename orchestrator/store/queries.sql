-- Every statement that Headgate sends to PostgreSQL once its schema stands. `queries.py` reads this file.

-- name: ping
-- Whether the database answers.
SELECT 1;

-- name: stage
-- Where a batch lands before it is merged: COPY knows no ON CONFLICT. One pair of tables per connection, emptied by each commit.
CREATE TEMPORARY TABLE IF NOT EXISTS arriving_runs (LIKE runs INCLUDING DEFAULTS) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS arriving_events (LIKE events) ON COMMIT DELETE ROWS;

-- name: merge_runs
-- Keep the runs that are not here yet. Always in one order, or two replicas with the same runs could wait for each other.
INSERT INTO runs SELECT * FROM arriving_runs ORDER BY id ON CONFLICT DO NOTHING;

-- name: merge_events
-- Keep the events that are not here yet; ordered for the same reason.
INSERT INTO events SELECT * FROM arriving_events ORDER BY run_id, seq ON CONFLICT DO NOTHING;

-- name: find_run
-- One run.
SELECT * FROM runs WHERE id = $1;

-- name: list_runs
-- A tenant's runs, newest first.
SELECT * FROM runs WHERE tenant = $1 ORDER BY created_ms DESC, id DESC LIMIT $2;

-- name: list_runs_before
-- A tenant's runs that come after a cursor (created_ms, id), newest first.
SELECT * FROM runs WHERE tenant = $1 AND (created_ms, id) < ($3, $4) ORDER BY created_ms DESC, id DESC LIMIT $2;

-- name: list_entries
-- A run's events after a position, oldest first.
SELECT seq, ms, body FROM events WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3;

-- name: find_entry
-- One event of a run.
SELECT seq, ms, body FROM events WHERE run_id = $1 AND seq = $2;

-- name: create_versions
-- The table of migrations that were applied.
CREATE TABLE IF NOT EXISTS schema_versions (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    applied_ms bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)
);

-- name: lock_schema
-- One process at a time changes the schema; released with the transaction. The number is 'headgate' in hex.
SELECT pg_advisory_xact_lock(x'6865616467617465'::bigint);

-- name: list_versions
-- Which migrations were applied.
SELECT version FROM schema_versions;

-- name: add_version
-- A migration was applied.
INSERT INTO schema_versions (version, name) VALUES ($1, $2);
