-- What tenants used: of each run who asked for it and what it cost, and the same summed by day, key and model.
--
-- A run adds to its day's sums in the statement that brings it here, so it does so once, however often it arrives. Reading a month
-- then costs a row for each day, key and model, however many runs there were.
-- Runs that were here before are somebody's, of whom only the tenant is known.
-- A day is that in UTC on which the run was created, as in budgets. Costs are nano-dollars; null where no price is known.

ALTER TABLE runs ADD COLUMN key_id text;
ALTER TABLE runs ADD COLUMN price json;
ALTER TABLE runs ADD COLUMN budget_tokens bigint;
ALTER TABLE runs ADD COLUMN cost_nano bigint;

CREATE TABLE usage (
    tenant            text COLLATE "C" NOT NULL,
    day               date NOT NULL,
    key_id            text COLLATE "C" NOT NULL,
    model             text COLLATE "C" NOT NULL,
    runs              bigint NOT NULL,
    prompt_tokens     bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cached_tokens     bigint NOT NULL,
    cost_nano         bigint,
    PRIMARY KEY (tenant, day, key_id, model)
);

INSERT INTO usage
SELECT tenant, (to_timestamp(created_ms / 1000) AT TIME ZONE 'UTC')::date, '', model, count(*), coalesce(sum(prompt_tokens), 0),
    coalesce(sum(completion_tokens), 0), coalesce(sum(cached_tokens), 0), NULL
FROM runs GROUP BY 1, 2, 4;
