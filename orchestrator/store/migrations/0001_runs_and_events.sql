-- Finished runs and what they said, deltas excepted.
--
-- Times are milliseconds since the epoch, as everywhere else in Headgate: a position (`ms-seq`) and a page's cursor then compare
-- equal to the bit with those of the event log, whatever the server's time zone.
-- Ids are compared as bytes, which is how the event log orders them, and is the cheapest.

CREATE TABLE runs (
    id               text COLLATE "C" PRIMARY KEY,
    tenant           text NOT NULL,
    model            text NOT NULL,
    answers          text NOT NULL,
    durable          boolean NOT NULL,
    state            text NOT NULL,
    session_id       text,
    query            text,
    options          json NOT NULL,
    metadata         json,
    created_ms       bigint NOT NULL,
    started_ms       bigint,
    ended_ms         bigint,
    deadline_ms      bigint,
    finish_reason    text,
    error            json,
    prompt_tokens    bigint,
    completion_tokens bigint,
    total_tokens     bigint,
    cached_tokens    bigint,
    reasoning_tokens bigint,
    usage_estimated  boolean,
    last_seq         bigint NOT NULL,
    last_ms          bigint NOT NULL,
    archived_ms      bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)
);

-- Read backwards for the newest first.
CREATE INDEX runs_of_tenant ON runs (tenant, created_ms, id);

-- `body` is bytea because what was sent must come back to the byte: jsonb would reorder keys and refuses \u0000, and text would
-- be converted in a database that is not UTF-8. To read it:
-- convert_from(body, 'UTF8')::json.
-- There is no foreign key: rows of both tables arrive in one transaction, and a check per row would double the cost.
CREATE TABLE events (
    run_id text COLLATE "C" NOT NULL,
    seq    bigint NOT NULL,
    ms     bigint NOT NULL,
    type   text NOT NULL,
    body   bytea NOT NULL,
    PRIMARY KEY (run_id, seq)
);

-- What is known of a session beyond its runs. Runs that are not younger than `deleted_ms` are not listed.
CREATE TABLE sessions (
    tenant     text NOT NULL,
    id         text NOT NULL,
    title      text,
    deleted_ms bigint NOT NULL DEFAULT -1,
    PRIMARY KEY (tenant, id)
);

CREATE INDEX runs_of_session ON runs (tenant, session_id, created_ms) WHERE session_id IS NOT NULL;
