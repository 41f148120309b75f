-- Every statement that Headgate sends to PostgreSQL once its schema stands. `queries.py` reads this file.

-- name: ping
-- Whether the database answers.
SELECT 1;

-- name: stage
-- Where a batch lands before it is merged: COPY knows no ON CONFLICT. One pair of tables per connection, emptied by each commit.
CREATE TEMPORARY TABLE IF NOT EXISTS arriving_runs (LIKE runs INCLUDING DEFAULTS) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS arriving_events (LIKE events) ON COMMIT DELETE ROWS;

-- name: merge_runs
-- Keep the runs that are not here yet, and add what they used to the sums: this run, this once.
-- Always in one order, or two replicas with the same runs could wait for each other.
WITH arrived AS (
    INSERT INTO runs SELECT * FROM arriving_runs ORDER BY id ON CONFLICT DO NOTHING
    RETURNING tenant, created_ms, key_id, model, prompt_tokens, completion_tokens, cached_tokens, cost_nano
)
INSERT INTO usage AS u
SELECT tenant, (to_timestamp(created_ms / 1000) AT TIME ZONE 'UTC')::date, coalesce(key_id, ''), model, count(*),
    coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0), coalesce(sum(cached_tokens), 0), sum(cost_nano)
FROM arrived GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
ON CONFLICT (tenant, day, key_id, model) DO UPDATE SET
    runs = u.runs + excluded.runs,
    prompt_tokens = u.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = u.completion_tokens + excluded.completion_tokens,
    cached_tokens = u.cached_tokens + excluded.cached_tokens,
    cost_nano = coalesce(u.cost_nano + excluded.cost_nano, u.cost_nano, excluded.cost_nano);

-- name: sum_usage
-- What a tenant used from one day ($2) to another ($3), or one of its keys did ($4); by key ($5), model ($6) and day ($7) if asked.
SELECT CASE WHEN $5 THEN key_id END AS key_id, CASE WHEN $6 THEN model END AS model, CASE WHEN $7 THEN day END AS day,
    sum(runs)::bigint AS runs, sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,
    sum(cached_tokens)::bigint AS cached_tokens, sum(cost_nano)::bigint AS cost_nano
FROM usage WHERE tenant = $1 AND day BETWEEN $2 AND $3 AND ($4::text IS NULL OR key_id = $4)
GROUP BY 1, 2, 3 ORDER BY 3, 1, 2 LIMIT $8;

-- name: merge_events
-- Keep the events that are not here yet; ordered for the same reason.
INSERT INTO events SELECT * FROM arriving_events ORDER BY run_id, seq ON CONFLICT DO NOTHING;

-- name: find_run
-- One run.
SELECT * FROM runs WHERE id = $1;

-- name: list_runs
-- A tenant's runs, newest first: of a session ($2) and in a state ($3) if given, those with certain ids ($4) left out.
SELECT r.* FROM runs r LEFT JOIN sessions s ON s.tenant = r.tenant AND s.id = r.session_id
WHERE r.tenant = $1 AND ($2::text IS NULL OR r.session_id = $2) AND ($3::text IS NULL OR r.state = $3)
    AND r.id <> ALL ($4::text[]) AND r.created_ms > coalesce(s.deleted_ms, -1)
ORDER BY r.created_ms DESC, r.id DESC OFFSET $5 LIMIT $6;

-- name: count_runs
-- How many runs `list_runs` would list in all.
SELECT count(*) FROM runs r LEFT JOIN sessions s ON s.tenant = r.tenant AND s.id = r.session_id
WHERE r.tenant = $1 AND ($2::text IS NULL OR r.session_id = $2) AND ($3::text IS NULL OR r.state = $3)
    AND r.id <> ALL ($4::text[]) AND r.created_ms > coalesce(s.deleted_ms, -1);

-- name: list_sessions
-- A tenant's sessions, or some of them ($2), the latest used first; certain runs ($3) left out.
SELECT r.session_id AS id, s.title, count(*) AS runs, min(r.created_ms) AS created_ms,
    max(coalesce(r.ended_ms, r.created_ms)) AS updated_ms, coalesce(sum(r.total_tokens), 0)::bigint AS tokens
FROM runs r LEFT JOIN sessions s ON s.tenant = r.tenant AND s.id = r.session_id
WHERE r.tenant = $1 AND r.session_id IS NOT NULL AND ($2::text[] IS NULL OR r.session_id = ANY ($2))
    AND r.id <> ALL ($3::text[]) AND r.created_ms > coalesce(s.deleted_ms, -1)
GROUP BY r.session_id, s.title ORDER BY updated_ms DESC, id LIMIT $4;

-- name: count_sessions
-- A tenant's sessions but some ($2), certain runs ($3) left out.
SELECT count(DISTINCT r.session_id) FROM runs r LEFT JOIN sessions s ON s.tenant = r.tenant AND s.id = r.session_id
WHERE r.tenant = $1 AND r.session_id <> ALL ($2::text[]) AND r.id <> ALL ($3::text[]) AND r.created_ms > coalesce(s.deleted_ms, -1);

-- name: describe_sessions
-- What is known of these sessions beyond their runs.
SELECT id, title, deleted_ms FROM sessions WHERE tenant = $1 AND id = ANY ($2::text[]);

-- name: title_session
-- Give a session a title.
INSERT INTO sessions (tenant, id, title) VALUES ($1, $2, $3) ON CONFLICT (tenant, id) DO UPDATE SET title = excluded.title;

-- name: delete_session
-- Forget a session: what it was called, and its runs up to now.
INSERT INTO sessions (tenant, id, deleted_ms) VALUES ($1, $2, $3)
ON CONFLICT (tenant, id) DO UPDATE SET title = NULL, deleted_ms = excluded.deleted_ms;

-- name: list_entries
-- A run's events after a position, oldest first.
SELECT seq, ms, body FROM events WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3;

-- name: find_entry
-- One event of a run.
SELECT seq, ms, body FROM events WHERE run_id = $1 AND seq = $2;

-- name: add_key
-- Keep an API key, unless it is here already.
INSERT INTO api_keys (id, prefix, digest, name, tenant, scopes, limits, created_ms, expires_ms)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING;

-- name: get_keys
-- These keys.
SELECT * FROM api_keys WHERE id = ANY ($1::text[]);

-- name: find_keys
-- The keys that begin so.
SELECT * FROM api_keys WHERE prefix = $1;

-- name: list_keys
-- A tenant's keys, or everybody's, newest first.
SELECT * FROM api_keys WHERE $1::text IS NULL OR tenant = $1 ORDER BY created_ms DESC, id DESC;

-- name: revoke_key
-- A key is not good any more; only the first time counts.
UPDATE api_keys SET revoked_ms = $2 WHERE id = $1 AND revoked_ms IS NULL;

-- name: end_key
-- A key that has not ended by now ($2) ends by then ($3); if that is now, it is revoked. Returns whether there is such a key.
UPDATE api_keys SET expires_ms = least(expires_ms, $3), revoked_ms = CASE WHEN $3 <= $2 THEN $2 END
WHERE id = $1 AND revoked_ms IS NULL AND coalesce(expires_ms > $2, true) RETURNING true;

-- name: touch_keys
-- When keys ($1) were used last ($2).
UPDATE api_keys k SET last_used_ms = greatest(k.last_used_ms, used.at_ms)
FROM unnest($1::text[], $2::bigint[]) used (id, at_ms) WHERE k.id = used.id;

-- name: propose_secret
-- A secret, unless there is one of that name.
INSERT INTO secrets (name, secret) VALUES ($1, $2) ON CONFLICT DO NOTHING;

-- name: find_secret
-- The secret of that name.
SELECT secret FROM secrets WHERE name = $1;

-- name: create_questions
-- Where questions are kept by their meaning; only where a model has a semantic cache, because not everybody has pgvector. Vectors of
-- half precision take half the room, and are as good to tell what is alike.
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE IF NOT EXISTS questions (
    tenant   text NOT NULL,
    model    text NOT NULL,
    place    text COLLATE "C" NOT NULL,
    question text COLLATE "C" NOT NULL,
    run_id   text COLLATE "C" NOT NULL,
    asked_ms bigint NOT NULL,
    until_ms bigint NOT NULL,
    meaning  halfvec NOT NULL,
    PRIMARY KEY (tenant, place, question)
);
CREATE INDEX IF NOT EXISTS questions_by_age ON questions (tenant, model, asked_ms);
CREATE INDEX IF NOT EXISTS questions_by_end ON questions (until_ms);

-- name: near_questions
-- The questions in one place that are most alike, with the cosine of the angle between them.
SELECT run_id, until_ms, 1 - (meaning <=> $3::text::halfvec) AS score FROM questions
WHERE tenant = $1 AND place = $2 AND until_ms > $4 ORDER BY meaning <=> $3::text::halfvec LIMIT $5;

-- name: remember_question
-- Keep a question, in place of the same one.
INSERT INTO questions (tenant, model, place, question, run_id, asked_ms, until_ms, meaning)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::halfvec)
ON CONFLICT (tenant, place, question) DO UPDATE
SET run_id = excluded.run_id, asked_ms = excluded.asked_ms, until_ms = excluded.until_ms, meaning = excluded.meaning;

-- name: drop_questions
-- Those whose time is up, of whomever.
DELETE FROM questions WHERE until_ms <= $1;

-- name: trim_questions
-- All but the newest of a tenant's and a model's.
DELETE FROM questions WHERE ctid IN (
    SELECT ctid FROM questions WHERE tenant = $1 AND model = $2 ORDER BY asked_ms DESC, place, question OFFSET $3
);

-- name: forget_question
-- A run that answers no more.
DELETE FROM questions WHERE tenant = $1 AND place = $2 AND run_id = $3;

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
