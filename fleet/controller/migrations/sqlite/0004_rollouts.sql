-- Rollouts of a policy in waves, and who did what. A rollout's whole state is here: a controller that is killed goes on
-- where it was. Enumerations are texts.

ALTER TABLE devices ADD COLUMN reported_refused_generation INTEGER;

CREATE TABLE rollouts (
    id         INTEGER PRIMARY KEY NOT NULL,
    policy     TEXT NOT NULL,
    version    INTEGER NOT NULL,
    parameters TEXT NOT NULL, -- JSON object
    plan       TEXT NOT NULL, -- JSON object
    state      TEXT NOT NULL,
    reason     TEXT,          -- why it is in this state, where it was not simply told to be
    wave       INTEGER NOT NULL, -- the one that is out, the canary being 0
    wave_since INTEGER NOT NULL,
    gauges     TEXT NOT NULL, -- JSON list: what the gates measured last
    first_row  INTEGER NOT NULL, -- summaries behind this one are its evidence
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    changed_at INTEGER NOT NULL
) STRICT;

CREATE TABLE rollout_devices (
    rollout     INTEGER NOT NULL REFERENCES rollouts (id),
    device      TEXT NOT NULL,
    state       TEXT NOT NULL,
    why         TEXT,          -- why it failed
    wave        INTEGER,       -- null while it waits
    generation  INTEGER,       -- with which it got the policy
    ordered_at  INTEGER,
    was_alive   INTEGER NOT NULL DEFAULT 0, -- when it was ordered
    in_force_at INTEGER,
    boot        BLOB,          -- the run that was heard of last
    restarts    INTEGER NOT NULL DEFAULT 0,
    previous    BLOB,          -- the signed desired state before, to go back to
    before      TEXT,          -- JSON: what its windows said before
    PRIMARY KEY (rollout, device)
) STRICT, WITHOUT ROWID;

CREATE INDEX rollout_devices_by_device ON rollout_devices (device);

CREATE TABLE audit (
    id      INTEGER PRIMARY KEY NOT NULL,
    at      INTEGER NOT NULL,
    who     TEXT NOT NULL, -- a person, or `controller`
    what    TEXT NOT NULL, -- e.g. `rollout.start`
    subject TEXT NOT NULL, -- e.g. `rollout 3`
    detail  TEXT NOT NULL
) STRICT;

CREATE INDEX audit_by_subject ON audit (subject, id);
