-- API keys. Of a key's text there is its SHA-256 and its beginning, from which nobody can make it.

CREATE TABLE api_keys (
    id           text COLLATE "C" PRIMARY KEY,
    prefix       text COLLATE "C" NOT NULL,
    digest       bytea NOT NULL,
    name         text NOT NULL,
    tenant       text NOT NULL,
    scopes       text[] NOT NULL,
    limits       json,
    created_ms   bigint NOT NULL,
    expires_ms   bigint,
    revoked_ms   bigint,
    last_used_ms bigint
);

CREATE INDEX api_keys_by_prefix ON api_keys (prefix);
CREATE INDEX api_keys_of_tenant ON api_keys (tenant, created_ms);

-- What all replicas must agree on and nobody needs to choose.
CREATE TABLE secrets (
    name   text PRIMARY KEY,
    secret bytea NOT NULL
);
