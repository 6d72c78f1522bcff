-- Several controllers on this database. Times are the database's own clock.

CREATE TABLE controllers (
    name       TEXT COLLATE "C" PRIMARY KEY,
    run        BYTEA NOT NULL, -- of the process that has the name now
    version    TEXT NOT NULL,
    address    TEXT NOT NULL,  -- of page and API
    started_at BIGINT NOT NULL,
    seen_at    BIGINT NOT NULL,
    heir_until BIGINT NOT NULL DEFAULT 0 -- until then another one takes over what the broker keeps for it
);

-- What only one of them does at a time: rollouts, publishing, tidying up. At most one row.
CREATE TABLE duty (
    only_one BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (only_one),
    run      BYTEA NOT NULL,
    until    BIGINT NOT NULL
);
