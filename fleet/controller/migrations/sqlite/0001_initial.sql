-- Times are milliseconds since 1970. `raw` columns hold the message as it arrived, so that fields
-- which this version does not know are preserved.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY NOT NULL,
    value BLOB NOT NULL
) STRICT;

CREATE TABLE devices (
    device              TEXT PRIMARY KEY NOT NULL,
    first_seen          INTEGER NOT NULL,
    last_seen           INTEGER NOT NULL,
    alive               INTEGER NOT NULL,
    -- The last birth; null until one arrives.
    boot                BLOB,
    started_at          INTEGER,
    agent               TEXT,
    model_name          TEXT,
    model_version       INTEGER,
    model_digest        BLOB,
    classes             TEXT,    -- JSON list of names
    stage_macs          TEXT,    -- JSON list of numbers
    capabilities        TEXT,    -- JSON list of names
    birth_raw           BLOB,
    -- The last reported state; null until one arrives.
    reported_at         INTEGER, -- when it arrived here
    reported_generation INTEGER,
    reported_policy     TEXT,
    reported_version    INTEGER,
    reported_source     TEXT,
    reported_refused    TEXT,
    reported_raw        BLOB
) STRICT;

-- One row per run of an agent, with the totals of its summaries: each summary is added once.
CREATE TABLE runs (
    device        TEXT NOT NULL,
    boot          BLOB NOT NULL,
    born          INTEGER NOT NULL DEFAULT 0,
    died          INTEGER NOT NULL DEFAULT 0,
    summaries     INTEGER NOT NULL DEFAULT 0,
    frames        INTEGER NOT NULL DEFAULT 0,
    early         INTEGER NOT NULL DEFAULT 0, -- frames that left before the last exit
    macs          INTEGER NOT NULL DEFAULT 0,
    full_macs     INTEGER NOT NULL DEFAULT 0,
    audits        INTEGER NOT NULL DEFAULT 0,
    disagreements INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (device, boot)
) STRICT;

CREATE TABLE summaries (
    device         TEXT NOT NULL,
    sequence       INTEGER NOT NULL,
    boot           BLOB NOT NULL,
    received_at    INTEGER NOT NULL,
    window_start   INTEGER NOT NULL,
    window_end     INTEGER NOT NULL,
    generation     INTEGER NOT NULL,
    frames         INTEGER NOT NULL,
    dropped        INTEGER NOT NULL,
    exits          TEXT NOT NULL, -- JSON list: frames taken at each exit
    macs           INTEGER NOT NULL,
    audit_macs     INTEGER NOT NULL,
    full_macs      INTEGER NOT NULL,
    stage_us       INTEGER NOT NULL,
    overhead_us    INTEGER NOT NULL,
    audits         INTEGER NOT NULL,
    disagreements  INTEGER NOT NULL,
    bound          REAL NOT NULL,
    updates        INTEGER NOT NULL,
    gated          INTEGER NOT NULL,
    rollbacks      INTEGER NOT NULL,
    classes        TEXT NOT NULL, -- JSON list of [class, count]
    policy         TEXT NOT NULL,
    policy_version INTEGER NOT NULL,
    policy_source  TEXT NOT NULL,
    faults         INTEGER NOT NULL,
    outbox         INTEGER NOT NULL,
    temperature    REAL,
    raw            BLOB NOT NULL,
    PRIMARY KEY (device, sequence, boot)
) STRICT;

CREATE INDEX summaries_by_time ON summaries (device, window_end);

CREATE TABLE events (
    device      TEXT NOT NULL,
    sequence    INTEGER NOT NULL,
    boot        BLOB NOT NULL,
    received_at INTEGER NOT NULL,
    at          INTEGER NOT NULL, -- by the device's clock, but not after received_at
    kind        TEXT NOT NULL,
    message     TEXT NOT NULL,
    facts       TEXT NOT NULL, -- JSON object of texts
    raw         BLOB NOT NULL,
    PRIMARY KEY (device, sequence, boot)
) STRICT;

CREATE INDEX events_by_time ON events (at);
CREATE INDEX events_of_device ON events (device, at);

-- Content-addressed: the digest is the SHA-256 of the bytes.
CREATE TABLE artifacts (
    digest   BLOB PRIMARY KEY NOT NULL,
    size     INTEGER NOT NULL,
    bytes    BLOB NOT NULL,
    added_at INTEGER NOT NULL
) STRICT;

-- A name and version always mean the same bytes.
CREATE TABLE policies (
    name     TEXT NOT NULL,
    version  INTEGER NOT NULL,
    digest   BLOB NOT NULL REFERENCES artifacts (digest),
    added_at INTEGER NOT NULL,
    PRIMARY KEY (name, version)
) STRICT;

-- Every desired state that was ever signed; the one in force is the one with the highest generation.
CREATE TABLE desired (
    device         TEXT NOT NULL,
    generation     INTEGER NOT NULL,
    issued_at      INTEGER NOT NULL,
    policy         TEXT,
    policy_version INTEGER,
    signed         BLOB NOT NULL,
    PRIMARY KEY (device, generation)
) STRICT;
