-- The schema of PostgreSQL begins where SQLite's was when it came; from then on both have the same numbers.
--
-- Times are milliseconds since 1970. `raw` columns hold the message as it arrived, so that fields which this version
-- does not know are preserved. `rowid` counts rows as they were committed: only one transaction writes at a time. Names
-- are compared byte by byte, whatever the database's language.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value BYTEA NOT NULL
);

CREATE TABLE devices (
    device              TEXT COLLATE "C" PRIMARY KEY,
    first_seen          BIGINT NOT NULL,
    last_seen           BIGINT NOT NULL,
    alive               BOOLEAN NOT NULL,
    -- The last birth; null until one arrives.
    boot                BYTEA,
    started_at          BIGINT,
    agent               TEXT,
    model_name          TEXT,
    model_version       BIGINT,
    model_digest        BYTEA,
    classes             TEXT, -- JSON list of names
    stage_macs          TEXT, -- JSON list of numbers
    capabilities        TEXT, -- JSON list of names
    birth_raw           BYTEA,
    -- The last reported state; null until one arrives.
    reported_at         BIGINT, -- when it arrived here
    reported_generation BIGINT,
    reported_policy     TEXT,
    reported_version    BIGINT,
    reported_source     TEXT,
    reported_refused    TEXT,
    reported_raw        BYTEA,
    reported_refused_generation BIGINT
) WITH (fillfactor = 50); -- each summary touches its device: the new version finds room beside the old one

-- One row per run of an agent, with the totals of its summaries: each summary is added once.
CREATE TABLE runs (
    device        TEXT COLLATE "C" NOT NULL,
    boot          BYTEA NOT NULL,
    born          BOOLEAN NOT NULL DEFAULT FALSE,
    died          BOOLEAN NOT NULL DEFAULT FALSE,
    summaries     BIGINT NOT NULL DEFAULT 0,
    frames        BIGINT NOT NULL DEFAULT 0,
    early         BIGINT NOT NULL DEFAULT 0, -- frames that left before the last exit
    macs          BIGINT NOT NULL DEFAULT 0,
    full_macs     BIGINT NOT NULL DEFAULT 0,
    audits        BIGINT NOT NULL DEFAULT 0,
    disagreements BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (device, boot)
) WITH (fillfactor = 50);

CREATE TABLE summaries (
    rowid            BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE,
    device           TEXT COLLATE "C" NOT NULL,
    sequence         BIGINT NOT NULL,
    boot             BYTEA NOT NULL,
    received_at      BIGINT NOT NULL,
    window_start     BIGINT NOT NULL,
    window_end       BIGINT NOT NULL,
    generation       BIGINT NOT NULL,
    frames           BIGINT NOT NULL,
    dropped          BIGINT NOT NULL,
    hurried          BIGINT NOT NULL,
    exits            TEXT NOT NULL, -- JSON list: frames taken at each exit
    macs             BIGINT NOT NULL,
    audit_macs       BIGINT NOT NULL,
    full_macs        BIGINT NOT NULL,
    stage_us         BIGINT NOT NULL,
    overhead_us      BIGINT NOT NULL,
    audits           BIGINT NOT NULL,
    disagreements    BIGINT NOT NULL,
    bound            DOUBLE PRECISION NOT NULL,
    updates          BIGINT NOT NULL,
    gated            BIGINT NOT NULL,
    rollbacks        BIGINT NOT NULL,
    -- The guard of the learner; all of them null where the device does not tell. The temperatures stay in `raw`.
    guard_threshold  DOUBLE PRECISION,
    guard_loss       DOUBLE PRECISION,
    guard_loss_bound DOUBLE PRECISION,
    guard_audits     BIGINT,
    guard_promotions BIGINT,
    guard_paused     BOOLEAN,
    guard_contexts   BIGINT,
    guard_bytes      BIGINT,
    classes          TEXT NOT NULL, -- JSON list of [class, count]
    policy           TEXT NOT NULL,
    policy_version   BIGINT NOT NULL,
    policy_source    TEXT NOT NULL,
    faults           BIGINT NOT NULL,
    outbox           BIGINT NOT NULL,
    temperature      DOUBLE PRECISION,
    cameras          TEXT, -- JSON list of the cameras' parts, with the names of the wire
    engines          TEXT, -- JSON list: one text per stage
    raw              BYTEA NOT NULL,
    PRIMARY KEY (device, sequence, boot)
);

CREATE INDEX summaries_by_time ON summaries (device, window_end);

CREATE TABLE events (
    rowid       BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE,
    device      TEXT COLLATE "C" NOT NULL,
    sequence    BIGINT NOT NULL,
    boot        BYTEA NOT NULL,
    received_at BIGINT NOT NULL,
    at          BIGINT NOT NULL, -- by the device's clock, but not after received_at
    kind        TEXT NOT NULL,
    message     TEXT NOT NULL,
    facts       TEXT NOT NULL, -- JSON object of texts
    raw         BYTEA NOT NULL,
    PRIMARY KEY (device, sequence, boot)
);

CREATE INDEX events_by_time ON events (at);
CREATE INDEX events_of_device ON events (device, at);

-- Content-addressed: the digest is the SHA-256 of the bytes.
CREATE TABLE artifacts (
    digest   BYTEA PRIMARY KEY,
    size     BIGINT NOT NULL,
    bytes    BYTEA NOT NULL,
    added_at BIGINT NOT NULL
);

-- Cut into chunks without reading the whole.
ALTER TABLE artifacts ALTER COLUMN bytes SET STORAGE EXTERNAL;

-- A name and version always mean the same bytes.
CREATE TABLE policies (
    name     TEXT COLLATE "C" NOT NULL,
    version  BIGINT NOT NULL,
    digest   BYTEA NOT NULL REFERENCES artifacts (digest),
    added_at BIGINT NOT NULL,
    PRIMARY KEY (name, version)
);

-- Every desired state that was ever signed; the one in force is the one with the highest generation.
CREATE TABLE desired (
    rowid          BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE,
    device         TEXT COLLATE "C" NOT NULL,
    generation     BIGINT NOT NULL,
    issued_at      BIGINT NOT NULL,
    policy         TEXT COLLATE "C",
    policy_version BIGINT,
    signed         BYTEA NOT NULL,
    PRIMARY KEY (device, generation)
);

-- Rollouts of a policy in waves, and who did what. A rollout's whole state is here: a controller that is killed goes on
-- where it was. Enumerations are texts.
CREATE TABLE rollouts (
    id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    policy     TEXT COLLATE "C" NOT NULL,
    version    BIGINT NOT NULL,
    parameters TEXT NOT NULL, -- JSON object
    plan       TEXT NOT NULL, -- JSON object
    state      TEXT NOT NULL,
    reason     TEXT,          -- why it is in this state, where it was not simply told to be
    wave       BIGINT NOT NULL, -- the one that is out, the canary being 0
    wave_since BIGINT NOT NULL,
    gauges     TEXT NOT NULL, -- JSON list: what the gates measured last
    forecast   TEXT,          -- JSON; null where there was nothing to replay on
    first_row  BIGINT NOT NULL, -- summaries behind this one are its evidence
    created_at BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    changed_at BIGINT NOT NULL
);

CREATE TABLE rollout_devices (
    rollout     BIGINT NOT NULL REFERENCES rollouts (id),
    device      TEXT COLLATE "C" NOT NULL,
    state       TEXT NOT NULL,
    why         TEXT,          -- why it failed
    wave        BIGINT,        -- null while it waits
    generation  BIGINT,        -- with which it got the policy
    ordered_at  BIGINT,
    was_alive   BOOLEAN NOT NULL DEFAULT FALSE, -- when it was ordered
    in_force_at BIGINT,
    boot        BYTEA,         -- the run that was heard of last
    restarts    BIGINT NOT NULL DEFAULT 0,
    previous    BYTEA,         -- the signed desired state before, to go back to
    before      TEXT,          -- JSON: what its windows said before
    PRIMARY KEY (rollout, device)
);

CREATE INDEX rollout_devices_by_device ON rollout_devices (device);

CREATE TABLE audit (
    id      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      BIGINT NOT NULL,
    who     TEXT NOT NULL, -- name of a token, or `controller`
    what    TEXT NOT NULL, -- e.g. `rollout.start`
    subject TEXT NOT NULL, -- e.g. `rollout 3`
    detail  TEXT NOT NULL
);

CREATE INDEX audit_by_subject ON audit (subject, id);

-- Who may do what. Secrets are kept as SHA-256 digests only: they are 256 random bits, so that no slow hash is needed.
CREATE TABLE tokens (
    id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE, -- never used again, so that the audit log stays true
    role       TEXT NOT NULL,
    digest     BYTEA NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT,
    used_at    BIGINT -- to some minutes
);

-- Logins of browsers. They end with their token.
CREATE TABLE sessions (
    digest     BYTEA PRIMARY KEY,
    token      BIGINT NOT NULL REFERENCES tokens (id),
    expires_at BIGINT NOT NULL
);

-- Pieces of exit traces that devices share.
CREATE TABLE traces (
    id            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device        TEXT COLLATE "C" NOT NULL,
    model         TEXT NOT NULL,
    model_version BIGINT NOT NULL,
    model_digest  BYTEA NOT NULL,
    frames        BIGINT NOT NULL,
    received_at   BIGINT NOT NULL,
    digest        BYTEA NOT NULL UNIQUE, -- of its bytes: what comes twice is kept once
    bytes         BYTEA NOT NULL
);

CREATE INDEX traces_by_device ON traces (device, id);

-- How devices get their certificates: a token holds once and for a while; only its digest is kept.
CREATE TABLE enrolments (
    digest     BYTEA PRIMARY KEY,
    device     TEXT COLLATE "C", -- the only device that it is for; null for any that has no certificate yet
    created_at BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at    BIGINT,
    used_by    TEXT
);

CREATE TABLE certificates (
    device     TEXT COLLATE "C" PRIMARY KEY,
    issued_at  BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
